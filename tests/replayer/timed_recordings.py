"""Recordings in memory whose steps took what a formula says."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fdtrace.recorder.trace.recording import Recording
from fdtrace.replayer import BUILTIN
from fdtrace.replayer.experiment import Experiment
from fdtrace.replayer.history.history import History
from fdtrace.replayer.recorded.batch_rows import BatchRowColumns

Floats = NDArray[np.float64]


def gpu(features: Floats) -> Floats:
    """Microseconds of a step on something like a GPU: the memory or the arithmetic, whichever takes longer."""
    prefill, _, decode, kv, attention, _ = features.T
    found: Floats = 6000 + np.maximum(14000 + 2.5 * kv, 130 * (prefill + decode) + 0.1 * attention)
    return found


def batches_of(history: History, recording: Recording) -> BatchRowColumns:
    """The rows of a replay by step, requests by their entry in the recording."""
    entry = {name: i for i, name in enumerate(recording.requests["request_id"].tolist())}
    rows = [
        (
            at,
            entry[row.request_id],
            row.kind == "prefill",
            *(row.num_tokens, row.num_computed_tokens, row.num_accepted_tokens),
        )
        for at, step in enumerate(history.columns["step"].tolist())
        for row in history.rows(step)
    ]
    step, request, prefill, tokens, computed, accepted = np.array(rows, dtype=np.int64).T
    return BatchRowColumns(step, request, prefill.astype(bool), tokens, computed, accepted)


def timed_by_gpu(plain: Recording, begin_ns: int = 10**18) -> tuple[Recording, BatchRowColumns]:
    """The recording with times: its steps took what `gpu` says, and each request came just before its step."""
    rows = batches_of(Experiment(plain).reschedule(BUILTIN["original"]), plain)
    took = gpu(rows.features(plain.num_steps))
    calls = begin_ns + np.concatenate([[0], np.cumsum(took)])[:-1].astype(np.int64) * 1000
    steps = {**plain.steps, "ts": calls, "schedule_us": np.zeros(len(calls), np.int64)}
    index = np.searchsorted(steps["step"], plain.requests["arrived_step"])
    requests: dict[str, Any] = {
        **plain.requests,
        "arrived_at": calls[np.minimum(index, len(calls) - 1)] - 1000,
    }
    return replace(plain, steps=steps, requests=requests), rows
