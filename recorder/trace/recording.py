"""One engine's recording in memory: what `replayer` and `tui` work on. `recorder.trace` reads it from a trace.

Columns are numpy arrays in the order of the table's key. A NULL is `MISSING` (-1) in integer columns and "" in text
columns. -1 is safe: no recorded quantity is negative.

A `Recording` is a plain value. Data that takes long to read from a large trace (when each request finished, which draft
tokens were accepted) is in `Recording.details`. It is either in memory, or read from the trace when it is asked for.
Only a recording whose details are in memory (`Recording.loaded`) outlives its trace.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from fdtrace.recorder.errors import TraceError
from fdtrace.recorder.trace.column_values import MISSING, ByValue, Columns, same_value
from fdtrace.recorder.trace.columns_on_demand import in_memory
from fdtrace.recorder.trace.initial_state import InitialRequest, StateAtStart

if TYPE_CHECKING:
    from fdtrace.recorder.trace.call_order import CallOrder


@dataclass(frozen=True)
class EngineInfo:
    """One row of `engine`. Sizes are in tokens, sequences and blocks, as in `recorder.schema.ENGINE`. None is NULL."""

    engine_id: int
    name: str
    version: str
    max_num_batched_tokens: int
    max_num_seqs: int
    num_speculative_tokens: int
    block_size: int
    num_blocks: int
    max_model_len: int
    spec_method: str | None = None
    role: str = "mixed"
    pid: int | None = None
    dp_rank: int | None = None
    max_profiled_tokens: int | None = None
    num_max_dispatch_tokens_per_rank: int | None = None
    chunked_prefill: bool = True
    prefix_caching: bool = False
    config: Mapping[str, Any] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Endings(ByValue):
    """The step in which each request ended: int64, one entry per entry of `Recording.requests`; MISSING: in none.

    `abort_wanted_step`: the step before which its client aborted it. FastDeploy aborts running requests only: one that
    waits is aborted after its admission. None: it is known of no request.
    """

    finished_step: NDArray[np.int64]
    aborted_step: NDArray[np.int64]
    abort_wanted_step: NDArray[np.int64] | None = None

    def abort_step(self, entry: int) -> int:
        """The step before which an entry's client aborted it, or else in which the engine did; MISSING: in none."""
        wanted = MISSING if self.abort_wanted_step is None else int(self.abort_wanted_step[entry])
        return int(self.aborted_step[entry]) if wanted == MISSING else wanted


@dataclass(frozen=True, eq=False)
class Acceptance(ByValue):
    """Draft tokens of the recorded decode forwards, grouped by request.

    `num_accepted[offsets[i]:offsets[i + 1]]` (int16) are the draft tokens accepted in the 1st, 2nd, … recorded decode
    forward of the i-th entry of `Recording.requests`. `offsets` (int64) has one entry more than there are requests.

    `num_verified` (int16, as long as `num_accepted`) are the draft tokens that each forward verified; MISSING if
    the number is not known. None: it is known of no forward.
    """

    num_accepted: NDArray[np.int16]
    offsets: NDArray[np.int64]
    num_verified: NDArray[np.int16] | None = None

    def forwards(self, entry: int) -> slice:
        """The slice of `num_accepted` and `num_verified` that belongs to an entry of `Recording.requests`."""
        return slice(int(self.offsets[entry]), int(self.offsets[entry + 1]))


@dataclass(frozen=True, eq=False)
class HandoverCalls(ByValue):
    """The same as in `HandoverSteps`, counted in calls: a simulation's calls may run nothing, and are all known.

    Also the calls before which each request arrived and was aborted, and in which it finished. int64; MISSING: it did
    not happen.
    """

    arrived: NDArray[np.int64]
    aborted: NDArray[np.int64]
    preallocated: NDArray[np.int64]
    joined: NDArray[np.int64]
    discarded: NDArray[np.int64]
    last_ran: NDArray[np.int64]
    finished: NDArray[np.int64]
    end: int
    """The number of the call after the last."""


@dataclass(frozen=True, eq=False)
class HandoverSteps(ByValue):
    """In the prefill and decode roles: steps of each request, one entry per entry of `Recording.requests`.

    int64; MISSING: it did not happen. Before the scheduling of these steps the request got its slot and blocks
    (`preallocated`), joined the running queue (`joined`), or was discarded (`discarded`). `last_ran` is the last step
    in which the request ran.
    """

    preallocated: NDArray[np.int64]
    joined: NDArray[np.int64]
    discarded: NDArray[np.int64]
    last_ran: NDArray[np.int64]
    calls: HandoverCalls | None = None
    """The same in calls, if this is the trace of a simulation."""


@dataclass(frozen=True, eq=False)
class StepDigests(ByValue):
    """For each step: one number for all that its recorded requests ran (`recorder.trace.digest`), and their tokens.

    All arrays are int64.
    """

    step: NDArray[np.int64]
    digest: NDArray[np.int64]
    num_tokens: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class RowScan(ByValue):
    """What only a scan of every row of `step_request` gives. Replays by an engine's own scheduler need it.

    `queued` are requests that arrived before the recording and were not running when it began, in the order in which
    they began. A request may be both here and in `initial`: part of it was cached, or it began again.

    `restarts` maps an entry of `Recording.requests` to decode forwards (indices from 0, as in `Acceptance`). Before
    such a forward the request sampled a token, was then preempted and was prefilled again. The index stands there once
    for each such preemption.

    `digests` None: no rows are known. `found`: what the recorder itself says about the beginning.
    """

    queued: tuple[InitialRequest, ...] = ()
    restarts: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    digests: StepDigests | None = None
    found: StateAtStart = field(default_factory=StateAtStart)


