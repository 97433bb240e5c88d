"""A formula around another one, with all its rules: a search looks at what a formula computes, and changes nothing."""

from __future__ import annotations

from collections.abc import Callable

from fdtrace.replayer.formulas.base import Formula
from fdtrace.replayer.formulas.variables import RequestVariables, Variables


class WatchedFormula(Formula):
    """Computes what `inner` does. Every computation goes through `compute`, which a subclass may override."""

    def __init__(self, inner: Formula) -> None:
        self.inner, self.name, self.text, self.policy = inner, inner.name, inner.text, inner.policy

    @property
    def rules(self) -> frozenset[str]:
        """The rules of the inner formula."""
        return self.inner.rules

    def compute(self, ask: Callable[[], int]) -> int:
        """The answer of the inner formula."""
        return ask()

    def budget(self, v: Variables) -> int:
        return self.compute(lambda: self.inner.budget(v))

    def charge(self, v: Variables) -> int:
        return self.compute(lambda: self.inner.charge(v))

    def chunk_charge(self, v: Variables, r: RequestVariables) -> int:
        return self.compute(lambda: self.inner.chunk_charge(v, r))

    def chunk_cap(self, v: Variables, r: RequestVariables) -> int:
        return self.compute(lambda: self.inner.chunk_cap(v, r))

    def admit(self, v: Variables, r: RequestVariables) -> int:
        return self.compute(lambda: self.inner.admit(v, r))

    def input_budget(self, v: Variables) -> int:
        return self.compute(lambda: self.inner.input_budget(v))

    def draft_slots(self, v: Variables) -> int:
        return self.compute(lambda: self.inner.draft_slots(v))

    def max_requests(self, v: Variables) -> int:
        return self.compute(lambda: self.inner.max_requests(v))
