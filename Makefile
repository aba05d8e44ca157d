PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SETUP_DONE := $(VENV)/.setup-done

# torch is installed first, by its exact version and in a call of its own: left to the range in pyproject.toml, pip may
# pick another build with gigabytes of CUDA libraries. For a particular build, pass the arguments of pip, such as
#   make demo TORCH="torch==2.13.0 --index-url <the index that pytorch.org names for it>"
TORCH ?= torch==2.13.0

.PHONY: demo web test lint docs what-fits setup clean
.DEFAULT_GOAL := test

demo: setup
	@echo "demo: trains a woodcut style on the pocket base, 2 to 4 minutes on two cores"
	@$(BIN)/lora-studio demo

# The studio in the browser; what it needs is part of the set-up.
web: setup
	@$(BIN)/lora-studio web

# A process a core with one thread each: the tests are many small things, which several threads do not make faster.
WORKERS ?= logical

test: export OMP_NUM_THREADS = 1
test: setup
	@echo "test: the test suite; about 10 minutes on two cores"
	@$(BIN)/python -m pytest -n $(WORKERS) --maxprocesses 4 --dist loadfile --no-loadscope-reorder

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The pages that are written from the code; a test says when that is due.
docs: setup
	$(BIN)/python docs/write_reference.py recipe > docs/reference/recipe.md
	$(BIN)/python docs/write_reference.py cli > docs/reference/cli.md

# By simulation of every preset: minutes.
what-fits: setup
	$(BIN)/python docs/write_what_fits.py

setup: $(SETUP_DONE)

$(SETUP_DONE): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed; set PYTHON=..." if sys.version_info < (3, 11) else 0)'
	@echo "setup: installs into $(VENV), once: a few minutes; 0.5 GB to download with torch for CPUs, 3 GB with CUDA"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt $(TORCH)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@

clean:
	rm -rf $(VENV) *.egg-info .pytest_cache .mypy_cache .ruff_cache
