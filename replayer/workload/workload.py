"""What is to be scheduled: requests with their arrivals and acceptances, from a case or from a recording."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fdtrace.replayer.config import SchedulerConfig
from fdtrace.replayer.model.events import Accepts, Arrived, Resumed
from fdtrace.replayer.model.request import MOST_ACCEPTED
from fdtrace.replayer.recorded.step_durations import BY_STEPS, Clock

BlockKey = Callable[[int], Hashable]


def compact(accepts: NDArray[np.integer[Any]]) -> NDArray[np.integer[Any]]:
    """Accepted drafts a byte each, where they fit."""
    return accepts.astype(np.uint8) if not len(accepts) or accepts.max() <= MOST_ACCEPTED else accepts


@dataclass(frozen=True, slots=True)
class WorkRequest:
    """One request of a workload; sizes in tokens.

    `arrival` is the step before whose scheduling it arrives, `abort_after` counts steps from there; both are
    microseconds since the first step where the workload's clock goes by time. `accepts`
    are the drafts accepted in its 1st, 2nd, … decode forward. `block_key(i)` stands for the content of the
    i-th block of its tokens (with prefix caching), equal for equal content.
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
    """Its state, where it was running before the first step."""
    target: int | None = None
    """Output tokens that a replay waits for, where the recording ended before the request did; None: its end.
    """
    join_after: int = 0
    """In the prefill and decode roles: how long after it has its blocks it joins the running queue."""
    discarded: bool = False
    """It does not join then, but gives its blocks back: the other instance refused it or failed."""
    send_after: int = 0
    """In the prefill role: how long after its last chunk its cache is sent and its blocks are freed."""
    drafts: Accepts | None = None
    """Drafts verified in its 1st, 2nd, … decode forward, where they differ; the model verifies the same number in
    each.
    """
    restarts: tuple[int, ...] = ()
    """Indices of decode forwards that came after a preemption in which its draft tokens were thrown away; an index
    repeats once for each such preemption.
    """
    after_idle: bool = False
    """Whether the engine had nothing left to do when it came."""
    think: int | None = None
    """It comes so long after a client has got its answer, and `arrival` tells its place in the order alone; None: it
    comes at its `arrival`.
    """

    def arrived(self) -> Arrived:
        """The event of its arrival."""
        return Arrived(
            self.request_id,
            self.num_prompt_tokens,
            self.num_output_tokens if self.max_tokens is None else self.max_tokens,
            accepts=self.accepts,
            num_output_tokens=self.num_output_tokens,
            block_key=self.block_key,
            drafts=self.drafts,
            restarts=self.restarts,
            after_idle=self.after_idle,
        )


@dataclass(frozen=True)
class Workload:
    """Requests in order of arrival, and the scheduler that they meet."""

    config: SchedulerConfig
    requests: tuple[WorkRequest, ...]
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
    """Whether steps go on up to `max_steps` also where it hangs, as those of the lab's cases do that set it."""
    notes: tuple[str, ...] = ()
    """What of the case is not taken as it stands, and what of a recording under changed settings is modelled."""
    num_rejected: int = 0
    """Requests of the recording that an engine of changed settings would answer with 400."""
    cached: tuple[tuple[Hashable, ...], ...] = ()
    """Chains of blocks, each as `block_key` has them, that the prefix cache held before the first step."""
