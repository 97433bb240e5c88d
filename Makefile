PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed

.PHONY: demo test check bench docs clean

demo: $(READY)            ## the sandbox engine, recorded live, then replayed
	$(BIN)/fdtrace demo

test: $(READY)            ## every test
	$(BIN)/python -m pytest -q

check: $(READY)           ## lint, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)           ## every benchmark, one after the other
	set -e; for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python $$script; done

docs: $(READY)            ## docs/trace.md, generated from the schema
	$(BIN)/python -m recorder.document > docs/trace.md

$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[sandbox,test,check]'
	touch $@

clean:
	rm -rf $(VENV) demo.duckdb demo.duckdb.parts
