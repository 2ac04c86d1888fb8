"""A sweep's budget: never exceeded, whoever asks, and what is left out is named. Sums are made here from the plan."""

import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import msgspec
import pytest
from test_run import scaling, tables
from test_train import resolve_all, start

from scaling import claim as claims
from scaling.budget import Guard
from scaling.budget_limits import parse_duration
from scaling.config import Budget, UserError
from scaling.plan import group_trunks
from scaling.record import disk_usage
from scaling.sweep_file import load_sweep


def with_budget(resolved, **limits):
    return msgspec.structs.replace(resolved, sweep=msgspec.structs.replace(resolved.sweep, budget=Budget(**limits)))


@pytest.mark.parametrize(("text", "seconds"), [("45 s", 45), ("90min", 5400), ("1.5h", 5400), ("2 d", 172800)])
def test_durations(text, seconds):
    assert parse_duration(text, what="--max-time") == seconds


@pytest.mark.parametrize("text", ["", "2", "0 h", "-1 h", "h", "1 week", "nan h", "1e3 h"])
def test_other_durations_are_one_line(text):
    with pytest.raises(UserError, match="--max-time = "):
        parse_duration(text, what="--max-time")


def test_a_budget_that_cannot_be_read_is_a_mistake_of_the_sweep_file(tiny_sweep):
    tiny_sweep.write_text(tiny_sweep.read_text() + '\n[budget]\ndisk = "2 sheets"\n')
    with pytest.raises(UserError, match="budget.disk"):
        load_sweep(tiny_sweep)


def test_flops_are_reserved_by_whoever_comes_first(tmp_path, tiny_sweep):
    """Eight at once want four trunks; there is money for three, the dearest is left out and said so."""
    resolved = resolve_all(tiny_sweep)
    trunks = sorted((trunk for trunk in group_trunks(resolved.runs) if trunk.role == "fit"), key=lambda trunk: trunk.flops)
    resolved = with_budget(resolved, flops=sum(trunk.flops for trunk in trunks[:3]) * 1.0001)
    folder = start(tmp_path / "a", resolved)
    guard = Guard.of(folder, resolved)

    def take(number):
        trunk = trunks[number % 4]
        return trunk.trunk_id if claims.take(folder, trunk.trunk_id, allowed=lambda: trunk.trunk_id not in guard.left_out()) else None

    with ThreadPoolExecutor(8) as threads:
        taken = [trunk_id for trunk_id in threads.map(take, range(8)) if trunk_id]
    assert len(taken) == 3 and set(taken) < {trunk.trunk_id for trunk in trunks}
    left = guard.left_out()
    assert set(left) == {trunk.trunk_id for trunk in group_trunks(resolved.runs)} - set(taken)
    assert all(reason.startswith("left out: budget.flops: ") for reason in left.values())


def test_two_launchers_stay_within_the_flops_and_list_what_is_left_out(tmp_path, tiny_sweep):
    resolved = resolve_all(tiny_sweep)
    small = [trunk for trunk in group_trunks(resolved.runs) if trunk.config.model.d_model == 8]
    limit = sum(trunk.flops for trunk in small) * 1.01
    tiny_sweep.write_text(tiny_sweep.read_text() + f"\n[budget]\nflops = {limit:.6e}\n")
    command = [sys.executable, "-m", "scaling.cli.main", "run", str(tiny_sweep), "--results", str(tmp_path), "--workers", "1"]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=200)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    rows = tables(tmp_path / "tiny")["runs.csv"]
    assert sum(float(row["flops_spent"]) for row in rows if row["status"] == "done") <= limit
    assert {row["d_model"] for row in rows if row["status"] == "done"} == {"8"}
    others = [row for row in rows if row["status"] != "done"]
    assert len(others) == 9 and all(row["status"] == "missing" and "budget.flops" in row["reason"] for row in others)
    assert "9 runs left out: budget.flops" in said[0] and "9 missing" in scaling("status", tmp_path / "tiny").stdout


def test_disk_and_time_are_bounded(tmp_path, tiny_sweep):
    resolved = resolve_all(tiny_sweep)
    for name, text in (("disk", "4.2 MB"), ("time", "1 s")):
        limited = with_budget(resolved, **{name: text})
        folder = start(tmp_path / name, limited)
        left = Guard.of(folder, limited).left_out()
        assert left and all(f"budget.{name}" in reason for reason in left.values())
        assert disk_usage(folder.root) < 4.2e6


def test_time_that_is_spent_stops_the_worker(tmp_path, tiny_sweep):
    limited = with_budget(resolve_all(tiny_sweep), time="5 s")
    folder = start(tmp_path / "a", limited)
    guard, stopped = Guard.of(folder, limited), []
    with guard.metered("t", lambda: stopped.append(True)):
        (folder.trunk(limited.runs[0].trunk_id)).mkdir(parents=True)
        (folder.trunk(limited.runs[0].trunk_id) / "spent.json").write_text(json.dumps({"seconds": 4.0}))
        time.sleep(2.5)
    assert stopped
    assert 2 < json.loads((folder.trunk("t") / "spent.json").read_bytes())["seconds"] < 10


def test_max_time_ends_the_command_and_the_next_one_goes_on(tmp_path, tiny_sweep):
    tiny_sweep.write_text(tiny_sweep.read_text().replace('"40k"', '"40k", "400k"', 1).replace("evaluation]", "evaluation]"))
    first = scaling("run", tiny_sweep, "--results", tmp_path, "--max-time", "1 s")
    assert first.returncode == 3 and "remain undone" in first.stderr, first.stderr
    again = scaling("run", tiny_sweep, "--results", tmp_path)
    assert again.returncode == 0, again.stderr
    assert scaling("run", tiny_sweep, "--results", tmp_path, "--max-time", "soon").returncode == 2
