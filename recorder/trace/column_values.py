"""What tables of a trace are in memory: columns as numpy arrays, and values that are equal by what they hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

MISSING = -1
"""Stands for NULL in integer columns."""

Columns = Mapping[str, NDArray[Any]]
"""A table's columns by name, one entry a row."""

ColumnArrays = dict[str, NDArray[Any]]
"""The same, by whoever puts them together."""

Ints = NDArray[np.int64]


def same_value(one: Any, other: Any) -> bool:
    """Whether two values are equal where arrays, mappings, tuples and dataclasses are compared by what they hold."""
    if isinstance(one, np.ndarray) or isinstance(other, np.ndarray):
        return _same_array(one, other)
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(same_value(one[name], other[name]) for name in one)
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(map(same_value, one, other))
    if is_dataclass(one) and type(one) is type(other):
        names = [known.name for known in fields(one)]
        return all(same_value(getattr(one, name), getattr(other, name)) for name in names)
    return bool(one == other)


def _same_array(one: Any, other: Any) -> bool:
    if not (isinstance(one, np.ndarray) and isinstance(other, np.ndarray)) or one.shape != other.shape:
        return False
    if object in (one.dtype, other.dtype):
        return all(map(same_value, one.tolist(), other.tolist()))
    return np.array_equal(one, other, equal_nan=one.dtype.kind == other.dtype.kind == "f")


class ByValue:
    """Dataclasses that hold arrays: equal where they hold the same."""

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        return same_value(self, other) if type(self) is type(other) else NotImplemented
