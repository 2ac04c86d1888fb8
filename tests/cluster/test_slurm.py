"""`scaling run --executor slurm` on a real Slurm of one node (`make test-cluster`)."""

import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from launcher import ended, report, start
from slurm_node import SlurmNode, missing

from faults.bench import Bench, claimed, wait_for

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(bool(missing()), reason=f"no Slurm here: {', '.join(missing())} not found (Debian: slurm-wlm, munge)"),
]


@pytest.fixture(scope="module")
def node(tmp_path_factory) -> Iterator[SlurmNode]:
    """Slurm with two cores."""
    made = SlurmNode(tmp_path_factory.mktemp("slurm"))
    made.start()
    yield made
    made.stop()


def launch(bench: Bench, node: SlurmNode, results: Path, *more: str):
    """Begin the sweep as an array of two workers."""
    environment = {"SLURM_CONF": node.environment["SLURM_CONF"]}
    return start(bench, results, "--executor", "slurm", "--workers", "2", "--time-limit", "10", *more, environment=environment)


def in_the_middle(root: Path) -> bool:
    """Whether a trunk is being trained and another state has been saved."""
    return bool(claimed(root)) and bool(list(root.glob("trunks/*/state-*")))


def restarts(node: SlurmNode) -> list[int]:
    """How often each job of this cluster was started again, by Slurm's own account."""
    shown = node.ask("scontrol", "show", "job").stdout
    return [int(count) for count in re.findall(r"Restarts=(\d+)", shown)]


def logs(root: Path) -> str:
    return "".join(path.read_text() for path in root.glob("slurm-*.log"))


def test_an_array_of_workers_trains_the_sweep(bench, node):
    results, began = bench.fresh("slurm"), time.monotonic()
    launcher = launch(bench, node, results)
    assert ended(bench, results, launcher) == []
    report(f"Slurm, undisturbed: {time.monotonic() - began:.0f} s")
    assert len(list((results / "drill").glob("slurm-1_[01].log"))) == 2  # the first array; the hold-out had its own
    assert logs(results / "drill").count(": complete after step ") == 5  # every trunk once, by Slurm's workers
    assert not (results / "drill" / "workers.log").exists()


def test_a_node_dies_and_comes_back(bench, node):
    results, began = bench.fresh("slurm"), time.monotonic()
    root = results / "drill"
    launcher = launch(bench, node, results)
    assert wait_for(lambda: in_the_middle(root))
    before = sum(restarts(node))
    node.kill_node()
    assert claimed(root)  # nobody could say good-bye
    time.sleep(1)
    node.start_node()
    assert wait_for(lambda: sum(restarts(node)) > before)
    assert ended(bench, results, launcher) == []
    report(f"Slurm, node killed and started again: {time.monotonic() - began:.0f} s, restarts {restarts(node)}")
    assert logs(root).count(": complete after step ") == 5


def test_a_daemon_dies_and_comes_back(bench, node):
    """Jobs do not need slurmd while they run, nor the launcher slurmctld while it waits."""
    results, began = bench.fresh("slurm"), time.monotonic()
    root = results / "drill"
    launcher = launch(bench, node, results)
    assert wait_for(lambda: in_the_middle(root))
    node.kill_daemon("slurmd")
    node.kill_daemon("slurmctld")
    time.sleep(6)
    node.start_controller()
    node.start_node()
    assert ended(bench, results, launcher) == []
    report(f"Slurm, slurmd and slurmctld killed and started again: {time.monotonic() - began:.0f} s")
    assert logs(root).count(": complete after step ") == 5


def test_an_interrupted_launcher_cancels_its_jobs_and_states_are_saved(bench, node):
    results = bench.fresh("slurm")
    root = results / "drill"
    launcher = launch(bench, node, results)
    assert wait_for(lambda: in_the_middle(root))
    launcher.terminate()
    launcher.communicate(timeout=60)
    assert launcher.returncode == 143
    assert wait_for(lambda: not node.ask("squeue", "--noheader").stdout.strip())
    assert "stopped; saved at step" in logs(root)
    assert ended(bench, results, launch(bench, node, results)) == []
    assert logs(root).count(": complete after step ") == 5


def test_requeue_by_hand(bench, node):
    """As preemption does: SIGTERM, then the job waits in the queue again."""
    results = bench.fresh("slurm")
    root = results / "drill"
    launcher = launch(bench, node, results)
    assert wait_for(lambda: in_the_middle(root))
    job = node.ask("squeue", "--noheader", "--format=%F").stdout.split()[0]
    assert node.ask("scontrol", "requeue", job).returncode == 0
    assert ended(bench, results, launcher) == []
    assert logs(root).count(": complete after step ") == 5
