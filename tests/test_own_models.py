"""The page on own models and optimizers works as it is printed; names nobody registered are refused."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

PAGE = (Path(__file__).parent.parent / "docs" / "own_models.md").read_text(encoding="utf-8")


def block(language):
    found = re.search(rf"^```{language}\n(.*?)^```$", PAGE, flags=re.S | re.M)
    assert found is not None
    return found.group(1)


@pytest.fixture
def own(tmp_path, text_folder):
    (tmp_path / "my_parts.py").write_text(block("python"))
    sweep = block("toml").replace("python-stdlib", str(text_folder)) + "bootstrap = 100\n[evaluation]\nwindows = 8\n"
    (tmp_path / "own.toml").write_text(sweep)
    return tmp_path


def scaling(folder, *arguments, plugins):
    environment = {**os.environ, "PYTHONPATH": str(folder), "SCALING_PLUGINS": plugins}
    command = [sys.executable, "-m", "scaling.cli.main", *arguments, str(folder / "own.toml"), "--results", str(folder)]
    return subprocess.run(command, capture_output=True, text=True, timeout=250, env=environment)


def test_the_page_trains_its_model_with_its_optimizer(own):
    done = scaling(own, "run", plugins="my_parts")
    assert done.returncode == 0, done.stderr
    runs = pd.read_csv(own / "own" / "runs.csv")
    assert set(runs["status"]) == {"done"} and set(runs["optimizer"]) == {"lion"}
    assert sorted(set(runs["params_non_embedding"])) == [4 * 8**2, 4 * 16**2]
    assert set(runs["flops"]) == {3 * 2 * (4 * d**2 + 256 * d) * t for d in (8, 16) for t in runs["tokens"].unique()}
    assert runs["loss"].max() < 5.4  # ln 256 = 5.55: it learnt something
    again = scaling(own, "run", plugins="my_parts")
    assert "nothing to train" in again.stderr
    (own / "my_parts.py").write_text(block("python") + "\n")
    assert "nothing to train" not in scaling(own, "plan", plugins="my_parts").stderr
    planned = scaling(own, "plan", plugins="my_parts")
    assert planned.returncode == 0 and "done" not in planned.stdout


@pytest.mark.parametrize(
    ("plugins", "words"),
    [
        ("", "model.kind = `last_bytes` is unknown; allowed: transformer"),
        ("no_such_module", "SCALING_PLUGINS: module `no_such_module` cannot be imported"),
    ],
)
def test_what_nobody_registered_is_refused_with_one_line(own, plugins, words):
    done = scaling(own, "plan", plugins=plugins)
    assert done.returncode == 2 and words in done.stderr and "Traceback" not in done.stderr


def test_muon_is_refused_for_a_registered_model(own):
    text = re.sub(r"optimizer = .*\noptions = \{ b1.*\n", "", (own / "own.toml").read_text())
    (own / "own.toml").write_text(text)
    done = scaling(own, "plan", plugins="my_parts")
    assert done.returncode == 2 and 'set training.optimizer = "adamw"' in done.stderr
