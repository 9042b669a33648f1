# Everything works on a clean clone with python3 (3.11 to 3.13), pip and make.
#   make demo    installs into .venv and compiles the bundled example
#   make test    installs and runs the tests
#   make lint types layers    what CI checks besides

PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip --disable-pip-version-check install -c constraints.txt
COPY := .build/lib
# Processes that run the tests side by side.
JOBS ?= 2

.PHONY: demo test lint types layers format clean

demo: .venv/.demo
	$(BIN)/secateur compile examples/digits.yaml --out runs/demo --resume

test: .venv/.dev
	$(BIN)/python -m pytest -n $(JOBS) --dist loadgroup --no-loadscope-reorder

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: .venv/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The folders are subpackages only once installed, so a type checker needs an installed copy.
types: .venv/.dev
	rm -rf build $(COPY)
	$(INSTALL) --quiet --no-deps --no-build-isolation --target $(COPY) .
	rm -rf build
	cp .ci/pyrightconfig.json $(COPY)
	$(BIN)/pyright --pythonpath $(BIN)/python --project $(COPY)

layers: .venv/.dev
	$(BIN)/python -m pytest tests/test_layers.py

.venv/.demo: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(INSTALL) setuptools
	$(INSTALL) --no-build-isolation --editable ".[demo]"
	touch $@

.venv/.dev: .venv/.demo
	$(INSTALL) --no-build-isolation --editable ".[demo,dev]"
	touch $@

clean:
	rm -rf .venv .build build .pytest_cache .ruff_cache .hypothesis
