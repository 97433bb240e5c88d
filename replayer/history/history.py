"""The result of one replay, or of the recording itself: a history of steps, and its outcome in figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fdtrace.replayer.history.latency import Latencies
from fdtrace.replayer.history.lives import RequestLives
from fdtrace.replayer.model.events import StepRow
from fdtrace.replayer.recorded.memory_fit import MemoryFit
from fdtrace.replayer.recorded.step_durations import Clock

How = Literal["recorded", "as recorded", "rescheduled"]

Order = Literal["lockstep", "recorded", "pipeline"]
"""`lockstep`: a forward follows each call, and the next call knows its output. `recorded`: calls, forwards and the
events between them follow in the recorded order. `pipeline`: each part of a deployment runs on its recorded times.
"""
ORDERS: dict[Order, str] = {"lockstep": "lockstep", "recorded": "recorded order", "pipeline": "pipeline"}
"""What each is called where it is shown."""


@dataclass(frozen=True)
class Hang:
    """Requests are unfinished, but no step makes progress any more: since which step, and why."""

    step: int
    cause: str


@dataclass(frozen=True)
class StepLimitReached:
    """A replay ended at its limit of steps before its requests were done. Its figures cover only the steps that ran."""

    step: int
    """The first step that was not run."""
    max_steps: int
    num_unfinished: int
    """Requests that had arrived and were not finished."""
    num_to_come: int
    """Requests that had not arrived."""

    @property
    def text(self) -> str:
        """The cut as one line."""
        counts = ((self.num_unfinished, "unfinished"), (self.num_to_come, "still to come"))
        remaining = " and ".join(f"{count} {state}" for count, state in counts if count)
        return f"cut at step {self.step} by the limit of {self.max_steps} steps, with {remaining}"


@dataclass(frozen=True)
class Divergence:
    """A step that differs between the recording and the replay."""

    step: int
    compared: tuple[tuple[str, int, int], ...]
    """(column, recorded value, replayed value) of each column that both have."""
    before: tuple[tuple[str, int], ...]
    """The state after the previous step, equal in both."""
    rule: str
    """The scheduling rule that the most significant difference points to."""
    only_recorded: tuple[str, ...] = ()
    """Recorded requests that did not run in the replayed step, or ran differently; empty if rows are not recorded."""
    only_replayed: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()
    """What the replay decided in this step, and why."""


@dataclass(frozen=True)
class CallDeparture:
    """The first scheduling call whose decision differs between the recording and the replay."""

    call: int
    differences: tuple[tuple[str, str, str], ...]
    """(name, recorded value, replayed value) of each difference."""
    before: tuple[str, ...]
    """The events before it: the last two calls, and what came after each."""
    reasons: tuple[str, ...] = ()
    """What the replay decided, and why."""


@dataclass(frozen=True)
class CallFidelity:
    """How many scheduling calls of a deployment are reproduced by a replay in the order of its engine."""

    num_calls: int
    num_equal: int
    departure: CallDeparture | None = None
    num_left_out: int = 0
    """Recorded events that were left out: after the departure, the replay's state did not allow them."""

    @property
    def share(self) -> float:
        """Share of calls reproduced, 0 to 1."""
        return self.num_equal / self.num_calls if self.num_calls else 1.0


@dataclass(frozen=True)
class Fidelity:
    """How far a rescheduled replay, under the formula of the recording, reproduces that recording."""

    num_steps: int
    num_equal: int
    first_divergence: int | None
    explanation: str = ""
    divergence: Divergence | None = None
    """The first step that differs, side by side. None: no step differs, or one of the two is only longer."""
    calls: CallFidelity | None = None
    """The same for scheduling calls. None: the replay was in lockstep, where each step has its own call."""
    num_left_out: int = 0
    """Steps at the end, beyond `num_steps`, that no recorded call decided: the recording ended before that call."""

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
    """A history in figures; in tokens unless the name says otherwise. None: unknown for this recording."""

    num_steps: int
    num_exceeded: int
    max_excess: int
    peak_tokens: int
    total_tokens: int
    budget_use: float
    """Mean of the tokens that a step ran, divided by the limit: 0 to 1, above 1 where the limit is exceeded."""
    num_refused_tokens: int | None
    """Prompt tokens that the formula held back in steps that had room for them under the limit."""
    num_preemptions: int
    num_stalls: int
    num_unfinished: int | None
    hang: Hang | None = None
    cut: StepLimitReached | None = None
    reserved_high_water: int | None = None
    """The allocator's high-water mark in bytes: recorded, or computed by `recorded.memory_fit`."""
    allocated_high_water: int | None = None
    """Bytes that the tensors of a step need at most, instead of what is reserved: where `memory` is fitted to that."""
    fidelity: Fidelity | None = None
    memory: MemoryFit | None = None
    """The fit of memory to tokens, with its error."""
    device_bytes: int | None = None
    """The size of the device that the user asked about."""
    out_of_memory_step: int | None = None
    """The first step that needs more memory than such a device has; None: no step does."""
    clock: Clock | None = None
    """How requests arrived; None: they were not rescheduled, or a pipeline took them as clients sent them."""
    order: Order | None = None
    """How calls and forwards followed each other; None: requests were not rescheduled."""
    pipeline: PipelineFigures | None = None
    """What a replay of a deployment's pipeline adds."""
    settings: Mapping[str, bool | int | float | str | None] = field(default_factory=dict)
    """What was changed of the recorded engine's settings, by its own names."""
    num_rejected: int = 0
    """Requests that an engine of these settings would answer with 400."""
    latency: Latencies | None = None
    """What clients waited, recorded or told by the clock's time model; None: it is not known, or not asked."""
    modelled: tuple[str, ...] = ()
    """What the result rests on beside the recording and the scheduler's rules, a sentence each."""

    @property
    def why_not_done(self) -> str:
        """Why it did not run to its end: a hang with its cause, or a cut; empty if it did."""
        if self.hang is not None:
            return f"hangs at step {self.hang.step}: {self.hang.cause}"
        return "" if self.cut is None else self.cut.text


@dataclass(frozen=True)
class History:
    """The steps under one formula, or of the recording: columns of equal length, ascending by step.

    `columns` holds at least `step`, `num_tokens`, `token_budget`, `num_prefill_tokens`, `num_decode_tokens`,
    `num_running`, `num_waiting`, `num_preempted`, `num_stalled` and `num_free_blocks` (int64; MISSING where
    unknown), and `reserved_bytes` or `peak_allocated_bytes` if memory is known. `not_admitted` is text. `rows(step)`
    gives the requests of a step.
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
    """Gives the steps in which a request ran, each with its row, by the request's id; None: rows are not known."""
    lives: Callable[[], RequestLives | None] | None = field(default=None, repr=False, compare=False)
    """Gives when each request came, ran and ended; None, or a result of None: it is not known."""

    @property
    def exceeded(self) -> NDArray[np.int64]:
        """Indices (into the columns) of the steps over the limit."""
        return np.flatnonzero(self.columns["num_tokens"] > self.limit)

    def __repr__(self) -> str:
        """Its name, how it was replayed, its steps, and how many exceed the limit."""
        counts = (
            f"{len(self.columns['num_tokens'])} steps, {len(self.exceeded)} exceed the limit of {self.limit}"
        )
        return f"<{type(self).__name__} {self.name!r} ({self.how}): {counts}>"
