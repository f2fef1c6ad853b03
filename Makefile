# Two commands: `make parity` and `make test`. Each target sets up what it needs, once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export OMP_NUM_THREADS ?= 1

.PHONY: help setup parity test test-all fuzz gauntlet mutants bench lint format typecheck goldens docs clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(STAMP) ## create .venv and install everything, pinned

$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "parity needs Python 3.11 or newer: make PYTHON=python3.11 ..."; exit 2; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[all,systems,dev,fast]'
	@touch $@

parity: setup ## run every case of every system; table and reports/index.html
	$(BIN)/parity run --jobs 2 --html reports

test: setup ## the regression suite
	$(BIN)/python -m pytest -n 2 --dist worksteal

test-all: setup ## the suite without the weekly sampling of tests that are many alike
	PARITY_EVERY_TEST=1 $(BIN)/python -m pytest -n 2 --dist worksteal

fuzz: setup ## N mutated inputs (make fuzz N=50000): no traceback, no hang, no wrong status
	PARITY_FUZZ=$(or $(N),3000) $(BIN)/python -m pytest tests/fuzz -n 0 --durations 5

gauntlet: setup ## all faults and variations; writes docs/GAUNTLET.md
	$(BIN)/parity gauntlet --jobs 2 --markdown docs/GAUNTLET.md --json reports/gauntlet.json

mutants: setup ## bugs that nobody chose, in models that nothing was tuned on; writes its section of docs/GAUNTLET.md
	$(BIN)/parity mutants --half held --n 400 --jobs 2 --markdown docs/GAUNTLET.md --json reports/mutants.json

goldens: setup ## verify the goldens that are kept in git
	$(BIN)/parity golden verify fixtures/*/golden/*.safetensors

docs: setup ## the documentation site in build/site; any warning fails
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

bench: setup ## cost of capturing and comparing on this machine
	$(BIN)/parity bench --json reports/bench.json

lint: setup ## ruff format, ruff, mypy --strict on parity/
	$(BIN)/ruff format --check parity reference ported fixtures tests
	$(BIN)/ruff check parity reference ported fixtures tests
	$(BIN)/mypy

format: setup ## format the code
	$(BIN)/ruff format parity reference ported fixtures tests
	$(BIN)/ruff check --fix parity reference ported fixtures tests

clean: ## remove the environment, caches and reports
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .parity_cache *.egg-info build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	find reports -mindepth 1 ! -name .gitkeep -delete
