# `make` lists what there is. All is installed in .venv; the two stamps there say what, and save installing it again.
PYTHON ?= python3
BIN := $(CURDIR)/.venv/bin
FACTS := settings.ini setup.py pyproject.toml

.PHONY: help demo test stress docs bench clean
.DEFAULT_GOAL := help

help:
	@echo "make demo    install what the demo needs in .venv, and train on its pictures: the results go to runs/demo"
	@echo "make test    install what developers need in .venv, and run all checks, as CI does"
	@echo "make stress  the long tests of faults: more kills, at more moments"
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

stress: .venv/.installed-dev
	@echo "Killing processes at many moments: about twenty minutes"
	@STRESS=1 OMP_NUM_THREADS=1 "$(BIN)/python" -m pytest -q tests/faults tests/test_precompute.py

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
	rm -rf _docs _proc _stage build dist *.egg-info .pytest_cache .hypothesis .ruff_cache
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
