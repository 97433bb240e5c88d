"""The scheduler model's state, and every change of it: queues, block counts, and what the worker still
decodes.

A `State` changes through its methods alone. Requests that need nothing from a call are not looked at: decodes
whose blocks run out are found in `due`, which they enter when their output reaches a level known ahead (a
plan) or told (`emit`). So a call costs what changes in it, not what runs.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from operator import attrgetter

from replayer.blocks import BlockPool
from replayer.config import Policy, SchedulerConfig
from replayer.request import NEVER, Request, Status

_ORDER = attrgetter("order")


class SchedulerFailed(Exception):
    """FastDeploy's scheduler raises here: `ResourceManagerV1.get_available_position` finds no slot."""


TRANSITIONS: dict[Status, frozenset[Status]] = {
    Status.WAITING: frozenset({Status.PREFILL}),
    Status.PREFILL: frozenset({Status.DECODE, Status.PREEMPTED, Status.ABORTING, Status.FINISHED}),
    Status.DECODE: frozenset({Status.PREEMPTED, Status.ABORTING, Status.FINISHED}),
    Status.PREEMPTED: frozenset({Status.REQUEUED, Status.FINISHED}),
    Status.REQUEUED: frozenset({Status.PREFILL}),
    Status.ABORTING: frozenset({Status.FINISHED}),
    Status.FINISHED: frozenset(),
}
"""Status -> the statuses that may follow it."""


