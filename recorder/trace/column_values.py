"""Tables of a trace in memory: columns as numpy arrays, and values that compare equal by their contents."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fdtrace.recorder.agent import wire

MISSING = -1
"""Stands for NULL in integer columns."""

NO_PRIORITY = wire.NO_PRIORITY
"""Stands for NULL in `priority`, of which -1 may be a value."""

Columns = Mapping[str, NDArray[Any]]
"""A table's columns by name; each array has one entry per row."""

ColumnArrays = dict[str, NDArray[Any]]
"""The same as `Columns`, for code that still builds the table."""

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


def same_value(left: Any, right: Any) -> bool:
    """Whether two values are equal. Arrays, mappings, tuples and dataclasses are compared by their contents."""
    if isinstance(left, np.ndarray) or isinstance(right, np.ndarray):
        return _same_array(left, right)
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        return left.keys() == right.keys() and all(same_value(left[name], right[name]) for name in left)
    if isinstance(left, tuple) and isinstance(right, tuple):
        return len(left) == len(right) and all(map(same_value, left, right))
    if is_dataclass(left) and type(left) is type(right):
        names = [declared.name for declared in fields(left)]
        return all(same_value(getattr(left, name), getattr(right, name)) for name in names)
    return bool(left == right)


def _same_array(left: Any, right: Any) -> bool:
    if not (isinstance(left, np.ndarray) and isinstance(right, np.ndarray)) or left.shape != right.shape:
        return False
    if object in (left.dtype, right.dtype):
        return all(map(same_value, left.tolist(), right.tolist()))
    return np.array_equal(left, right, equal_nan=left.dtype.kind == right.dtype.kind == "f")


class ByValue:
    """The base of dataclasses that hold arrays: two are equal if their contents are equal."""

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        return same_value(self, other) if type(self) is type(other) else NotImplemented
