"""Runs by their names, in the order in which they were asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol, TypeVar

from fdtrace.library.result_table import ResultTable
from fdtrace.recorder.errors import UsageError


class Named(Protocol):
    """Anything with a name."""

    @property
    def name(self) -> str:
        """The name."""


Run = TypeVar("Run", bound=Named)


class NamedRuns(Mapping[str, Run]):
    """Runs by name. A notebook shows them as `table()`."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self._runs = {run.name: run for run in runs}

    def __getitem__(self, name: str) -> Run:
        """A run by its name. UsageError if there is none."""
        try:
            return self._runs[name]
        except KeyError:
            raise UsageError(f"there is no run {name!r}", hint=f"one of {', '.join(self._runs)}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._runs)

    def __len__(self) -> int:
        return len(self._runs)

    def __contains__(self, name: object) -> bool:
        return name in self._runs

    def table(self) -> ResultTable:
        """One row for each run."""
        raise NotImplementedError

    def __repr__(self) -> str:
        lines = "\n".join(f"  {run!r}" for run in self._runs.values())
        return f"<{type(self).__name__}\n{lines}\n>"

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()
