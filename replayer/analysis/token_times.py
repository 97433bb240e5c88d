"""When each request made its tokens (from the rows and ends of its steps), and how long its client waited."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fdtrace.recorder.errors import UsageError
from fdtrace.recorder.trace.column_values import MISSING, Floats
from fdtrace.replayer.history.latency import Latencies, Percentiles
from fdtrace.replayer.recorded.batch_rows import BatchRowColumns
from fdtrace.replayer.recorded.client_times import sending_times
from fdtrace.replayer.recorded.recorded_timing import RecordedTiming
from fdtrace.replayer.replay.summed_log import SummedLog, TokenRuns
from fdtrace.replayer.replay.timed_steps import TimedSteps
from fdtrace.replayer.replay.workload_replay import Replay

OBJECTIVES = ("ttft", "itl", "tpot", "latency")
"""What `--slo` may bound for a request: the time to its first token, the mean time between its steps, the mean time
between its tokens, the time to its last token.
"""
_UNITS = {"us": 1.0, "ms": 1e3, "s": 1e6, "": 1e3}


def parse_slo(text: str | None) -> dict[str, float]:
    """`ttft=500ms,itl=50ms` as microseconds by name. UsageError if a part is no objective."""
    limits_us: dict[str, float] = {}
    for part in (text or "").split(","):
        if not part.strip():
            continue
        name, _, value = (piece.strip() for piece in part.partition("="))
        unit = value.lstrip("0123456789.")
        try:
            number = float(value.removesuffix(unit)) if unit else float(value)
            limits_us[name] = number * _UNITS[unit.strip()]
        except (ValueError, KeyError):
            raise UsageError(f"{part.strip()!r} is no objective", hint="--slo ttft=500ms,itl=50ms") from None
        if name not in OBJECTIVES:
            raise UsageError(f"there is no objective {name!r}", hint=f"one of {', '.join(OBJECTIVES)}")
    return limits_us


@dataclass(frozen=True)
class ClientRequests:
    """Of each request, by entry: when it arrived (microseconds; NaN: before the first step, or not known), its prompt
    and its output in tokens, and whether it ran to its end.
    """

    arrived_us: Floats
    prompts: Sequence[int]
    outputs: Sequence[int]
    ended: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class TokenTimes:
    """When each request made its first and its last token, how many tokens it made, and in how many steps."""

    first: Floats
    last: Floats
    num_tokens: NDArray[np.int64]
    steps: NDArray[np.int64]
    gaps: Floats
    """The times between two steps in a row in which a request made tokens, of all requests, in any order."""


def times_of_runs(runs: TokenRuns, ends: Floats, clients: ClientRequests) -> TokenTimes:
    """From the steps in which each request made tokens."""
    count = len(clients.prompts)
    keep = ~np.isnan(clients.arrived_us)[runs.request]
    request, first, end = runs.request[keep], runs.first[keep], runs.end[keep]
    begins = np.flatnonzero(np.diff(request, prepend=-1))
    lasts = np.append(begins[1:], len(request)) - 1 if len(begins) else begins
    first_at, last_at = np.full(count, np.nan), np.full(count, np.nan)
    first_at[request[begins]] = ends[first[begins]]
    last_at[request[lasts]] = ends[end[lasts] - 1]
    # A run gives one gap for each of its steps but the first, and one to the run before it.
    change = np.bincount(first + 1, minlength=len(ends) + 1) - np.bincount(end, minlength=len(ends) + 1)
    within = np.repeat(np.diff(ends), np.cumsum(change[: len(ends)])[1:])
    follows = np.flatnonzero(request[1:] == request[:-1])
    between = ends[first[follows + 1]] - ends[end[follows] - 1]
    num_tokens = np.zeros(count, np.int64)
    np.add.at(num_tokens, request, runs.num_tokens[keep])
    steps = np.zeros(count, np.int64)
    np.add.at(steps, request, end - first)
    return TokenTimes(first_at, last_at, num_tokens, steps, np.concatenate([within, between]))


def times_of_rows(rows: BatchRowColumns, ends: Floats, clients: ClientRequests) -> TokenTimes:
    """A prefill makes a token if it reaches the last of the request's tokens; a decode 1 + its accepted drafts."""
    count = len(clients.prompts)
    first, last = [np.nan] * count, [np.nan] * count
    num_tokens, steps, gaps = [0] * count, [0] * count, list[float]()
    is_counted = (~np.isnan(clients.arrived_us)).tolist()
    prompts, outputs, end_of_step = clients.prompts, clients.outputs, ends.tolist()
    columns = (
        rows.step,
        rows.request,
        rows.prefill,
        rows.num_tokens,
        rows.num_computed_tokens,
        rows.num_accepted_tokens,
    )
    for step, request, prefill, tokens, computed, accepted in zip(
        *(column.tolist() for column in columns), strict=True
    ):
        if not is_counted[request]:
            continue
        before = num_tokens[request]
        num_new = int(computed + tokens >= prompts[request] + before) if prefill else 1 + accepted
        num_new = min(num_new, outputs[request] - before)
        if num_new <= 0:
            continue
        now = end_of_step[step]
        if before:
            gaps.append(now - last[request])
        else:
            first[request] = now
        last[request], num_tokens[request], steps[request] = now, before + num_new, steps[request] + 1
    return TokenTimes(np.array(first), np.array(last), np.array(num_tokens), np.array(steps), np.array(gaps))


