"""How long each part of a deployment took in a recording: what a replay that schedules ahead goes by.

A deployment has three parts that wait for each other: the worker runs forwards, a token processor takes their outputs
in, the scheduling loop calls `schedule()`. A recording dates forwards and calls. What lies between is bounded by what
was seen: tasks that entered a forward had reached the worker before it, and outputs that a call counted had been taken
in before it. Each quantity is the typical one, moved into the bounds of its own step where that is outside of them.

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
"""No forward takes less."""


def pace_of(moments: Times) -> float:
    """Milliseconds from one forward to the next, on average but for the longest twentieth, most of which are idle."""
    apart = np.sort(np.diff(moments))
    return float(apart[: len(apart) - len(apart) // 20].mean()) if len(apart) else 0.0


@dataclass(frozen=True)
class BySteps:
    """One quantity: its typical value, and its own at the recorded steps that have one (else NaN)."""

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
class BySize:
    """One quantity that goes with the prompts of the tasks handed over: they are pickled whole.

    Those of about one size (equal in bits) are together, by the steps at which they were recorded.
    """

    typical: float
    steps: Mapping[int, NDArray[np.int64]]
    values: Mapping[int, Times]

    @classmethod
    def of(cls, typical: float, steps: NDArray[np.int64], sizes: NDArray[np.int64], values: Times) -> BySize:
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
        """The value of about this size that was recorded nearest to the replay's `step`-th forward."""
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
    """A forward takes this, and so much a prefill and a decode token."""
    forward_rest: BySteps
    """What a step's forward took beside that."""
    pause: BySteps
    """From a forward's end to the begin of the next, where no tasks came in between."""
    pause_with_tasks: BySize
    """The same where tasks came: the worker fetches and inserts them."""
    check: float
    """From a forward's end to the worker's look at its queue."""
    hand_over: BySize
    """From the begin of a call to the moment when the worker can see its tasks."""
    next_call: BySteps
    """From the begin of the forward that a call's tasks entered to the next call."""
    rest: BySteps
    """From a call that handed out nothing to the next."""
    first_output: float
    """Taking in the outputs of a forward: until the first row's token counts, and so much more a row."""
    output_row: float
    output_wait: BySteps
    """What a step's outputs waited beside that, before the token processor took them up."""
    leave: BySteps
    """From a request's last token to its leaving the running queue."""
    free: float
    """From there until its blocks are free."""
    fetch: float
    """From a request's arrival to its place in the waiting queue, where the engine waited for it."""
    call: float
    """How long a call takes."""
    disturbed: float
    """Share of the recorded time in which the host stood still."""

    def slower(self, share: float) -> PipelineTimes:
        """The same with forwards that take so much longer."""
        base, prefill, decode = (term * (1 + share) for term in self.forward_terms)
        return replace(self, forward_terms=(base, prefill, decode))

    def forward(self, step: int, num_prefill_tokens: int, num_decode_tokens: int) -> float:
        """How long the replay's `step`-th forward takes; its own time where the recorded one ran the same tokens."""
        base, prefill, decode = self.forward_terms
        took = base + prefill * num_prefill_tokens + decode * num_decode_tokens + self.forward_rest.at(step)
        return max(took, LEAST)
