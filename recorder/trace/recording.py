"""One engine's recording in memory: what `replayer` and `tui` work on. `recorder.trace` reads it from a trace.

Columns are numpy arrays in the order of the table's key. A NULL is `MISSING` (-1) in integer columns and "" in text
columns: no recorded quantity is negative.

A `Recording` is a plain value. What takes long to read from a large trace (who finished when, which drafts were
accepted) is behind `Recording.details`: read from the trace when it is asked for, or in memory already. Only a
recording whose details are in memory (`Recording.loaded`) outlives its trace.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from fdtrace.recorder.errors import TraceError

if TYPE_CHECKING:
    from fdtrace.recorder.trace.call_order import CallOrder

MISSING = -1
"""Stands for NULL in integer columns."""

Columns = Mapping[str, NDArray[Any]]
"""A table's columns by name, one entry a row."""


def same_value(one: Any, other: Any) -> bool:
    """Whether two values are equal where arrays, mappings, tuples and dataclasses are compared by what they hold."""
    if isinstance(one, np.ndarray) or isinstance(other, np.ndarray):
        return _same_array(one, other)
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(same_value(one[name], other[name]) for name in one)
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(map(same_value, one, other))
    if is_dataclass(one) and type(one) is type(other):
        names = [known.name for known in fields(one)]
        return all(same_value(getattr(one, name), getattr(other, name)) for name in names)
    return bool(one == other)


def _same_array(one: Any, other: Any) -> bool:
    if not (isinstance(one, np.ndarray) and isinstance(other, np.ndarray)) or one.shape != other.shape:
        return False
    if object in (one.dtype, other.dtype):
        return all(map(same_value, one.tolist(), other.tolist()))
    return np.array_equal(one, other, equal_nan=one.dtype.kind == other.dtype.kind == "f")


class ByValue:
    """Dataclasses that hold arrays: equal where they hold the same."""

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        return same_value(self, other) if type(self) is type(other) else NotImplemented


@dataclass(frozen=True)
class EngineInfo:
    """One row of `engine`; sizes in tokens, sequences and blocks as in `recorder.schema.ENGINE`. None is NULL."""

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


@dataclass(frozen=True)
class InitialRequest:
    """A request that was already running when the recording began, as its first recorded step found it."""

    request: int
    num_computed_tokens: int
    num_blocks: int
    decoding: bool
    num_total_tokens: int = MISSING
    """Its tokens when it first decoded, the one sampled last included; MISSING: it did not in this recording."""


@dataclass(frozen=True, eq=False)
class Endings(ByValue):
    """How each request ended: int64 steps, one entry for each entry of `Recording.requests`; MISSING: it did not."""

    finished_step: NDArray[np.int64]
    aborted_step: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Acceptance(ByValue):
    """Draft tokens of the recorded decode forwards, all those of one request after those of another.

    `num_accepted[offsets[i]:offsets[i + 1]]` (int16) are those accepted in the 1st, 2nd, … recorded decode forward
    of the i-th entry of `Recording.requests`; `offsets` (int64) has one entry more than there are requests.
    `num_verified` (int16) goes with `num_accepted`: the drafts that each forward verified, MISSING where that is not
    known; None: it is known of none.
    """

    num_accepted: NDArray[np.int16]
    offsets: NDArray[np.int64]
    num_verified: NDArray[np.int16] | None = None

    def forwards(self, entry: int) -> slice:
        """Where the forwards of an entry of `Recording.requests` are."""
        return slice(int(self.offsets[entry]), int(self.offsets[entry + 1]))


@dataclass(frozen=True, eq=False)
class HandoverSteps(ByValue):
    """In the prefill and decode roles: steps by entry of `Recording.requests` (int64; MISSING: not).

    A request got its slot and blocks, joined the running queue or was discarded before the scheduling of that step;
    `last_ran` is the last one that it ran in.
    """

    preallocated: NDArray[np.int64]
    joined: NDArray[np.int64]
    discarded: NDArray[np.int64]
    last_ran: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class StepDigests(ByValue):
    """What the recorded requests of each step ran, as one number (`recorder.digest`), and their tokens; int64 all."""

    step: NDArray[np.int64]
    digest: NDArray[np.int64]
    num_tokens: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class RowScan(ByValue):
    """What only a look at every request of every step tells. Replays by an engine's own scheduler ask for it.

    `queued` are the requests whose arrival was not recorded and that began, or began anew, with a later step than
    the first, in that order; they may be among the initial ones too. `restarts` has, by entry of
    `Recording.requests`, the decode forwards (from 0, as in `Acceptance`) before which the request sampled a token
    and was then preempted and prefilled anew; a forward stands there once for each such preemption. `digests` None:
    no rows are known.
    """

    queued: tuple[InitialRequest, ...] = ()
    restarts: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    digests: StepDigests | None = None


