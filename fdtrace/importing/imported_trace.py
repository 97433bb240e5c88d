"""A trace of forwards of which only sums are known: steps without their requests, calls and memory."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fdtrace.importing.read_step_metrics import ReadMetrics, WorkerSteps
from fdtrace.recorder import __version__, schema
from fdtrace.recorder.collector.tables import columns_of
from fdtrace.recorder.trace.column_values import ColumnArrays
from fdtrace.recorder.write_trace import write_trace
from fdtrace.replayer.recorded.only_sums import IMPORTED

ENGINE_NAME = "fpm"
SUMS_ONLY = (
    "imported from ForwardPassMetrics: sums of each forward. It holds no request, no scheduling call, no budget and no "
    "memory; forward_us is their wall_time"
)


def write_imported(
    path: Path, read: ReadMetrics, sizes: Mapping[str, int], assumed: Mapping[str, int]
) -> list[str]:
    """Write the trace.

    Args:
        path: where nothing is.
        read: the forwards.
        sizes: of each scheduler, by their columns of table `engine`.
        assumed: those of them that nobody gave.

    Returns:
        The trace's notes.

    Raises:
        TraceError: it cannot be written.
    """
    notes = list(_notes(read, assumed))
    now = time.time_ns()
    head = (schema.SCHEMA_VERSION, __version__, now, now, "complete", "import", json.dumps(notes))
    engines = [_engine(number, worker, sizes) for number, worker in enumerate(read.workers)]
    write_trace(
        path,
        {
            "trace": columns_of(schema.TRACE, [head]),
            "engine": columns_of(
                schema.ENGINE, [tuple(row.get(name) for name in schema.ENGINE.names) for row in engines]
            ),
            "step": _steps(read.workers),
        },
    )
    return notes


def _engine(number: int, worker: WorkerSteps, sizes: Mapping[str, int]) -> dict[str, Any]:
    more = {"worker_id": worker.worker_id, IMPORTED: "ForwardPassMetrics"}
    return {
        "engine_id": number,
        "name": ENGINE_NAME,
        "role": "mixed",
        "dp_rank": worker.dp_rank,
        "config": json.dumps(more),
        **sizes,
    }


def _steps(workers: list[WorkerSteps]) -> ColumnArrays:
    counts = [len(worker.columns["step"]) for worker in workers]
    columns: ColumnArrays = {
        name: np.concatenate([np.frombuffer(worker.columns[name], np.int64) for worker in workers])
        for name in workers[0].columns
    }
    columns["engine_id"] = np.repeat(np.arange(len(workers)), counts)
    columns["num_tokens"] = columns["num_prefill_tokens"] + columns["num_decode_tokens"]
    return columns


def _notes(read: ReadMetrics, assumed: Mapping[str, int]) -> Iterator[str]:
    yield SUMS_ONLY
    if read.num_without_lengths:
        yield (
            f"in {read.num_without_lengths:,} steps each decode counts as one token, since sums do not say more: with "
            "speculation decodes run more, and num_tokens is too small"
        )
    if assumed:
        yield f"assumed: {', '.join(f'{name} {value}' for name, value in assumed.items())}"
    if read.num_idle:
        yield f"{read.num_idle:,} records of an idle engine are left out"
