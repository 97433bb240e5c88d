"""Reads ForwardPassMetrics from JSON lines: what Dynamo's FPM trace and receivers write, and lone records."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fdtrace.exporting.forward_pass_metrics import FPM_VERSION
from fdtrace.recorder.errors import UsageError
from fdtrace.recorder.trace.check_values import TOKENS
from fdtrace.recorder.trace.column_values import MISSING
from fdtrace.request_traces.recognise import step_metrics
from fdtrace.request_traces.safe_json import json_lines
from fdtrace.request_traces.trace_entry import TraceEntry

LONGEST_WALL_S = 2000.0
"""Seconds: microseconds of a forward are counted in 32 bits."""
SHOWN_ID = 100
TIMES = (
    ("observed_at_unix_ms", 1_000_000),
    ("recv_ms", 1_000_000),
    ("published_at_ms", 1_000_000),
    ("received_at_ns", 1),
)
"""When a record was seen, by the program that wrote it; and its unit in nanoseconds."""
COLUMNS = ("step", "ts", "num_prefill_tokens", "num_decode_tokens", "num_waiting", "forward_us")


@dataclass
class WorkerSteps:
    """The forwards of one scheduler: a worker's data-parallel rank."""

    worker_id: str
    dp_rank: int
    columns: dict[str, array[int]] = field(default_factory=lambda: {name: array("q") for name in COLUMNS})


@dataclass
class ReadMetrics:
    """All that was read."""

    workers: list[WorkerSteps]
    num_idle: int
    """Records of an idle engine, which stand for no forward."""
    num_without_lengths: int
    """Forwards with decodes of which nothing says how many tokens each ran."""


def read_step_metrics(paths: Iterable[Path]) -> ReadMetrics:
    """Read files that follow each other.

    Raises:
        UsageError: a file cannot be read, or a line is wrong; the error names it and the field.
    """
    reader = _Reader()
    for path in paths:
        for where, value in json_lines(path):
            reader.take(where, value)
    return ReadMetrics(list(reader.workers.values()), reader.num_idle, reader.num_without_lengths)


class _Reader:
    def __init__(self) -> None:
        self.workers: dict[tuple[str, int], WorkerSteps] = {}
        self.num_idle = self.num_without_lengths = 0

    def take(self, where: str, value: Mapping[str, Any]) -> None:
        metrics = step_metrics(value)
        if metrics is None:
            raise UsageError(
                f"{where} holds no ForwardPassMetrics",
                why="neither it nor its `event.fpm`, `fpm` or `metrics` has `scheduled_requests`",
                hint="docs/export.md names what can be read; `fdtrace workload` reads requests",
            )
        entry = TraceEntry(where, metrics)
        version = _count(entry, "version") if entry.has("version") else FPM_VERSION
        if version != FPM_VERSION:
            raise entry.refusal("version", "only version 1 is known", "a newer fdtrace, if there is one")
        wall_s = entry.milliseconds("wall_time", 1.0) if entry.has("wall_time") else 0.0
        if not 0 <= wall_s < LONGEST_WALL_S:
            raise entry.refusal("wall_time", "it is in seconds", "correct it, or take this line out")
        prefill, decode = self._tokens(where, metrics)
        if prefill + decode > TOKENS:
            raise UsageError(
                f"{where}: {prefill + decode} tokens in one forward", hint="correct it, or take it out"
            )
        if not prefill + decode:
            self.num_idle += 1
            return
        queued = _part(where, metrics, "queued_requests")
        row = (
            _moment(where, value, wall_s),
            prefill,
            decode,
            _count(queued, "num_prefill_requests") + _count(queued, "num_decode_requests"),
            round(wall_s * 1e6) or MISSING,
        )
        self._add(entry, row)

    def _tokens(self, where: str, metrics: Mapping[str, Any]) -> tuple[int, int]:
        """Tokens of prefills and of decodes; a decode of which nothing says it ran one."""
        scheduled = _part(where, metrics, "scheduled_requests")
        prefills, decodes = (_count(scheduled, f"num_{kind}_requests") for kind in ("prefill", "decode"))
        prefill = _count(scheduled, "sum_prefill_tokens")
        extends = scheduled.value("extend_lengths")
        if not extends:
            self.num_without_lengths += decodes > 0
            return prefill, decodes
        whole = isinstance(extends, list) and all(type(length) is int and length >= 0 for length in extends)
        if not whole or len(extends) != prefills + decodes:
            raise scheduled.refusal(
                "extend_lengths", f"the tokens of {prefills + decodes} requests are expected", "take it out"
            )
        return prefill, sum(extends) - prefill

    def _add(self, entry: TraceEntry, row: tuple[int, ...]) -> None:
        worker_id, rank = str(entry.value("worker_id") or "")[:SHOWN_ID], _count(entry, "dp_rank")
        worker = self.workers.setdefault((worker_id, rank), WorkerSteps(worker_id, rank))
        steps = worker.columns["step"]
        step = _count(entry, "counter_id") if entry.has("counter_id") else len(steps)
        if steps and step <= steps[-1]:
            raise entry.refusal(
                "counter_id",
                f"the record before it of this worker and rank has {steps[-1]}",
                "give the files of one run, in their order; of several runs, import each by itself",
            )
        for column, number in zip(worker.columns.values(), (step, *row), strict=True):
            column.append(number)


def _part(where: str, metrics: Mapping[str, Any], name: str) -> TraceEntry:
    value = metrics.get(name, {})
    if not isinstance(value, Mapping):
        raise TraceEntry(where, metrics).refusal(name, "it must be an object", "correct it")
    return TraceEntry(f"{where}, {name}", value)


def _count(entry: TraceEntry, name: str) -> int:
    return entry.whole(name) if entry.has(name) else 0


def _moment(where: str, value: Mapping[str, Any], wall_s: float) -> int:
    """When the forward began, ns since 1970: its record was seen when it ended. MISSING: the line does not say."""
    event = value.get("event")
    for holder in (value, event if isinstance(event, Mapping) else {}):
        entry = TraceEntry(where, holder)
        for name, unit_ns in TIMES:
            if entry.has(name):
                seen = entry.value(name)
                if type(seen) is not int or not 0 < seen * unit_ns < 1 << 62:
                    raise entry.refusal(name, "it is no time since 1970", "correct it, or take it out")
                return max(0, seen * unit_ns - round(wall_s * 1e9))
    return MISSING
