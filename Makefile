# make run | test | check | bench is all there is to know; each sets up what it needs (Python 3.11+, pip, venv, make).
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
SWEEP ?= sweeps/quickstart.toml
TORCH := torch==2.13.0 numpy==2.4.6
HF := transformers==5.24.0
RAY := ray>=2.50
AUDIT := pip-audit==2.10.1 detect-secrets==1.5.0
EXTRAS := sacrebleu rouge-score ipykernel nbclient nbformat

.PHONY: help setup browser extras ray run test test-hf test-cluster check docs audit fuzz bench bench-torch coverage faults lock reference clean

help:
	@echo "make setup   environment in .venv/ from the pinned lock"
	@echo "make run     the main job: train, fit, plot, report (SWEEP=$(SWEEP))"
	@echo "make test    the test suite"
	@echo "make browser a headless Chromium for the tests of the report page (they are skipped without)"
	@echo "make extras  metrics of text and notebooks: sacrebleu, rouge-score, nbclient, ipykernel (their tests are skipped without)"
	@echo "make test-hf  exported models against torch and transformers, in an environment of its own (a download of 300 MB, once)"
	@echo "make ray     Ray, for scaling run --executor ray"
	@echo "make test-cluster  sweeps on a real Slurm of one node and a real Ray of two, killed and restarted (minutes; skipped where they are missing)"
	@echo "make check   formatting, lint, types, links"
	@echo "make docs    the documentation as a site: build/site/index.html"
	@echo "make audit   known weaknesses of the pinned dependencies (asks osv.dev), secrets in the files"
	@echo "make fuzz    more than 100,000 bad inputs: sweep files, tables, formulas, SQL, corpus files, record folders"
	@echo "make bench   timings of this machine"
	@echo "make bench-torch  the same beside PyTorch, in an environment of its own (needs a C++ compiler; half an hour)"
	@echo "make faults  a small sweep under kill -9, full disks, damaged files and more (half an hour; root on Linux); writes docs/reliability.md"
	@echo "make coverage  how often 95 % intervals hold the truth, by simulation (half an hour); writes docs/coverage.md"

setup: .venv/ready

.venv/ready: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; set PYTHON=/path/to/python3.11")'
	@echo "setting up .venv (about two minutes, once)"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch .venv/ready

run: setup
	@$(BIN)/scaling run $(SWEEP)

test: setup
	@$(BIN)/python -m pytest

extras: setup
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-extras.lock

ray: setup
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-ray.lock

test-cluster: setup
	@$(BIN)/python -m pytest -m cluster -rs --timeout 900 tests/cluster

# torch and transformers stay out of .venv and of its lock; what they say of our folders comes back as a file.
test-hf: setup .venv-hf/ready
	@$(BIN)/python -m pytest -m hf tests/test_huggingface.py

.venv-hf/ready: requirements-hf.lock
	@echo "setting up .venv-hf"
	@test -x .venv-hf/bin/python || $(PYTHON) -m venv .venv-hf
	@.venv-hf/bin/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	@.venv-hf/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-hf.lock
	@touch .venv-hf/ready

# The system's Chromium or Chrome if there is one; else Debian's (as root), else Playwright's.
browser: setup
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-browser.lock
	@command -v chromium || command -v chromium-browser || command -v google-chrome || \
	{ [ "$$(id -u)" = 0 ] && command -v apt-get && apt-get update -qq && apt-get install -qq -y --no-install-recommends chromium; } || \
	$(BIN)/playwright install --with-deps chromium

check: setup
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/pyright
	@$(BIN)/python docs/check_links.py

docs: setup
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-docs.lock
	@$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going -b html docs build/site
	@echo "site: build/site/index.html"

