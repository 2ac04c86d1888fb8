"""Logs for TensorBoard and Weights & Biases, read back from their files; and the shell's completion."""

import csv
import subprocess
import sys

import pytest
from test_run import scaling

from scaling.record import read_metrics


def events(folder):
    """Scalars of a run's event files by tag, and the tags of other summaries: TFRecord framing (length, crc, event, crc)."""
    from tensorboardX.proto.event_pb2 import Event

    scalars, others = {}, set()
    for path in sorted(folder.glob("events*")):
        data, place = path.read_bytes(), 0
        while place < len(data):
            length = int.from_bytes(data[place : place + 8], "little")
            event = Event.FromString(data[place + 12 : place + 12 + length])
            place += 16 + length
            for value in event.summary.value:
                if value.WhichOneof("value") == "simple_value":
                    scalars.setdefault(value.tag, []).append((event.step, value.simple_value))
                else:
                    others.add(value.tag)
    return scalars, others


def test_tensorboard_has_every_curve_and_final_loss(tiny_sweep, tmp_path):
    done = scaling("run", tiny_sweep, "--results", tmp_path, "--log", "tensorboard")
    assert done.returncode == 0, done.stderr
    root = tmp_path / "tiny"
    with open(root / "runs.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {path.name for path in (root / "tensorboard").iterdir()} == {row["run_id"] for row in rows}
    for row in rows:
        scalars, others = events(root / "tensorboard" / row["run_id"])
        points = read_metrics(root / "runs" / row["run_id"] / "metrics.jsonl")
        assert [step for step, _ in scalars["train_loss"]] == [point["step"] for point in points]
        assert [value for _, value in scalars["train_loss"]] == pytest.approx([point["train_loss"] for point in points], rel=1e-6)
        assert scalars["final/loss"] == [(int(row["steps"]), pytest.approx(float(row["loss"]), rel=1e-6))]
        assert any("hparams" in tag for tag in others)


def test_logs_are_copies_that_a_later_run_makes_anew(tiny_sweep, tmp_path):
    assert scaling("run", tiny_sweep, "--results", tmp_path).returncode == 0
    again = scaling("run", tiny_sweep, "--results", tmp_path, "--log", "tensorboard")
    assert again.returncode == 0 and "nothing to train" in again.stderr
    assert len(list((tmp_path / "tiny" / "tensorboard").iterdir())) == 17


def test_wandb_off_line(tiny_sweep, tmp_path):
    pytest.importorskip("wandb")
    done = scaling("run", tiny_sweep, "--results", tmp_path, "--log", "wandb")
    assert done.returncode == 0 and "stopped" not in done.stderr, done.stderr
    written = list((tmp_path / "tiny" / "wandb").glob("*/wandb/offline-run-*/run-*.wandb"))
    assert len(written) == 17 and all(path.stat().st_size > 1000 for path in written)


def test_a_missing_library_is_said_before_anything_is_trained(tiny_sweep, tmp_path):
    program = (
        "import sys, importlib.util as u; real = u.find_spec;"
        "u.find_spec = lambda name, *rest: None if name == 'wandb' else real(name, *rest);"
        "from scaling.cli.main import main;"
        f"sys.exit(main({['run', str(tiny_sweep), '--results', str(tmp_path), '--log', 'wandb']!r}))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "pip install wandb" in done.stderr and len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "tiny").exists()


def test_bash_completes_commands_options_and_paths(tmp_path):
    script = tmp_path / "scaling.bash"
    script.write_text(scaling("completion", "bash").stdout)
    (tmp_path / "mine.toml").touch()

    def complete(*words):
        line = f"source {script}; COMP_WORDS=({' '.join(words)} ); COMP_CWORD={len(words) - 1}; _shtab_scaling; echo ${{COMPREPLY[@]}}"
        return subprocess.run(["bash", "-c", line], capture_output=True, text=True, cwd=tmp_path, timeout=60).stdout.split()

    assert complete("scaling", "pl") == ["plan", "plot"]
    assert complete("scaling", "run", "--lo") == ["--log"]
    assert complete("scaling", "run", "mi") == ["mine.toml"]
    assert complete("scaling", "run", "x.toml", "--log", "te") == ["tensorboard"]


def test_completion_scripts_of_other_shells_name_every_command():
    for shell in ("zsh", "tcsh"):
        script = scaling("completion", shell).stdout
        assert all(name in script for name in ("plan", "run", "status", "query", "completion"))
