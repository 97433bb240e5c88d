"""What goes into the scheduler model and what comes out: events, and the decision of a call with its reasons."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fdtrace.replayer.model.found_events import (
    AdmissionBlocked,
    Cached,
    CacheLeaf,
    LeavingAtStart,
    Preallocated,
    PrefixCacheAtStart,
    ReserveAtStart,
    SlotLost,
)

Accepts = Sequence[int] | NDArray[np.integer[Any]]
NotAdmitted = Literal["budget", "blocks", "slots", "preemption", "formula", "input_budget", "watermark", "padding",
    "throttle", "deferred", "paused", "cache_read", "safety_margin", "other"]  # fmt: skip


class Arrived(NamedTuple):
    """A request was handed to the scheduler.

    `max_tokens` limits its output (None: up to max_model_len). With prefix caching, `block_key(i)` identifies the
    content of the i-th block of its tokens: equal keys mean equal content. None: it shares no block with others.

    A replay knows the future: `accepts` are the drafts accepted in its 1st, 2nd, ... decode forward, and after
    `num_output_tokens` it finishes. Then `Forwarded` advances it, and it needs no `Emitted`. No decision reads these
    values before their forward has run. `sums`: those of `AcceptancePlan`, if they are known.

    Only an engine's real scheduler uses the other fields. `drafts` are the drafts verified in each of its decode
    forwards, where that number varies. `restarts` are the indices of decode forwards that followed a preemption which
    discarded drafts. `after_idle`: when it arrived, the scheduler had already taken the output of every forward.
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
    priority: int = 0
    sums: Sequence[int] | None = None


@dataclass(frozen=True, slots=True)
class Resumed:
    """A request that ran before the model begins: its computed tokens, its blocks, its output so far."""

    arrived: Arrived
    num_computed_tokens: int
    num_blocks: int
    num_emitted_tokens: int = 0
    num_forwards: int = 0
    """Decode forwards that it has run: its position in `accepts`."""
    decoding: bool = True
    waiting: bool = False
    """Whether it holds no blocks and waits for its first or its next run. Only an engine's real scheduler uses it."""
    num_prefill_tokens: int | None = None
    """Tokens that its prefill computes; None: its prompt."""
    place: Literal["running", "requeued", "preempted", "aborting", "preallocated"] = "running"
    """Its state: in the running queue; preempted and back in the waiting queue; or preempted or aborted by a call
    while the worker has not released it yet. Only a running request holds blocks.
    """
    leaf: CacheLeaf | None = None
    """Its place in the prefix cache of `PrefixCacheAtStart`; None: all blocks that it computed are in the cache."""
    num_in_flight_tokens: int = 0
    """Of its computed tokens, those of a batch in flight. Only an engine's real scheduler uses this and the next."""
    num_offloaded_tokens: int = 0
    """It waits, and so many of its tokens are kept on the CPU, in `num_offloaded_blocks` blocks."""
    num_offloaded_blocks: int = 0


@dataclass(frozen=True, slots=True)
class Ready:
    """A request's preprocessing ended; until then the scheduler skips it."""

    request_id: str


@dataclass(frozen=True, slots=True)
class Aborted:
    """A client aborted a request. It is removed when a call next visits it as a decode."""

    request_id: str


@dataclass(frozen=True, slots=True)
class Preallocate:
    """In the prefill and decode roles: the engine asks for slots and blocks for the requests that have arrived.

    They are served in their order, up to the first that is refused. The answer: the ids of those that were served.
    """


@dataclass(frozen=True, slots=True)
class Joined:
    """A request that has its blocks joins the running queue. Prefill role: the decode instance has blocks for it too.
    Decode role: its KV cache and its first token have come from the prefill instance.
    """

    request_id: str


@dataclass(frozen=True, slots=True)
class Discarded:
    """A request that has its blocks will not join: the other instance refused it or failed."""

    request_id: str


