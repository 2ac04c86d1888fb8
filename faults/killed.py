"""Processes that are killed, stopped, starved or asked to end."""

import os
import random
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

from faults.bench import Bench, Row, claimed, wait_for, workers_of

MEMORY = Path("/sys/fs/cgroup/memory")


def kill(pids: list[int]) -> None:
    """Kill -9."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def kill_worker(bench: Bench, tries: int) -> Row:
    """Workers die at random moments while their launcher lives on; a launcher that gives up is started again."""
    chance, done, outcomes = random.Random(1), 0, []
    while done < tries:
        results, sweep = bench.fresh("worker"), 0
        launcher = bench.start(results)
        while sweep < 10 and done < tries:
            time.sleep(chance.uniform(0.3, 4.0))
            if launcher.poll() is not None:
                break  # finished or given up: the next sweep has the next moments
            if workers := workers_of(launcher):
                kill([chance.choice(workers)])
                done, sweep = done + 1, sweep + 1
        launcher.wait(timeout=300)
        outcomes.append(bench.after(results))
    return bench.row("kill -9 of a worker, at random moments", outcomes, tried=done)


def kill_parent(bench: Bench, tries: int) -> Row:
    """The launcher dies; its workers see that their standard input is closed."""
    return _kill_launcher(bench, tries, "parent", "kill -9 of the parent, at random moments", with_workers=False)


def kill_both(bench: Bench, tries: int) -> Row:
    """Everything dies at once, as when a machine loses power (what was not flushed is on disk all the same)."""
    return _kill_launcher(bench, tries, "both", "kill -9 of the parent and its workers, at random moments", with_workers=True)


def _kill_launcher(bench: Bench, tries: int, name: str, fault: str, *, with_workers: bool) -> Row:
    chance, done, outcomes = random.Random(name), 0, []
    while done < tries:
        results = bench.fresh(name)
        for _ in range(min(10, tries - done)):
            launcher = bench.start(results)
            time.sleep(chance.uniform(0.5, 9.0))
            workers = workers_of(launcher)
            kill([launcher.pid, *(workers if with_workers else [])])
            launcher.wait()
            done += 1
            wait_for(lambda workers=workers: not any(os.path.exists(f"/proc/{pid}") for pid in workers), seconds=15)
        outcomes.append(bench.after(results))
    return bench.row(fault, outcomes, tried=done)


def terminate(bench: Bench, tries: int) -> Row:
    """SIGTERM to the launcher, SIGKILL 10 s later, as clusters do."""
    chance, outcomes, ended, saved = random.Random(3), [], 0, 0
    for _ in range(tries):
        results = bench.fresh("terminated")
        launcher = bench.start(results)
        wait_for(lambda results=results: claimed(results / "drill"))
        time.sleep(chance.uniform(0.3, 2.0))
        workers = workers_of(launcher)
        launcher.terminate()
        try:
            launcher.wait(timeout=10)
            ended += not any(os.path.exists(f"/proc/{pid}") for pid in workers)
        except subprocess.TimeoutExpired:
            kill([launcher.pid, *workers])
            launcher.wait()
        saved += "stopped; saved at step" in (results / "drill" / "workers.log").read_text()
        outcomes.append(bench.after(results))
    return bench.row("SIGTERM with 10 s of grace", outcomes, seen=f"{ended} ended in time, {saved} with a state saved on the way out")


def out_of_memory(bench: Bench, tries: int) -> Row:
    """The kernel kills every worker that begins a trunk (a memory group that is closed then), until the launcher says why and ends."""
    outcomes, named, killed = [], 0, 0
    for number in range(tries):
        results, group = bench.fresh("memory"), MEMORY / f"drill-{os.getpid()}-{number}"
        limit = group / "memory.limit_in_bytes"
        group.mkdir()
        launcher, doomed = bench.start(results, "--workers", "1"), -1
        while launcher.poll() is None:
            workers = workers_of(launcher)
            for pid in workers:
                with suppress(OSError):  # it has just ended
                    (group / "cgroup.procs").write_text(str(pid))
            if doomed not in workers:  # the next one starts with all the memory there is
                killed, doomed = killed + (doomed > 0), -1
                limit.write_text("-1")
            if doomed < 0 and (holders := set(workers) & set(claimed(results / "drill").values())):
                doomed = holders.pop()
                with suppress(OSError):  # less than it has now: the kernel refuses, and the next look tries again
                    limit.write_text(str(int((group / "memory.usage_in_bytes").read_text()) + (1 << 20)))
            time.sleep(0.02)
        group.rmdir()
        named += "out of memory?" in (bench.home / "launcher.log").read_text()
        outcomes.append(bench.after(results))
    return bench.row(
        "worker killed by the kernel for its memory", outcomes, seen=f"{killed} killed; the command says so: {named} of {tries}"
    )
