"""Engines: the batch script that is written, and mistakes that are found before anything is trained (real clusters: tests/cluster)."""

import os
import shlex
import subprocess
import sys

import pytest

from scaling.config import UserError
from scaling.engines import EngineFailed, NothingGained, Patience, Slurm


@pytest.fixture
def slurm_commands(tmp_path, monkeypatch):
    """A folder with commands of Slurm's names on the PATH: what is written is looked at, nothing is submitted."""
    for name in ("sbatch", "squeue", "scancel"):
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("#!/bin/sh\nexit 1\n")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    return tmp_path


def directives(script: str) -> list[str]:
    """Options of a script, unquoted as a shell would (sbatch agrees for what is allowed: tests/cluster)."""
    return [shlex.split(line.removeprefix("#SBATCH "))[0] for line in script.splitlines() if line.startswith("#SBATCH ")]


def test_script(slurm_commands):
    options = directives(Slurm(slurm_commands / "grid", 4, "1-02:30:00", 2, "--partition=gpu").script(4))
    assert f"--output={slurm_commands}/grid/slurm-%A_%a.log" in options
    for wanted in ("--array=0-3", "--requeue", "--time=1-02:30:00", "--gpus-per-task=2", "--signal=B:TERM@60", "--partition=gpu"):
        assert wanted in options


def test_script_leaves_out_what_is_not_asked_for(slurm_commands):
    script = Slurm(slurm_commands / "grid", 4).script(1)
    assert "--time" not in script
    assert "gpus" not in script
    assert "--array=0-0" in directives(script)


def test_script_quotes(slurm_commands):
    root = slurm_commands / 'a "folder" of 100 % $HOME #1'
    script = Slurm(root, 2, options='--comment="two words # here"').script(2)
    options = directives(script)
    assert "--comment=two words # here" in options
    assert f"--output={str(root).replace('%', '%%')}/slurm-%A_%a.log" in options
    command = script.splitlines()[-1]
    assert shlex.split(command) == ["exec", sys.executable, "-m", "scaling.cli.main", "worker", str(root)]
    assert subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"time_limit": "tomorrow"}, "--time-limit 'tomorrow'"),
        ({"time_limit": "10\n#SBATCH --uid=0"}, "--time-limit"),
        ({"options": "--comment='open"}, "--sbatch"),
        ({"options": "--account=me\n#SBATCH --uid=0"}, "line breaks"),
    ],
)
def test_bad_values(slurm_commands, arguments, said):
    with pytest.raises(UserError, match=said):
        Slurm(slurm_commands / "grid", 2, **arguments)


def test_path_that_a_script_cannot_hold(slurm_commands):
    with pytest.raises(UserError, match="line breaks"):
        Slurm(slurm_commands / "a\nb", 2)


@pytest.mark.parametrize("log", [None, "no such partition"])
def test_jobs_that_end_in_vain_are_given_up(slurm_commands, monkeypatch, log):
    """A Slurm whose jobs end at once: three arrays are submitted, each for as many workers as trunks are free, then the reason is told."""
    monkeypatch.setattr("scaling.engines.ASK_SECONDS", 0.0)
    (slurm_commands / "bin" / "sbatch").write_text(f'#!/bin/sh\necho "$2" >> {slurm_commands}/submitted\necho "$$;cluster"\n')
    (slurm_commands / "bin" / "squeue").write_text("#!/bin/sh\nexit 0\n")
    root = slurm_commands / "grid"
    root.mkdir()
    if log:
        (root / "slurm-1_0.log").write_text(f"first\n{log}\n")
    engine = Slurm(root, 4)
    engine.keep(0, "nothing free")
    for _ in range(3):
        engine.keep(2, "no further")
    with pytest.raises(NothingGained if log else UserError, match=log or "nodes must see this folder"):
        engine.keep(2, "no further")
    assert len((slurm_commands / "submitted").read_text().split()) == 3
    assert "--array=0-1" in directives((root / "slurm.sh").read_text())


def test_a_submission_that_is_refused_is_told_and_a_silent_controller_is_waited_for(slurm_commands, monkeypatch):
    monkeypatch.setattr("scaling.engines.ASK_SECONDS", 0.0)
    root, refused = slurm_commands / "grid", "#!/bin/sh\necho 'Invalid account' >&2\nexit 1\n"
    root.mkdir()
    (slurm_commands / "bin" / "sbatch").write_text(refused)
    with pytest.raises(EngineFailed, match="sbatch: Invalid account"):
        Slurm(root, 4).keep(1, 0)
    engine = Slurm(root, 4, job="7")
    (slurm_commands / "bin" / "squeue").write_text("#!/bin/sh\necho 'Unable to contact slurm controller' >&2\nexit 1\n")
    engine.keep(1, 0)  # submits nothing: the job may be running
    (slurm_commands / "bin" / "squeue").write_text("#!/bin/sh\necho 'Invalid job id specified' >&2\nexit 1\n")
    with pytest.raises(EngineFailed, match="Invalid account"):
        engine.keep(1, 0)


def test_patience_counts_starts_in_vain():
    patience = Patience()
    assert [patience.spend("here") for _ in range(4)] == [True, True, True, False]
    assert patience.spend("further")


def scaling(*arguments: str, path: str = "/nowhere") -> subprocess.CompletedProcess:
    """The command, on a PATH without clusters."""
    command = [sys.executable, "-m", "scaling.cli.main", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env={"PATH": path, "SCALING_CACHE": os.environ["SCALING_CACHE"]})


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--executor", "slurm"], "no sbatch here"),
        (["--executor", "slurm", "--workers", "0"], "needs --workers 1 or more"),
        (["--executor", "slurm", "--address", "127.0.0.1:1"], "--address says nothing to --executor slurm"),
        (["--gpus", "1"], "--gpus says nothing to --executor local"),
    ],
)
def test_mistakes_end_with_one_line(tiny_sweep, tmp_path, arguments, said):
    done = scaling("run", str(tiny_sweep), "--results", str(tmp_path / "results"), *arguments)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "results").exists()  # nothing was begun


def test_ray_says_what_is_missing(tiny_sweep, tmp_path):
    done = scaling("run", str(tiny_sweep), "--results", str(tmp_path / "results"), "--executor", "ray", "--address", "127.0.0.1:1")
    assert done.returncode == 2, done.stderr
    assert "needs Ray: `make ray`" in done.stderr or "nothing answers there" in done.stderr
    assert done.stderr.count("\n") == 1
