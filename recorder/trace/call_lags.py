"""How far scheduling calls were behind the forwards, where an engine schedules ahead of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fdtrace.recorder.trace.column_values import MISSING


@dataclass(frozen=True, eq=False)
class CallLags:
    """The outputs that calls had taken in. `seen_step` holds for `call` and all calls before the next entry. int64."""

    call: NDArray[np.int64]
    seen_step: NDArray[np.int64]

    def seen_by(self, calls: NDArray[np.int64]) -> NDArray[np.int64]:
        """The last step whose outputs each of `calls` had taken in; MISSING: the call had counted no outputs."""
        at = np.searchsorted(self.call, calls, side="right") - 1
        if not len(self.call):
            return np.full(len(calls), MISSING, np.int64)
        return np.where(at >= 0, self.seen_step[np.maximum(at, 0)], MISSING)


def step_lags(
    calls: Mapping[str, NDArray[np.int64]], steps: Mapping[str, NDArray[np.int64]], lags: CallLags
) -> NDArray[np.int64]:
    """For each step, in order: how many forwards before it its call had not taken in when it began.

    A step's call is the one to which its figures belong: the last call whose tasks had entered, or a later idle call
    that had ended.

    Args:
        calls: `call`, `num_calls`, `idle`, `ts`, `last_ts`, `schedule_us` and `first_step` of the table `call`, in the
            order of the calls; times in ns.
        steps: `step` and `ts` of the table `step`, in their order.
        lags: the outputs that the calls had taken in.

    Returns:
        int64; MISSING: there is no such call, or it had counted no outputs yet.
    """
    working = np.flatnonzero(calls["idle"] == 0)
    entered = working[calls["first_step"][working] != MISSING]
    entered_index = np.searchsorted(calls["first_step"][entered], steps["step"], side="right") - 1
    if not len(entered):
        return np.full(len(steps["step"]), MISSING, np.int64)
    own = entered[np.maximum(entered_index, 0)]
    next_working = np.append(working, len(calls["call"]))[np.searchsorted(working, own, side="right")]
    call_ends = calls["ts"] + 1000 * np.maximum(calls["schedule_us"], 0)
    ended = np.searchsorted(call_ends, steps["ts"], side="right") - 1
    own = np.maximum(own, np.minimum(ended, next_working - 1))
    seen_step = lags.seen_by(calls_at(calls, own, steps["ts"]))
    is_known = (entered_index >= 0) & (seen_step != MISSING)
    lag = np.where(is_known, np.maximum(steps["step"] - seen_step - 1, 0), MISSING)
    return np.asarray(lag, np.int64)


def calls_at(
    calls: Mapping[str, NDArray[np.int64]], rows: NDArray[np.int64], ts: NDArray[np.int64]
) -> NDArray[np.int64]:
    """For each of these rows of `calls`, its last call that had begun at `ts`. The idle calls of a row are taken as
    evenly spaced.
    """
    first, count = calls["ts"][rows], calls["num_calls"][rows]
    lasts = np.maximum(calls["last_ts"][rows] - first, 1)
    passed = np.clip(ts - first, 0, lasts)
    return np.asarray(calls["call"][rows] + (count - 1) * passed // lasts, np.int64)
