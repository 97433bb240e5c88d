"""A formula's rules about single requests, as one scheduling call applies them."""

from __future__ import annotations

from fdtrace.recorder.errors import UsageError
from fdtrace.replayer.config import SchedulerConfig
from fdtrace.replayer.formulas.base import Formula
from fdtrace.replayer.formulas.call_rules import MODEL_TAKES, OF_A_REQUEST, refuse_rules
from fdtrace.replayer.formulas.variables import RequestVariables, Variables
from fdtrace.replayer.model.request import Request, Status


class RequestRules:
    """The rules of one formula. `variables` are those of the call that is made; the scheduler keeps them up to date."""

    def __init__(self, formula: Formula, variables: Variables, block_size: int) -> None:
        self.formula, self._variables, self._block_size = formula, variables, block_size
        self._request = RequestVariables(variables)
        self._caps = "chunk_cap" in formula.rules

    def _of(self, request: Request, budget: int, chunk: int = 0) -> RequestVariables:
        r = self._request
        r.num_prompt_tokens, r.num_computed_tokens = request.prompt, request.computed
        r.num_cached_tokens = request.hit_blocks * self._block_size
        r.num_chunk_tokens, r.budget_left = chunk, budget
        r.was_preempted = int(request.status is Status.REQUEUED)
        return r

    def cap(self, request: Request, budget: int) -> int:
        """Most tokens that the request gets in this call, of a budget of which so much is left."""
        if not self._caps:
            return budget
        return min(budget, max(0, self.formula.chunk_cap(self._variables, self._of(request, budget))))

    def charge(self, request: Request, chunk: int, budget: int) -> int:
        """What a chunk of the request takes from the budget."""
        return self.formula.chunk_charge(self._variables, self._of(request, budget, chunk))

    def admits(self, request: Request, budget: int) -> bool:
        """Whether the request may be admitted: it is the head of the queue, and gets a chunk of at least one token."""
        return (
            bool(self.formula.admit(self._variables, self._of(request, budget)))
            and self.cap(request, budget) > 0
        )


def request_rules(config: SchedulerConfig, formula: Formula, variables: Variables) -> RequestRules | None:
    """The rules about single requests of a formula; None: it has none.

    UsageError if the model cannot take a rule of the formula.
    """
    refuse_rules(
        formula.name,
        formula.rules,
        MODEL_TAKES,
        "the model of FastDeploy's scheduler",
        "FastDeploy has one budget; input_budget, draft_slots and max_requests are of vLLM's scheduler",
    )
    if formula.rules.isdisjoint(OF_A_REQUEST):
        return None
    if "chunk_cap" in formula.rules and not config.chunked_prefill:
        raise UsageError(
            f"chunk_cap of formula {formula.name!r} cannot be used without chunked prefill",
            why="each prompt is scheduled as a whole",
            hint="admit says which prompts may be admitted: `admit num_prompt_tokens <= 4096`",
        )
    return RequestRules(formula, variables, config.block_size)