class RecordedRow(NamedTuple):
    """One request of a recorded step, as in `recorder.schema.STEP_REQUEST`; -1 blocks or None: not known."""

    request_id: str
    kind: str
    num_tokens: int
    num_computed_tokens: int
    num_draft_tokens: int
    num_accepted_tokens: int
    num_blocks: int | None


class RecordingDetails(Protocol):
    """What is dear to read of a recording. Each may raise a TraceError that says why it cannot be had."""

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
        """By entry of `Recording.requests`: the hashes of its full prompt blocks, an array, or None; None: no prefix
        caching.
        """

    @property
    def handover(self) -> HandoverSteps | None:
        """What the other instance of a deployment in roles did; None in the mixed role."""

    @property
    def order(self) -> CallOrder | None:
        """The scheduling calls and what came between them, where the engine schedules ahead of its forwards and all of
        it is known.
        """

    @property
    def row_scan(self) -> RowScan:
        """What takes a look at every row."""

    @property
    def step_rows(self) -> Callable[[int], list[RecordedRow]] | None:
        """Reads the requests of a step, prefills first; None: this recording is in memory, without them."""


@dataclass(frozen=True, eq=False)
class LoadedDetails(ByValue):
    """Details in memory. `scan` None: the rows were not looked at, `row_scan` then says so."""

    endings: Endings
    acceptance: Acceptance
    initial: tuple[InitialRequest, ...] = ()
    block_hashes: NDArray[Any] | None = None
    handover: HandoverSteps | None = None
    scan: RowScan | None = field(default_factory=RowScan)
    order: CallOrder | None = None

    @classmethod
    def unknown(cls, num_requests: int) -> LoadedDetails:
        """Of requests of which nothing more is known: none has ended, none has decoded."""
        nothing = np.full(num_requests, MISSING, np.int64)
        return cls(
            Endings(nothing, nothing),
            Acceptance(np.zeros(0, np.int16), np.zeros(num_requests + 1, np.int64)),
        )

    @property
    def row_scan(self) -> RowScan:
        """What takes a look at every row. TraceError where `loaded(row_by_row=False)` left it out."""
        if self.scan is None:
            raise TraceError(
                "this recording was loaded without what a look at every row tells",
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
    """One engine's steps, requests and what became of them: a value.

    Two recordings are equal where they hold the same. One that is `loaded` can be pickled, and used when its trace
    is closed.
    """

    engine: EngineInfo
    steps: Columns
    """Every numeric column of `step` (int64, `new_token_ratio` float64; `ts` in ns) and `not_admitted` (an object
    array), one entry a step, ascending."""
    requests: Columns
    """The columns of `request` but `block_hashes`, one entry a request, by number; times in ns."""
    notes: tuple[str, ...]
    """What the recording could not see, and why."""
    details: RecordingDetails
    """What is dear to read."""

    @property
    def num_steps(self) -> int:
        """Recorded steps."""
        return len(self.steps["step"])

    def with_steps(self, steps: Columns) -> Recording:
        """The same with other steps, as a recording in progress grows; its requests and details stay as they are."""
        return replace(self, steps=steps)

    def loaded(self, *, row_by_row: bool = True) -> Recording:
        """The same with all details in memory, so that it outlives its trace.

        Args:
            row_by_row: False leaves out `row_scan`, which takes long in a large trace.

        Raises:
            TraceError: the trace is closed, or cannot be read.
        """
        known = self.details
        if isinstance(known, LoadedDetails) and (known.scan is not None or not row_by_row):
            return self
        details = LoadedDetails(
            known.endings,
            known.acceptance,
            known.initial,
            known.block_hashes,
            known.handover,
            known.row_scan if row_by_row else None,
            known.order,
        )
        return replace(self, details=details)

    def step_digests(self) -> NDArray[np.int64] | None:
        """What each step ran, as one number each (int64), by entry of `steps`; MISSING where not all of its requests
        are recorded. None: no rows are known.
        """
        known = self.details.row_scan.digests
        if known is None:
            return None
        digests = np.full(self.num_steps, MISSING, np.int64)
        there = np.isin(known.step, self.steps["step"])
        at = np.searchsorted(self.steps["step"], known.step[there])
        whole = known.num_tokens[there] == self.steps["num_tokens"][at]
        digests[at[whole]] = known.digest[there][whole]
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
