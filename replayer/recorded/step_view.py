"""A recording's step columns as a history has them, without reading or copying one before it is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fdtrace.recorder.trace.column_values import MISSING
from fdtrace.recorder.trace.columns_on_demand import ColumnsOnDemand, any_known, entry_of
from fdtrace.recorder.trace.recording import Recording
from fdtrace.replayer.recorded.step_state import small_column


class StepView(ColumnsOnDemand):
    """Columns of a recording's steps under names of a history. None is read before it is asked for."""

    def __init__(
        self, recording: Recording, names: Mapping[str, str], own: Mapping[str, NDArray[Any]] | None = None
    ) -> None:
        """`names`: name in the history -> name in the recording. `own`: columns that the recording does not have."""
        self._recording, self._names, self._own = recording, names, own or {}

    def with_own(self, own: Mapping[str, NDArray[Any]]) -> StepView:
        """The same with more columns."""
        return StepView(self._recording, self._names, {**self._own, **own})

    def __iter__(self) -> Iterator[str]:
        return chain(self._names, self._own)

    def __len__(self) -> int:
        return len(self._names) + len(self._own)

    def __contains__(self, name: object) -> bool:
        return name in self._names or name in self._own

    def __getitem__(self, name: str) -> NDArray[Any]:
        if name in self._own:
            return self._own[name]
        values = self.stored(name)
        return values if values.dtype == object else np.asarray(values, np.int64)

    def stored(self, name: str) -> NDArray[Any]:
        """A column in the smallest type that there is of it."""
        return self._own[name] if name in self._own else small_column(self._recording, self._names[name])

    def value(self, name: str, entry: int) -> Any:
        """One entry of a column."""
        if name in self._own:
            return self._own[name][entry]
        source, steps = self._names[name], self._recording.steps
        return entry_of(steps, source, entry) if source in steps else MISSING

    def is_known(self, name: str) -> bool:
        """Whether any step has a value."""
        return name in self._own or any_known(self._recording.steps, self._names[name])
