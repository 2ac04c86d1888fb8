"""The command as a user runs it, in its own processes: finish, repeat, kill, extend, fail, retry."""

import csv
import json
import os
import random
import re
import signal
import subprocess
import sys
import time

import pytest
from tiny import TINY

from scaling.sealed import read_sealed

TIMING = {"train_seconds", "eval_seconds", "overhead_seconds", "host", "finished_at", "attempts"}


def scaling(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "scaling.cli.main", *map(str, arguments)], capture_output=True, text=True, timeout=250, **options
    )


def tables(root):
    """Every table of a results folder without timing columns."""
    found = {}
    for path in sorted(root.glob("*.csv")):
        with open(path, newline="") as file:
            rows = [{key: value for key, value in row.items() if key not in TIMING} for row in csv.DictReader(file)]
        found[path.name] = rows
    import duckdb

    found["curves"] = duckdb.sql(f"SELECT * FROM '{root}/curves.parquet' ORDER BY ALL").fetchall()
    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, text_folder):
    """Results of a tiny sweep that nobody disturbed, with its sweep file."""
    folder = tmp_path_factory.mktemp("undisturbed")
    sweep = folder / "tiny.toml"
    sweep.write_text(TINY.format(corpus=text_folder))
    done = scaling("run", sweep, "--results", folder)
    assert done.returncode == 0, done.stderr
    return sweep, folder / "tiny", done


def test_plan_of_a_finished_sweep_says_where_one_more_seed_pays(undisturbed):
    sweep, root, _ = undisturbed
    planned = scaling("plan", sweep, "--results", root.parent)
    assert planned.returncode == 0
    assert "one seed more, by what it takes off the sd of the forecast" in planned.stderr
    assert planned.stderr.count("% of the best a FLOP") == 2 and " 100 % of the best a FLOP" in planned.stderr


def test_run_ends_with_laws_forecast_and_places(undisturbed):
    _, root, done = undisturbed
    for words in ("chinchilla: L = E + A/N^alpha + B/D^beta", "95 % interval", "forecast", "observed", "report.html", "next"):
        assert words in done.stdout
    assert "\x1b" not in done.stdout + done.stderr and "17/17 runs" in done.stderr
    expected = (
        "runs laws fits windows noise exclusions frontier returns critical approaches conventions predictions tuning rate_law".split()
    )
    assert {path.stem for path in root.glob("*.csv")} == set(expected)
    assert (root / "curves.parquet").exists() and (root / "report.html").exists() and (root / "checklist.md").exists()
    assert len(list((root / "plots").glob("*.png"))) >= 6
    rows = tables(root)["runs.csv"]
    assert len(rows) == 17 and {row["status"] for row in rows} == {"done"}


def test_the_forecast_is_older_than_the_hold_out_and_in_its_config(undisturbed):
    _, root, _ = undisturbed
    (forecast,) = (root / "forecasts").glob("*.json")
    target = json.loads(forecast.read_text())["target"]
    config = json.loads((root / "runs" / target["run_id"] / "config.json").read_text())
    assert config["role"] == "holdout" and config["forecast"] == forecast.stem
    assert forecast.stat().st_mtime < (root / "runs" / target["run_id"] / "weights.safetensors").stat().st_mtime
    fitted = set(json.loads(forecast.read_text())["runs"])
    assert target["run_id"] not in fitted and len(fitted) == 16
    (row,) = [row for row in tables(root)["predictions.csv"] if row["kind"] == "forecast"]
    assert row["run_id"] == target["run_id"] and float(row["observed"]) > 0


def test_a_finished_sweep_trains_nothing_and_changes_nothing(undisturbed):
    sweep, root, _ = undisturbed
    before = tables(root)
    again = scaling("run", sweep, "--results", root.parent)
    assert again.returncode == 0 and "nothing to train" in again.stderr
    assert tables(root) == before


def test_a_forecast_that_was_changed_or_lost_is_restored_from_the_record_of_its_run(undisturbed, tmp_path):
    import shutil

    sweep, root, _ = undisturbed
    shutil.copytree(root, tmp_path / "tiny")
    (forecast,) = (tmp_path / "tiny" / "forecasts").glob("*.json")
    registered = forecast.read_bytes()
    better = registered.replace(b'"threshold_relative_error": 0.5', b'"threshold_relative_error": 0.9')
    for found in (better, registered[:100], None):
        forecast.unlink() if found is None else forecast.write_bytes(found)
        again = scaling("run", sweep, "--results", tmp_path)
        assert again.returncode == 0 and "forecast restored as it was registered" in again.stderr
        assert forecast.read_bytes() == registered and tables(tmp_path / "tiny") == tables(root)
    assert forecast.with_name(f"{forecast.name}.damaged-1").read_bytes() == better  # what was there stays visible


