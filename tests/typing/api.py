"""The public names as a type checker sees them: checked by strict mypy in tests/test_typing.py, never run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import numpy as np
from numpy.typing import NDArray

import fdtrace

if TYPE_CHECKING:
    import pandas as pd

path: str = "t.duckdb"
trace: fdtrace.TraceHandle = fdtrace.open(path)
with fdtrace.open(Path(path), memory=1 << 30) as opened:
    relation: duckdb.DuckDBPyRelation = opened.sql("FROM exceeded")
    live: bool = opened.live
recording: fdtrace.EngineRecording = trace.recording()
of_engine: fdtrace.EngineRecording = trace.recording(engine_id=1)
limit: int = recording.engine.max_num_batched_tokens
method: str | None = recording.engine.spec_method
notes: tuple[str, ...] = recording.notes
steps: fdtrace.ResultTable = recording.steps
requests: fdtrace.ResultTable = recording.requests


class Mine:
    """A formula of the user's own."""

    def budget(self, v: Any) -> int:
        return int(v.max_num_batched_tokens)


runs: fdtrace.Runs = fdtrace.replay(recording, ["original", "mine: max_num_batched_tokens", Mine])
single: fdtrace.Runs = fdtrace.replay("t.duckdb", "pr7499", as_recorded=True, device_bytes=80 << 30)
timed: fdtrace.Runs = fdtrace.replay(Path(path), policy="original", clock="time")
run: fdtrace.ReplayRun = runs["original"]
names: list[str] = list(runs)
exceeded: int = run.outcome.num_exceeded
refused: int | None = run.outcome.num_refused_tokens
over: fdtrace.ResultTable = run.exceeded
ran: fdtrace.ResultTable = run.request("r12")
of_step: fdtrace.ResultTable = run.requests(4711)
reasons: fdtrace.StepReasons = run.explain(4711)
lines: tuple[str, ...] = reasons.reasons
table: fdtrace.ResultTable = runs.table()
column: NDArray[Any] = table["num_exceeded"]
rows: list[dict[str, Any]] = table.rows()
frame: pd.DataFrame = table.df()
highest: np.int64 = run.steps["num_tokens"].max()

ranks: fdtrace.RankRuns = fdtrace.replay_ranks("t.duckdb", ["round_robin"], slo="ttft=1s")
routed: fdtrace.RoutedRun = ranks["round_robin"]
beside: float = routed.imbalance.share_beside_room
of_ranks: fdtrace.ResultTable = routed.ranks

simulated: fdtrace.SimulatedRuns = fdtrace.simulate({"requests": []}, ["original"], max_steps=100)
one: fdtrace.SimulatedRun = simulated["original"]
decisions: list[dict[str, Any]] = one.decisions
few: fdtrace.SimulatedRuns = fdtrace.simulate(
    path, variants={"few": {"formula": "pr7499", "max_num_seqs": 8}}
)
one.write("simulated.duckdb")
waits: fdtrace.RunWaits = run.waits
each_wait: fdtrace.ResultTable = one.waits.each
again: int = waits.totals.num_discarded_tokens
side_by_side: fdtrace.ResultTable = runs.waits()
error: type[fdtrace.FdtraceError] = fdtrace.TraceError
version: str = fdtrace.__version__
