# make demo   TroL-tiny becomes an engine.plan, which answers about a picture that is drawn for it
# make test   linters, types and the fast tests
# make fuzz MINUTES=10   hostile input for so long; failing cases are kept in build/fuzz/failures
#
# All make .venv first if need be. Another Python: make PYTHON=/path/to/python3 test

.PHONY: demo test test-full fuzz lint clean
.DEFAULT_GOAL := test
.DELETE_ON_ERROR:

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed

demo: $(INSTALLED)
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python examples/demo.py build/demo

test: lint
	$(BIN)/pytest -n 2

test-full: lint
	$(BIN)/pytest -n 2 -m "slow or not slow"

MINUTES ?= 5
fuzz: $(INSTALLED)
	PYTHONPATH=tests $(BIN)/python -m fuzz --minutes $(MINUTES)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The first of these that starts, is new enough for the exporter and can make environments. Asked for only when needed.
find_python = $(shell for python in python3 python3.11 python3.12 python3.13; do \
	$$python -c 'import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null \
	&& { command -v $$python; break; }; done)
PYTHON ?= $(find_python)

$(INSTALLED): pyproject.toml constraints.txt
	@test -n '$(PYTHON)' || { echo 'make: found no Python 3.11, 3.12 or 3.13 with its venv module; install one, or name it: make PYTHON=/path/to/python3' >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
