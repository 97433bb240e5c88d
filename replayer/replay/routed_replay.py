"""Several ranks on one clock: a router sends each request, at its arrival, to one of them.

Each rank is a replay of its own, with its own scheduler. Of all ranks, the one whose next call is the earliest goes on,
unless a request arrives before that call. So a router sees each rank as it is at the arrival. The ranks do not wait for
each other.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from fdtrace.replayer.config import ORIGINAL, Policy
from fdtrace.replayer.formulas.base import Formula
from fdtrace.replayer.model.events import Decision, Forward
from fdtrace.replayer.replay.any_scheduler import AnyScheduler
from fdtrace.replayer.replay.routers import Router
from fdtrace.replayer.replay.workload_replay import (
    PROGRESS_EVERY,
    Cancelled,
    Progressed,
    Replay,
    ReplayCancelled,
)
from fdtrace.replayer.workload.workload import Workload, WorkRequest


class RankReplay(Replay):
    """One rank: a replay that gets its requests one by one. It is the `RankState` that a router sees."""

    def __init__(
        self,
        workload: Workload,
        by: Formula | AnyScheduler,
        policy: Policy = ORIGINAL,
        begins_us: float = 0.0,
    ) -> None:
        """`workload`: the requests that are there from the beginning. `begins_us`: when it makes its first call."""
        super().__init__(
            workload, by, policy, sums=False
        )  # sums are over requests that are there from the start
        self._clock = begins_us
        self._last: Decision | None = None
        self._there: dict[str, WorkRequest] = {r.request_id: r for r in workload.requests}
        """Its requests that have not ended."""
        self._never_ran: dict[str, int] = {}
        """Of these, the ones that never ran, with the KV blocks of their prompts."""
        self._num_taken = 0
        """Requests that came after the last call."""

    def take(self, request: WorkRequest) -> None:
        """Add a request."""
        super().take(request)
        self._there[request.request_id] = request
        self._never_ran[request.request_id] = -(-request.num_prompt_tokens // self.block_size)
        self._num_taken += 1

    def after_call(self, decision: Decision, forward: Forward) -> None:
        """Note what the call found and did."""
        self._last, self._num_taken = decision, 0
        for request_id, _, _ in decision.chunks:
            self._never_ran.pop(request_id, None)
        for request_id in self._stepper.ended:
            self._there.pop(request_id, None)
            self._never_ran.pop(request_id, None)

    @property
    def due(self) -> float:
        """When its next call begins, microseconds."""
        arrival = self._stepper.next_arrival
        return self._clock if arrival is None or not self.scheduler.idle else max(self._clock, arrival)

    @property
    def has_stopped(self) -> bool:
        """Whether it hangs or was cut."""
        return self.hang is not None or self.cut is not None

    @property
    def is_busy(self) -> bool:
        """Whether its next call may bring something."""
        return not self.has_stopped and not (self.scheduler.idle and not self._stepper.num_to_come)

    # What a router sees

    @property
    def num_running(self) -> int:
        """Requests that its scheduler has admitted, and that have not ended."""
        return max(0, len(self._there) - self.num_waiting)

    @property
    def num_waiting(self) -> int:
        """All its other requests."""
        waiting = 0 if self._last is None or self.scheduler.idle else self._last.num_waiting
        return min(len(self._there), waiting + self._num_taken)

    @property
    def num_tokens(self) -> int:
        """Prompt and output tokens of all its requests so far."""
        scheduler = self.scheduler
        return sum(
            scheduler.num_total_tokens_of(name) if name in scheduler else request.num_prompt_tokens
            for name, request in self._there.items()
        )

    @property
    def num_kv_blocks(self) -> int:
        """KV blocks in use after its last call, and those that the prompts of requests need that never ran."""
        in_use = 0
        if self._last is None:
            in_use = sum(r.resumed.num_blocks for r in self._there.values() if r.resumed is not None)
        elif not self.scheduler.idle:
            in_use = max(0, self.num_blocks - self._last.num_free_blocks)
        return in_use + sum(self._never_ran.values())

    @property
    def num_blocks(self) -> int:
        """KV blocks that it has."""
        return self.scheduler.num_blocks

    @property
    def block_size(self) -> int:
        """Tokens of a KV block."""
        return self.workload.config.block_size


class RoutedReplay:
    """All ranks, and the requests that come while they run."""

    def __init__(self, ranks: Sequence[RankReplay], requests: Sequence[WorkRequest], router: Router) -> None:
        """`requests`: in order of arrival, on the clock of all ranks."""
        self.ranks, self.router = ranks, router
        self.rank_of: dict[str, int] = {}
        """The entry of the rank of each request that the router sent."""
        self._coming = deque(requests)

    def run(self, progressed: Progressed | None = None, cancelled: Cancelled | None = None) -> None:
        """Run until all ranks have done their work or hang; ReplayCancelled when asked to stop."""
        turns, expected = 0, sum(rank.workload.expected_steps for rank in self.ranks)
        while self.advance():
            turns += 1
            if turns % PROGRESS_EVERY == 0:
                if cancelled is not None and cancelled():
                    raise ReplayCancelled
                if progressed is not None:
                    progressed(sum(rank.log.num_steps for rank in self.ranks), expected)
        for rank in self.ranks:
            rank.settle()

    def advance(self) -> bool:
        """Send a request, or let one rank make a call with its forward. False: nothing is left to do."""
        coming = self._coming
        busy = [rank for rank in self.ranks if rank.is_busy and (coming or not rank.is_done())]
        rank = min(busy, key=lambda rank: rank.due, default=None)
        if coming and (rank is None or coming[0].arrival <= rank.due):
            request = coming.popleft()
            chosen = self.router.choose(request, self.ranks)
            self.rank_of[request.request_id] = chosen
            self.ranks[chosen].take(request)
            return True
        if rank is None:
            return False
        rank.advance()
        return True
