"""What the worker decodes: when each request's blocks run out, and when its output ends.

A call does not visit requests that need nothing. A decode whose blocks run out enters `due`: with a plan, after a
forward that is computed in advance; without a plan, when `emit` reports its tokens. So the cost of a call depends on
how many requests change in it, not on how many run.
"""

from __future__ import annotations

from typing import Final

from fdtrace.replayer.config import Policy, SchedulerConfig
from fdtrace.replayer.model.request import NEVER, Request, Status

PREEMPTED_OR_ABORTED: Final = (Status.PREEMPTED, Status.REQUEUED, Status.ABORTING)
"""A call has preempted or aborted them; a forward that runs already may still emit tokens of them."""


class DecodingState:
    """The part of a `State` that changes with each forward."""

    def __init__(self, config: SchedulerConfig, policy: Policy) -> None:
        self.config, self.block_size = config, config.block_size
        self.stops_after_prefill = config.role == "prefill"
        self.due: dict[str, Request] = {}
        """Decodes whose free token slots are at or below `wake_slots`."""
        self.decoding: dict[str, Request] = {}
        """Requests past their first token that are not preempted or aborted: a forward decodes them in this order."""
        self.first_decodes: set[str] = set()
        """In the decode role, those of them that decode for the first time in the next forward: they never stall."""
        self.num_forwards = 0
        self.threshold = policy.threshold(config)
        self.wake_slots = max(self.threshold, config.num_draft_tokens - 1)
        self._wakes: dict[int, list[Request]] = {}
        self._finishes: dict[int, list[Request]] = {}
        self._next_rank = 0

    def total(self, request: Request) -> int:
        """Prompt and output tokens of a request (FastDeploy's num_total_tokens)."""
        return request.prompt + request.output_at(self.num_forwards)

    def free_slots(self, request: Request) -> int:
        """Token slots left in its blocks."""
        return request.num_blocks * self.block_size - self.total(request)

    def needs_blocks(self, request: Request) -> bool:
        """Whether a decode has so few free token slots that a call extends its block table.

        Where `wake_slots` is the threshold itself, that is true of every decode in `due`, since outputs only grow.
        """
        if self.wake_slots == self.threshold:
            return request.id in self.due
        return self.free_slots(request) <= self.threshold

    def can_decode(self, request: Request) -> bool:
        """Whether its block table holds all that its next decode may write.

        FastDeploy's GPU kernels test it (`is_block_step`); the token sampled last is not in the KV cache yet.
        """
        last = self.total(request) - 1 + self.config.num_draft_tokens
        return last // self.block_size < request.num_blocks

    def stalled(self) -> list[Request]:
        """The decodes that the next forward cannot run, in the worker's order."""
        if not self.due:
            return []
        requests = [r for r in self.due.values() if r.id in self.decoding and not self.can_decode(r)]
        if self.first_decodes:
            requests = [r for r in requests if r.id not in self.first_decodes]
        if len(requests) > 1:
            requests.sort(key=lambda request: request.rank)
        return requests

    def emit(self, request: Request, num_tokens: int) -> None:
        """A request emitted tokens. A running request decodes from now on; in the prefill role it stops instead.

        A forward may have been running when a call preempted or aborted the request. Its tokens then count in the
        next prefill (FastDeploy: `TokenProcessor._process_batch_output` appends them in any status).
        """
        request.emitted += num_tokens
        if request.status in PREEMPTED_OR_ABORTED:
            return
        if self.stops_after_prefill:
            request.become(Status.DECODE)
            return
        if request.id not in self.decoding:
            self._start_decoding(request)
        self.first_decodes.discard(request.id)
        self._watch(request)

    def _start_decoding(self, request: Request) -> None:
        if request.status is not Status.DECODE:
            request.become(Status.DECODE)
        request.rank = self._next_rank
        self._next_rank += 1
        self.decoding[request.id] = request
        if request.plan is not None:
            request.start = self.num_forwards
            self._plan_finish(request)

    def _plan_finish(self, request: Request) -> None:
        assert request.plan is not None
        needed = request.plan.reaching(request.plan.output - request.emitted)
        request.finish_at = request.start + max(1, needed - request.forwards)
        self._finishes.setdefault(request.finish_at, []).append(request)

    def _watch(self, request: Request) -> None:
        """Compute when the request's free token slots will be down to `wake_slots`; it enters `due` then."""
        if self.stops_after_prefill:
            return
        plan, slots = request.plan, request.num_blocks * self.block_size - self.wake_slots
        if plan is None or request.start < 0:
            if slots <= self.total(request):
                self.due[request.id] = request
            return
        needed = slots - request.prompt
        if needed > plan.output:  # its blocks hold its whole output
            request.wake_at = NEVER
            return
        wake_at = request.start - request.forwards + plan.reaching(max(0, needed - request.emitted))
        if wake_at <= self.num_forwards:
            request.wake_at = NEVER
            self.due[request.id] = request
            return
        request.wake_at = wake_at
        if wake_at < request.finish_at:
            self._wakes.setdefault(wake_at, []).append(request)

    def forward(self, stalled: list[Request]) -> list[Request]:
        """One forward of requests with plans ran. Returns those that it finished, in the worker's order."""
        self.num_forwards += 1
        now = self.num_forwards
        self.first_decodes.clear()
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

    def _stop_decoding(self, request: Request) -> None:
        request.forwards = request.forwards_at(self.num_forwards)
        request.start = request.wake_at = request.finish_at = NEVER
        self.due.pop(request.id, None)
        self.decoding.pop(request.id, None)
        self.first_decodes.discard(request.id)
