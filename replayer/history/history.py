"""What one replay (or the recording itself) says: a history of steps, and its outcome in figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fdtrace.replayer.model.events import StepRow
from fdtrace.replayer.recorded.memory_fit import MemoryFit
from fdtrace.replayer.recorded.step_durations import Clock

How = Literal["recorded", "as recorded", "rescheduled"]

Order = Literal["lockstep", "recorded", "pipeline"]
"""`lockstep`: a forward after each call, whose output the next call knows; `recorded`: calls, forwards and what came
between them in the recorded order; `pipeline`: each as it falls, on the recorded times of a deployment's parts.
"""
ORDERS: dict[Order, str] = {"lockstep": "lockstep", "recorded": "recorded order", "pipeline": "pipeline"}
"""What each is called where it is shown."""


@dataclass(frozen=True)
class Hang:
    """Work pending and nothing moving: since which step, and why."""

    step: int
    cause: str


@dataclass(frozen=True)
class Cut:
    """A replay that its limit of steps ended, though requests were not done: no figure of it is that of the whole."""

    step: int
    """The first step that was not run."""
    max_steps: int
    num_unfinished: int
    """Requests that were there and not done."""
    num_to_come: int
    """Requests that had not arrived."""

    @property
    def text(self) -> str:
        """The cut as one line."""
        left = [
            f"{count} {what}"
            for count, what in ((self.num_unfinished, "unfinished"), (self.num_to_come, "still to come"))
            if count
        ]
        return f"cut at step {self.step} by the limit of {self.max_steps} steps, with {' and '.join(left)}"


@dataclass(frozen=True)
class Divergence:
    """One step, recorded and replayed, that is not the same in both."""

    step: int
    compared: tuple[tuple[str, int, int], ...]
    """Column, recorded value, replayed value: all that the recording knows."""
    before: tuple[tuple[str, int], ...]
    """The state after the step before, equal in both."""
    rule: str
    """The rule of scheduling that the first telling difference speaks of."""
    only_recorded: tuple[str, ...] = ()
    """Requests that ran in this step otherwise, or not at all, in the replay; empty where it is not recorded."""
    only_replayed: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()
    """What the replay decided there, and why."""


@dataclass(frozen=True)
class CallDeparture:
    """The first scheduling call that a replay decides otherwise than it was recorded."""

    call: int
    differences: tuple[tuple[str, str, str], ...]
    """What differs: its name, as recorded, as replayed."""
    before: tuple[str, ...]
    """The events since the second call before it, that call first."""
    reasons: tuple[str, ...] = ()
    """What the replay decided, and why."""


@dataclass(frozen=True)
class CallFidelity:
    """How many scheduling calls of a deployment a replay in the order of its engine reproduces."""

    num_calls: int
    num_equal: int
    departure: CallDeparture | None = None
    num_left_out: int = 0
    """Recorded events that the replay's state did not allow, after a departure."""

    @property
    def share(self) -> float:
        """Share of calls reproduced, 0 to 1."""
        return self.num_equal / self.num_calls if self.num_calls else 1.0


@dataclass(frozen=True)
class Fidelity:
    """How far a rescheduled replay reproduces the recording that was made under the same formula."""

    num_steps: int
    num_equal: int
    first_divergence: int | None
    explanation: str = ""
    divergence: Divergence | None = None
    """The first divergence side by side; None where there is none, or where one of the two is longer."""
    calls: CallFidelity | None = None
    """The same of scheduling calls; None where the replay was in lockstep: there each step has its call."""

    @property
    def share(self) -> float:
        """Share of steps reproduced, 0 to 1."""
        return self.num_equal / self.num_steps if self.num_steps else 1.0


@dataclass(frozen=True)
class PipelineFigures:
    """What a replay of a deployment's pipeline says beside its steps; milliseconds."""

    duration_ms: float
    """From the first request's coming to the end of the last forward."""
    first_token_p50_ms: float
    """Time to first token: from a request's coming to the end of the forward that made its first token."""
    first_token_p95_ms: float
    first_token_p50_slower_ms: float
    """The same at the median, were every forward 2% slower."""
    pace_ms: float
    """From the end of one forward to that of the next, on average but for the longest twentieth."""
    disturbed: float
    """Share of the recorded time in which the recorded host stood still, 0 to 1."""

    @property
    def is_saturated(self) -> bool:
        """Whether so much of the time to first token is waiting that a small error of pace changes it much."""
        return self.first_token_p50_slower_ms > (1 + SENSITIVE) * self.first_token_p50_ms

    @property
    def is_disturbed(self) -> bool:
        """Whether the recorded host stood still for so long that times of the recording are not the engine's."""
        return self.disturbed > DISTURBED


SENSITIVE, DISTURBED = 0.06, 0.03
"""The median of the time to first token is unsure where 2% of pace change it by more than that; a recording counts as
disturbed where its host stood still for a larger share of the time.
"""


@dataclass(frozen=True)
class Outcome:
    """A history in figures; tokens unless named otherwise. None: this recording does not show it."""

    num_steps: int
    num_exceeded: int
    max_excess: int
    peak_tokens: int
    total_tokens: int
    budget_use: float
    """Mean of tokens run over the limit, 0 to 1 (above 1 where the limit is exceeded)."""
    num_refused_tokens: int | None
    """Prompt tokens held back in steps where they would have fitted under the limit."""
    num_preemptions: int
    num_stalls: int
    num_unfinished: int
    hang: Hang | None = None
    cut: Cut | None = None
    reserved_high_water: int | None = None
    """The allocator's high-water in bytes, recorded or implied by the fit of `replayer.memory`."""
    fidelity: Fidelity | None = None
    memory: MemoryFit | None = None
    """What `reserved_high_water` comes from, and its error."""
    device_bytes: int | None = None
    """The size of the device that was asked about."""
    out_of_memory_step: int | None = None
    """The first step that a device of that size would not have held; None: it would have held all."""
    clock: Clock | None = None
    """By what requests arrived, where they were scheduled afresh; None as a pipeline: as clients sent them."""
    order: Order | None = None
    """How calls and forwards followed each other, where requests were scheduled afresh."""
    pipeline: PipelineFigures | None = None
    """What a replay of a deployment's pipeline says beside."""

    @property
    def why_not_done(self) -> str:
        """How it did not come to its end: a hang with its cause, or a cut; empty where it did."""
        if self.hang is not None:
            return f"hangs at step {self.hang.step}: {self.hang.cause}"
        return "" if self.cut is None else self.cut.text


@dataclass(frozen=True)
class History:
    """The steps of one formula, columns of equal length, ascending by step.

    `columns` holds at least `step`, `num_tokens`, `token_budget`, `num_prefill_tokens`, `num_decode_tokens`,
    `num_running`, `num_waiting`, `num_preempted`, `num_stalled`, `num_free_blocks` (int64; MISSING where
    unknown), and `reserved_bytes` where memory is known; `not_admitted` is text. `rows(step)` gives the requests of a
    step.
    """

    name: str
    how: How
    limit: int
    columns: Mapping[str, NDArray[Any]]
    outcome: Outcome
    rows: Callable[[int], list[StepRow]] = field(repr=False, compare=False)
    request_steps: Callable[[str], list[tuple[int, StepRow]]] | None = field(
        default=None, repr=False, compare=False
    )
    """The steps in which a request ran, each with its row, by the request's id; None: it is not known."""

    @property
    def exceeded(self) -> NDArray[np.int64]:
        """Indices into the columns of the steps over the limit."""
        return np.flatnonzero(self.columns["num_tokens"] > self.limit)