@dataclass(frozen=True, slots=True)
class Schedule:
    """One call of the scheduler; answered by a `Decision`.

    A call that is replayed in the order of a recording carries the values which the recorded call used. They replace
    the model's own:

    - `not_ready`: requests whose preprocessing was not finished. None: those without a `Ready` event.
    - `failed`: requests whose preprocessing had failed.
    - `needed_blocks`: the free blocks that the call required before each chunk of a prefill, in order. FastDeploy's
      `_get_can_schedule_prefill_threshold_block` (release 2.6) reads outputs that can grow during the call.
      `Decision.num_reserve_faults` counts the values that such growth cannot explain.
    """

    not_ready: frozenset[str] | None = None
    failed: frozenset[str] = frozenset()
    needed_blocks: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Emitted:
    """Tokens that requests emitted in a forward: one for a finished prefill, 1 + accepted drafts for a
    decode. Tokens of requests that no longer exist are ignored, as by FastDeploy's `stop_flags`.
    """

    num_tokens: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class DecodeTokenCounts:
    """Prompt and output tokens that the next call counts for decodes, in place of `Emitted`.

    FastDeploy: `schedule()` reads `num_total_tokens`, which grows without its lock. After its first token since its
    admission a request can be preempted as a decode (release 2.6: `TokenProcessor` sets RUNNING_DECODE). Entries of
    prefills, and of requests that no longer exist, are ignored.
    """

    num_total_tokens: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class OutputCached:
    """A request emitted its last token, and the full blocks of its `num_total_tokens` enter the prefix cache.

    FastDeploy: `ResourceManagerV1.cache_output_tokens`, under `SchedulerConfig.output_caching`.
    """

    request_id: str
    num_total_tokens: int


@dataclass(frozen=True, slots=True)
class Forwarded:
    """One forward ran, for requests whose `accepts` are known beforehand; answered by a `Forward`."""


SCHEDULE: Final = Schedule()  # shared instances: these events carry no data
FORWARDED: Final = Forwarded()
PREALLOCATE: Final = Preallocate()


@dataclass(frozen=True, slots=True)
class Finished:
    """A request emitted its last token (in the prefill role: its KV cache is sent); its blocks are freed.

    FastDeploy does this in two parts, `Left` and `Freed`. Scheduling calls can come between them.
    """

    request_id: str


@dataclass(frozen=True, slots=True)
class Left:
    """A finished request leaves the running queue and its slot: the first half of `finish_requests`."""

    request_id: str


@dataclass(frozen=True, slots=True)
class Freed:
    """The blocks of a request that has left are freed: the second half of `finish_requests`. It changes nothing
    if the request holds no blocks.
    """

    request_id: str


@dataclass(frozen=True, slots=True)
class Rescheduled:
    """The worker released a preempted request: it goes to the front of the waiting queue."""

    request_id: str


@dataclass(frozen=True, slots=True)
class Recycled:
    """The worker released an aborted request: the scheduler removes it."""

    request_id: str


Notification = (
    Arrived
    | Resumed
    | ReserveAtStart
    | Cached
    | PrefixCacheAtStart
    | AdmissionBlocked
    | SlotLost
    | LeavingAtStart
    | Preallocated
    | Ready
    | Aborted
    | Joined
    | Discarded
    | Emitted
    | DecodeTokenCounts
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
    """Why a call made one of its decisions: the kind of rule, the request, and the rule's figures."""

    kind: str
    request_id: str | None
    figures: tuple[tuple[str, int | str], ...]

    @property
    def text(self) -> str:
        """The reason as one line."""
        figures = ", ".join(f"{name} {value}" for name, value in self.figures)
        head = self.kind if self.request_id is None else f"{self.kind} {self.request_id}"
        return f"{head}: {figures}" if figures else head


class BlockShortage(NamedTuple):
    """A request for which too few blocks were free."""

    request_id: str
    num_needed_blocks: int
    """Free blocks that it needed, with the blocks that are reserved for running requests."""
    num_reserved_blocks: int = 0
    """Of these, the reserved blocks."""
    is_running: bool = False
    """True: it is a running prefill. False: it is the head of the waiting queue."""


@dataclass(slots=True)
class Decision:
    """What one call decided; tokens and blocks as named.

    `chunks` are (request, first token, end token) of each prefill chunk in order of scheduling. `extended` are
    the decodes that got new blocks. `num_scheduled_tokens` is what the call counted: the chunks, and what its
    formula charged for decodes. `num_running_decodes` is counted at the start of the call, the other requests and
    the free blocks at its end.

    In the decode role a request that joined has a chunk of one token, the token that it brought, though its forward
    decodes. A request that is preempted in that role is lost (error 502) and does not come back.
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
    lack: BlockShortage | None = None
    """The request that `num_missing_blocks` is about."""
    reasons: list[Reason] = field(default_factory=list)

    @property
    def is_empty(self) -> bool:
        """Whether the call gave the worker nothing to do."""
        return not (self.chunks or self.extended or self.preempted or self.aborted)


@dataclass(slots=True)
class Forward:
    """What a forward with known acceptances ran.

    `stalled` are the requests that stalled. `started` completed their prefill and decode from now on. `finished`
    emitted their last token.
    """

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
    """One request in one step: the tokens that it ran, and its tokens computed before the step."""

    request_id: str
    kind: Literal["prefill", "decode"]
    num_tokens: int
    num_computed_tokens: int
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0
    num_blocks: int | None = None