class RecordedRow(NamedTuple):
    """One request of a recorded step, as in `recorder.schema.STEP_REQUEST`. `num_blocks` -1 or None: not known."""

    request_id: str
    kind: str
    num_tokens: int
    num_computed_tokens: int
    num_draft_tokens: int
    num_accepted_tokens: int
    num_blocks: int | None


class RecordingDetails(Protocol):
    """The data of a recording that takes long to read. Each property may raise a TraceError that says why it is not
    available.
    """

    @property
    def endings(self) -> Endings:
        """How each request ended."""

    @property
    def acceptance(self) -> Acceptance:
        """The drafts that were accepted."""

    @property
    def initial(self) -> tuple[InitialRequest, ...]:
        """The requests that were running when the recording began."""

    @property
    def block_hashes(self) -> NDArray[Any] | None:
        """One entry per entry of `Recording.requests`: an array of the hashes of its full prompt blocks, or None.

        None instead of entries: the engine has no prefix caching.
        """

    @property
    def handover(self) -> HandoverSteps | None:
        """What the prefill or decode role did with each request; None in the mixed role."""

    @property
    def order(self) -> CallOrder | None:
        """The scheduling calls and what changed the queues between them.

        None if the engine does not schedule ahead of its forwards, or if some of the calls are not known.
        """

    @property
    def row_scan(self) -> RowScan:
        """What only a scan of every row of `step_request` gives."""

    @property
    def step_rows(self) -> Callable[[int], list[RecordedRow]] | None:
        """Reads the requests of a step, prefills first; None: this recording is in memory, without them."""


@dataclass(frozen=True, eq=False)
class LoadedDetails(ByValue):
    """Details in memory. `scan` None: the rows were not scanned, and `row_scan` raises an error that says so."""

    endings: Endings
    acceptance: Acceptance
    initial: tuple[InitialRequest, ...] = ()
    block_hashes: NDArray[Any] | None = None
    handover: HandoverSteps | None = None
    scan: RowScan | None = field(default_factory=RowScan)
    order: CallOrder | None = None

    @classmethod
    def unknown(cls, num_requests: int) -> LoadedDetails:
        """Details of requests about which nothing more is known: none has ended, none has decoded."""
        nothing = np.full(num_requests, MISSING, np.int64)
        return cls(
            Endings(nothing, nothing),
            Acceptance(np.zeros(0, np.int16), np.zeros(num_requests + 1, np.int64)),
        )

    @property
    def row_scan(self) -> RowScan:
        """What only a scan of every row gives. Raises a TraceError if `loaded(row_by_row=False)` left it out."""
        if self.scan is None:
            raise TraceError(
                "this recording was loaded without the scan of every row",
                why="the model of FastDeploy's scheduler does not need it, and it takes long to read",
                hint="load it with `recording.loaded()` while its trace is open",
            )
        return self.scan

    @property
    def step_rows(self) -> None:
        """None: the rows of all steps are not in memory."""
        return


@dataclass(frozen=True, eq=False)
class Recording(ByValue):
    """One engine's steps, its requests, and how these ended: a value.

    Two recordings are equal if their contents are equal. A `loaded` recording can be pickled, and can be used after
    its trace is closed.
    """

    engine: EngineInfo
    steps: Columns
    """Every numeric column of `step` (int64, `new_token_ratio` float64; `ts` in ns) and `not_admitted` (an object
    array), one entry a step, ascending."""
    requests: Columns
    """The columns of `request` but `block_hashes`, one entry a request, by number; times in ns. A `priority` that is
    not known is NO_PRIORITY: any other number may be one."""
    notes: tuple[str, ...]
    """What the recording could not see, and why."""
    details: RecordingDetails
    """The data that takes long to read."""

    @property
    def num_steps(self) -> int:
        """Recorded steps."""
        return len(self.steps["step"])

    def with_steps(self, steps: Columns) -> Recording:
        """A copy with other steps, for a recording in progress that grows. Its requests and details stay the same."""
        return replace(self, steps=steps)

    def loaded(self, *, row_by_row: bool = True) -> Recording:
        """A copy with all details in memory, so that it outlives its trace.

        Args:
            row_by_row: False leaves out `row_scan`, which takes long in a large trace.

        Raises:
            TraceError: the trace is closed, or cannot be read.
        """
        current = self.details
        if isinstance(current, LoadedDetails) and (current.scan is not None or not row_by_row):
            return self
        steps, requests = in_memory(self.steps), in_memory(self.requests)
        details = LoadedDetails(
            current.endings,
            current.acceptance,
            current.initial,
            current.block_hashes,
            current.handover,
            current.row_scan if row_by_row else None,
            current.order,
        )
        return replace(self, steps=steps, requests=requests, details=details)

    def step_digests(self) -> NDArray[np.int64] | None:
        """The digest of what each step ran (int64), one per entry of `steps`.

        MISSING if not all requests of a step are recorded. None: no rows are known.
        """
        recorded = self.details.row_scan.digests
        if recorded is None:
            return None
        digests = np.full(self.num_steps, MISSING, np.int64)
        in_steps = np.isin(recorded.step, self.steps["step"])
        at = np.searchsorted(self.steps["step"], recorded.step[in_steps])
        is_complete = recorded.num_tokens[in_steps] == self.steps["num_tokens"][at]
        digests[at[is_complete]] = recorded.digest[in_steps][is_complete]
        return digests

    __hash__ = None

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Recording):
            return NotImplemented
        values = ("engine", "steps", "requests", "notes")
        if not all(same_value(getattr(self, name), getattr(other, name)) for name in values):
            return False
        mine, theirs = self.details, other.details
        if mine is theirs or (isinstance(mine, LoadedDetails) and isinstance(theirs, LoadedDetails)):
            return mine is theirs or same_value(mine, theirs)
        return same_value(self.loaded().details, other.loaded().details)
