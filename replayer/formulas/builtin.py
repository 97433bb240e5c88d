"""The built-in formulas: those of FastDeploy's fixes, in order, two from the reviews of those fixes, and vLLM's."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from fdtrace.replayer.formulas.base import Formula, FormulaColumns
from fdtrace.replayer.formulas.call_rules import MODEL_TAKES
from fdtrace.replayer.formulas.variables import VARIABLES, VARYING, Variables


class BuiltIn(Formula):
    """A formula whose arithmetic works on columns as it does on the variables of one call."""

    def __init__(self) -> None:
        self.description = " ".join((type(self).__doc__ or "").split("\n\n")[0].split())

    def budgets(self, columns: FormulaColumns, length: int) -> NDArray[np.int64]:
        if not _fixed_deployment(columns):
            return super().budgets(columns, length)
        return _columnwise(self.budget, columns, length)

    def charges(self, columns: FormulaColumns, length: int) -> NDArray[np.int64]:
        if not _fixed_deployment(columns):
            return super().charges(columns, length)
        return _columnwise(self.charge, columns, length)


def _fixed_deployment(columns: FormulaColumns) -> bool:
    """Whether only the variables vary that change from call to call."""
    return all(np.ndim(columns[name]) == 0 for name in VARIABLES if name not in VARYING)


def _columnwise(
    function: Callable[[Variables], int], columns: FormulaColumns, length: int
) -> NDArray[np.int64]:
    v = Variables(**{name: columns[name] for name in VARIABLES})  # type: ignore[arg-type]
    return np.broadcast_to(np.asarray(function(v), dtype=np.int64), (length,))


class Original(BuiltIn):
    """The budget is the whole limit; each decode is charged one token, whatever its forward runs.

    With speculation a decode's forward runs 1 + K tokens, and K of them are not counted: that is the bug.
    """

    name = "original"
    source = "FastDeploy before #7438 (commit 72ce56b10)"
    text = "max_num_batched_tokens; charge 1"

    def budget(self, v: Variables) -> int:
        return v.max_num_batched_tokens

    def charge(self, v: Variables) -> int:
        return 1


class Pr7438(BuiltIn):
    """It reserves 1 + K tokens for each of max_num_seqs sequences, running or not, and keeps a floor of 512 tokens.

    Each decode is still charged one token, so one of its reserved tokens is counted twice. Where the floor applies,
    the limit can be exceeded as before.
    """

    name = "pr7438"
    source = "FastDeploy #7438 (commit 185708b56)"
    text = (
        "max(max_num_batched_tokens - max_num_seqs * (num_speculative_tokens + 1), "
        "min(max_num_batched_tokens, 512)); charge 1"
    )

    def budget(self, v: Variables) -> int:
        limit = v.max_num_batched_tokens
        reserved = v.max_num_seqs * (v.num_speculative_tokens + 1)
        return max(limit - reserved, min(limit, 512))

    def charge(self, v: Variables) -> int:
        return 1


class Pr7499(BuiltIn):
    """It reserves 1 + K tokens for each running decode, K as configured: 1 even without a speculative method.

    Once the decodes use up the limit the budget is 0. Then the call does not even extend their block tables.
    """

    name = "pr7499"
    source = "FastDeploy #7499 (commit 9ef8467d7)"
    text = "max_num_batched_tokens - num_running_decodes * (num_speculative_tokens + 1)"

    def budget(self, v: Variables) -> int:
        return v.max_num_batched_tokens - v.num_running_decodes * (v.num_speculative_tokens + 1)


class Pr7623(BuiltIn):
    """It reserves what each running decode really runs: 1 + K tokens with a speculative method, 1 without."""

    name = "pr7623"
    source = "FastDeploy #7623 (commit 5582b5af1)"
    text = "max_num_batched_tokens - num_running_decodes * (num_draft_tokens + 1)"

    def budget(self, v: Variables) -> int:
        return v.max_num_batched_tokens - v.num_running_decodes * (v.num_draft_tokens + 1)


class Release26(Pr7623):
    """The whole scheduler of release 2.6: the budget of #7623, and the release's policy unless another is given.

    The policy reserves blocks by a decaying new-token ratio and preempts only decodes.
    """

    name = "release_2_6"
    source = "FastDeploy release 2.6 (commit 41677b9a6)"
    policy = "release_2_6"


class Exact(BuiltIn):
    """The budget is the whole limit; each decode is charged what its forward really runs, when the loop visits it.

    A decode is visited while any budget is left, so its block table is extended even in a full step.
    """

    name = "exact"
    source = "the review of FastDeploy #7438"
    text = "max_num_batched_tokens; charge num_draft_tokens + 1"

    def budget(self, v: Variables) -> int:
        return v.max_num_batched_tokens

    def charge(self, v: Variables) -> int:
        return v.num_draft_tokens + 1


class Ternary(BuiltIn):
    """#7438's reservation with missing parentheses around its conditional: without speculation the budget is 1.

    `M - max_num_seqs * (K + 1) if speculation else 1` chooses between the whole difference and 1. It was meant to
    choose only the factor of `max_num_seqs`.
    """

    name = "ternary"
    source = "a slip caught in the review of FastDeploy #7438"
    text = (
        "max_num_batched_tokens - max_num_seqs * (num_speculative_tokens + 1) if speculation else 1; charge 1"
    )

    def budget(self, v: Variables) -> int:
        if not v.speculation:
            return 1
        return v.max_num_batched_tokens - v.max_num_seqs * (v.num_speculative_tokens + 1)

    def charge(self, v: Variables) -> int:
        return 1


class VllmStatic(BuiltIn):
    """The budget leaves out the draft slots of max_num_seqs requests, running or not. There is no second budget.

    A drafter with K - 1 slots a request and 1,024 sequences takes 6,144 of 8,192 tokens away from a single request.
    """

    name = "vllm_static"
    source = "vLLM before #51725"
    text = "max_num_batched_tokens - num_draft_slots * max_num_seqs; input_budget max_num_batched_tokens; draft_slots 0"

    def budget(self, v: Variables) -> int:
        return v.max_num_batched_tokens - v.num_draft_slots * v.max_num_seqs

    def input_budget(self, v: Variables) -> int:
        return v.max_num_batched_tokens

    def draft_slots(self, v: Variables) -> int:
        return 0


class VllmAdaptive(BuiltIn):
    """The budget is the whole limit. A second budget of that size also pays each scheduled request's draft slots."""

    name = "vllm_adaptive"
    source = "vLLM #51725"
    text = "max_num_batched_tokens; input_budget max_num_batched_tokens; draft_slots num_draft_slots"

    def budget(self, v: Variables) -> int:
        return v.max_num_batched_tokens

    def input_budget(self, v: Variables) -> int:
        return v.max_num_batched_tokens

    def draft_slots(self, v: Variables) -> int:
        return v.num_draft_slots