@dataclass(frozen=True)
class ServedSteps:
    """The steps of a history in which tokens were made: what each ran, when it began and ended (microseconds)."""

    tokens: BatchRowColumns | TokenRuns
    """The requests of the steps, or the steps in which each request made tokens."""
    starts: Floats
    ends: Floats
    clients: ClientRequests
    num_steps_beyond: int | None = None
    """As `Latencies` has it."""
    num_engines: int = 1
    """Engines whose steps these are."""

    def later(self, us: float) -> ServedSteps:
        """The same on a clock that was so many microseconds ahead when this one was 0."""
        clients = replace(self.clients, arrived_us=self.clients.arrived_us + us)
        return replace(self, starts=self.starts + us, ends=self.ends + us, clients=clients)


def joined_steps(parts: Sequence[ServedSteps]) -> ServedSteps:
    """The steps of several engines together, all on one clock. Their `tokens` are rows."""
    steps = np.cumsum([0, *(len(part.starts) for part in parts)])
    entries = np.cumsum([0, *(len(part.clients.prompts) for part in parts)])
    rows = [part.tokens for part in parts if isinstance(part.tokens, BatchRowColumns)]
    beyond = [part.num_steps_beyond for part in parts if part.num_steps_beyond is not None]
    return ServedSteps(
        BatchRowColumns(
            np.concatenate([one.step + first for one, first in zip(rows, steps[:-1], strict=True)]),
            np.concatenate([one.request + first for one, first in zip(rows, entries[:-1], strict=True)]),
            np.concatenate([one.prefill for one in rows]),
            np.concatenate([one.num_tokens for one in rows]),
            np.concatenate([one.num_computed_tokens for one in rows]),
            np.concatenate([one.num_accepted_tokens for one in rows]),
        ),
        np.concatenate([part.starts for part in parts]),
        np.concatenate([part.ends for part in parts]),
        ClientRequests(
            np.concatenate([part.clients.arrived_us for part in parts]),
            [tokens for part in parts for tokens in part.clients.prompts],
            [tokens for part in parts for tokens in part.clients.outputs],
            np.concatenate([part.clients.ended for part in parts]),
        ),
        sum(beyond) if beyond else None,
        sum(part.num_engines for part in parts),
    )


