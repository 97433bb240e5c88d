"""One request in the scheduler model."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Hashable, Sequence
from enum import Enum
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

NEVER = -1
"""No forward: the request does not wake, or does not finish."""


class Status(str, Enum):
    """Where a request stands; FastDeploy's `RequestStatus` (engine/request.py), and its queues."""

    ASKING = "asking"
    """In the prefill and decode roles: it has arrived, and holds nothing yet."""
    PREALLOCATED = "preallocated"
    """In the same roles: it has its slot and blocks, and does not run yet."""
    WAITING = "waiting"
    PREFILL = "prefill"
    """Running, no token emitted since its admission (RUNNING, or RUNNING_PREFILL of release 2.6)."""
    DECODE = "decode"
    """Running, a token emitted since its admission (RUNNING_DECODE of release 2.6)."""
    PREEMPTED = "preempted"
    """Its blocks are freed, and the worker has not let go of it yet."""
    REQUEUED = "requeued"
    """Preempted, and back in the waiting queue."""
    ABORTING = "aborting"
    """Its blocks are freed for an abort, and the worker has not let go of it yet."""
    LEAVING = "leaving"
    """Finished and out of the running queue; its blocks are not freed yet."""
    FINISHED = "finished"


RUNNING = (Status.PREFILL, Status.DECODE)
"""The statuses of the running queue."""

TRANSITIONS: dict[Status, frozenset[Status]] = {
    Status.ASKING: frozenset({Status.PREALLOCATED}),
    Status.PREALLOCATED: frozenset({Status.PREFILL, Status.DECODE, Status.FINISHED}),
    Status.WAITING: frozenset({Status.PREFILL}),
    Status.PREFILL: frozenset(
        {Status.DECODE, Status.PREEMPTED, Status.ABORTING, Status.LEAVING, Status.FINISHED}
    ),
    Status.DECODE: frozenset({Status.PREEMPTED, Status.ABORTING, Status.LEAVING, Status.FINISHED}),
    Status.PREEMPTED: frozenset({Status.REQUEUED, Status.FINISHED}),
    Status.REQUEUED: frozenset({Status.PREFILL}),
    Status.ABORTING: frozenset({Status.FINISHED}),
    Status.LEAVING: frozenset({Status.FINISHED}),
    Status.FINISHED: frozenset(),
}
"""Status -> the statuses that may follow it."""


_ONE_MORE = bytes(range(1, 256)) + b"\xff"
"""What a forward makes, by what it accepted."""

MOST_ACCEPTED = 254
"""The most drafts of a forward that an array of bytes holds for a `Plan`."""


class Plan:
    """The acceptances of one request, known beforehand: tokens that its decode forwards emit, summed up.

    The last acceptance repeats where they run out; none given means none accepted.
    """

    __slots__ = ("_last", "output", "sums")

    def __init__(self, accepts: Sequence[int] | NDArray[np.integer[Any]], output: int) -> None:
        self.output = output
        made: Sequence[int]
        if not isinstance(accepts, np.ndarray):
            made = [1 + n for n in accepts]
        elif accepts.dtype == np.uint8:  # a workload's: a byte each, summed up with no numbers in between
            made = accepts.tobytes().translate(_ONE_MORE)
        else:
            made = (accepts + 1).tolist()
        self.sums: list[int] = list(accumulate(made, initial=0))
        self._last = made[-1] if made else 1

    def after(self, forwards: int) -> int:
        """Tokens emitted by the first `forwards` decode forwards."""
        if forwards < len(self.sums):
            return self.sums[forwards]
        return self.sums[-1] + (forwards - len(self.sums) + 1) * self._last

    def reaching(self, tokens: int) -> int:
        """The fewest decode forwards that emit at least `tokens`."""
        if tokens <= self.sums[-1]:
            return bisect_left(self.sums, tokens)
        return len(self.sums) - 1 - (self.sums[-1] - tokens) // self._last


class Request:
    """State of one request; sizes in tokens and blocks. Only the scheduler changes it.

    Where a plan is known, the output so far follows from the number of forwards run, so that nothing needs to
    be done for a decode in a forward in which nothing happens to it.
    """

    __slots__ = (
        *("id", "prompt", "max_tokens", "ready", "plan", "status", "need_prefill", "computed", "num_blocks"),
        *("order", "rank", "emitted", "forwards", "start", "wake_at", "finish_at", "aborting"),
        *("block_key", "cached_blocks", "leaf"),
    )

    def __init__(self, request_id: str, prompt: int, max_tokens: int, ready: bool, plan: Plan | None) -> None:
        self.id = request_id
        self.prompt = prompt
        self.max_tokens = max_tokens
        self.ready = ready
        self.plan = plan
        self.status = Status.WAITING
        self.need_prefill = prompt
        """Tokens that a (re)computed prefill covers: the prompt, and after a preemption the output so far."""
        self.computed = 0
        self.num_blocks = 0
        self.order = NEVER
        """Rank in the running queue: it is ascending along the queue."""
        self.emitted = 0
        """Output so far; with a plan and while decoding, the tokens that prefills emitted."""
        self.forwards = 0
        """Decode forwards run before `start`."""
        self.start = NEVER
        """With a plan: the scheduler's forward from which on it decodes without a pause; NEVER: it does not
        decode.
        """
        self.wake_at = NEVER
        self.finish_at = NEVER
        self.aborting = False
        """Whether a client aborted it and the scheduler has not met it yet."""
        self.block_key: Callable[[int], Hashable] | None = None
        self.cached_blocks = 0
        """Of its blocks, those that the prefix cache owns."""
        self.leaf: Any = None
        """Its last node in the prefix cache, and the tokens up to there."""
        self.rank = NEVER
        """Rank in the worker's order."""

    def become(self, status: Status) -> None:
        """Change its status, as `TRANSITIONS` allows."""
        assert status in TRANSITIONS[self.status], (self.id, self.status, status)
        self.status = status

    def output_at(self, forward: int) -> int:
        """Output tokens made before the scheduler's forward number `forward`."""
        plan = self.plan
        if plan is None:
            return self.emitted
        done = self.forwards if self.start < 0 else self.forwards + forward - self.start
        made = self.emitted + plan.after(done)
        return made if made < plan.output else plan.output

    def forwards_at(self, forward: int) -> int:
        """Decode forwards run before the scheduler's forward number `forward`."""
        return self.forwards if self.start < 0 else self.forwards + forward - self.start
