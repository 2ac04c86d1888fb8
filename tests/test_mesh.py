"""One run on several devices: four that a CPU plays, and two processes. The truth is the same run on one device."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest

from scaling.cli.main import main
from scaling.config import Devices, UserError
from scaling.corpus import prepare
from scaling.display import Display
from scaling.launch import launch
from scaling.mesh import make_mesh
from scaling.plan import resolve
from scaling.record import Folder, Resolved, read_metrics, read_result, write_json
from scaling.sweep_file import load_sweep
from scaling.worker import work

MESHES = ((4, 1), (2, 2), (1, 4))
FOUR_DEVICES = """
import json, sys
from pathlib import Path
from scaling.launch import be_a_worker
be_a_worker(cpu=None, dies_with_stdin=False, cpu_devices=4)
from scaling.worker import work
said = []
trained = [work(Path(root), notify=said.append) for root in sys.argv[1:]]
print(json.dumps([trained, said]))
"""


def planned(path, *, data=1, parameters=1, branches=3, **devices) -> Resolved:
    """One trunk of width 16 with its shortest branches."""
    sweep = load_sweep(path)
    sweep = msgspec.structs.replace(sweep, holdout=None, devices=Devices(data=data, parameters=parameters, **devices))
    corpus = prepare(sweep.corpus)
    runs = [run for run in resolve(sweep, corpus_hash=corpus.content_hash) if run.trunk.model.d_model == 16 and not run.trunk.seed_init]
    return Resolved(sweep=sweep, corpus_hash=corpus.content_hash, corpus_facts=corpus.facts, runs=runs[:branches])


def ready(root: Path, resolved: Resolved) -> Folder:
    root.mkdir(parents=True, exist_ok=True)
    write_json(Folder(root).resolved, resolved)
    return Folder(root)


def on_four_devices(*folders: Folder) -> tuple[list[int], list[str]]:
    """Runs trained in each folder, and what the worker said."""
    command = [sys.executable, "-c", FOUR_DEVICES, *(str(folder.root) for folder in folders)]
    trained, said = json.loads(subprocess.run(command, capture_output=True, text=True, check=True, timeout=200).stdout.splitlines()[-1])
    return trained, said


def assert_same_losses(folder: Folder, reference: Folder, resolved: Resolved, *, devices: int) -> None:
    """Within 1e-5: the order of sums is all that differs."""
    for run in resolved.runs:
        found, expected = read_result(folder, run.run_id), read_result(reference, run.run_id)
        assert (found["devices"], expected["devices"]) == (devices, 1)
        assert found["loss"] == pytest.approx(expected["loss"], rel=1e-5)
        curves = [[point["train_loss"] for point in read_metrics(f.run(run.run_id) / "metrics.jsonl")] for f in (folder, reference)]
        np.testing.assert_allclose(*curves, rtol=1e-5)


@pytest.fixture
def reference(tmp_path, tiny_sweep) -> Folder:
    folder = ready(tmp_path / "one", planned(tiny_sweep))
    assert work(folder.root) == 1
    return folder


def test_losses_on_every_mesh_and_states_that_go_from_one_to_another(tmp_path, tiny_sweep, reference):
    """Data-parallel, parameters cut in pieces, and both; then a trunk that was begun on one mesh ends on another, and on one device."""
    resolved = planned(tiny_sweep)
    folders = [
        ready(tmp_path / f"{data}x{parameters}", planned(tiny_sweep, data=data, parameters=parameters)) for data, parameters in MESHES
    ]
    begun = [ready(tmp_path / name, planned(tiny_sweep, data=2, parameters=2, branches=1)) for name in ("moves", "to one")]
    trained, _ = on_four_devices(*folders, *begun)
    assert trained == [1] * 5
    for folder in folders:
        assert_same_losses(folder, reference, resolved, devices=4)
        assert len(list(folder.root.glob("trunks/*/state-*"))) == 1
    ready(begun[0].root, planned(tiny_sweep, data=1, parameters=4))
    trained, said = on_four_devices(begun[0])
    ready(begun[1].root, resolved)
    assert trained == [work(begun[1].root, notify=said.append)] == [1]
    assert sum("continues at step" in line for line in said) == 2
    for folder in begun:
        for run in resolved.runs:
            assert read_result(folder, run.run_id)["loss"] == pytest.approx(read_result(reference, run.run_id)["loss"], rel=1e-5)


def test_two_processes_train_each_run_together(tmp_path, tiny_sweep, reference):
    """Each with two devices; only the first one writes. `scaling run --workers 0` waits for them."""
    resolved = planned(tiny_sweep, data=2, parameters=2)
    folder = ready(tmp_path / "two", resolved)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = f"{sys.executable} -m scaling.cli.main worker {folder.root} --coordinator {address} --processes 2 --process".split()
    processes = [subprocess.Popen([*command, str(number)], stderr=subprocess.PIPE, text=True, env=os.environ) for number in (0, 1)]
    launch(folder.root, workers=0, next_runs=lambda: None, display=Display(folder, resolved))
    said = [process.communicate(timeout=200)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    assert_same_losses(folder, reference, planned(tiny_sweep), devices=4)
    assert len(list(folder.root.glob("trunks/*/state-*"))) == 1 and not list(folder.root.glob("trunks/*/claim"))


def test_too_few_devices_are_refused():
    with pytest.raises(UserError, match=r"devices.data x devices.parameters = 2, but JAX has 1 devices \(cpu\)"):
        make_mesh(Devices(data=2))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--process", "0"], "go with --coordinator"),
        (["--coordinator", "here:1"], "needs --processes N and --process I"),
        (["--coordinator", "here:1", "--processes", "2", "--process", "2"], "with I from 0 to N - 1"),
    ],
)
def test_processes_that_cannot_find_each_other_are_refused(tmp_path, tiny_sweep, arguments, said, capsys):
    folder = ready(tmp_path / "a", planned(tiny_sweep))
    assert main(["worker", str(folder.root), *arguments]) == 2
    assert said in capsys.readouterr().err