# Apart from the tests: it needs the network, and what it says changes without a change here.
audit: .venv-audit/ready
	@git ls-files -z -- ':!results' ':!*.lock' ':!*.ipynb' ':!*.png' | xargs -0 .venv-audit/bin/detect-secrets-hook && echo "no secrets found"
	@for lock in requirements*.lock; do \
	.venv-audit/bin/pip-audit --progress-spinner off --disable-pip --require-hashes --vulnerability-service osv --requirement $$lock || exit 1; done

.venv-audit/ready:
	@echo "setting up .venv-audit"
	@test -x .venv-audit/bin/python || $(PYTHON) -m venv .venv-audit
	@.venv-audit/bin/python -m pip install --quiet --disable-pip-version-check $(AUDIT)
	@touch .venv-audit/ready

# More than 100,000 new inputs; memory is limited, so that a statement that escapes its limit ends the test, not the machine.
fuzz: setup
	@ulimit -v 8000000; SCALING_FUZZ=full $(BIN)/python -m pytest tests/test_fuzz_*.py --timeout 0 --hypothesis-show-statistics

bench: setup
	@$(BIN)/python benchmarks/train_step.py
	@$(BIN)/python benchmarks/fast_path.py
	@$(BIN)/python benchmarks/fit.py

# PyTorch is an opponent, not a dependency: it stays out of .venv and of the lock.
.venv-torch/ready:
	@echo "setting up .venv-torch"
	@test -x .venv-torch/bin/python || $(PYTHON) -m venv .venv-torch
	@.venv-torch/bin/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	@touch .venv-torch/ready

bench-torch: setup .venv-torch/ready
	@$(BIN)/python benchmarks/train_step.py --check
	@$(BIN)/python benchmarks/train_step.py
	@$(BIN)/python benchmarks/grid.py

coverage: setup
	@$(BIN)/python benchmarks/coverage.py

# Mounts small file systems and makes a memory group, so it needs root; `python -m faults NAME...` runs some of them.
faults: setup
	@$(BIN)/python -m faults

# What is committed of a sweep: tables, plots, report, config, forecast, provenance (those that it has); no checkpoints.
reference: run
	@name=$$(basename $(SWEEP) .toml); to=results/reference/$$name; rm -rf $$to; mkdir -p $$to; \
	cd results/$$name && for part in sweep.toml sweep.resolved.json provenance.json *.csv curves.parquet forecasts plots report.html checklist.md; do \
	if test -e $$part; then cp -r $$part ../reference/$$name/; fi; done

lock:
	@$(PYTHON) -m venv .venv-lock && .venv-lock/bin/pip install --quiet uv
	@.venv-lock/bin/uv pip compile pyproject.toml --extra dev --extra text --extra text-files --universal --generate-hashes --python-version 3.11 --no-header --quiet -o requirements.lock
	@echo "playwright>=1.50" | .venv-lock/bin/uv pip compile - --constraint requirements.lock --universal --generate-hashes \
	--python-version 3.11 --no-header --quiet --no-annotate -o requirements-browser.lock
	@printf "sphinx\nfuro\nmyst-parser\nsphinx-mathjax-offline\n" | .venv-lock/bin/uv pip compile - --constraint requirements.lock --universal --generate-hashes \
	--python-version 3.11 --no-header --quiet --no-annotate -o requirements-docs.lock
	@printf "%s\n" $(EXTRAS) | .venv-lock/bin/uv pip compile - --constraint requirements.lock --universal --generate-hashes \
	--python-version 3.11 --no-header --quiet --no-annotate -o requirements-extras.lock
	@echo "$(RAY)" | .venv-lock/bin/uv pip compile - --constraint requirements.lock --universal --generate-hashes \
	--python-version 3.11 --no-header --quiet --no-annotate -o requirements-ray.lock
	@echo "$(HF)" | .venv-lock/bin/uv pip compile - --constraint requirements.lock --universal --generate-hashes \
	--python-version 3.11 --no-header --quiet --no-annotate -o requirements-hf.lock

clean:
	rm -rf .venv .venv-torch .venv-hf .venv-lock .venv-audit .pytest_cache .ruff_cache .hypothesis *.egg-info
