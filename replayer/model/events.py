"""What goes into the scheduler model and what comes out: events, the decision of a call, each with its
reason.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Accepts = Sequence[int] | NDArray[np.integer[Any]]
NotAdmitted = Literal["budget", "blocks", "slots", "preemption"]


class Arrived(NamedTuple):
    """A request was handed to the scheduler.

    `max_tokens` bounds its output (None: up to max_model_len). `block_key(i)` stands, with prefix caching, for the
    content of the i-th block of its tokens, equal for equal content; None: no block of it is like another's.

    A replay knows what is to come: `accepts` are the drafts accepted in its 1st, 2nd, ... decode forward, and
    `num_output_tokens` is where it stops. Then `Forwarded` advances it, and no `Emitted` is due for it. No decision
    reads them ahead of their forward.

    Only an engine's real scheduler is given the rest. `drafts` are those verified in its decode forwards, where their
    number differs. `restarts` are the indices of decode forwards that came after a preemption in which drafts were
    thrown away. `after_idle`: the output of every forward had been taken when it came.
    """

    request_id: str
    num_prompt_tokens: int
    max_tokens: int | None = None
    ready: bool = True
    accepts: Accepts | None = None
    num_output_tokens: int | None = None
    block_key: Callable[[int], Hashable] | None = None
    drafts: Accepts | None = None
    restarts: tuple[int, ...] = ()
    after_idle: bool = False


@dataclass(frozen=True, slots=True)
class Resumed:
    """A request that ran before the model begins: tokens computed, blocks held, output made so far."""

    arrived: Arrived
    num_computed_tokens: int
    num_blocks: int
    num_emitted_tokens: int = 0
    num_forwards: int = 0
    """Decode forwards that it has run: where in `accepts` it stands."""
    decoding: bool = True
    waiting: bool = False
    """Whether it has no blocks and waits to be run, or run anew; only an engine's real scheduler uses it."""
    num_prefill_tokens: int | None = None
    """Tokens that its prefill covers; None: its prompt."""
    place: Literal["running", "requeued", "preempted", "aborting"] = "running"
    """Where it stands: in the running queue, back in the waiting queue, or let go of by a call and not yet by the
    worker. Only a running one holds blocks.
    """


@dataclass(frozen=True, slots=True)
class ReserveFound:
    """What is kept free for running requests when the model begins: a ratio of the tokens still to come, or blocks
    each, which are not asked for where it is `relaxed`.
    """

    value: float
    relaxed: bool = False


@dataclass(frozen=True, slots=True)
class Cached:
    """Blocks that the prefix cache held before the first step, as `Arrived.block_key` has them: for an engine's real
    scheduler.
    """

    blocks: tuple[Hashable, ...]


@dataclass(frozen=True, slots=True)
class Ready:
    """A request's preprocessing ended; until then the scheduler skips it."""

    request_id: str


@dataclass(frozen=True, slots=True)
class Aborted:
    """A client aborted a request: it goes when the scheduler next meets it as a decode."""

    request_id: str


@dataclass(frozen=True, slots=True)
class Preallocate:
    """In the prefill and decode roles: the engine asks for the slots and blocks of those that have arrived, in
    their order and up to the first that is refused; answered by the ids of those that got them.
    """


@dataclass(frozen=True, slots=True)
class Joined:
    """A request that has its blocks joins the running queue.

    Prefill role: the decode instance has blocks for it too. Decode role: its cache and its first token came
    from the prefill instance.
    """

    request_id: str


@dataclass(frozen=True, slots=True)
class Discarded:
    """A request that has its blocks will not join: the other instance refused it or failed."""

    request_id: str


@dataclass(frozen=True, slots=True)
class Schedule:
    """One call of the scheduler; answered by a `Decision`.

    A call that is replayed in the order of a recording brings what that call used: `not_ready`, the requests
    whose preprocessing it found unfinished (None: those that no `Ready` was told of), `failed`, those whose
    preprocessing it found failed, and `needed_blocks`, in their order, the free blocks that it asked for before
    each chunk of a prefill (FastDeploy: `_get_can_schedule_prefill_threshold_block` of release 2.6 reads outputs
    that change meanwhile). They are taken in place of the model's own; `Decision.num_reserve_faults` counts those
    that no output made meanwhile explains.
    """

    not_ready: frozenset[str] | None = None
    failed: frozenset[str] = frozenset()
    needed_blocks: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Emitted:
    """Tokens that requests emitted in a forward: one for a finished prefill, 1 + accepted drafts for a
    decode. Those of requests that are gone are ignored, as FastDeploy's `stop_flags` has it.
    """

    num_tokens: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Known:
    """Prompt and output tokens that the next call counts for decodes, in place of `Emitted`.

    FastDeploy: `schedule()` reads `num_total_tokens`, which grows without its lock. With its first token since its
    admission a request may be preempted as a decode (release 2.6: `TokenProcessor` sets RUNNING_DECODE). Told of a
    prefill or of a request that is gone, it is ignored.
    """

    num_total_tokens: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class OutputCached:
    """A request made its last token and the full blocks of its `num_total_tokens` enter the prefix cache.

    FastDeploy: `ResourceManagerV1.cache_output_tokens`, under `SchedulerConfig.output_caching`.
    """

    request_id: str
    num_total_tokens: int


