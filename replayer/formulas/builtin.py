"""The formulas built in: those of FastDeploy's fixes in order, and two that its reviewers spoke of."""

from __future__ import annotations

from replayer.formulas.base import Formula
from replayer.formulas.variables import Variables


class Original(Formula):
    """The whole limit; one token charged a decode, whatever its forward runs."""

    name = "original"
    source = "FastDeploy before #7438 (commit 72ce56b10)"

    def budget(self, v: Variables) -> int:
        return v.max_num_batched_tokens

    def charge(self, v: Variables) -> int:
        return 1
