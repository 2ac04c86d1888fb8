"""The built wheel: all the package reads is in it, and the packaged sweeps resolve by name."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from scaling.cli.main import main
from scaling.config import UserError
from scaling.sweep_file import find_sweep, load_sweep, packaged_sweeps

ROOT = Path(__file__).parent.parent


def test_wheel_holds_code_data_and_sweeps(tmp_path: Path) -> None:
    """Built from a copy, so that left-overs of an earlier build cannot help; unpacked, it finds its sweeps without the repository."""
    source, unpacked = tmp_path / "source", tmp_path / "unpacked"
    source.mkdir()
    for name in ("scaling", "analysis", "sweeps"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "--quiet", "-w", tmp_path, source]
    subprocess.run(build, check=True, cwd=tmp_path, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    packed = zipfile.ZipFile(wheel)
    committed = subprocess.run(["git", "ls-files", "scaling", "analysis", "sweeps"], cwd=ROOT, check=True, capture_output=True, text=True)
    wanted = {name.replace("sweeps/", "scaling/sweeps/", 1) if name.startswith("sweeps/") else name for name in committed.stdout.split()}
    assert wanted - {"scaling/sweeps"} <= set(packed.namelist())
    packed.extractall(unpacked)
    code = "from scaling.sweep_file import find_sweep; print(find_sweep('quickstart'))"
    found = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(unpacked)},
        check=True,
        capture_output=True,
        text=True,
    )
    assert Path(found.stdout.strip()) == unpacked / "scaling" / "sweeps" / "quickstart.toml"


def test_packaged_names_are_the_files_of_the_repository() -> None:
    assert {path.stem for path in (ROOT / "sweeps").glob("*.toml")} == set(packaged_sweeps())
    assert load_sweep("quickstart") == load_sweep(ROOT / "sweeps" / "quickstart.toml")


def test_a_file_comes_before_a_packaged_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "smoke").mkdir()
    assert find_sweep("smoke") == packaged_sweeps()["smoke"], "a folder is not a sweep"
    (tmp_path / "quickstart").write_text("name = 'own'")
    assert find_sweep("quickstart") == Path("quickstart")


def test_an_unknown_name_is_told_what_is_packaged(capsys: pytest.CaptureFixture) -> None:
    assert main(["run", "quickstrat"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("scaling: quickstrat: no such sweep file") and all(name in line for name in packaged_sweeps())
    with pytest.raises(UserError, match="packaged: adaptive"):
        find_sweep("sweeps/absent.toml")
