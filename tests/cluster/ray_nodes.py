"""A Ray cluster of two nodes on this machine, as plain processes of this user, ended by their ids (never `ray stop`, which ends everybody's).

By hand: `python tests/cluster/ray_nodes.py FOLDER` prints the address; Ctrl-C ends it.
"""

import os
import secrets
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from slurm_node import descendants, free_ports, kill


def missing() -> list[str]:
    """What is not installed."""
    return [] if find_spec("ray") else ["ray"]


@dataclass
class RayNodes:
    """The cluster: a head with one core, and another node with one core."""

    folder: Path
    address: str = ""
    token: str = field(default_factory=lambda: secrets.token_hex(32))
    running: dict[str, subprocess.Popen] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        """What nodes and drivers need: the word that lets them in (Ray lets everybody in without), and no reports to anyone."""
        return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token, "RAY_USAGE_STATS_ENABLED": "0"}

    def start(self) -> None:
        """Start both nodes."""
        self.folder.mkdir(parents=True, exist_ok=True)
        port = free_ports(1)[0]
        self.address = f"127.0.0.1:{port}"
        self._run("head", "--head", f"--port={port}", "--include-dashboard=false", f"--temp-dir={self.folder}")
        self._wait(1)
        self.start_second()

    def start_second(self) -> None:
        """Start the node that is not the head."""
        self._run("second", f"--address={self.address}")
        self._wait(2)

    def kill_second(self) -> list[int]:
        """What happens when the machine loses power: raylet, tasks and workers are gone; returns their process ids."""
        process = self.running.pop("second")
        pids = [process.pid, *descendants(process.pid)]
        kill(pids)
        process.wait()
        return pids

    def nodes(self) -> int:
        """How many nodes are alive, by `ray status`."""
        asked = [sys.executable, "-m", "ray.scripts.scripts", "status", f"--address={self.address}"]
        done = subprocess.run(asked, env={**os.environ, **self.environment}, capture_output=True, text=True, timeout=60)
        active = done.stdout.partition("Active:")[2].partition("Pending:")[0]
        return active.count(" node_")

    def stop(self) -> None:
        """End everything."""
        for process in reversed(self.running.values()):
            kill([process.pid, *descendants(process.pid)])
            process.wait()

    def _run(self, name: str, *arguments: str) -> None:
        agent, metrics = free_ports(2)
        ports = [f"--dashboard-agent-listen-port={agent}", f"--metrics-export-port={metrics}"]
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--node-ip-address=127.0.0.1", "--num-cpus=1"]
        with open(self.folder / f"{name}.out", "ab") as log:
            options = {"stdout": log, "stderr": log, "start_new_session": True, "env": {**os.environ, **self.environment}}
            self.running[name] = subprocess.Popen([*command, "--object-store-memory=100000000", *ports, *arguments], **options)

    def _wait(self, nodes: int) -> None:
        deadline = time.monotonic() + 90
        while self.nodes() < nodes:
            if time.monotonic() > deadline or any(process.poll() is not None for process in self.running.values()):
                self.stop()
                raise RuntimeError(f"Ray did not start; {self.folder}/*.out say why")
            time.sleep(1)


def main() -> int:
    """A cluster to play with."""
    if missing():
        print("Ray is not installed: `make ray`", file=sys.stderr)
        return 2
    cluster = RayNodes(Path(sys.argv[1]).resolve())
    try:
        cluster.start()
        print(
            " ".join(f"{name}={value}" for name, value in cluster.environment.items()),
            f"scaling run ... --address {cluster.address}",
            flush=True,
        )
        signal.pause()
    except KeyboardInterrupt:
        return 0
    finally:
        with suppress(ProcessLookupError):
            cluster.stop()


if __name__ == "__main__":
    sys.exit(main())
