"""The requests to schedule, with their arrivals and acceptances, from a case or from a recording."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fdtrace.replayer.config import SchedulerConfig
from fdtrace.replayer.model.events import Accepts, Arrived, Resumed
from fdtrace.replayer.model.request import MOST_ACCEPTED
from fdtrace.replayer.recorded.step_durations import BY_STEPS, Clock

BlockKey = Callable[[int], Hashable]


def compact(accepts: NDArray[np.integer[Any]]) -> NDArray[np.integer[Any]]:
    """Accepted drafts, one byte each if they fit."""
    return accepts.astype(np.uint8) if not len(accepts) or accepts.max() <= MOST_ACCEPTED else accepts


class WorkRequest(NamedTuple):
    """One request of a workload; sizes in tokens. A tuple: replays of millions of steps make one at each arrival.

    `arrival` is the step before whose scheduling it arrives, `abort_after` counts steps from there; both are
    microseconds since the first step if the workload's clock goes by time. `accepts` are the drafts accepted in its
    1st, 2nd, … decode forward. `block_key(i)` is a key for the content of the i-th block of its tokens (with prefix
    caching): equal content has equal keys.
    """

    request_id: str
    arrival: int
    num_prompt_tokens: int
    num_output_tokens: int
    accepts: Accepts = ()
    max_tokens: int | None = None
    abort_after: int | None = None
    group: int | None = None
    block_key: BlockKey | None = None
    resumed: Resumed | None = None
    """Its state, if it was running before the first step."""
    target: int | None = None
    """Output tokens that a replay waits for if the recording ended before the request did; None: it waits for its end.
    """
    join_after: int = 0
    """In the prefill and decode roles: how long after it has its blocks it joins the running queue."""
    discarded: bool = False
    """It does not join at that time but gives its blocks back: the other instance refused it or failed."""
    send_after: int = 0
    """In the prefill role: how long after its last chunk its cache is sent and its blocks are freed."""
    drafts: Accepts | None = None
    """Drafts verified in its 1st, 2nd, … decode forward, if they differ. The model verifies the same number in each."""
    restarts: tuple[int, ...] = ()
    """Indices of decode forwards that came after a preemption that discarded its draft tokens. An index repeats once
    for each such preemption.
    """
    after_idle: bool = False
    """Whether the engine had nothing left to do when it arrived."""
    on_its_way: int = 0
    """By time: how long before its `arrival` its client sent it. Latencies start there."""
    think: int | None = None
    """Its client sends it so long after an answer; `arrival` then gives only its place in the order. None: it arrives
    at `arrival`.
    """
    priority: int | None = None
    """None: not known. Only an engine's real scheduler uses it."""
    sums: Sequence[int] | None = None
    """The running sums of `accepts`, if `RequestColumns` has computed them for many requests at once."""

    def arrived(self) -> Arrived:
        """The event of its arrival."""
        return Arrived(
            self.request_id,
            self.num_prompt_tokens,
            self.num_output_tokens if self.max_tokens is None else self.max_tokens,
            True,
            self.accepts,
            self.num_output_tokens,
            self.block_key,
            self.drafts,
            self.restarts,
            self.after_idle,
            self.priority or 0,
            self.sums,
        )  # by position: it is made once for each request of a replay, and names take longer


@dataclass(frozen=True)
class Workload:
    """Requests in order of arrival, and the scheduler that they meet."""

    config: SchedulerConfig
    requests: Sequence[WorkRequest]
    """In order of arrival. Those of a recording are columns, of which each reading makes a request."""
    max_steps: int = 20000
    first_step: int = 0
    """Number of the first step."""
    expected_steps: int = 0
    """Steps of the recording."""
    clock: Clock = BY_STEPS
    shared_tokens: int = 0
    case: Mapping[str, Any] | None = None
    """The case that it was read from."""
    runs_to_limit: bool = False
    """Whether steps go on up to `max_steps` even if it hangs, as in the lab's cases that set it."""
    notes: tuple[str, ...] = ()
    """What is not taken from the case as it is, and what is modelled in a recording under changed settings."""
    num_rejected: int = 0
    """Requests of the recording that an engine with the changed settings would answer with 400."""
    cached: tuple[tuple[Hashable, ...], ...] = ()
    """Chains of block keys (as of `block_key`) that the prefix cache held before the first step."""
    admits_new: bool = True
    """False: at first, no waiting request is admitted before a running one ends."""
