# `make` lists what there is. All is installed in .venv; the two stamps there say what, and save installing it again.
PYTHON ?= python3
BIN := $(CURDIR)/.venv/bin
FACTS := settings.ini setup.py pyproject.toml

.PHONY: help demo test compat stress mutation coverage types docs bench clean
.DEFAULT_GOAL := help

help:
	@echo "make demo    install what the demo needs in .venv, and train on its pictures: the results go to runs/demo"
	@echo "make test    install what developers need in .venv, and run all checks, as CI does"
	@echo "make compat  the tests with the oldest and the newest versions of fastai, torch and the rest, each in its own environment"
	@echo "make stress  the long tests: more kills at more moments, a hundred times the random cases, an hour of training"
	@echo "make mutation  change the package at hundreds of places, one at a time: the tests must find at least 85% of the changes"
	@echo "make coverage  how much of the package the tests run, by branches: below 95% is an error"
	@echo "make types   check the package with pyright"
	@echo "make docs    build the documentation site in _docs"
	@echo "make bench   measure, for hours, and write benchmarks/RESULTS.md; each script there can be run by itself"
	@echo "make clean   delete what was built (not .venv, not runs)"
	@echo "Another Python: make demo PYTHON=python3.12"

demo: .venv/.installed-demo
	@echo "Training on the demo's pictures: the results go to runs/demo"
	@"$(BIN)/clr_train" --demo --out runs/demo --overwrite

test: .venv/.installed-dev
	@echo "Running all checks (tools/ci.sh)"
	@PATH="$(BIN):$$PATH" tools/ci.sh

compat: .venv/.installed-dev
	@OMP_NUM_THREADS=1 "$(BIN)/python" tools/compat.py

stress: .venv/.installed-dev
	@echo "Killing processes at many moments, and trying many cases: some hours"
	@"$(BIN)/python" -W ignore benchmarks/bench_stress.py
	@"$(MAKE)" --no-print-directory mutation

mutation: .venv/.installed-dev
	@"$(BIN)/python" -m pip install -q 'cosmic-ray>=8.7'
	@"$(BIN)/python" -W ignore benchmarks/bench_mutation.py schedules activations snapshots

types: .venv/.installed-dev
	@"$(BIN)/python" -m pip install -q 'pyright[nodejs]'
	@"$(BIN)/pyright" --pythonpath "$(BIN)/python"

coverage: .venv/.installed-dev
	@OMP_NUM_THREADS=1 "$(BIN)/python" -m coverage run -m pytest -q
	@"$(BIN)/python" -m coverage combine -q
	@"$(BIN)/python" -m coverage report

docs: .venv/.installed-dev
	@echo "Building the documentation site"
	@PATH="$(BIN):$$PATH" python tools/build_docs.py
	@echo "Built: open _docs/index.html"

bench: .venv/.installed-dev
	@echo "Measuring: leave the machine alone meanwhile"
	@"$(BIN)/python" -W ignore benchmarks/bench_schedules.py
	@"$(BIN)/python" -W ignore benchmarks/bench_precompute.py
	@"$(BIN)/python" benchmarks/bench_train.py
	@"$(BIN)/python" benchmarks/bench_snapshots.py
	@"$(BIN)/python" benchmarks/bench_snapshots.py --only cost
	@"$(BIN)/python" benchmarks/bench_lr_range.py
	@"$(BIN)/python" benchmarks/bench_lr_range.py --only cost
	@"$(BIN)/python" benchmarks/bench_heads.py
	@"$(BIN)/python" -W ignore benchmarks/bench_processes.py

.venv/.installed-%: $(FACTS)
	@command -v "$(PYTHON)" >/dev/null || { echo "There is no $(PYTHON) here: name a Python that is, as in make demo PYTHON=python3.12" >&2; exit 1; }
	@"$(PYTHON)" tools/install.py $*

clean:
	rm -rf .compat .coverage* .mutants _docs _proc _stage build dist *.egg-info .pytest_cache .hypothesis .ruff_cache
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
