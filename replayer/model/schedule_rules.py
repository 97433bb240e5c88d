"""One call of the scheduler.

FastDeploy: `ResourceManagerV1.schedule` and what it calls (engine/sched/resource_manager_v1.py).
"""

from __future__ import annotations

from fdtrace.replayer.config import Policy, SchedulerConfig
from fdtrace.replayer.model.block_reserve import Reserve
from fdtrace.replayer.model.events import BlockShortage, Decision, NotAdmitted, Reason
from fdtrace.replayer.model.formula_rules import RequestRules
from fdtrace.replayer.model.request import RUNNING, Request, Status
from fdtrace.replayer.model.roles import check_prefill_role
from fdtrace.replayer.model.state import ORDER, State, drop_waiting


class SchedulingCall:
    """The running requests first, in order of admission, then the waiting ones, while budget is left.

    One object makes all calls of a scheduler, one after another.
    """

    def __init__(self, state: State, policy: Policy, reserve: Reserve) -> None:
        self.state, self.policy, self.reserve = state, policy, reserve
        config = state.config
        self.config: SchedulerConfig = config
        self.prefill_role = config.role == "prefill"
        self.caches_later_chunks = config.role == "mixed"
        self.block_size, self.max_blocks = config.block_size, config.max_blocks_per_seq
        self.num_spec_blocks = 1 if config.speculation else 0
        self.explain = False
        self.budget = self.charge = 0
        self.decision = Decision(0, 0, 0)
        self.aborted: list[Request] = []
        self.index = 0
        """Position of the loop in the running queue; maintained only while `track`."""
        self.track = False
        self.prefill_unmet = False
        """Whether a running prefill waits for blocks in this call."""
        self.rules: RequestRules | None = None
        """The formula's rules about single requests; None: it has none."""
        self.not_ready: frozenset[str] | None = None
        """As in `Schedule`; so is `failed`."""
        self.failed: frozenset[str] = frozenset()

    def run(self, decision: Decision, *, charge: int, explain: bool) -> None:
        """Run the call: fill the decision and change the state."""
        self.decision, self.budget, self.charge, self.explain = (
            decision,
            decision.token_budget,
            charge,
            explain,
        )
        self.index, self.track, self.prefill_unmet = 0, charge != 0, False
        self._schedule_running()
        if self.aborted:
            for request in self.aborted:
                self.state.drop_aborted(request)
            self.aborted.clear()
        if self.state.waiting:
            self._schedule_waiting()
        if not decision.is_empty:
            self.reserve.scheduled()

    def _because(self, kind: str, request: Request | None, **figures: int | str) -> None:
        if self.explain:
            name = None if request is None else request.id
            self.decision.reasons.append(Reason(kind, name, tuple(figures.items())))

    # The running requests -----------------------------------------------------------------------------------

    def _candidates(self) -> list[Request]:
        """The running requests that this call has to visit, in order of admission. The others it only charges."""
        state = self.state
        candidates = list(state.prefilling.values())  # already in order of admission
        if self.prefill_role or not (state.due or state.abort_wanted):
            return candidates
        candidates.extend(state.due.values())
        for request in state.abort_wanted.values():
            if (
                request.status in RUNNING
                and request.id not in state.due
                and request.id not in state.prefilling
            ):
                candidates.append(request)
        if len(candidates) > 1:
            candidates.sort(key=ORDER)
        return candidates

    def _schedule_running(self) -> None:
        """Visit the running requests until the budget is used up or blocks run out.

        With a budget of 0 or less none is visited, so no block table is extended.
        """
        for request in self._candidates():
            if request.status not in RUNNING:
                continue  # this call has preempted it
            if self.track:
                position = self.state.position(request)
                if position < self.index:
                    continue
                self._charge(position - self.index)
                self.index = position + 1
            if self.budget <= 0:
                return
            if not self._visit(request):
                return
        if self.track:
            self._charge(len(self.state.running) - self.index)

    def _charge(self, num_decodes: int) -> None:
        """Charge decodes that need no visit, until the budget is used up."""
        if self.prefill_role or self.charge == 0 or num_decodes <= 0:
            return
        if self.charge > 0:
            num_decodes = min(num_decodes, max(0, -(-self.budget // self.charge)))
        self.budget -= num_decodes * self.charge

    def _visit(self, request: Request) -> bool:
        """Do what a running request needs. False: the loop ends here."""
        if request.computed < request.need_prefill:
            return self._continue_prefill(request)
        if request.aborting:
            self._abort(request)
            return True
        if self.state.needs_blocks(request) and not self._extend(request):
            return False
        self.budget -= self.charge
        return True

    def _abort(self, request: Request) -> None:
        """FastDeploy: `_trigger_abort`, when the loop meets a decode that a client aborted."""
        self._because("aborted", request, num_blocks=request.num_blocks)
        self.state.abort(request)
        self.aborted.append(request)
        self.decision.aborted.append(request.id)

    def _extend(self, request: Request) -> bool:
        """Give a decode its next blocks; preempt others if needed. False: it was preempted itself, or none can be."""
        num_blocks = self.config.enc_dec_block_num
        if not self.state.pool.can_allocate(num_blocks) and not self._preempt_for(request, num_blocks):
            return False
        if self.explain:
            free_slots, threshold = self.state.free_slots(request), self.state.threshold
            self._because(
                "extended", request, num_blocks=num_blocks, free_slots=free_slots, threshold=threshold
            )
        self.state.extend(request, num_blocks)
        self.decision.extended.append(request.id)
        return True

    def _continue_prefill(self, request: Request) -> bool:
        """Schedule the next chunk of a running prefill.

        Before release 2.6 it preempts other requests to get blocks. Since release 2.6 it waits until enough blocks
        are free, reserved blocks included; while it waits, no request is admitted.
        """
        num_tokens = self._num_new_tokens(request)
        if num_tokens == 0:
            return True
        num_blocks = self._num_new_blocks(request, num_tokens)
        if self.policy.preempt_decodes_only:
            if self.prefill_role:
                check_prefill_role(self.state, num_blocks)
            elif not self.reserve.surely_met(num_blocks, self.state) and not self.state.pool.can_allocate(
                threshold := self.reserve.threshold(num_blocks, self.state)
            ):
                self._missing("prefill waits", request, num_blocks, threshold, is_running=True)
                self.prefill_unmet = True
                return False
        elif not self.state.pool.can_allocate(num_blocks) and not self._preempt_for(request, num_blocks):
            return False
        self._prefill(request, num_tokens, num_blocks)
        return True

    # Preemption ---------------------------------------------------------------------------------------------

    def _preempt_for(self, request: Request, num_blocks: int) -> bool:
        """Preempt running requests until `num_blocks` are free. False: `request` itself was preempted, or none can be.

        FastDeploy: `_trigger_preempt`.
        """
        position = self.state.position(request)
        if not self.policy.preempt_decodes_only:
            freed = self._preempt_last(request, num_blocks)
            self.reserve.preempted(self.state)
            return freed
        while not self.state.pool.can_allocate(num_blocks):
            chosen = next((r for r in reversed(self.state.running) if r.status is Status.DECODE), None)
            if chosen is None:
                self._because("nothing to preempt", request, num_blocks=num_blocks)
                return False
            if (
                chosen.order < request.order
            ):  # the queue moves up, FastDeploy's loop index does not: it skips one
                self.index, self.track = position + 1, True
            self._preempt(chosen, request, num_blocks)
            self.reserve.preempted(self.state)
            if chosen is request:
                return False
        return True

    def _preempt_last(self, request: Request, num_blocks: int) -> bool:
        while not self.state.pool.can_allocate(num_blocks):
            chosen = self.state.running[-1]
            self._preempt(chosen, request, num_blocks)
            if chosen is request:
                return False
        return True

    def _preempt(self, chosen: Request, request: Request, num_blocks: int) -> None:
        self._because(
            "preempted",
            chosen,
            freed_blocks=chosen.num_blocks,
            needed_by=request.id,
            needed_blocks=num_blocks,
            free_blocks=self.state.pool.num_free,
            num_computed_tokens=chosen.computed,
        )
        self.state.preempt(chosen)
        self.decision.preempted.append(chosen.id)

    # The waiting requests -----------------------------------------------------------------------------------

    def _schedule_waiting(self) -> None:
        """Admit from the head of the waiting queue while budget, slots and blocks are left.

        A call that preempted admits nothing. A request goes to the end of the queue if its preprocessing has not
        finished, or if the budget has no room for one aligned chunk of it.
        """
        state = self.state
        if self.decision.preempted:
            self.decision.not_admitted = "preemption"
            return
        if self.prefill_unmet:
            self.decision.not_admitted = "blocks"
            return
        skipped: list[Request] = []
        stopped: NotAdmitted | None = None
        while state.waiting and stopped is None:
            if self.budget <= 0:
                stopped = "budget"
            elif state.num_held_slots() >= self.config.max_num_seqs:
                stopped = "slots"
            elif state.waiting[0].status is Status.WAITING and not self._is_ready(state.waiting[0]):
                skipped.append(self._skip("preprocessing"))
            elif state.waiting[0].id in self.failed:
                drop_waiting(state, state.waiting[0])
            else:
                stopped = self._admit(skipped)
        self.decision.not_admitted = stopped
        state.requeue_skipped(skipped)

    def _is_ready(self, request: Request) -> bool:
        """FastDeploy: `waiting_async_process`; its futures can end during the call."""
        if self.not_ready is not None:
            request.ready = request.id not in self.not_ready
        return request.ready

    def _skip(self, why: str) -> Request:
        request = self.state.skip_head()
        self._because("skipped", request, because=why)
        self.decision.skipped.append(request.id)
        return request

    def _admit(self, skipped: list[Request]) -> NotAdmitted | None:
        """Admit the head of the queue with its first chunk. Returns why not; None: it was admitted, or skipped."""
        state = self.state
        request = state.waiting[0]
        if request.status is Status.REQUEUED:
            request.need_prefill = state.total(request)
        state.pool.match(request)
        if not self.config.chunked_prefill and self.budget < request.need_prefill:
            return "budget"
        if self.rules is not None and not self.rules.admits(request, self.budget):
            self._because("not admitted", request, because="the formula")
            state.pool.release(request)
            return "formula"
        num_tokens = self._num_new_tokens(request)
        if num_tokens == 0:
            state.pool.release(request)
            skipped.append(self._skip("chunk alignment"))
            return None
        num_blocks = self._num_new_blocks(request, num_tokens)
        if not self.reserve.surely_met(num_blocks, state) and not state.pool.can_allocate(
            threshold := self.reserve.threshold(num_blocks, state)
        ):
            self._missing("not admitted", request, num_blocks, threshold)
            state.pool.release(request)
            return "blocks"
        state.admit_head()
        self._prefill(request, num_tokens, num_blocks, admitted=True)
        return None

    def _missing(
        self, kind: str, request: Request, num_blocks: int, threshold: int, *, is_running: bool = False
    ) -> None:
        """Note that a request needs `num_blocks`, but fewer blocks are free than its threshold requires."""
        free = self.state.pool.num_free
        self.decision.num_missing_blocks = threshold - free
        self.decision.lack = BlockShortage(request.id, threshold, max(0, threshold - num_blocks), is_running)
        self._because(kind, request, needed_blocks=threshold, free_blocks=free)

    # Chunks -------------------------------------------------------------------------------------------------

    def _prefill(self, request: Request, num_tokens: int, num_blocks: int, admitted: bool = False) -> None:
        start = request.computed
        if self.explain:
            left, budget = request.need_prefill - start, self.budget
            self._because(
                "prefill", request, num_tokens=num_tokens, of=left, budget=budget, num_blocks=num_blocks
            )
        self.decision.chunks.append((request.id, start, start + num_tokens))
        self.budget -= (
            num_tokens if self.rules is None else self.rules.charge(request, num_tokens, self.budget)
        )
        self.state.prefill(request, num_tokens, num_blocks)
        if admitted or self.caches_later_chunks:
            self.state.pool.computed(request, request.computed)

    def _num_new_tokens(self, request: Request) -> int:
        """Tokens of the next chunk. FastDeploy: `_get_num_new_tokens`; in deterministic mode chunks are aligned."""
        left = request.need_prefill - request.computed
        budget = self.budget if self.rules is None else self.rules.cap(request, self.budget)
        num_tokens = left if left < budget else budget
        size = self.config.split_kv_size
        if size and left >= size:
            to_boundary = -request.computed % size
            if budget < to_boundary:
                return 0
            aligned = (request.computed + budget) // size * size - request.computed
            num_tokens = min(aligned, num_tokens)
        return num_tokens

    def _num_new_blocks(self, request: Request, num_tokens: int) -> int:
        """Blocks to add for a chunk: FastDeploy's `get_new_block_nums`; with speculation one block more."""
        size = self.block_size
        num_blocks = (request.computed + num_tokens + size - 1) // size - request.num_blocks
        if num_blocks < 0 and self.policy.clamp_new_blocks:
            num_blocks = 0
        num_blocks += self.num_spec_blocks
        return num_blocks if num_blocks < self.max_blocks else self.max_blocks
