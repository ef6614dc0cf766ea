# `make compare` and `make test` each work alone on a machine that has only Python 3.11 or newer, with venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Test processes; 0 runs the suite in one, which is what a single accelerator needs.
JOBS ?= auto

.PHONY: compare test lint format matrix overhead wolves blame modes checkpoint descend tour clean

compare: $(VENV)/.installed
	@$(BIN)/gradlab compare

test: $(VENV)/.installed-test
	@$(BIN)/python -m pytest -n $(JOBS) --dist loadgroup $(ARGS)

lint: $(VENV)/.installed-dev
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy

format: $(VENV)/.installed-dev
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

# The suite on each of these Pythons that this machine has, each with its own minor version of JAX.
VERSIONS ?= 3.11 3.12 3.13
matrix:
	@bash scripts/matrix.sh $(VERSIONS)

overhead: $(VENV)/.installed
	@$(BIN)/python scripts/bench_overhead.py

# False alarms and misses, beside other checkers where they are installed.
wolves: $(VENV)/.installed-test
	@$(BIN)/python scripts/bench_check.py

# Who names the line behind a NaN or a zero (gradlab, and jax_debug_nans), and what a graph costs.
blame: $(VENV)/.installed-test
	@$(BIN)/python scripts/bench_blame.py
	@$(BIN)/python scripts/bench_graph.py

# auto and the measured choice, beside JAX's own, and PyTorch, asdex and folx where they are installed.
modes: $(VENV)/.installed-test
	@$(BIN)/python scripts/bench_modes.py

# What recomputing the states of a loop buys in memory, and costs in time.
checkpoint: $(VENV)/.installed
	@$(BIN)/python scripts/bench_checkpoint.py

# Steps a second of the compiled loops, beside what people write by hand, and optimistix and PyTorch where installed.
descend: $(VENV)/.installed-test
	@$(BIN)/python scripts/bench_descend.py
	@$(BIN)/python scripts/bench_descend.py --scaling

# The tour of gradients, as a site of plain files.
tour: $(VENV)/.installed-test
	@$(BIN)/gradlab tour --out out/tour

# One stamp for each set of packages: a second call finds it and installs nothing.
$(VENV)/.installed: pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing gradlab into $(VENV) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[data,sparse,laplacian]'
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed-test
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) .venv-* out dist .pytest_cache .mypy_cache .ruff_cache
