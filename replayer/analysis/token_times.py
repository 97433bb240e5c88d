"""When each request made its tokens, from the rows of its steps and when these ended; what its client waited."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fdtrace.recorder.errors import UsageError
from fdtrace.recorder.trace.column_values import MISSING, Floats
from fdtrace.replayer.history.latency import Latencies, Percentiles
from fdtrace.replayer.recorded.batch_rows import BatchRowColumns
from fdtrace.replayer.recorded.recorded_timing import RecordedTiming
from fdtrace.replayer.replay.timed_steps import TimedSteps
from fdtrace.replayer.workload.workload import Workload

OBJECTIVES = ("ttft", "itl", "tpot", "latency")
"""What `--slo` may bound: of a request its time to first token, the mean time between its steps and between its tokens,
and the time to its last token.
"""
_UNITS = {"us": 1.0, "ms": 1e3, "s": 1e6, "": 1e3}


def parse_slo(text: str | None) -> dict[str, float]:
    """`ttft=500ms,itl=50ms` as microseconds by name. UsageError where it is none."""
    found: dict[str, float] = {}
    for part in (text or "").split(","):
        if not part.strip():
            continue
        name, _, value = (one.strip() for one in part.partition("="))
        unit = value.lstrip("0123456789.")
        try:
            number = float(value.removesuffix(unit)) if unit else float(value)
            found[name] = number * _UNITS[unit.strip()]
        except (ValueError, KeyError):
            raise UsageError(f"{part.strip()!r} is no objective", hint="--slo ttft=500ms,itl=50ms") from None
        if name not in OBJECTIVES:
            raise UsageError(f"there is no objective {name!r}", hint=f"one of {', '.join(OBJECTIVES)}")
    return found


@dataclass(frozen=True)
class Clients:
    """What is asked of each request, by entry: when it came (microseconds; NaN: before the first step, or not known),
    its prompt and its output in tokens, and whether it ran to its end.
    """

    arrived_us: Floats
    prompts: Sequence[int]
    outputs: Sequence[int]
    ended: NDArray[np.bool_]


@dataclass
class _Times:
    """When each request made its first and its last token, how many tokens, in how many steps."""

    first: Floats
    last: Floats
    made: NDArray[np.int64]
    steps: NDArray[np.int64]
    gaps: list[float] = field(default_factory=list)


def _times_of(rows: BatchRowColumns, ends: Floats, clients: Clients) -> _Times:
    """A prefill makes a token where it reaches the last of the request's tokens, a decode one and those accepted."""
    count = len(clients.prompts)
    first, last = [np.nan] * count, [np.nan] * count
    made, steps, gaps = [0] * count, [0] * count, list[float]()
    counted = (~np.isnan(clients.arrived_us)).tolist()
    prompts, outputs, at = clients.prompts, clients.outputs, ends.tolist()
    columns = (
        rows.step,
        rows.request,
        rows.prefill,
        rows.num_tokens,
        rows.num_computed_tokens,
        rows.num_accepted_tokens,
    )
    for step, request, prefill, tokens, computed, accepted in zip(
        *(one.tolist() for one in columns), strict=True
    ):
        if not counted[request]:
            continue
        before = made[request]
        new = int(computed + tokens >= prompts[request] + before) if prefill else 1 + accepted
        new = min(new, outputs[request] - before)
        if new <= 0:
            continue
        now = at[step]
        if before:
            gaps.append(now - last[request])
        else:
            first[request] = now
        last[request], made[request], steps[request] = now, before + new, steps[request] + 1
    return _Times(np.array(first), np.array(last), np.array(made), np.array(steps), gaps)


def latencies(
    rows: BatchRowColumns,
    starts: Floats,
    ends: Floats,
    clients: Clients,
    slo: Mapping[str, float],
    num_steps_beyond: int | None = None,
) -> Latencies:
    """What clients waited in a history whose steps began and ended so, in microseconds."""
    times = _times_of(rows, ends, clients)
    ttft, latency = times.first - clients.arrived_us, times.last - clients.arrived_us
    served = ~np.isnan(ttft)
    done = served & clients.ended & (times.made >= np.asarray(clients.outputs))
    duration = float(ends[-1] - starts[0]) / 1e6 if len(ends) else 0.0
    goodput = None
    if slo and duration:
        spread = times.last - times.first
        values = {
            "ttft": ttft,
            "latency": latency,
            "itl": spread / np.maximum(times.steps - 1, 1),
            "tpot": spread / np.maximum(times.made - 1, 1),
        }
        kept = done.copy()
        for name, most in slo.items():
            kept &= np.nan_to_num(values[name], nan=np.inf) <= most
        goodput = float(kept.sum()) / duration
    return Latencies(
        num_requests=int(served.sum()),
        ttft_us=Percentiles.of(ttft[served]),
        itl_us=Percentiles.of(np.array(times.gaps)),
        latency_us=Percentiles.of(latency[done]),
        output_tokens_per_s=float(times.made.sum()) / duration if duration else 0.0,
        requests_per_s=float(done.sum()) / duration if duration else 0.0,
        duration_s=duration,
        busy_share=float((ends - starts).sum()) / 1e6 / duration if duration else 0.0,
        goodput_per_s=goodput,
        slo=dict(slo),
        num_steps_beyond=num_steps_beyond,
    )


def recorded_latencies(timing: RecordedTiming, slo: Mapping[str, float]) -> Latencies:
    """What clients waited in the recording. UsageError where it has no times, or no request came in it."""
    recording = timing.recording
    assert timing.rows is not None  # `features` has said so
    requests, endings = recording.requests, recording.details.endings
    if "arrived_at" not in requests:
        raise UsageError("this recording has no arrival times")
    arrived = np.asarray(requests["arrived_at"], dtype=np.float64)
    known = arrived != MISSING
    for first in recording.details.initial:
        known &= np.asarray(requests["request"]) != first.request
    arrived_us = np.where(known, (arrived - timing.calls[0]) / 1000.0, np.nan)
    clients = Clients(
        arrived_us,
        _whole(requests["num_prompt_tokens"]),
        _whole(requests["num_output_tokens"]),
        (endings.finished_step != MISSING) & (endings.aborted_step == MISSING),
    )
    starts = (timing.calls - timing.calls[0]) / 1000.0
    return latencies(timing.rows, starts, timing.ends_us, clients, slo)


def _whole(values: NDArray[Any]) -> list[int]:
    found: list[int] = np.asarray(values, dtype=np.int64).tolist()
    return found


def replayed_latencies(
    timed: TimedSteps, workload: Workload, came: Mapping[str, float], slo: Mapping[str, float]
) -> Latencies:
    """What clients would have waited in a replay by time; `came`: when those came that waited for an answer."""
    requests = workload.requests
    arrived = [
        np.nan
        if one.resumed is not None
        else came.get(one.request_id, np.nan)
        if one.think is not None
        else one.arrival
        for one in requests
    ]
    clients = Clients(
        np.array(arrived, dtype=np.float64),
        [one.num_prompt_tokens for one in requests],
        [one.num_output_tokens for one in requests],
        np.array([one.abort_after is None and one.target is None for one in requests], dtype=bool),
    )
    return latencies(timed.rows, timed.starts_us, timed.ends_us, clients, slo, timed.num_beyond)
