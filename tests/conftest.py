"""Environment of the tests: one-thread CPU workers' settings, a cache of its own, strict JAX."""

import os
import shutil
import tempfile

CACHE = tempfile.mkdtemp(prefix="scaling-tests-")
os.environ["SCALING_CACHE"] = CACHE

from scaling.environment import worker_environment  # noqa: E402

os.environ.update(worker_environment())
os.environ["JAX_COMPILATION_CACHE_DIR"] = f"{CACHE}/compiled"
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
os.environ["MPLBACKEND"] = "agg"

from collections.abc import Iterator  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import pytest  # noqa: E402
from tiny import TINY  # noqa: E402


@pytest.fixture(scope="session")
def text_folder(tmp_path_factory) -> Path:
    """A small folder of text: 80 documents of pseudo-words from a fixed generator."""
    import numpy as np

    folder = tmp_path_factory.mktemp("text")
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefghij"), size=rng.integers(2, 7))) for _ in range(200)]
    for number in range(80):
        lines = [" ".join(rng.choice(words, size=9)) for _ in range(60)]
        (folder / f"{number:03}.txt").write_text("\n".join(lines))
    return folder


@pytest.fixture
def tiny_sweep(tmp_path, text_folder) -> Path:
    """A sweep of seconds: 2 sizes x 4 data sizes x 2 seeds and a hold-out."""
    path = tmp_path / "tiny.toml"
    path.write_text(TINY.format(corpus=text_folder))
    return path


@pytest.fixture(scope="session")
def finished_tiny(tmp_path_factory, text_folder) -> Path:
    """Results of a trained sweep of two runs, for what uses models; its tests leave the runs as they are."""
    import subprocess
    import sys

    folder = tmp_path_factory.mktemp("trained")
    text = TINY.format(corpus=text_folder).replace('tokens = ["8k", "16k", "24k", "40k"]', 'tokens = ["8k", "16k"]')
    text = text.replace("d_model = [8, 16]", "d_model = [16]").replace("seeds = 2", "seeds = 1").partition("[holdout]")[0]
    (folder / "tiny.toml").write_text(text)
    command = [sys.executable, "-m", "scaling.cli.main", "run", str(folder / "tiny.toml"), "--results", str(folder), "--workers", "1"]
    subprocess.run(command, check=True, capture_output=True, timeout=250)
    return folder / "tiny"


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """A headless browser; tests that ask for it are skipped where there is none."""
    sync = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed; `make browser` installs it and a browser")
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with sync.sync_playwright() as playwright:
        if found is None and not Path(playwright.chromium.executable_path).is_file():
            pytest.skip("no Chromium or Chrome found; `make browser` installs one")
        browser = playwright.chromium.launch(executable_path=found)
        yield browser
        browser.close()
