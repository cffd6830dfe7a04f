# Two commands do all on a fresh machine: `make run` and `make test`. Both make the environment first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
export OMP_NUM_THREADS ?= 1

.PHONY: run test soak lint clean

run: $(VENV)/ready
	$(BIN)/nas run bignas-digits

test: $(VENV)/ready
	$(BIN)/python -m pytest -n 2 --dist loadfile

soak: $(VENV)/ready
	$(BIN)/python -m pytest -m soak

lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/mypy

$(VENV)/ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -e ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) build
