"""Columns of a very long history: each in the smallest type that holds it, read as int64."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from fdtrace.replayer.recorded.compact_numbers import smallest

MANY_STEPS = 1_000_000
"""From so many steps on a replay's columns are kept small. Reading one then takes a millisecond for each million."""


class StepColumns(Mapping[str, NDArray[Any]]):
    """Columns of equal length by name. A column that somebody holds is made once."""

    def __init__(self, columns: Mapping[str, NDArray[Any]], texts: Mapping[str, NDArray[Any]]) -> None:
        """`columns`: whole numbers of any type, or others. `texts`: those that the numbers of a column stand for."""
        self._columns, self._texts = columns, texts
        self._made: WeakValueDictionary[str, NDArray[Any]] = WeakValueDictionary()

    def with_column(self, name: str, values: NDArray[Any]) -> StepColumns:
        """These columns and one more."""
        small = smallest(values) if values.dtype == np.int64 else values
        return StepColumns({**self._columns, name: small}, self._texts)

    def __getitem__(self, name: str) -> NDArray[Any]:
        made = self._made.get(name)
        if made is None:
            made = self._columns[name]
            texts = self._texts.get(name)
            if texts is not None:
                made = texts[made]
            elif made.dtype.kind == "i":
                made = made.astype(np.int64)
            self._made[name] = made
        return made

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)

    def __reduce__(self) -> tuple[Any, ...]:
        return StepColumns, (self._columns, self._texts)