@dataclass(frozen=True, slots=True)
class Forwarded:
    """One forward ran, for requests whose `accepts` are known beforehand; answered by a `Forward`."""


SCHEDULE, FORWARDED, PREALLOCATE = Schedule(), Forwarded(), Preallocate()
"""One of each is enough: they hold nothing."""


@dataclass(frozen=True, slots=True)
class Finished:
    """A request made its last token (in the prefill role: its cache is sent); its blocks are freed.

    FastDeploy does so in two halves, `Left` and `Freed`, and calls can come between them.
    """

    request_id: str


@dataclass(frozen=True, slots=True)
class Left:
    """A finished request leaves the running queue and its slot: the first half of `finish_requests`."""

    request_id: str


@dataclass(frozen=True, slots=True)
class Freed:
    """The blocks of a request that has left are freed: the second half of `finish_requests`. Nothing follows
    where it held none.
    """

    request_id: str


@dataclass(frozen=True, slots=True)
class Rescheduled:
    """The worker let go of a preempted request: it goes to the front of the waiting queue."""

    request_id: str


@dataclass(frozen=True, slots=True)
class Recycled:
    """The worker let go of an aborted request: it is forgotten."""

    request_id: str


Notification = (
    Arrived
    | Resumed
    | ReserveFound
    | Cached
    | Ready
    | Aborted
    | Joined
    | Discarded
    | Emitted
    | Known
    | OutputCached
    | Finished
    | Left
    | Freed
    | Rescheduled
    | Recycled
)
"""Events that have no answer."""
Event = Notification | Preallocate | Schedule | Forwarded


@dataclass(frozen=True, slots=True)
class Reason:
    """Why one decision of a call was made: the rule's kind, the request concerned, and the rule's figures."""

    kind: str
    request_id: str | None
    figures: tuple[tuple[str, int | str], ...]

    @property
    def text(self) -> str:
        """The reason as one line."""
        figures = ", ".join(f"{name} {value}" for name, value in self.figures)
        head = self.kind if self.request_id is None else f"{self.kind} {self.request_id}"
        return f"{head}: {figures}" if figures else head


class Lack(NamedTuple):
    """A request for which too few blocks were free."""

    request_id: str
    num_needed_blocks: int
    """Free blocks that it needed, those that are kept for the running requests included."""
    num_reserved_blocks: int = 0
    """Of these, the blocks kept."""
    is_running: bool = False
    """Whether it is a running prefill; else the head of the queue."""


@dataclass(slots=True)
class Decision:
    """What one call decided; tokens and blocks as named.

    `chunks` are (request, first token, end token) of each prefill chunk in order of scheduling, `extended`
    the decodes given new blocks. In the decode role a request that joined has a chunk of the one token that it
    came with, though its forward decodes; one that is preempted there is gone (error 502) and does not come
    back. `num_scheduled_tokens` is what the call counted: the chunks, and what its
    formula charged for decodes. Counts of requests and free blocks are those after the call,
    `num_running_decodes` that at its start.
    """

    call: int
    token_budget: int
    num_running_decodes: int
    num_scheduled_tokens: int = 0
    chunks: list[tuple[str, int, int]] = field(default_factory=list)
    extended: list[str] = field(default_factory=list)
    preempted: list[str] = field(default_factory=list)
    aborted: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    errors: list[tuple[str, str]] = field(default_factory=list)
    num_free_blocks: int = 0
    num_running: int = 0
    num_waiting: int = 0
    not_admitted: NotAdmitted | None = None
    num_missing_blocks: int | None = None
    num_reserve_faults: int = 0
    lack: Lack | None = None
    """The request whose blocks these were."""
    reasons: list[Reason] = field(default_factory=list)

    @property
    def is_empty(self) -> bool:
        """Whether the call handed nothing to the worker."""
        return not (self.chunks or self.extended or self.preempted or self.aborted)


@dataclass(slots=True)
class Forward:
    """What a forward of known acceptances ran: its tokens, the requests that stalled, that decode from now on
    (their prefill being complete), and that it finished."""

    num_prefill_tokens: int
    num_decode_tokens: int
    num_decodes: int
    stalled: list[str]
    started: list[str]
    finished: list[str]

    @property
    def num_tokens(self) -> int:
        """Tokens of the forward."""
        return self.num_prefill_tokens + self.num_decode_tokens


@dataclass(frozen=True)
class StepRow:
    """One request in one step: tokens that it ran, and its tokens computed before."""

    request_id: str
    kind: Literal["prefill", "decode"]
    num_tokens: int
    num_computed_tokens: int
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0
    num_blocks: int | None = None
