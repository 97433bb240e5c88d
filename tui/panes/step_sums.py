"""Sums and maxima of any range of steps, in microseconds, in a fraction of the memory of a sum for each step."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fdtrace.recorder.trace.column_values import Ints

BLOCK = 64
"""Steps that are summed up in advance. A range needs only the entries of the two blocks in which it begins and ends."""


class RangeSums:
    """The sums of ranges of a column, from the sums of its blocks."""

    def __init__(self, values: NDArray[np.signedinteger]) -> None:
        self._values = values
        whole = len(values) // BLOCK
        self._blocks = np.zeros(whole + 1, np.int64)
        blocks = values[: whole * BLOCK].reshape(whole, BLOCK).sum(axis=1, dtype=np.int64)
        np.cumsum(blocks, out=self._blocks[1:])

    def of(self, low: Ints, high: Ints) -> Ints:
        """The sum of `values[low[i]:high[i]]`, for each i."""
        return self._before(high) - self._before(low)

    def _before(self, ends: Ints) -> Ints:
        """The sums of the first `ends[i]` values."""
        block = ends // BLOCK
        return np.asarray(
            self._blocks[block] + _short(self._values, block * BLOCK, ends).sum(axis=1), np.int64
        )


class RareSums:
    """The sums of ranges of a column in which most values are 0."""

    def __init__(self, values: NDArray[np.signedinteger]) -> None:
        """Values below 0 count as 0."""
        self._at = np.flatnonzero(values > 0)
        self._sums = np.zeros(len(self._at) + 1, np.int64)
        np.cumsum(values[self._at], out=self._sums[1:])

    @property
    def total(self) -> int:
        """The sum of all values."""
        return int(self._sums[-1])

    def of(self, low: Ints, high: Ints) -> Ints:
        """The sum of `values[low[i]:high[i]]`, for each i."""
        first, end = np.searchsorted(self._at, low), np.searchsorted(self._at, high)
        return np.asarray(self._sums[end] - self._sums[first], np.int64)


class RangeMaxima:
    """The highest values of ranges of a column, from those of its blocks. Values below 0 count as 0."""

    def __init__(self, values: NDArray[np.signedinteger]) -> None:
        self._values = values
        whole = len(values) // BLOCK
        self._blocks = values[: whole * BLOCK].reshape(whole, BLOCK).max(axis=1, initial=0)

    @property
    def highest(self) -> int:
        """The highest value of all; 0 if there is none."""
        return max(
            int(self._blocks.max(initial=0)), int(self._values[len(self._blocks) * BLOCK :].max(initial=0))
        )

    def of(self, low: Ints, high: Ints) -> Ints:
        """The highest of `values[low[i]:high[i]]`; 0 if that is empty. The ranges follow one another."""
        first, end = -(-low // BLOCK), high // BLOCK
        has_blocks = end > first
        out = np.zeros(len(low), np.int64)
        if has_blocks.any():
            out[has_blocks] = _consecutive(self._blocks, first[has_blocks], end[has_blocks])
        for begin, stop in (
            (low, np.where(has_blocks, first * BLOCK, high)),
            (np.where(has_blocks, end * BLOCK, high), high),
        ):
            np.maximum(out, _short(self._values, begin, stop).max(axis=1, initial=0), out=out)
        return out


def _consecutive(blocks: NDArray[np.signedinteger], low: Ints, high: Ints) -> NDArray[np.signedinteger]:
    """The highest of `blocks[low[i]:high[i]]`. No range is empty, and the next begins at most a block later."""
    marks = np.stack([low, high], axis=1).ravel()
    # Every second range is one of these, the others lie between them. The last one ends with the marks, or the blocks.
    return np.maximum.reduceat(blocks[: high[-1]], marks[:-1])[::2]


def _short(values: NDArray[np.signedinteger], low: Ints, high: Ints) -> Ints:
    """The values of short ranges, a row each, filled up with 0."""
    width = int((high - low).max(initial=0))
    if not width:
        return np.zeros((len(low), 0), np.int64)
    offsets = np.arange(width)
    is_inside = offsets < (high - low)[:, None]
    at = np.where(is_inside, low[:, None] + offsets, 0)
    return np.where(is_inside, values[at], 0).astype(np.int64)