def latencies(served: ServedSteps, slo: Mapping[str, float]) -> Latencies:
    """How long clients waited, microseconds; `busy_share` is the mean of all engines."""
    starts, ends, clients = served.starts, served.ends, served.clients
    if isinstance(served.tokens, TokenRuns):
        times = times_of_runs(served.tokens, ends, clients)
    else:
        times = times_of_rows(served.tokens, ends, clients)
    ttft, latency = times.first - clients.arrived_us, times.last - clients.arrived_us
    has_token = ~np.isnan(ttft)
    done = has_token & clients.ended & (times.num_tokens >= np.asarray(clients.outputs))
    duration = float(ends.max() - starts.min()) / 1e6 if len(ends) else 0.0
    goodput = None
    if slo and duration:
        spread = times.last - times.first
        values = {
            "ttft": ttft,
            "latency": latency,
            "itl": spread / np.maximum(times.steps - 1, 1),
            "tpot": spread / np.maximum(times.num_tokens - 1, 1),
        }
        meets_slo = done.copy()
        for name, limit in slo.items():
            meets_slo &= np.nan_to_num(values[name], nan=np.inf) <= limit
        goodput = float(meets_slo.sum()) / duration
    return Latencies(
        num_requests=int(has_token.sum()),
        ttft_us=Percentiles.of(ttft[has_token]),
        itl_us=Percentiles.of(times.gaps),
        latency_us=Percentiles.of(latency[done]),
        output_tokens_per_s=float(times.num_tokens.sum()) / duration if duration else 0.0,
        requests_per_s=float(done.sum()) / duration if duration else 0.0,
        duration_s=duration,
        busy_share=float((ends - starts).sum()) / 1e6 / duration / served.num_engines if duration else 0.0,
        goodput_per_s=goodput,
        slo=dict(slo),
        num_steps_beyond=served.num_steps_beyond,
    )


def recorded_latencies(timing: RecordedTiming, slo: Mapping[str, float]) -> Latencies:
    """How long clients waited in the recording. UsageError if it has no times or no arrival times."""
    return latencies(recorded_steps(timing), slo)


def recorded_steps(timing: RecordedTiming) -> ServedSteps:
    """The steps of a recording; its clock is 0 at the first call. UsageError as for `recorded_latencies`."""
    recording, ends = timing.recording, timing.ends_us
    assert timing.rows is not None  # `ends_us` has raised otherwise
    requests, endings = recording.requests, recording.details.endings
    if "arrived_at" not in requests:
        raise UsageError("this recording has no arrival times")
    arrived = sending_times(requests).astype(np.float64)
    has_arrival = arrived != MISSING
    for initial_request in recording.details.initial:
        has_arrival &= np.asarray(requests["request"]) != initial_request.request
    arrived_us = np.where(has_arrival, (arrived - timing.calls[0]) / 1000.0, np.nan)
    clients = ClientRequests(
        arrived_us,
        _whole(requests["num_prompt_tokens"]),
        _whole(requests["num_output_tokens"]),
        (endings.finished_step != MISSING) & (endings.aborted_step == MISSING),
    )
    starts = (timing.calls - timing.calls[0]) / 1000.0
    return ServedSteps(timing.rows, starts, ends, clients)


def _whole(values: NDArray[Any]) -> list[int]:
    whole_numbers: list[int] = np.asarray(values, dtype=np.int64).tolist()
    return whole_numbers


def replayed_latencies(run: Replay, slo: Mapping[str, float]) -> Latencies | None:
    """How long clients would have waited in a replay by time; None: it has no times."""
    return None if run.timed is None else latencies(replayed_steps(run), slo)


def replayed_steps(run: Replay) -> ServedSteps:
    """The steps of a replay by time, on its clock."""
    timed, requests = run.timed, run.workload.requests
    assert timed is not None
    arrivals_after_answers = run.arrivals_after_answers
    arrived = [
        np.nan
        if request.resumed is not None
        else arrivals_after_answers.get(request.request_id, np.nan)
        if request.think is not None
        else request.arrival - request.on_its_way
        for request in requests
    ]
    clients = ClientRequests(
        np.array(arrived, dtype=np.float64),
        [request.num_prompt_tokens for request in requests],
        [request.num_output_tokens for request in requests],
        np.array(
            [request.abort_after is None and request.target is None for request in requests], dtype=bool
        ),
    )
    tokens: BatchRowColumns | TokenRuns | None = timed.rows if isinstance(timed, TimedSteps) else None
    if isinstance(run.log, SummedLog):
        tokens = run.log.token_runs()
    assert tokens is not None
    return ServedSteps(tokens, timed.starts_us, timed.ends_us, clients, timed.num_beyond)
