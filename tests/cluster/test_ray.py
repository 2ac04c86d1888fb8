"""`scaling run --executor ray` on a real Ray of two nodes (`make test-cluster`)."""

import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from launcher import ended, report, start
from ray_nodes import RayNodes, missing

from faults.bench import Bench, claimed, wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.skipif(bool(missing()), reason="Ray is not installed; `make ray` installs it")]


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayNodes]:
    """Ray with two nodes of one core each (in a short path: sockets lie below it)."""
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        made = RayNodes(Path(folder))
        made.start()
        yield made
        made.stop()


def launch(bench: Bench, cluster: RayNodes, results: Path) -> subprocess.Popen:
    """Begin the sweep as two tasks."""
    return start(bench, results, "--executor", "ray", "--workers", "2", "--address", cluster.address, environment=cluster.environment)


def logs(root: Path) -> str:
    return "".join(path.read_text() for path in root.glob("ray-*.log"))


def test_tasks_train_the_sweep(bench, cluster):
    results, began = bench.fresh("ray"), time.monotonic()
    assert ended(bench, results, launch(bench, cluster, results)) == []
    report(f"Ray, two nodes, undisturbed: {time.monotonic() - began:.0f} s")
    assert logs(results / "drill").count(": complete after step ") == 5  # every trunk once, by Ray's workers
    assert not (results / "drill" / "workers.log").exists()


def test_a_node_dies(bench, cluster):
    results, began = bench.fresh("ray"), time.monotonic()
    root = results / "drill"
    launcher = launch(bench, cluster, results)
    assert wait_for(lambda: len(claimed(root)) == 2 and bool(list(root.glob("trunks/*/state-*"))))
    killed = cluster.kill_second()
    lost = [pid for pid in claimed(root).values() if pid in killed]
    assert len(lost) == 1  # a worker of that node was in the middle of a trunk
    assert ended(bench, results, launcher) == []
    report(f"Ray, one of two nodes killed: {time.monotonic() - began:.0f} s")
    assert logs(root).count(": complete after step ") == 5
    assert wait_for(lambda: cluster.nodes() == 1)
    cluster.start_second()


def test_an_interrupted_launcher_ends_its_workers(bench, cluster):
    results = bench.fresh("ray")
    root = results / "drill"
    launcher = launch(bench, cluster, results)
    assert wait_for(lambda: bool(claimed(root)) and bool(list(root.glob("trunks/*/state-*"))))
    pids = list(claimed(root).values())
    launcher.terminate()
    launcher.communicate(timeout=60)
    assert launcher.returncode == 143
    assert wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), seconds=20)
    assert "stopped; saved at step" in logs(root)
    assert ended(bench, results, launch(bench, cluster, results)) == []
    assert logs(root).count(": complete after step ") == 5


def test_an_address_without_a_cluster(bench, cluster):
    results = bench.fresh("ray")
    for address, said in (("127.0.0.1:1", "nothing answers there"), ("somewhere", "use HOST:PORT")):
        done = bench.finish(results, "--executor", "ray", "--address", address)
        assert done.returncode == 2
        assert said in done.stderr
        assert done.stderr.count("\n") == 1
    assert not list(results.iterdir())  # nothing was begun
