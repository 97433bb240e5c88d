"""The formulas built in: those of FastDeploy's fixes in order, and two that its reviewers spoke of."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from fdtrace.replayer.formulas.base import Formula, FormulaColumns
from fdtrace.replayer.formulas.variables import VARIABLES, VARYING, Variables


class BuiltIn(Formula):
    """A formula whose arithmetic does for columns what it does for one call."""

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
    """Whether no column but those that change from call to call varies."""
    return all(np.ndim(columns[name]) == 0 for name in VARIABLES if name not in VARYING)


def _columnwise(
    function: Callable[[Variables], int], columns: FormulaColumns, length: int
) -> NDArray[np.int64]:
    v = Variables(**{name: columns[name] for name in VARIABLES})  # type: ignore[arg-type]
    return np.broadcast_to(np.asarray(function(v), dtype=np.int64), (length,))


class Original(BuiltIn):
    """The whole limit; one token charged a decode, whatever its forward runs.

    With speculation a decode's forward runs 1 + K tokens, K of them uncounted: that is the bug.
    """

    name = "original"
    source = "FastDeploy before #7438 (commit 72ce56b10)"
    text = "max_num_batched_tokens; charge 1"

    def budget(self, v: Variables) -> int:
        return v.max_num_batched_tokens

    def charge(self, v: Variables) -> int:
        return 1


class Pr7438(BuiltIn):
    """Every sequence that could run is reserved 1 + K tokens, running or not, down to a floor of 512 tokens.

    One token is still charged a decode, so what is reserved is charged again; and where the floor applies,
    the limit can be exceeded as before.
    """

    name = "pr7438"
    source = "FastDeploy #7438 (commit 185708b56)"
    text = (
        "max(max_num_batched_tokens - max_num_seqs * (num_speculative_tokens + 1), "
        "min(max_num_batched_tokens, 512)); charge 1"
    )

    def budget(self, v: Variables) -> int:
        most = v.max_num_batched_tokens
        reserved = v.max_num_seqs * (v.num_speculative_tokens + 1)
        return max(most - reserved, min(most, 512))

    def charge(self, v: Variables) -> int:
        return 1


class Pr7499(BuiltIn):
    """Every running decode is reserved 1 + K tokens, K as configured: 1 also without a speculative method.

    Once the decodes use up the limit the budget is 0, and the call does not even extend their block tables.
    """

    name = "pr7499"
    source = "FastDeploy #7499 (commit 9ef8467d7)"
    text = "max_num_batched_tokens - num_running_decodes * (num_speculative_tokens + 1)"

    def budget(self, v: Variables) -> int:
        return v.max_num_batched_tokens - v.num_running_decodes * (v.num_speculative_tokens + 1)


class Pr7623(BuiltIn):
    """Every running decode is reserved what it really runs: 1 + K tokens with a speculative method, 1
    without.
    """

    name = "pr7623"
    source = "FastDeploy #7623 (commit 5582b5af1)"
    text = "max_num_batched_tokens - num_running_decodes * (num_draft_tokens + 1)"

    def budget(self, v: Variables) -> int:
        return v.max_num_batched_tokens - v.num_running_decodes * (v.num_draft_tokens + 1)


class Release26(Pr7623):
    """The scheduler of release 2.6 whole: the budget of #7623, and its policy where no other is asked for.

    Its policy reserves blocks by a decaying new-token ratio and preempts decodes alone.
    """

    name = "release_2_6"
    source = "FastDeploy release 2.6 (commit 41677b9a6)"
    policy = "release_2_6"


class Exact(BuiltIn):
    """The whole limit; each decode charged what its forward really runs, as the call's loop comes to it.

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
    """#7438's reservation with a conditional that binds looser than meant: without speculation the budget is
    1.

    `M - max_num_seqs * (K + 1) if speculation else 1` chooses between the whole difference and 1, where the
    factor of `max_num_seqs` was to be chosen.
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


BUILTIN: dict[str, BuiltIn] = {
    formula.name: formula
    for formula in (Original(), Pr7438(), Pr7499(), Pr7623(), Release26(), Exact(), Ternary())
}
"""Name -> formula, in the order of the changes. `release_2_6` brings its policy along."""
