"""A Slurm cluster of one node in a folder: munged, slurmctld and slurmd as plain processes of this user, ended by their ids.

By hand: `python tests/cluster/slurm_node.py FOLDER`, then in another shell `export SLURM_CONF=FOLDER/slurm.conf`; Ctrl-C ends it.
"""

import getpass
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "sinfo")

CONF = """
ClusterName=drill
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=6
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
SlurmdTimeout=10
KillWait=20
MpiDefault=none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=drill Nodes={host} Default=YES MaxTime=60 State=UP
"""
"""A revoked credential counts for 6 s (120 by default), so a requeued job starts again within seconds."""


def missing() -> list[str]:
    """Programs that are not installed."""
    return [name for name in PROGRAMS if not shutil.which(name)]


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [made.getsockname()[1] for made in sockets]
    for made in sockets:
        made.close()
    return ports


def descendants(pid: int) -> list[int]:
    """Process ids below a process."""
    try:
        children = [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
    return [*children, *(below for child in children for below in descendants(child))]


def kill(pids: list[int]) -> None:
    """Kill -9."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@dataclass
class SlurmNode:
    """The cluster; `start` and `stop` it, or kill what a machine loses when it dies."""

    folder: Path
    cpus: int = 2
    running: dict[str, subprocess.Popen] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        """What Slurm's commands need to find it."""
        return {**os.environ, "SLURM_CONF": str(self.folder / "slurm.conf")}

    def start(self) -> None:
        """Write the configuration and start the three daemons."""
        munge = self.folder / "munge"
        for made in (munge, self.folder / "state", self.folder / "spool"):
            made.mkdir(parents=True)
        key = munge / "key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o400)
        for path in (self.folder, munge):
            path.chmod(0o755)
        controller_port, node_port = free_ports(2)
        names = {"host": socket.gethostname().partition(".")[0], "user": getpass.getuser(), "cpus": self.cpus, "folder": self.folder}
        (self.folder / "slurm.conf").write_text(CONF.format(**names, controller_port=controller_port, node_port=node_port))
        files = [f"--{name}-file={munge}/{name}" for name in ("key", "log", "pid", "seed")]
        self._run("munged", "--foreground", "--force", f"--socket={munge}/socket", *files)
        self._wait(lambda: (munge / "socket").exists(), "munged")
        self.start_controller()
        self.start_node()

    def start_controller(self) -> None:
        """Start slurmctld, which reads the state that it left."""
        self._run("slurmctld", "-D")
        self._wait(lambda: self.ask("sinfo", "--noheader").returncode == 0, "slurmctld")

    def start_node(self) -> None:
        """Start slurmd and wait until the node can have jobs."""
        self._run("slurmd", "-D")
        self._wait(lambda: self.ask("sinfo", "--noheader", "--format=%t").stdout.strip() in ("idle", "mix", "alloc"), "slurmd")

    def ask(self, *command: str) -> subprocess.CompletedProcess:
        """Run one of Slurm's commands."""
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60)

    def steps(self) -> list[int]:
        """Process ids of this cluster's job steps (they outlive slurmd, and know whose they are) and of all that they started."""
        mine, found = f"SLURM_CONF={self.folder}/slurm.conf".encode(), []
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if (process / "comm").read_text().strip() == "slurmstepd" and mine in (process / "environ").read_bytes().split(b"\0"):
                    found.append(int(process.name))
        return [pid for step in found for pid in (step, *descendants(step))]

    def kill_daemon(self, name: str) -> None:
        """Kill -9 of one daemon alone."""
        self.running[name].kill()
        self.running.pop(name).wait()

    def kill_node(self) -> None:
        """What happens when the machine loses power: slurmd, steps and workers are gone."""
        self.kill_daemon("slurmd")
        kill(self.steps())

    def stop(self) -> None:
        """End everything."""
        with suppress(subprocess.TimeoutExpired):
            self.ask("scancel", f"--user={getpass.getuser()}")
        kill(self.steps())
        for process in reversed(self.running.values()):
            kill(descendants(process.pid))
            process.kill()
            process.wait()

    def _run(self, name: str, *arguments: str) -> None:
        with open(self.folder / f"{name}.out", "ab") as log:
            self.running[name] = subprocess.Popen([name, *arguments], env=self.environment, stdout=log, stderr=log, start_new_session=True)

    def _wait(self, condition, what: str) -> None:
        deadline = time.monotonic() + 60
        while not condition():
            if time.monotonic() > deadline or self.running[what].poll() is not None:
                self.stop()
                raise RuntimeError(f"{what} did not start; {self.folder}/{what}.log says why")
            time.sleep(0.2)


def main() -> int:
    """A cluster to play with."""
    if missing():
        print(f"not installed: {', '.join(missing())} (Debian: slurm-wlm, munge)", file=sys.stderr)
        return 2
    node = SlurmNode(Path(sys.argv[1]).resolve())
    node.start()
    print(f"export SLURM_CONF={node.folder}/slurm.conf", flush=True)
    try:
        signal.pause()
    except KeyboardInterrupt:
        return 0
    finally:
        node.stop()


if __name__ == "__main__":
    sys.exit(main())
