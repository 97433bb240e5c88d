"""The scheduler model's state, and every change of it: queues, block counts, and what the worker decodes.

A `State` changes through its methods alone.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from operator import attrgetter

from fdtrace.replayer.config import Policy, SchedulerConfig
from fdtrace.replayer.model.block_pool import BlockPool
from fdtrace.replayer.model.decoding import DecodingState
from fdtrace.replayer.model.found_events import CacheLeaf
from fdtrace.replayer.model.request import RUNNING, Request, Status

ORDER = attrgetter("order")


class SchedulerFailed(Exception):
    """FastDeploy's scheduler raises here: `ResourceManagerV1.get_available_position` finds no slot."""


class State(DecodingState):
    """Everything that a scheduling call reads and changes."""

    def __init__(self, config: SchedulerConfig, policy: Policy, pool: BlockPool) -> None:
        super().__init__(config, policy)
        self.pool = pool
        self.requests: dict[str, Request] = {}
        self.asking: deque[Request] = deque()
        """In the prefill and decode roles: requests that have arrived and have no slot."""
        self.preallocated: dict[str, Request] = {}
        """Requests that have slots and blocks and do not run yet."""
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []
        """In order of admission."""
        self._orders: list[int] = []
        """The `order` of each running request."""
        self.most_new_tokens = 0
        """Output tokens that all running requests may emit from their beginning on, each up to clip_max_new_tokens."""
        self.prefilling: dict[str, Request] = {}
        """Running requests whose prefill is not complete."""
        self.preempted: dict[str, Request] = {}
        self.aborting: dict[str, Request] = {}
        self.leaving: dict[str, Request] = {}
        """Finished requests, no longer in `requests`, whose blocks are not freed yet."""
        self.num_lost_slots = 0
        """Slots that stay taken because their request finished while it was being aborted."""
        self.abort_wanted: dict[str, Request] = {}
        self.num_requeued = 0
        """Preempted requests in the waiting queue; they keep their slots."""
        self.num_skipped = 0
        """Preempted requests that the current call has skipped; they keep their slots too."""
        self._next_order = 0

    def position(self, request: Request) -> int:
        """Index of a running request in `running`."""
        return bisect_left(self._orders, request.order)

    def num_held_slots(self) -> int:
        """Sequences that count against max_num_seqs, as `ResourceManagerV1.schedule` counts them."""
        num_leaving = len(self.preempted) + len(self.aborting) + self.num_lost_slots
        return len(self.running) + num_leaving + self.num_requeued

    def num_slots_taken(self) -> int:
        """Slots of the worker that are taken (the others are `ResourceManager.available_batch`)."""
        return self.num_held_slots() + self.num_skipped + len(self.preallocated)

    def arrive(self, request: Request) -> None:
        """A request enters the waiting queue, at its end."""
        self.requests[request.id] = request
        self.waiting.append(request)

    def ask(self, request: Request) -> None:
        """A request goes to the end of the queue of those that ask for a slot and blocks."""
        request.status = Status.ASKING
        self.requests[request.id] = request
        self.asking.append(request)

    def preallocate_head(self, num_blocks: int, num_computed: int) -> Request:
        """The first request that asks gets a slot and `num_blocks`; `num_computed` of its tokens count as computed."""
        request = self.asking.popleft()
        request.become(Status.PREALLOCATED)
        self.allocate(request, num_blocks)
        request.computed = num_computed
        self.preallocated[request.id] = request
        return request

    def join(self, request: Request, num_emitted: int) -> None:
        """A request that has its blocks joins the running queue. If it brings a token of its output, it decodes."""
        del self.preallocated[request.id]
        request.become(Status.DECODE if num_emitted else Status.PREFILL)
        request.emitted = num_emitted
        request.need_prefill = request.prompt + num_emitted
        self._enter_running(request)
        self.prefilling[request.id] = request

    def skip_head(self) -> Request:
        """The head of the waiting queue leaves it until `requeue_skipped`.

        If it was preempted, its slot is not counted until then: FastDeploy counts preempted requests in the queue.
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
        """The head of the waiting queue joins the running queue. The call has checked that a slot is free, but that
        check does not count the slots of skipped requests: SchedulerFailed if they hold all of them.
        """
        request = self.waiting.popleft()
        if request.status is Status.REQUEUED:
            self.num_requeued -= 1
        elif self.num_skipped and self.num_held_slots() + self.num_skipped >= self.config.max_num_seqs:
            raise SchedulerFailed("No available position is available for new request")
        request.become(Status.PREFILL)
        self._enter_running(request)
        self.prefilling[request.id] = request
        return request

    def _enter_running(self, request: Request) -> None:
        request.order = self._next_order
        self._next_order += 1
        self.running.append(request)
        self._orders.append(request.order)
        self.most_new_tokens += self._most_new_tokens_of(request)

    def _leave_running(self, request: Request) -> None:
        position = self.position(request)
        del self.running[position], self._orders[position]
        self.most_new_tokens -= self._most_new_tokens_of(request)

    def _most_new_tokens_of(self, request: Request) -> int:
        return max(0, min(request.max_tokens, self.config.clip_max_new_tokens))

    def prefill(self, request: Request, num_tokens: int, num_blocks: int) -> None:
        """A running request gets blocks and its next chunk."""
        self.allocate(request, num_blocks)
        request.computed += num_tokens
        if request.computed >= request.need_prefill:
            del self.prefilling[request.id]
            if (
                self.config.role == "decode"
            ):  # its chunk is the one token that it brought: the forward decodes it
                self._start_decoding(request)
                self.first_decodes.add(request.id)
                self._watch(request)
            elif request.plan is None:
                self._watch(request)

    def allocate(self, request: Request, num_blocks: int) -> None:
        """Give blocks to a request; a negative number gives none."""
        if num_blocks > 0:
            self.pool.allocate(request, num_blocks)

    def extend(self, request: Request, num_blocks: int) -> None:
        """A decode gets blocks."""
        self.pool.allocate(request, num_blocks)
        self.due.pop(request.id, None)
        self._watch(request)

    def preempt(self, request: Request) -> None:
        """A running request loses its blocks and its place in the queue; the worker has to release it.

        In the decode role it also loses its slot and is removed, as in FastDeploy's `_trigger_preempt`.
        """
        if self.config.role == "decode":
            self.finish(request)
            return
        self._leave_running(request)
        self._leave_worker(request, Status.PREEMPTED)
        self.preempted[request.id] = request

    def abort(self, request: Request) -> None:
        """A running decode loses its blocks. It keeps its place in the queue until `drop_aborted`."""
        self._leave_worker(request, Status.ABORTING)
        self.aborting[request.id] = request
        request.aborting = False
        self.abort_wanted.pop(request.id, None)

    def drop_aborted(self, request: Request) -> None:
        """An aborted request leaves the running queue."""
        self._leave_running(request)

    def _leave_worker(self, request: Request, status: Status) -> None:
        request.become(status)
        self._stop_decoding(request)
        self.pool.release(request)
        request.computed = 0
        self.prefilling.pop(request.id, None)

    def reschedule(self, request: Request) -> None:
        """A preempted request goes to the front of the waiting queue."""
        del self.preempted[request.id]
        request.become(Status.REQUEUED)
        self.num_requeued += 1
        self.waiting.appendleft(request)

    def recycle(self, request: Request) -> None:
        """An aborted request is removed."""
        del self.aborting[request.id]
        request.become(Status.FINISHED)
        del self.requests[request.id]

    def finish(self, request: Request) -> None:
        """A request has finished: its blocks are freed, and it is removed."""
        if request.status in RUNNING:
            self._leave_running(request)
            self._leave_worker(request, Status.FINISHED)
        else:
            self.num_lost_slots += request.status is Status.ABORTING and self.config.keeps_aborted_slots
            request.become(Status.FINISHED)
            self.preempted.pop(request.id, None)
            self.aborting.pop(request.id, None)
        self._forget(request)

    def _forget(self, request: Request) -> None:
        if request.aborting:
            del self.abort_wanted[request.id]
        del self.requests[request.id]

    def want_abort(self, request: Request) -> None:
        """A client aborted a request."""
        request.aborting = True
        self.abort_wanted[request.id] = request


def leave(state: State, request: Request) -> None:
    """A running request has finished: it leaves its queue and is removed. It keeps its blocks until `free`."""
    state._leave_running(request)
    request.become(Status.LEAVING)
    state._stop_decoding(request)
    state.prefilling.pop(request.id, None)
    state._forget(request)
    state.leaving[request.id] = request


def free(state: State, request: Request) -> None:
    """The blocks of a request that has left are freed."""
    del state.leaving[request.id]
    request.become(Status.FINISHED)
    state.pool.release(request)


def discard(state: State, request: Request) -> None:
    """A request that has its blocks and does not run gives them back and is removed."""
    del state.preallocated[request.id]
    request.become(Status.FINISHED)
    state.pool.release(request)
    state.abort_wanted.pop(request.id, None)
    del state.requests[request.id]


def drop_waiting(state: State, request: Request) -> None:
    """A waiting request is removed: its preprocessing failed."""
    state.waiting.remove(request)
    request.status = Status.FINISHED
    state._forget(request)


def resume(
    state: State, request: Request, num_computed: int, num_blocks: int, leaf: CacheLeaf | None = None
) -> None:
    """A request that was running before the model begins joins the running queue."""
    state.requests[request.id] = request
    request.become(Status.PREFILL)
    state._enter_running(request)
    cached = request.need_prefill if state.config.role == "prefill" else num_computed
    state.pool.resume(request, num_blocks, cached, leaf)
    request.computed = num_computed
    if num_computed < request.need_prefill:
        state.prefilling[request.id] = request
    elif state.config.role == "prefill":
        request.become(Status.DECODE)
    else:
        state._start_decoding(request)
        state._watch(request)


def resume_preempted_or_aborted(state: State, request: Request, status: Status) -> None:
    """A request that a call had preempted or aborted before the model begins."""
    state.requests[request.id] = request
    request.status = status
    if status is Status.REQUEUED:
        state.num_requeued += 1
        state.waiting.append(request)
    elif status is Status.PREEMPTED:
        state.preempted[request.id] = request
    else:
        state.aborting[request.id] = request


def resume_leaving(state: State, request: Request, num_blocks: int, leaf: CacheLeaf | None) -> None:
    """A request that had left the running queue before the model begins, and holds its blocks until `free`."""
    request.status = Status.LEAVING
    state.pool.resume(request, num_blocks, 0, leaf)
    state.leaving[request.id] = request


def resume_preallocated(
    state: State, request: Request, num_computed: int, num_blocks: int, leaf: CacheLeaf | None
) -> None:
    """In the prefill and decode roles: a request that holds its slot and blocks when the model begins."""
    request.status = Status.PREALLOCATED
    state.requests[request.id] = state.preallocated[request.id] = request
    state.pool.resume(request, num_blocks, request.need_prefill, leaf)
    request.computed = num_computed
