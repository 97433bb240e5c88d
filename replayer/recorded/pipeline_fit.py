"""The times of a recorded deployment's parts, from the times of its forwards, calls and events.

All times are milliseconds.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from fdtrace.recorder.trace.call_order import CallOrder
from fdtrace.recorder.trace.column_values import MISSING
from fdtrace.recorder.trace.recording import Recording
from fdtrace.replayer.recorded.pipeline_times import PipelineTimes, SizeDependentTime, StepTimeSeries, Times
from fdtrace.replayer.recorded.step_durations import FEWEST
from fdtrace.replayer.recorded.step_state import column_or_zero

MOST_FITTED = 4000
"""The token processor is fitted to at most so many steps: every candidate is tried on all of them."""
FETCHES_IN = 2.0
"""The longest time from a request's arrival to the waiting queue that counts as a fetch by an engine that waits for
requests. A longer time means that the engine was busy.
"""
LOCKSTEP = 0.95
"""A recording counts as lockstep if more than this share of its calls knew all outputs."""
NEARLY = 0.98
"""A value counts as good if it explains at least this share of what the best value explains."""
STANDSTILL, LONG = 3.0, 5.0
"""The host stood still in a forward that took more than so many times the typical one, and in a pause that took more
than so many times the typical pause with tasks.
"""
RESTS = 5.2
"""Time after an idle call if none was recorded: FastDeploy sleeps 5 ms."""


def fit_pipeline(recording: Recording, order: CallOrder) -> PipelineTimes | None:
    """The times of a recorded deployment; None if it has too few steps or calls."""
    handed_out = ~order.calls["idle"].astype(bool) & (order.calls["first_step"] != MISSING)
    if recording.num_steps < FEWEST or handed_out.sum() < FEWEST or (recording.steps["ts"] == MISSING).any():
        return None
    return _Fit(recording, order).times()


def _begun_at(order: CallOrder, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """When calls began, ns. Calls that share one row are taken as evenly spaced in time."""
    calls = order.calls
    index = np.searchsorted(calls["call"], numbers, side="right") - 1
    share = (numbers - calls["call"][index]) / np.maximum(calls["num_calls"][index] - 1, 1)
    begun: NDArray[np.int64] = calls["ts"][index] + (
        share * (calls["last_ts"][index] - calls["ts"][index])
    ).astype(np.int64)
    return begun


def is_lockstep(recording: Recording, order: CallOrder) -> bool:
    """Whether nearly all calls knew the outputs of every forward that had begun."""
    seen = order.seen
    if not len(seen["call"]):
        return True
    begun = np.searchsorted(recording.steps["ts"], _begun_at(order, seen["call"])) - 1
    behind = recording.steps["step"][np.maximum(begun, 0)] - seen["step"]
    return bool((behind <= 0).mean() > LOCKSTEP)


class _Fit:
    """The recorded times: `begin` and `end` of each forward, `calls_at` of each call, and `entered`, the index of the
    step that a call's tasks entered.
    """

    def __init__(self, recording: Recording, order: CallOrder) -> None:
        steps = recording.steps
        self.recording, self.order = recording, order
        self.began_ns = int(steps["ts"][0])
        self.begin = (np.asarray(steps["ts"], np.int64) - self.began_ns) / 1e6
        self.durations = np.maximum(column_or_zero(recording, "forward_us"), 1) / 1e3
        self.end = self.begin + self.durations
        self.prefill = column_or_zero(recording, "num_prefill_tokens").astype(np.float64)
        self.decode = column_or_zero(recording, "num_decode_tokens").astype(np.float64)
        per_decode = 1 + max(
            0, recording.engine.num_speculative_tokens if recording.engine.spec_method else 0
        )
        self.rows = self.decode / per_decode + (self.prefill > 0)
        self.numbers = np.asarray(steps["step"], np.int64)
        calls = order.calls
        self.idle = calls["idle"].astype(bool)
        self.calls_at = (calls["ts"] - self.began_ns) / 1e6
        self.calls_last = (calls["last_ts"] - self.began_ns) / 1e6
        entered = np.searchsorted(self.numbers, calls["first_step"])
        self.prompts = self._prompts()
        self.entered = np.where((calls["first_step"] == MISSING) | self.idle, MISSING, entered)

    def times(self) -> PipelineTimes:
        """All of them."""
        terms, rest = self._forwards()
        self.landed = np.zeros(len(self.begin), bool)
        self.landed[self.entered[self.entered != MISSING]] = True
        pause = np.append(np.nan, self.begin[1:] - self.end[:-1])
        waited = self._waited(pause)
        plain, with_tasks = ~self.landed & ~waited, self.landed & ~waited
        alone, tasks = self._by_steps(pause, plain), self._with_tasks(pause, with_tasks)
        check = 0.5 * float(np.nanmin(pause[plain])) if plain[1:].any() else 0.0
        hand_over = self._hand_over(waited, tasks.typical, check)
        first, row, wait = self._outputs()
        leave, free = self._finishes(first, row, wait)
        return PipelineTimes(
            terms, rest, alone, tasks, check, hand_over, self._next_calls(), self._rests(), first, row, wait, leave,
            free, self._fetch(), self._call(), self._disturbed(pause, ~waited, tasks.typical),
        )  # fmt: skip

    def _by_steps(self, values: Times, chosen: NDArray[np.bool_]) -> StepTimeSeries:
        own = np.where(chosen & np.isfinite(values), values, np.nan)
        return StepTimeSeries(_usual(own[np.isfinite(own)]), own)

    def _with_tasks(self, pause: Times, chosen: NDArray[np.bool_]) -> SizeDependentTime:
        steps = np.flatnonzero(chosen & np.isfinite(pause))
        sizes = np.zeros(len(pause), np.int64)
        mine = self.entered != MISSING
        np.add.at(sizes, self.entered[mine], self.prompts[mine])
        return SizeDependentTime.of(_usual(pause[steps]), steps, sizes[steps], pause[steps])

    def _prompts(self) -> NDArray[np.int64]:
        """Prompt tokens of the requests whose chunks each call handed out."""
        operations, calls = self.order.did, self.order.calls
        chunk = operations["did"] == "chunk"
        length = dict(
            zip(
                self.recording.requests["request"].tolist(),
                self.recording.requests["num_prompt_tokens"].tolist(),
                strict=True,
            )
        )
        num_tokens = np.zeros(len(calls["call"]), np.int64)
        call_index = np.searchsorted(calls["call"], operations["call"][chunk])
        np.add.at(
            num_tokens,
            call_index,
            [length.get(request, 0) for request in operations["request"][chunk].tolist()],
        )
        return num_tokens

    def _forwards(self) -> tuple[tuple[float, float, float], StepTimeSeries]:
        terms = np.stack([np.ones(len(self.durations)), self.prefill, self.decode], axis=1)
        usual = self.durations <= STANDSTILL * np.median(self.durations)
        factors = np.linalg.lstsq(terms[usual], self.durations[usual], rcond=None)[0]
        if (factors < 0).any():
            factors = np.array([float(np.median(self.durations)), 0.0, 0.0])
        rest = self.durations - terms @ factors
        base, prefill, decode = (float(value) for value in factors)
        return (base, prefill, decode), StepTimeSeries(float(rest[usual].mean()), rest)

    def _waited(self, pause: Times) -> NDArray[np.bool_]:
        """Forwards before which the worker had nothing to run: the call whose tasks they took began in the pause."""
        waited = np.zeros(len(self.begin), bool)
        waited[0] = True
        for at, entered in self._handed():
            if entered and at > self.end[entered - 1] and pause[entered] > 2 * np.nanmedian(pause):
                waited[entered] = True
        return waited

    def _handed(self) -> Iterator[tuple[float, int]]:
        """Begin and first step of the calls that handed something out."""
        mine = self.entered != MISSING
        yield from zip(self.calls_at[mine].tolist(), self.entered[mine].tolist(), strict=True)

    def _hand_over(self, waited: NDArray[np.bool_], with_tasks: float, check: float) -> SizeDependentTime:
        look_times = np.where(
            waited, self.begin - with_tasks + check, np.append(self.begin[0], self.end[:-1]) + check
        )
        low, high, steps = [], [], []
        for at, entered in self._handed():
            low.append(max(0.0, look_times[entered - 1] - at) if entered else 0.0)
            high.append(max(0.1, look_times[entered] - at))
            steps.append(int(np.searchsorted(self.begin, at)))
        bounds = np.array(low), np.array(high)
        typical = _within_most(*bounds)
        sizes = self.prompts[self.entered != MISSING]
        return SizeDependentTime.of(typical, np.array(steps), sizes, np.clip(typical, *bounds))

    def _next_calls(self) -> StepTimeSeries:
        own = np.full(len(self.begin), np.nan)
        for i in np.flatnonzero(self.entered[:-1] != MISSING).tolist():
            entered = self.entered[i]
            own[entered] = self.calls_at[i + 1] - self.begin[entered]
        return self._by_steps(own, np.abs(own) < 50.0)

    def _rests(self) -> StepTimeSeries:
        """From an idle call to the next. Calls of an engine without any request are not recorded."""
        between = self.calls_at[1:] - self.calls_last[:-1]
        within = (self.calls_last - self.calls_at) / np.maximum(self.order.calls["num_calls"] - 1, 1)
        own = np.full(len(self.begin), np.nan)
        for i in np.flatnonzero(self.idle[:-1]).tolist():
            step = int(np.searchsorted(self.begin, self.calls_last[i]))
            if step < len(own) and between[i] < 50.0:
                own[step] = between[i]
        several = self.order.calls["num_calls"] > 1
        rests = np.concatenate([within[self.idle & several], own[np.isfinite(own)]])
        return StepTimeSeries(_usual(rests) or RESTS, own)

    def _call(self) -> float:
        return float(np.median(self.order.calls["schedule_us"][~self.idle])) / 1e3

    def _seen(self) -> tuple[Times, Times]:
        """For each step: when the last call ran that had not counted its outputs, and the first that had (inf: no
        call).
        """
        calls, seen = self.order.calls, self.order.seen
        index = np.searchsorted(calls["call"], seen["call"], side="right") - 1
        look_times = (_begun_at(self.order, seen["call"]) - self.began_ns) / 1e6 + calls["schedule_us"][
            index
        ] / 2e3
        until = np.maximum.accumulate(np.searchsorted(self.numbers, seen["step"]))
        number, steps = len(self.begin), np.arange(len(self.begin))
        first = np.searchsorted(until, steps)
        high = np.where(first < len(look_times), look_times[np.minimum(first, len(look_times) - 1)], np.inf)
        low = np.where(first > 0, look_times[np.maximum(first - 1, 0)], -np.inf)
        was_counted = np.isin(steps, until)  # a step between two seen ones may have had no outputs to count
        return np.where(was_counted, low, -np.inf)[:number], high[:number]

    def _outputs(self) -> tuple[float, float, StepTimeSeries]:
        """The token processor: the service times that explain most of what calls counted, and each step's own wait."""
        low, high = self._seen()
        count = min(MOST_FITTED, len(self.end))
        out, rows = self.end[:count].tolist(), self.rows[:count].tolist()
        bounds = list(zip(low[:count].tolist(), high[:count].tolist(), strict=True))
        candidates = [
            (first, row) for first in np.arange(0.2, 4.1, 0.4) for row in np.arange(0.0, 0.42, 0.04)
        ]
        wrong = [_misses(out, rows, bounds, first, row) for first, row in candidates]
        best = np.flatnonzero(np.array(wrong) == min(wrong))
        first, row = candidates[int(best[len(best) // 2])]
        return float(first), float(row), _waits(self.end, self.rows, low, high, float(first), float(row))

    def _finishes(self, first: float, row: float, wait: StepTimeSeries) -> tuple[StepTimeSeries, float]:
        changes = self.order.changes
        kinds, when = changes["kind"], (changes["ts"] - self.began_ns) / 1e6
        left = np.sort(when[kinds == "left"])
        done = _taken_in(self.end, self.rows, first, row, wait)
        before = np.searchsorted(done, left) - 1
        delays = left - done[np.maximum(before, 0)]
        delays = delays[(before >= 0) & (delays < 100.0)]
        pairs = {
            int(r): t for r, t in zip(changes["request"][kinds == "left"], when[kinds == "left"], strict=True)
        }
        freed = [
            t - pairs[int(r)]
            for r, t in zip(changes["request"][kinds == "freed"], when[kinds == "freed"], strict=True)
            if int(r) in pairs
        ]
        nothing = np.full(len(self.begin), np.nan)
        return (
            StepTimeSeries(float(np.median(delays)) if len(delays) else 5.0, nothing),
            float(np.median(freed)) if freed else 0.15,
        )

    def _fetch(self) -> float:
        changes = self.order.changes
        queued = changes["kind"] == "queued"
        when = dict(zip(changes["request"][queued].tolist(), changes["ts"][queued].tolist(), strict=True))
        requests = self.recording.requests
        waits = [
            (when[request] - arrived) / 1e6
            for request, arrived in zip(
                requests["request"].tolist(), requests["arrived_at"].tolist(), strict=True
            )
            if request in when and arrived != MISSING
        ]
        short_waits = [wait for wait in waits if wait <= FETCHES_IN]
        return float(np.median(short_waits)) if short_waits else FETCHES_IN / 2

    def _disturbed(self, pause: Times, busy: NDArray[np.bool_], typical: float) -> float:
        usual = float(np.median(self.durations))
        still = (
            self.durations[self.durations > STANDSTILL * usual].sum()
            + pause[busy][pause[busy] > LONG * typical].sum()
        )
        return float(still / max(self.end[-1] - self.begin[0], 1e-9))


def _usual(values: Times) -> float:
    """The mean of the values without those above `LONG` times the median; 0 if there are no values."""
    usual = values[values <= LONG * np.median(values)] if len(values) else values
    return float(usual.mean()) if len(usual) else 0.0


def _within_most(low: Times, high: Times) -> float:
    """The value that lies within most bounds. Of the values that are nearly as good, a large one is taken: most bounds
    are on one side only, because a long time shows only if it makes tasks miss a forward.
    """
    candidates = np.arange(0.2, 30.0, 0.1)
    fits = np.array([int(((low <= value) & (value <= high)).sum()) for value in candidates])
    best = np.flatnonzero(fits >= NEARLY * fits.max())
    return float(candidates[best[3 * len(best) // 4]])


def _misses(
    out: list[float], rows: list[float], bounds: list[tuple[float, float]], first: float, row: float
) -> int:
    done, wrong = 0.0, 0
    for at, count, (low, high) in zip(out, rows, bounds, strict=True):
        begun = max(at, done) + first
        if begun < low:
            wrong, begun = wrong + 1, low
        elif begun > high:
            wrong, begun = wrong + 1, high
        done = begun + row * count
    return wrong


def _waits(out: Times, rows: Times, low: Times, high: Times, first: float, row: float) -> StepTimeSeries:
    """How much longer (or shorter) each step's outputs waited than the service times say."""
    waits, done = np.zeros(len(out)), 0.0
    for i in range(len(out)):
        begun = max(out[i], done) + first
        clipped = min(max(begun, low[i]), high[i])
        waits[i] = clipped - begun
        done = clipped + row * rows[i]
    return StepTimeSeries(0.0, waits)


def _taken_in(out: Times, rows: Times, first: float, row: float, wait: StepTimeSeries) -> Times:
    """When all of each step's outputs had been taken in."""
    done = np.zeros(len(out))
    last = 0.0
    for i in range(len(out)):
        last = max(out[i], last) + first + wait.at(i) + row * rows[i]
        done[i] = last
    return done
