# Targets make their own virtual environment; nothing outside this folder is changed.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
WORKERS ?= 2

CONSTRAINTS := .ci/constraints.txt
VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := -m pip install -q --disable-pip-version-check -c $(CONSTRAINTS)
PIP_INSTALL_FROM := -m pip install -q --disable-pip-version-check
STAMP := $(VENV)/.installed

DOCS := .ci/docs.txt
STAMP_DOCS := $(VENV)/.docs

PEERS := .ci/peers.txt
VENV_PEERS := .venv-peers
STAMP_PEERS := $(VENV_PEERS)/.installed

FSRL := .ci/fsrl.txt
VENV_FSRL := .venv-fsrl
STAMP_FSRL := $(VENV_FSRL)/.installed

CLIENTS := .ci/clients.txt
VENV_CLIENTS := .venv-clients
STAMP_CLIENTS := $(VENV_CLIENTS)/.installed

.PHONY: help leaderboard report peers fsrl clients test lint format smoke docs wheel clean

help: ## show this list
	@echo "Usage: make TARGET [PYTHON=python3] [WORKERS=2]"
	@echo
	@sed -nE 's/^([a-z]+):[^#]*## (.*)$$/\1|\2/p' $(firstword $(MAKEFILE_LIST)) | \
		while IFS='|' read -r target text; do printf '  %-12s %s\n' "$$target" "$$text"; done

leaderboard: $(STAMP) ## train 2 seeds of what learns quickly, and show all beside them (about 9 minutes on 2 CPU cores)
	$(BIN)/python -m benchmarks.run --preset quick --replace --out results/local
	$(BIN)/python -m benchmarks.tables --preset quick --results results/local --beside results

report: $(STAMP) ## write the committed results as one HTML page, report.html
	$(BIN)/python -m benchmarks.report --force --out report.html

peers: $(STAMP) $(STAMP_PEERS) ## train d3rlpy's BC and IQL on our data and compare (about 45 minutes on 2 CPU cores)
	NPROC=$$(nproc) $(BIN)/python -m benchmarks.peers --peer-python $(VENV_PEERS)/bin/python

fsrl: $(STAMP) $(STAMP_FSRL) ## measure SAC-Lag's online loop beside FSRL's (about 15 minutes on 2 CPU cores)
	NPROC=$$(nproc) $(BIN)/python -m benchmarks.online_speed --peer-python $(VENV_FSRL)/bin/python

clients: $(STAMP) $(STAMP_CLIENTS) ## train Stable-Baselines3's and rejax's agents on our start-up (about 30 minutes on 2 CPU cores)
	$(BIN)/python -m benchmarks.clients --peer-python $(VENV_CLIENTS)/bin/python

test: lint ## lint, then run the tests on WORKERS processes
	$(BIN)/python -m pytest -n $(WORKERS)

lint: $(STAMP) ## check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP) ## repair style and formatting
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

smoke: $(STAMP) ## run the whole benchmark at its smallest size, in a temporary folder
	@folder=$$(mktemp -d); trap 'rm -rf "$$folder"' EXIT; set -ex; \
	$(BIN)/python -m benchmarks.run --preset smoke --trajectories --out "$$folder"; \
	$(BIN)/python -m benchmarks.tables --results "$$folder"; \
	$(BIN)/python -m benchmarks.run --preset smoke --suite picnn --only pi_best bc iql --out "$$folder"; \
	$(BIN)/python -m benchmarks.tables picnn --results "$$folder"; \
	$(BIN)/python -m benchmarks.run --preset smoke --suite robustness --only oracle pi_tuned bc --out "$$folder"; \
	$(BIN)/python -m benchmarks.tables robustness --results "$$folder"; \
	$(BIN)/python -m benchmarks.run --preset smoke --suite fisor --only zero bc fisor --out "$$folder"; \
	$(BIN)/python -m benchmarks.tables fisor --results "$$folder"; \
	$(BIN)/python -m benchmarks.run --preset smoke --suite marvel --only pi_tuned sac_lag marvel --out "$$folder"; \
	$(BIN)/python -m benchmarks.tables marvel --results "$$folder"; \
	$(BIN)/python -m benchmarks.report --results "$$folder" --out "$$folder/report.html"