class State:
    """Everything that a call reads and changes."""

    def __init__(self, config: SchedulerConfig, policy: Policy, pool: BlockPool) -> None:
        self.config = config
        self.pool = pool
        self.requests: dict[str, Request] = {}
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []
        """In order of admission."""
        self.prefilling: dict[str, Request] = {}
        """Running, prefill not complete."""
        self.due: dict[str, Request] = {}
        """Decodes whose free token slots are at or below `wake_slots`."""
        self.decoding: dict[str, Request] = {}
        """Past their first token and not let go of: what a forward runs, in the worker's order."""
        self.preempted: dict[str, Request] = {}
        self.aborting: dict[str, Request] = {}
        self.abort_wanted: dict[str, Request] = {}
        self.num_requeued = 0
        """Preempted requests in the waiting queue: they keep their slots."""
        self.num_skipped = 0
        """Preempted requests that the call under way has skipped: they keep their slots too."""
        self.num_forwards = 0
        self.threshold = policy.threshold(config)
        self.wake_slots = max(self.threshold, config.num_draft_tokens - 1)
        self._wakes: dict[int, list[Request]] = {}
        self._finishes: dict[int, list[Request]] = {}
        self._next_order = 0
        self._next_rank = 0

    # What is read -------------------------------------------------------------------------------------------

    def total(self, request: Request) -> int:
        """Prompt and output tokens of a request (FastDeploy's num_total_tokens)."""
        return request.prompt + request.output_at(self.num_forwards)

    def free_slots(self, request: Request) -> int:
        """Token slots left in its blocks."""
        return request.num_blocks * self.config.block_size - self.total(request)

    def needs_blocks(self, request: Request) -> bool:
        """Whether a decode has so few free slots that a call extends it: `due` tells, where it goes by the
        threshold, as outputs only grow.
        """
        if self.wake_slots == self.threshold:
            return request.id in self.due
        return self.free_slots(request) <= self.threshold

    def can_decode(self, request: Request) -> bool:
        """Whether its block table holds all that its next decode may write.

        FastDeploy's GPU kernels test it (`is_block_step`); the token sampled last is not in the KV cache yet.
        """
        last = self.total(request) - 1 + self.config.num_draft_tokens
        return last // self.config.block_size < request.num_blocks

    def stalled(self) -> list[Request]:
        """The decodes that the next forward cannot run, in the worker's order."""
        found = [r for r in self.due.values() if r.id in self.decoding and not self.can_decode(r)]
        if len(found) > 1:
            found.sort(key=lambda request: request.rank)
        return found

    def position(self, request: Request) -> int:
        """Index of a running request in `running`."""
        return bisect_left(self.running, request.order, key=_ORDER)

    def num_held_slots(self) -> int:
        """Sequences that count against max_num_seqs, as `ResourceManagerV1.schedule` counts them."""
        return len(self.running) + len(self.preempted) + len(self.aborting) + self.num_requeued

    # Changes ------------------------------------------------------------------------------------------------

    def _become(self, request: Request, status: Status) -> None:
        assert status in TRANSITIONS[request.status], (request.id, request.status, status)
        request.status = status

    def arrive(self, request: Request) -> None:
        """A request enters the waiting queue, at its end."""
        self.requests[request.id] = request
        self.waiting.append(request)

    def skip_head(self) -> Request:
        """The head of the waiting queue steps out until `requeue_skipped`.

        A preempted one does not count for its slot meanwhile, as FastDeploy looks for those in the queue.
        """
        request = self.waiting.popleft()
        if request.status is Status.REQUEUED:
            self.num_requeued -= 1
            self.num_skipped += 1
        return request

    def requeue_skipped(self, skipped: list[Request]) -> None:
        """Skipped requests go to the end of the waiting queue."""
        self.waiting.extend(skipped)
        self.num_requeued += self.num_skipped
        self.num_skipped = 0

    def admit_head(self) -> Request:
        """The head of the waiting queue joins the running one; SchedulerFailed without a slot."""
        request = self.waiting.popleft()
        if request.status is Status.REQUEUED:
            self.num_requeued -= 1
        elif self.num_held_slots() + self.num_skipped >= self.config.max_num_seqs:
            raise SchedulerFailed("No available position is available for new request")
        self._become(request, Status.PREFILL)
        self._enter_running(request)
        self.prefilling[request.id] = request
        return request

    def _enter_running(self, request: Request) -> None:
        request.order = self._next_order
        self._next_order += 1
        self.running.append(request)

    def prefill(self, request: Request, num_tokens: int, num_blocks: int) -> None:
        """A running request gets blocks and its next chunk."""
        self.allocate(request, num_blocks)
        request.computed += num_tokens
        if request.computed >= request.need_prefill:
            del self.prefilling[request.id]
            if request.plan is None:
                self._watch(request)

    def allocate(self, request: Request, num_blocks: int) -> None:
        """Blocks for a request; a negative number is none."""
        if num_blocks > 0:
            self.pool.allocate(request, num_blocks)

    def extend(self, request: Request, num_blocks: int) -> None:
        """A decode gets blocks."""
        self.pool.allocate(request, num_blocks)
        self.due.pop(request.id, None)
        self._watch(request)

    def preempt(self, request: Request) -> None:
        """A running request loses its blocks and its place; the worker is told to let go of it."""
        del self.running[self.position(request)]
        self._leave_worker(request, Status.PREEMPTED)
        self.preempted[request.id] = request

    def abort(self, request: Request) -> None:
        """A running decode loses its blocks. It keeps its place until `drop_aborted`."""
        self._leave_worker(request, Status.ABORTING)
        self.aborting[request.id] = request
        request.aborting = False
        self.abort_wanted.pop(request.id, None)

    def drop_aborted(self, request: Request) -> None:
        """An aborted request leaves the running queue."""
        del self.running[self.position(request)]

    def _leave_worker(self, request: Request, status: Status) -> None:
        self._become(request, status)
        self._pause(request)
        self.pool.release(request)
        request.computed = 0
        for group in (self.prefilling, self.due, self.decoding):
            group.pop(request.id, None)

    def _pause(self, request: Request) -> None:
        request.forwards = request.forwards_at(self.num_forwards)
        request.start = request.wake_at = request.finish_at = NEVER

    def reschedule(self, request: Request) -> None:
        """A preempted request goes to the front of the waiting queue."""
        del self.preempted[request.id]
        self._become(request, Status.REQUEUED)
        self.num_requeued += 1
        self.waiting.appendleft(request)

    def recycle(self, request: Request) -> None:
        """An aborted request is forgotten."""
        del self.aborting[request.id]
        self._become(request, Status.FINISHED)
        del self.requests[request.id]

    def finish(self, request: Request) -> None:
        """A request is done: its blocks are freed, and it is forgotten."""
        if request.status in (Status.PREFILL, Status.DECODE):
            del self.running[self.position(request)]
            self._leave_worker(request, Status.FINISHED)
        else:
            self._become(request, Status.FINISHED)
        for group in (self.preempted, self.aborting, self.abort_wanted, self.requests):
            group.pop(request.id, None)

    def want_abort(self, request: Request) -> None:
        """A client aborted a request."""
        request.aborting = True
        self.abort_wanted[request.id] = request

    def emit(self, request: Request, num_tokens: int) -> None:
        """A running request made tokens: it decodes from now on."""
        request.emitted += num_tokens
        if request.id not in self.decoding:
            self._start_decoding(request)
        self._watch(request)

    def _start_decoding(self, request: Request) -> None:
        if request.status is not Status.DECODE:
            self._become(request, Status.DECODE)
        request.rank = self._next_rank
        self._next_rank += 1
        self.decoding[request.id] = request
        if request.plan is not None:
            request.start = self.num_forwards
            self._plan_finish(request)

    def _plan_finish(self, request: Request) -> None:
        assert request.plan is not None
        needed = request.plan.reaching(request.plan.output - request.emitted)
        request.finish_at = request.start + needed - request.forwards
        self._finishes.setdefault(request.finish_at, []).append(request)

    def _watch(self, request: Request) -> None:
        """Find when the request's free slots come down to `wake_slots`, and wake it then."""
        plan, slots = request.plan, request.num_blocks * self.config.block_size - self.wake_slots
        if plan is None or request.start < 0:
            if slots <= self.total(request):
                self.due[request.id] = request
            return
        needed = plan.reaching(max(0, slots - request.prompt - request.emitted))
        wake_at = request.start + needed - request.forwards
        if wake_at <= self.num_forwards:
            request.wake_at = NEVER
            self.due[request.id] = request
            return
        request.wake_at = wake_at
        if wake_at < request.finish_at:
            self._wakes.setdefault(wake_at, []).append(request)

    def forward(self, stalled: list[Request]) -> list[Request]:
        """One forward of planned requests ran; gives those that it finished, in the worker's order."""
        self.num_forwards += 1
        now = self.num_forwards
        for request in stalled:
            request.start += 1
            if request.wake_at >= 0:
                request.wake_at += 1
                self._wakes.setdefault(request.wake_at, []).append(request)
            request.finish_at += 1
            self._finishes.setdefault(request.finish_at, []).append(request)
        for request in self._wakes.pop(now, ()):
            if request.wake_at == now:
                request.wake_at = NEVER
                self.due[request.id] = request
        done = [request for request in self._finishes.pop(now, ()) if request.finish_at == now]
        if len(done) > 1:
            done.sort(key=lambda request: request.rank)
        return done

    def resume(self, request: Request, num_computed: int, num_blocks: int) -> None:
        """A request that was running before the model begins takes its place."""
        self.requests[request.id] = request
        self._become(request, Status.PREFILL)
        self._enter_running(request)
        self.allocate(request, num_blocks)
        request.computed = num_computed
        if num_computed < request.need_prefill:
            self.prefilling[request.id] = request
        else:
            self._start_decoding(request)
            self._watch(request)
