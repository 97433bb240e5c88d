"""What every adapter must do, whichever its engine: `docs/adding-an-engine.md` says so, and here it is held."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fdtrace.recorder.agent import adapters, load
from fdtrace.recorder.trace.trace import open_trace
from tests.stands import ROOT, Stand
from tests.trace_contract import broken
from tests.transformers_cb.engine import PYTHON, Engine

AGENT = Path(load.__file__).parent


def scripts(name: str) -> Path:
    return ROOT / "tests" / name / "standin"


def recorded_sandbox(directory: Path) -> Path:
    pytest.importorskip("paddle", reason="the sandbox engine needs Paddle")
    trace = directory / "t.duckdb"
    stand = Stand.at(ROOT, directory)
    engine = [sys.executable, "-m", "fdtrace", "sandbox", "--steps", "300", "--num-blocks", "40"]
    done = stand.fdtrace("record", "-o", trace, "--", *engine)
    assert done.returncode == 0, done.stderr
    return trace


def recorded_standin(directory: Path, script: Path, *options: str) -> Path:
    stand = Stand.at(script, directory)
    done = stand.record(*options)
    assert done.returncode == 0, done.stderr
    return stand.trace


def recorded_transformers(directory: Path) -> Path:
    if not PYTHON:
        pytest.skip("TRANSFORMERS_PYTHON names no Python that has transformers")
    engine = Engine(directory)
    engine.record("--blocks", "24", "--prefixes", "2", "--shared", "32")
    return engine.trace


RECORDED = {
    "sandbox": recorded_sandbox,
    "fastdeploy": lambda to: recorded_standin(to, scripts("fastdeploy") / "deployment.py", "--blocks", "60"),
    "vllm": lambda to: recorded_standin(to, scripts("vllm") / "engine.py", "--blocks", "60"),
    "transformers": recorded_transformers,
}
"""Engine -> what records it under a load that runs out of KV blocks."""


def test_each_engine_that_is_known_is_held_to_the_contract() -> None:
    assert RECORDED.keys() == load.ENGINES.keys()


EXCEPTIONS: dict[str, set[str]] = {
    "fastdeploy": {
        # Its worker runs what was scheduled forwards ago: a request that ended meanwhile may still be in the batch.
        "a request's blocks hold what it has computed",
    }
}
"""Rules that an engine breaks by itself, each with why."""


@pytest.mark.parametrize("engine", RECORDED)
def test_a_recording_under_load_contradicts_itself_nowhere(engine: str, tmp_path: Path) -> None:
    path = RECORDED[engine](tmp_path)
    with open_trace(path) as trace:
        found = [text for text in broken(trace) if text.partition(":")[0] not in EXCEPTIONS.get(engine, ())]
        assert found == []
        (name,) = {row["name"] for row in trace.engines()}
        assert name == engine
        assert trace.rows("SELECT count(*) AS n FROM step")[0]["n"] > 0
        assert trace.rows("SELECT coalesce(sum(num_preempted), 0)::BIGINT AS n FROM call")[0]["n"] > 0


@pytest.mark.parametrize(("module", "name"), adapters.ADAPTERS)
def test_an_adapter_hooks_only_what_is_loaded_and_can_begin_again(module: str, name: str) -> None:
    found = loaded_adapter(module, name)
    assert found.active is False
    for hook in found.hooks:
        assert callable(hook.before or hook.after)
        assert hook.module.partition(".")[0] not in ("recorder", "replayer", "tui")


@pytest.mark.parametrize("engine", load.ENGINES)
def test_an_engines_modules_load_by_themselves_under_the_private_name(engine: str) -> None:
    code = (
        "import importlib.util, sys\n"
        f"spec = importlib.util.spec_from_file_location('load', {str(AGENT / 'load.py')!r})\n"
        "load = importlib.util.module_from_spec(spec); spec.loader.exec_module(load)\n"
        f"arm = load.load(load.read_sources({str(AGENT)!r}, ({engine!r},)), 'test')\n"
        "import _fdtrace_agent.adapters as adapters\n"
        "assert adapters.loaded(), 'no adapter'\n"
        f"assert not [n for n in sys.modules if n.partition('.')[0] in ({engine!r}, 'fdtrace', 'numpy', 'torch')]\n"
    )
    subprocess.run([sys.executable, "-I", "-c", code], check=True)


def loaded_adapter(module: str, name: str) -> Any:
    return getattr(importlib.import_module(f"fdtrace.recorder.agent.{module}"), name)(None)


def test_a_library_is_no_engine_where_another_engine_imports_it(monkeypatch: pytest.MonkeyPatch) -> None:
    module = "transformers.generation.continuous_batching.scheduler"
    monkeypatch.setitem(sys.modules, module, sys)
    known = {"transformers": [module], "vllm": ["vllm.v1.core.sched.scheduler"]}
    assert load.find_engines(known)["engines"] == ["transformers"]
    monkeypatch.setitem(sys.modules, "vllm", sys)
    assert load.find_engines(known)["engines"] == []
    monkeypatch.setitem(sys.modules, "vllm.v1.core.sched.scheduler", sys)
    assert load.find_engines(known)["engines"] == ["vllm"]