class VllmSeparate(BuiltIn):
    """Target and drafter have a budget of max_num_batched_tokens each, as they run one after the other.

    The drafter runs its slots and one more token for each scheduled request (DSpark: K, DFlash: K + 1), so its budget
    is a limit on the number of requests.
    """

    name = "vllm_separate"
    source = "vLLM #52996, proposed for #52922"
    text = "max_num_batched_tokens; max_requests max_num_batched_tokens // (num_draft_slots + 1)"

    def budget(self, v: Variables) -> int:
        return v.max_num_batched_tokens

    def max_requests(self, v: Variables) -> int:
        return v.max_num_batched_tokens // (v.num_draft_slots + 1)


BUILTIN: dict[str, BuiltIn] = {
    formula.name: formula
    for formula in (
        *(Original(), Pr7438(), Pr7499(), Pr7623(), Release26(), Exact(), Ternary()),
        *(VllmStatic(), VllmAdaptive(), VllmSeparate()),
    )
}
"""Name -> formula, in the order of the changes. `release_2_6` also sets the policy."""

MODEL_FORMULAS: dict[str, BuiltIn] = {
    name: formula for name, formula in BUILTIN.items() if formula.rules <= set(MODEL_TAKES)
}
"""Those of them that the model of FastDeploy's scheduler takes."""
