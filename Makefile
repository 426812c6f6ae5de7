# Two commands do everything on a bare machine with Python 3.11 to 3.13: make demo, make test.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check -q

.PHONY: demo test lint clean

$(VENV)/core: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' \
	  || { echo 'prunekit needs Python 3.11 to 3.13: make PYTHON=python3.11'; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install -e .
	touch $@

$(VENV)/all: $(VENV)/core
	$(PIP) install -e '.[data,train,sweep,report,dev]'
	touch $@

demo: $(VENV)/core
	$(BIN)/python -m prunekit scorer=instruction fusion=multi schedule=progressive

test: $(VENV)/all
	$(BIN)/python -m pytest -n 2

lint: $(VENV)/all
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV)
