PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed
VLLM_VENV ?= .venv-vllm
VLLM_READY := $(VLLM_VENV)/.installed

OFFLINE := $(filter-out benchmarks/vllm_%,$(wildcard benchmarks/*.py)) benchmarks/vllm_adapter.py

.PHONY: demo test test-vllm check bench bench-vllm docs clean

demo: $(READY)            ## the sandbox engine, recorded live, then replayed
	$(BIN)/fdtrace demo

test: $(READY)            ## every test
	$(BIN)/python -m pytest -q

test-vllm: $(READY) $(VLLM_READY)   ## a real vLLM on a CPU, recorded; its environment is made once
	VLLM_PYTHON=$(abspath $(VLLM_VENV))/bin/python $(BIN)/python -m pytest -q tests/vllm/test_live.py

check: $(READY)           ## lint, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)           ## every benchmark, one after the other
	set -e; for script in $(OFFLINE); do echo "== $$script"; $(BIN)/python $$script; done

bench-vllm: $(READY) $(VLLM_READY)  ## those that need a real vLLM
	set -e; for name in attach recording; do \
	    VLLM_PYTHON=$(abspath $(VLLM_VENV))/bin/python $(BIN)/python benchmarks/vllm_$$name.py; done

docs: $(READY)            ## docs/trace.md, generated from the schema
	$(BIN)/python -m recorder.document > docs/trace.md

$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[sandbox,test,check]'
	touch $@

$(VLLM_READY): tests/vllm/make_environment.py
	$(PYTHON) tests/vllm/make_environment.py $(VLLM_VENV)
	touch $@

clean:
	rm -rf $(VENV) $(VLLM_VENV) demo.duckdb demo.duckdb.parts