def test_killed_at_random_moments_the_tables_are_the_same(undisturbed, tmp_path):
    """kill -9 of the launcher (its workers follow it), ten times, then once to the end."""
    sweep, root, _ = undisturbed
    chance = random.Random(0)
    for _ in range(10):
        process = subprocess.Popen(
            [sys.executable, "-m", "scaling.cli.main", "run", str(sweep), "--results", str(tmp_path)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(chance.uniform(0.3, 4.0))
        process.send_signal(signal.SIGKILL)
        process.wait()
    last = scaling("run", sweep, "--results", tmp_path)
    assert last.returncode == 0, last.stderr
    assert tables(tmp_path / "tiny") == tables(root)


def test_killed_workers_are_replaced(undisturbed, tmp_path):
    sweep, root, _ = undisturbed
    process = subprocess.Popen(
        [sys.executable, "-m", "scaling.cli.main", "run", str(sweep), "--results", str(tmp_path)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    time.sleep(3)
    killed = 0
    for path in (tmp_path / "tiny" / "trunks").glob("*/claim"):
        try:
            os.kill(json.loads(path.read_text())["pid"], signal.SIGKILL)
            killed += 1
        except (OSError, ValueError):
            continue
    assert process.wait(timeout=200) == 0
    assert tables(tmp_path / "tiny") == tables(root)


def test_workers_end_with_their_parent(tmp_path, tiny_sweep):
    process = subprocess.Popen(
        [sys.executable, "-m", "scaling.cli.main", "run", str(tiny_sweep), "--results", str(tmp_path)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    children = []
    for _ in range(100):
        time.sleep(0.1)
        children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
        if len(children) == 2:
            break
    process.send_signal(signal.SIGKILL)
    process.wait()
    deadline = time.time() + 5
    while time.time() < deadline and any(os.path.exists(f"/proc/{pid}") for pid in children):
        time.sleep(0.1)
    assert children and not any(os.path.exists(f"/proc/{pid}") for pid in children)


def test_an_extended_sweep_trains_only_what_is_new(undisturbed, tmp_path):
    import shutil

    sweep, root, _ = undisturbed
    shutil.copytree(root, tmp_path / "tiny")
    longer = tmp_path / "tiny.toml"
    longer.write_text(sweep.read_text().replace('"24k", "40k"]\n[training]', '"24k", "40k", "64k"]\n[training]'))
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "tiny" / "runs").iterdir()}
    done = scaling("run", longer, "--results", tmp_path)
    assert done.returncode == 0 and "4 of 21 runs to train" in done.stderr, done.stderr
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "tiny" / "runs").iterdir()}
    assert len(after) == 21 and all(after[name] == value for name, value in before.items())
    log = (tmp_path / "tiny" / "workers.log").read_text()
    assert "continues at step" in log  # from the kept trunk state, not from the start


def test_a_failed_trunk_is_recorded_the_rest_goes_on_and_retry_heals_it(undisturbed, tmp_path):
    import shutil

    sweep, root, _ = undisturbed
    shutil.copytree(root, tmp_path / "tiny")
    trunk = next((tmp_path / "tiny" / "trunks").iterdir())
    for run in (tmp_path / "tiny" / "runs").iterdir():
        if json.loads((run / "result.json").read_text())["trunk_id"] == trunk.name:
            shutil.rmtree(run)
    (trunk / "failure.json").write_text(json.dumps({"reason": "MemoryError: made for this test"}))
    failed = scaling("run", sweep, "--results", tmp_path)
    assert failed.returncode == 3 and "made for this test" in failed.stderr
    status = scaling("status", tmp_path / "tiny")
    assert "failed" in status.stdout and "MemoryError: made for this test" in status.stdout
    healed = scaling("run", sweep, "--results", tmp_path, "--retry", "failed")
    assert healed.returncode == 0, healed.stderr
    assert tables(tmp_path / "tiny")["runs.csv"] == tables(root)["runs.csv"]


def test_a_worker_alone_trains_everything_but_the_hold_out(undisturbed, tmp_path):
    import shutil

    _, root, _ = undisturbed
    (tmp_path / "w").mkdir()
    shutil.copy(root / "sweep.resolved.json", tmp_path / "w")
    done = scaling("worker", tmp_path / "w")
    assert done.returncode == 0 and "trained 4 trunks; 1 trunks left" in done.stderr
    assert len(list((tmp_path / "w" / "runs").iterdir())) == 16


def test_status_for_scripts_and_live(undisturbed, tiny_sweep, tmp_path):
    _, root, _ = undisturbed
    rows = json.loads(scaling("status", root, "--json").stdout)
    assert (
        len(rows) == 17 and {row["status"] for row in rows} == {"done"} and all(row["loss"] > 0 and row["reason"] is None for row in rows)
    )
    assert scaling("status", root, "--json", "--watch").returncode == 2
    training = subprocess.Popen(
        [sys.executable, "-m", "scaling.cli.main", "run", str(tiny_sweep), "--results", str(tmp_path), "--workers", "2"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    while not (tmp_path / "tiny" / "sweep.resolved.json").exists():
        assert training.poll() is None
        time.sleep(0.1)
    watched = scaling("status", tmp_path / "tiny", "--watch")
    assert watched.returncode == 0 and "17 runs: 17 done" in watched.stdout and "17/17 runs" in watched.stderr
    assert training.wait(timeout=120) == 0


def test_status_plan_clean_and_help(undisturbed):
    sweep, root, _ = undisturbed
    status = scaling("status", root)
    assert status.returncode == 0 and "17 runs: 17 done" in status.stdout
    plan = scaling("plan", sweep, "--results", root.parent)
    assert plan.returncode == 0 and plan.stdout.count("done") == 17 and "5 trunks" in plan.stderr
    clean = scaling("clean", root)
    assert clean.returncode == 0 and "can go" in clean.stdout
    for command in "plan run worker status clean fit plot report optimal predict query laws".split():
        shown = scaling(command, "--help")
        assert shown.returncode == 0 and "example" in shown.stdout
    missing = scaling("status", root.parent / "nowhere")
    assert missing.returncode == 2 and missing.stderr.count("\n") == 1


def test_plan_measures_this_machine_once_and_a_run_renews_it(tiny_sweep, tmp_path):
    environment = {**os.environ, "SCALING_CACHE": str(tmp_path / "cache")}
    first, second = (scaling("plan", tiny_sweep, "--results", tmp_path, env=environment) for _ in range(2))
    assert first.returncode == second.returncode == 0, first.stderr
    assert "measuring this machine" in first.stderr and "measuring" not in second.stderr
    assert "rough" not in first.stderr + second.stderr and not (tmp_path / "tiny").exists()
    (calibration,) = (tmp_path / "cache" / "compiled" / "calibration").glob("*.sealed")
    before = json.loads(read_sealed(calibration))
    assert sorted(shape["model"]["d_model"] for shape in before["shapes"]) == [8, 24]
    done = scaling("run", tiny_sweep, "--results", tmp_path, env=environment)
    assert done.returncode == 0 and "rough" not in done.stderr and "were expected" in done.stderr, done.stderr
    after = json.loads(read_sealed(calibration))
    assert sorted(shape["model"]["d_model"] for shape in after["shapes"]) == [8, 16, 24] and after["analysis"] != before["analysis"]


def test_the_account_of_a_run_adds_up(undisturbed):
    _, root, done = undisturbed
    workers = re.search(r"time of (\d+) workers: training", done.stderr)
    provenance = json.loads((root / "provenance.json").read_bytes())
    seconds = provenance["worker_seconds"]
    assert set(seconds) == {"training", "evaluation", "compilation", "start-up", "records", "waiting"}
    assert workers and sum(seconds.values()) <= int(workers[1]) * provenance["training_wall_seconds"] + 0.5
    with open(root / "runs.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert sum(float(row["train_seconds"]) for row in rows) == pytest.approx(seconds["training"], abs=0.1)
    overhead = seconds["compilation"] + seconds["start-up"] + seconds["records"]
    assert sum(float(row["overhead_seconds"]) for row in rows) == pytest.approx(overhead, abs=0.2)


def test_a_results_folder_that_cannot_be_made_is_one_line(tiny_sweep, tmp_path):
    (tmp_path / "file").write_text("")
    done = scaling("run", tiny_sweep, "--results", tmp_path / "file")
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and str(tmp_path / "file") in done.stderr


def test_workers_that_cannot_start_are_named(tiny_sweep, tmp_path):
    done = scaling("run", tiny_sweep, "--results", tmp_path, env={**os.environ, "JAX_PLATFORMS": "no_such_device"})
    assert done.returncode in (1, 3), done.stderr
    assert "Traceback" not in done.stderr and "no_such_device" in done.stderr + (tmp_path / "tiny" / "workers.log").read_text()


def test_a_worker_starts_without_flax():
    code = "import sys; import scaling.worker; assert not {'flax', 'pandas', 'scipy'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_help_is_quick_because_it_imports_no_jax():
    code = "import sys; from scaling.cli.main import parser; parser(); assert not {'jax', 'pandas', 'scipy'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
