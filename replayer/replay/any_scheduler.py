"""What a replay needs from a scheduler: the model provides it, and so do the drivers of engines' real schedulers."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Protocol, overload, runtime_checkable

from fdtrace.recorder.trace.recording import EngineInfo
from fdtrace.replayer.config import Policy, SchedulerConfig
from fdtrace.replayer.formulas.base import Formula
from fdtrace.replayer.model.events import (
    Decision,
    Forward,
    Forwarded,
    Notification,
    Preallocate,
    Schedule,
    StepRow,
)
from fdtrace.replayer.model.scheduler import Scheduler


class AnyScheduler(Protocol):
    """A scheduler in lockstep with its forwards, for requests whose acceptances are known in advance."""

    config: SchedulerConfig
    explains: bool
    """Whether its decisions hold the budget, and why the head of the waiting queue stayed."""

    keeps_rows: bool
    """True if a decode may skip steps or vary its number of drafts. A replay then keeps every row that `rows` gives,
    and may also call `rows` after the forward.
    """
    engine: str | None
    """The engine whose own code it is; None: it is a model."""

    @property
    def name(self) -> str:
        """Its name in results."""

    @property
    def formula(self) -> Formula | None:
        """The formula that computes its budgets; None: the scheduler has a rule of its own."""

    @property
    def idle(self) -> bool:
        """Whether nothing runs, waits or is about to be rescheduled."""

    @property
    def num_requests(self) -> int:
        """Requests that have arrived and not left."""

    @property
    def num_asking(self) -> int:
        """In the prefill and decode roles: those of these requests that hold no slot."""

    @property
    def num_preallocated(self) -> int:
        """In the same roles: requests that have slots and blocks but have not joined."""

    @property
    def num_preallocated_blocks(self) -> int:
        """KV blocks of the preallocated requests."""

    @property
    def num_blocks_asked(self) -> int | None:
        """Free blocks that the first request without a slot asks for; None: there is none."""

    @property
    def num_blocks(self) -> int:
        """KV blocks for all requests together."""

    @property
    def num_reserved_blocks(self) -> int | None:
        """Free blocks kept for the running requests, as of after a call; None: none are kept, or it is not known."""

    @property
    def new_token_ratio(self) -> float | None:
        """The ratio that blocks are reserved by, as of after a call; None: there is none, or it is not known."""

    @property
    def snapshot_is_whole(self) -> bool:
        """Whether all later decisions follow from `snapshot`; False: it shows a part of the state."""

    def snapshot(self, decision: Decision) -> Hashable:
        """The state after the call of `decision` and its forward, to compare with later states."""

    def __contains__(self, request_id: str) -> bool: ...

    @overload
    def apply(self, event: Schedule) -> Decision: ...
    @overload
    def apply(self, event: Forwarded) -> Forward: ...
    @overload
    def apply(self, event: Preallocate) -> list[str]: ...
    @overload
    def apply(self, event: Notification) -> None: ...

    def num_output_tokens_of(self, request_id: str) -> int:
        """Output tokens that a request made."""

    def num_total_tokens_of(self, request_id: str) -> int:
        """Prompt and output tokens of a request."""

    def progress_of(self, request_id: str) -> tuple[int, int]:
        """Tokens that a request emitted in prefills, and its decode forwards."""

    def rows(self, decision: Decision) -> list[StepRow]:
        """The requests of the forward that follows a call. Call it between the two.

        Chunks in order of scheduling, then decodes in the worker's order.
        """

    def num_held_back(self, decision: Decision) -> int:
        """Prompt tokens that the budget of a call held back; 0 if it explains nothing. Call it before the forward."""


class OrderedScheduler(Protocol):
    """A scheduler that takes the events of a recorded deployment in their order. It runs no forwards: a separate worker
    runs what its calls hand out.
    """

    explains: bool
    """Whether its decisions hold the budget, and why the head of the waiting queue stayed."""

    @property
    def name(self) -> str:
        """Its name in results."""

    @property
    def num_requests(self) -> int:
        """Requests that have arrived and not left."""

    @overload
    def apply(self, event: Schedule) -> Decision: ...
    @overload
    def apply(self, event: Notification) -> None: ...

    def num_blocks_of(self, request_id: str) -> int:
        """KV blocks of a request that the last call scheduled or extended."""

    def num_prefill_tokens_of(self, request_id: str) -> int:
        """Tokens that the prefill of a request covers, if the last call scheduled the request."""

    def num_held_back(self, decision: Decision) -> int:
        """Prompt tokens that the budget of a call held back; 0 if it explains nothing."""


@runtime_checkable
class OrderTaker(Protocol):
    """A scheduler that can take the recorded events of its own engine in their order."""

    def in_order_of(self, engine: EngineInfo) -> OrderedScheduler | None:
        """The same scheduler for that order; None if its code or its sizes differ from those of that engine."""


def scheduler_by(
    config: SchedulerConfig, by: Formula | AnyScheduler, policy: Policy, *, explain: bool
) -> AnyScheduler:
    """The model, if `by` is a formula; a scheduler is returned unchanged."""
    return Scheduler(config, by, policy, explain=explain) if isinstance(by, Formula) else by