docs: $(STAMP_DOCS) ## build the documentation in site/, and execute its quickstart
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict --config-file .ci/mkdocs.yml
	@folder=$$(mktemp -d); trap 'rm -rf "$$folder"' EXIT; set -ex; \
	$(BIN)/jupyter nbconvert --log-level WARN --ExecutePreprocessor.startup_timeout=300 \
		--to notebook --execute --output-dir "$$folder" docs/*.ipynb

wheel: $(STAMP) ## build sdist and wheel in dist/, and use both in a fresh environment
	$(BIN)/python $(PIP_INSTALL) build
	rm -rf dist
	$(BIN)/python -m build --outdir dist .
	@folder=$$(mktemp -d); trap 'rm -rf "$$folder"' EXIT; set -ex; \
	$(BIN)/python -m venv "$$folder/venv"; \
	"$$folder/venv/bin/python" $(PIP_INSTALL) dist/*.whl; \
	cd "$$folder"; \
	venv/bin/python -I -c 'from polycstr_jax import controllers, data, evaluate; data.committed_checksums(); evaluate.score_limits("startup"); evaluate.references("startup", "hot"); controllers.tuned_pi("all"); print(evaluate.starts("startup", "hot").state.shape)'; \
	venv/bin/python -I -m polycstr_jax info; \
	venv/bin/python -I -m polycstr_jax simulate --controller zero --num-starts 1 --json; \
	venv/bin/python -I -m polycstr_jax dataset --num-episodes 2 --out two.npz; \
	! venv/bin/python -I -m polycstr_jax dataset --num-episodes 2 --format hdf5 2>said; \
	grep -F 'polycstr-jax[interop]' said; \
	venv/bin/python $(PIP_INSTALL_FROM) --force-reinstall --no-deps $(CURDIR)/dist/*.tar.gz; \
	venv/bin/python -I -m polycstr_jax info --json

clean: ## remove the virtual environments, builds and caches (not results/)
	rm -rf $(VENV) $(VENV_PEERS) $(VENV_FSRL) $(VENV_CLIENTS) .venv-dsrl dist build site *.egg-info .cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +

$(STAMP): pyproject.toml $(CONSTRAINTS)
	@command -v "$(PYTHON)" >/dev/null || { \
		echo "error: no '$(PYTHON)' found; polycstr-jax needs Python 3.11, 3.12 or 3.13." >&2; \
		echo "Name one, for example: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' || { \
		found=$$("$(PYTHON)" -c 'import platform; print(platform.python_version())'); \
		echo "error: polycstr-jax needs Python 3.11, 3.12 or 3.13, but '$(PYTHON)' is $$found." >&2; \
		echo "Name another, for example: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@echo "making $(VENV) and installing the package into it: a minute or two"
	"$(PYTHON)" -m venv $(VENV)
	$(BIN)/python $(PIP_INSTALL) -e ".[test]"
	@touch $@

$(STAMP_DOCS): $(STAMP) $(DOCS)
	@echo "adding what makes the documentation to $(VENV)"
	$(BIN)/python $(PIP_INSTALL) -c $(DOCS) -e ".[docs]"
	@touch $@

$(STAMP_PEERS): $(PEERS) | $(STAMP)
	@echo "making $(VENV_PEERS) with d3rlpy and torch, apart from ours: a few minutes"
	"$(PYTHON)" -m venv $(VENV_PEERS)
	$(VENV_PEERS)/bin/python -m pip install -q --disable-pip-version-check -r $(PEERS)
	@touch $@

$(STAMP_FSRL): $(FSRL) | $(STAMP)
	@echo "making $(VENV_FSRL) with FSRL and torch, apart from ours: a few minutes"
	"$(PYTHON)" -m venv $(VENV_FSRL)
	$(VENV_FSRL)/bin/python -m pip install -q --disable-pip-version-check -r $(FSRL)
	@touch $@

$(STAMP_CLIENTS): $(CLIENTS) | $(STAMP)
	@echo "making $(VENV_CLIENTS) with Stable-Baselines3, rejax and torch, apart from ours: a few minutes"
	"$(PYTHON)" -m venv $(VENV_CLIENTS)
	$(VENV_CLIENTS)/bin/python -m pip install -q --disable-pip-version-check -r $(CLIENTS)
	@touch $@
