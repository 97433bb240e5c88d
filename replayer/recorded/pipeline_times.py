"""How long each part of a deployment took in a recording. A replay that schedules ahead uses these times.

A deployment has three parts that wait for each other: the worker runs forwards, the token processor takes in their
outputs, the scheduling loop calls `schedule()`. A recording has the times of forwards and calls. The times between them
have bounds: tasks that entered a forward had reached the worker before it, and outputs that a call counted had been
taken in before it. Each quantity has its typical value; in a step whose bounds exclude that value, the nearest bound.

All times are milliseconds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Times = NDArray[np.float64]

LEAST = 0.05
"""Every forward takes at least so long."""


def pace_of(moments: Times) -> float:
    """Mean milliseconds from one forward to the next, without the longest 5%: most of these are idle time."""
    apart = np.sort(np.diff(moments))
    return float(apart[: len(apart) - len(apart) // 20].mean()) if len(apart) else 0.0


@dataclass(frozen=True)
class StepTimeSeries:
    """One quantity: its typical value, and the value of each recorded step (NaN if the step has none)."""

    typical: float
    own: Times

    def at(self, step: int) -> float:
        """The value at the replay's `step`-th forward, from 0."""
        if step < len(self.own):
            value = float(self.own[step])
            if not math.isnan(value):
                return value
        return self.typical


@dataclass(frozen=True)
class SizeDependentTime:
    """One quantity that depends on the prompts of the tasks handed over, because whole prompts are pickled.

    Sizes of equal bit length form one group. In a group, values are ordered by the step at which they were recorded.
    """

    typical: float
    steps: Mapping[int, NDArray[np.int64]]
    values: Mapping[int, Times]

    @classmethod
    def of(
        cls, typical: float, steps: NDArray[np.int64], sizes: NDArray[np.int64], values: Times
    ) -> SizeDependentTime:
        """From recorded values and the sizes and steps that they belong to."""
        bits = np.array([int(size).bit_length() for size in sizes], np.int64)
        order = np.argsort(steps, kind="stable")
        groups = {int(kind): order[bits[order] == kind] for kind in np.unique(bits)}
        return cls(
            typical,
            {kind: steps[group] for kind, group in groups.items()},
            {kind: values[group] for kind, group in groups.items()},
        )

    def at(self, step: int, size: int) -> float:
        """The value for a size of this bit length that was recorded nearest to the replay's `step`-th forward."""
        steps = self.steps.get(size.bit_length())
        if steps is None:
            return self.typical
        i = int(np.searchsorted(steps, step))
        if i == len(steps) or (i and step - steps[i - 1] < steps[i] - step):
            i -= 1
        return float(self.values[size.bit_length()][i])


@dataclass(frozen=True)
class PipelineTimes:
    """What a replay that schedules ahead takes from a recording."""

    forward_terms: tuple[float, float, float]
    """Time of a forward: a base, plus so much for each prefill token, plus so much for each decode token."""
    forward_rest: StepTimeSeries
    """What a step's forward took beyond that."""
    pause: StepTimeSeries
    """From a forward's end to the begin of the next, if no tasks came in between."""
    pause_with_tasks: SizeDependentTime
    """The same if tasks came: the worker fetches and inserts them."""
    check: float
    """From a forward's end to the worker's look at its queue."""
    hand_over: SizeDependentTime
    """From the begin of a call to the moment when the worker can see its tasks."""
    next_call: StepTimeSeries
    """From the begin of the forward that a call's tasks entered to the next call."""
    rest: StepTimeSeries
    """From a call that scheduled nothing to the next call."""
    first_output: float
    """Time to take in a forward's outputs: until the first row's token counts; `output_row` more for each row."""
    output_row: float
    output_wait: StepTimeSeries
    """How much longer a step's outputs waited before the token processor took them in."""
    leave: StepTimeSeries
    """From a request's last token until it leaves the running queue."""
    free: float
    """From then until its blocks are free."""
    fetch: float
    """From a request's arrival until it is in the waiting queue, if the engine was waiting for requests."""
    call: float
    """How long a call takes."""
    disturbed: float
    """Share of the recorded time in which the host stood still."""

    def slower(self, share: float) -> PipelineTimes:
        """The same, with forwards that take longer by this share."""
        base, prefill, decode = (term * (1 + share) for term in self.forward_terms)
        return replace(self, forward_terms=(base, prefill, decode))

    def forward(self, step: int, num_prefill_tokens: int, num_decode_tokens: int) -> float:
        """How long the replay's `step`-th forward takes; as recorded if the recorded forward ran the same tokens."""
        base, prefill, decode = self.forward_terms
        duration = (
            base + prefill * num_prefill_tokens + decode * num_decode_tokens + self.forward_rest.at(step)
        )
        return max(duration, LEAST)
