"""Whole numbers in few bytes: tables whose columns have the smallest type that holds them, arrays that widen."""

from __future__ import annotations

from array import array
from struct import Struct
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

BLOCK: Final = 8192
"""Rows that a table collects before it makes columns of them."""
TYPES: Final = (np.int8, np.int16, np.int32)


def smallest(values: NDArray[np.int64]) -> NDArray[np.signedinteger[Any]]:
    """The same numbers in the smallest type that holds them all."""
    low, high = (int(values.min()), int(values.max())) if len(values) else (0, 0)
    for kind in TYPES:
        limits = np.iinfo(kind)
        if limits.min <= low and high <= limits.max:
            return values.astype(kind)
    return values


def extended(numbers: array[int], values: tuple[int, ...]) -> array[int]:
    """An array with some values more: the same one, or a copy of eight bytes a number if these are too large for it."""
    length = len(numbers)
    try:
        numbers.extend(values)
    except OverflowError:
        numbers = array("q", numbers[:length])
        numbers.extend(values)
    return numbers


class CompactTable:
    """Rows of whole numbers, to be read as columns. A block of rows takes what its columns' values need."""

    def __init__(self, width: int) -> None:
        self._width = width
        self._pack = Struct(f"{width}q").pack
        self._rows = bytearray()
        self._full = BLOCK * width * 8
        self._blocks: list[list[NDArray[np.signedinteger[Any]]]] = []

    def append(self, row: tuple[int, ...]) -> None:
        """Add a row. struct.error: a number is too large for eight bytes."""
        self._rows += self._pack(*row)
        if len(self._rows) == self._full:
            rows = self._last_rows()
            self._blocks.append([smallest(np.ascontiguousarray(rows[:, i])) for i in range(self._width)])
            self._rows = bytearray()

    def _last_rows(self) -> NDArray[np.int64]:
        return np.frombuffer(bytes(self._rows), np.int64).reshape(-1, self._width)

    def column(self, number: int) -> NDArray[np.int64]:
        """One column, int64."""
        parts = [block[number] for block in self._blocks]
        return np.concatenate([*parts, self._last_rows()[:, number]], dtype=np.int64)

    def small_column(self, number: int) -> NDArray[np.signedinteger[Any]]:
        """One column in the smallest type that holds it."""
        parts = [block[number] for block in self._blocks]
        return np.concatenate([*parts, smallest(self._last_rows()[:, number])])
