"""Record what an LLM server's scheduler really ran, and replay it under other token budgets.

    import fdtrace

    trace = fdtrace.open("t.duckdb")
    trace.sql("FROM exceeded").df()
    runs = fdtrace.replay(trace.recording(), ["original", "pr7499", "mine: max_num_batched_tokens - num_running"])
    runs.table().df()
    runs["pr7499"].exceeded

docs/python.md shows all of it. Each public name is imported when it is first used, so `import fdtrace` is quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from fdtrace.recorder import __version__

if TYPE_CHECKING:
    from fdtrace.library.engine_recording import EngineRecording
    from fdtrace.library.rank_runs import RankRuns, RoutedRun, replay_ranks
    from fdtrace.library.replaying import ReplayRun, Runs, StepReasons, replay
    from fdtrace.library.result_table import ResultTable
    from fdtrace.library.run_waits import RunWaits
    from fdtrace.library.simulating import SimulatedRun, SimulatedRuns, simulate
    from fdtrace.library.trace_handle import TraceHandle
    from fdtrace.library.trace_handle import open_library_trace as open
    from fdtrace.recorder.errors import FdtraceError, TraceError, UsageError

_PLACES = {
    "EngineRecording": "fdtrace.library.engine_recording",
    "FdtraceError": "fdtrace.recorder.errors",
    "RankRuns": "fdtrace.library.rank_runs",
    "ReplayRun": "fdtrace.library.replaying",
    "ResultTable": "fdtrace.library.result_table",
    "RoutedRun": "fdtrace.library.rank_runs",
    "RunWaits": "fdtrace.library.run_waits",
    "Runs": "fdtrace.library.replaying",
    "SimulatedRun": "fdtrace.library.simulating",
    "SimulatedRuns": "fdtrace.library.simulating",
    "StepReasons": "fdtrace.library.replaying",
    "TraceError": "fdtrace.recorder.errors",
    "TraceHandle": "fdtrace.library.trace_handle",
    "UsageError": "fdtrace.recorder.errors",
    "open": "fdtrace.library.trace_handle",
    "replay": "fdtrace.library.replaying",
    "replay_ranks": "fdtrace.library.rank_runs",
    "simulate": "fdtrace.library.simulating",
}
"""Public name -> the module that defines it."""

__all__ = [
    "EngineRecording",
    "FdtraceError",
    "RankRuns",
    "ReplayRun",
    "ResultTable",
    "RoutedRun",
    "RunWaits",
    "Runs",
    "SimulatedRun",
    "SimulatedRuns",
    "StepReasons",
    "TraceError",
    "TraceHandle",
    "UsageError",
    "__version__",
    "open",
    "replay",
    "replay_ranks",
    "simulate",
]


if not TYPE_CHECKING:  # with `__getattr__`, a type checker would accept every name of this module

    def __getattr__(name: str) -> Any:
        """A public name, imported now (PEP 562)."""
        if name not in _PLACES:
            raise AttributeError(f"module 'fdtrace' has no attribute {name!r}")
        module = importlib.import_module(_PLACES[name])
        value = getattr(module, "open_library_trace" if name == "open" else name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
