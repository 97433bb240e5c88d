"""One request in the scheduler model."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Hashable, Sequence
from enum import Enum
from itertools import accumulate
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

NEVER = -1
"""No forward: the request does not wake, or does not finish."""


class Status(str, Enum):
    """Where a request stands; FastDeploy's `RequestStatus` (engine/request.py), and its queues."""

    ASKING = "asking"
    """In the prefill and decode roles: it has arrived and holds no slot and no blocks yet."""
    PREALLOCATED = "preallocated"
    """In the same roles: it has its slot and blocks but does not run yet."""
    WAITING = "waiting"
    PREFILL = "prefill"
    """Running; no token emitted since its admission (RUNNING, or RUNNING_PREFILL of release 2.6)."""
    DECODE = "decode"
    """Running; a token emitted since its admission (RUNNING_DECODE of release 2.6)."""
    PREEMPTED = "preempted"
    """Preempted: its blocks are freed, but the worker has not released it yet."""
    REQUEUED = "requeued"
    """Preempted, and back in the waiting queue."""
    ABORTING = "aborting"
    """Aborted: its blocks are freed, but the worker has not released it yet."""
    LEAVING = "leaving"
    """Finished and out of the running queue; its blocks are not freed yet."""
    FINISHED = "finished"


RUNNING: Final = (Status.PREFILL, Status.DECODE)
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


_BYTE: Final = np.dtype(np.uint8)

_ONE_MORE: Final = bytes(range(1, 256)) + b"\xff"
"""Accepted drafts of a forward -> tokens that it emits (one more), as a translation table of bytes."""

MOST_ACCEPTED = 254
"""The most accepted drafts of a forward that a `AcceptancePlan` takes from an array of bytes."""


class AcceptancePlan:
    """The acceptances of one request, known beforehand: running sums of the tokens that its decode forwards emit.

    After the last acceptance in the list, that acceptance repeats. An empty list means that no draft is accepted.
    """

    __slots__ = ("_base", "_last", "output", "sums")

    def __init__(
        self,
        accepts: Sequence[int] | NDArray[np.integer[Any]],
        output: int,
        sums: Sequence[int] | None = None,
    ) -> None:
        """`sums`: running sums of the tokens that `accepts` emit, from any number on; None: they are computed."""
        self.output = output
        self._base = 0
        if sums is not None and len(sums) > 1:
            self.sums: Sequence[int] = sums
            self._base = sums[0]
            self._last = sums[-1] - sums[-2]
            return
        emitted: Sequence[int]
        if not isinstance(accepts, np.ndarray):
            emitted = [1 + n for n in accepts]
        elif (
            accepts.dtype is _BYTE
        ):  # a workload's: a byte each; translating bytes makes no list of numbers first
            emitted = accepts.tobytes().translate(_ONE_MORE)
        else:
            emitted = (accepts + 1).tolist()
        self.sums = list(accumulate(emitted, initial=0))
        self._last = emitted[-1] if emitted else 1

    def after(self, forwards: int) -> int:
        """Tokens emitted by the first `forwards` decode forwards."""
        if forwards < len(self.sums):
            return self.sums[forwards] - self._base
        return self.sums[-1] - self._base + (forwards - len(self.sums) + 1) * self._last

    def after_each(self, first: int, count: int) -> NDArray[np.int64]:
        """`after` of `count` numbers of forwards, from `first` on."""
        known = self.sums[first : first + count]
        if len(known) == count:
            return np.array(known, np.int64) - self._base
        numbers = np.arange(max(first, len(self.sums)), first + count)
        beyond = self.sums[-1] + (numbers - len(self.sums) + 1) * self._last
        return np.concatenate([np.array(known, np.int64), beyond]) - self._base

    def reaching(self, tokens: int) -> int:
        """The smallest number of decode forwards that emit at least `tokens`."""
        tokens += self._base
        if tokens <= self.sums[-1]:
            return bisect_left(self.sums, tokens)
        return len(self.sums) - 1 - (self.sums[-1] - tokens) // self._last


class Request:
    """State of one request; sizes in tokens and blocks. Only the scheduler changes it.

    With a plan, the output so far is computed from the number of forwards run. So a forward in which nothing
    else happens to a decode costs no work for that decode.
    """

    __slots__ = (
        *("id", "prompt", "max_tokens", "ready", "plan", "status", "need_prefill", "computed", "num_blocks"),
        *("order", "rank", "emitted", "forwards", "start", "wake_at", "finish_at", "aborting"),
        *("block_key", "cached_blocks", "leaf", "hit_blocks"),
    )

    def __init__(
        self, request_id: str, prompt: int, max_tokens: int, ready: bool, plan: AcceptancePlan | None
    ) -> None:
        self.id = request_id
        self.prompt = prompt
        self.max_tokens = max_tokens
        self.ready = ready
        self.plan = plan
        self.status = Status.WAITING
        self.need_prefill = prompt
        """Tokens that its prefill computes: the prompt; after a preemption also the output so far."""
        self.computed = 0
        self.num_blocks = 0
        self.order = NEVER
        """Its number in the running queue. These numbers ascend along the queue."""
        self.emitted = 0
        """Output tokens so far. With a plan, while it decodes: only the tokens that prefills emitted."""
        self.forwards = 0
        """Decode forwards run before `start`."""
        self.start = NEVER
        """With a plan: the scheduler's forward since which it decodes in every forward; a stall adds one. NEVER: it
        does not decode.
        """
        self.wake_at = NEVER
        """With a plan: after how many forwards of the scheduler its blocks run out. NEVER: they do not, or it is
        in `due` already.
        """
        self.finish_at = NEVER
        """With a plan: after how many forwards of the scheduler it has emitted its last token."""
        self.aborting = False
        """Whether a client aborted it and no scheduling call has handled that yet."""
        self.block_key: Callable[[int], Hashable] | None = None
        self.cached_blocks = 0
        """Of its blocks, those that the prefix cache owns."""
        self.hit_blocks = 0
        """Full blocks that the prefix cache supplied, and that it need not compute, when it was last matched."""
        self.leaf: Any = None
        """Its last node in the prefix cache, and the number of tokens up to that node."""
        self.rank = NEVER
        """Its number in the order in which the worker decodes."""

    def become(self, status: Status) -> None:
        """Change its status, as `TRANSITIONS` allows."""
        assert status in TRANSITIONS[self.status], (self.id, self.status, status)
        self.status = status

    def output_at(self, forward: int) -> int:
        """Output tokens emitted before the scheduler's forward number `forward`."""
        plan = self.plan
        if plan is None:
            return self.emitted
        done = self.forwards if self.start < 0 else self.forwards + forward - self.start
        num_tokens = self.emitted + plan.after(done)
        return num_tokens if num_tokens < plan.output else plan.output

    def forwards_at(self, forward: int) -> int:
        """Decode forwards run before the scheduler's forward number `forward`."""
        return self.forwards if self.start < 0 else self.forwards + forward - self.start
