# Two commands do all on a fresh machine: `make run` and `make test`. Both make the environment first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
export OMP_NUM_THREADS ?= 1

.PHONY: run test soak gpu lint docs clean

run: $(VENV)/ready
	$(BIN)/nas run bignas-textures

test: $(VENV)/ready
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

soak: $(VENV)/ready
	$(BIN)/python -m pytest -m soak

gpu: # on a machine with a GPU, by its own Python; nothing is installed. CHECKS="step static": some of them
	$(PYTHON) -m tests.gpu $(CHECKS)

lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: $(VENV)/ready
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "build/site/index.html"

$(VENV)/ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -e ".[dev,docs]"
	touch $@

clean:
	rm -rf $(VENV) build
