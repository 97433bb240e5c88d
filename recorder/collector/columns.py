"""Forwards in, columns out: what each row of the batch ran, vectorised over the steps of a flush."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
from fdtrace.recorder.trace.column_values import MISSING
from numpy.typing import NDArray

from fdtrace.recorder.agent import wire
from fdtrace.recorder.collector.frames import CallFrame, ForwardFrame

ColumnArrays = dict[str, NDArray[Any]]


def columns_by_name(fields: tuple[str, ...], rows: Sequence[tuple[int, ...]]) -> ColumnArrays:
    """int64 columns of rows that are alike, by the names of their fields."""
    # Not `np.array`: that asks each row that is no plain tuple whether it is an array.
    values = np.fromiter(chain.from_iterable(rows), np.int64).reshape(len(rows), len(fields))
    return {name: values[:, i] for i, name in enumerate(fields)}


def reservations(calls: ColumnArrays, figures: ColumnArrays) -> ColumnArrays:
    """The two columns that a call's reservation is told in, by its flags."""
    reserved, flags = figures["reservation"], calls["flags"]
    ratio = (flags & wire.RATIO) != 0
    known = reserved >= 0
    return {
        "reserved_output_blocks": np.where(known & ~ratio, reserved, MISSING),
        "new_token_ratio": np.where(known & ratio, reserved / 1e6, MISSING),
    }


@dataclass
class Changes:
    """Values of a row of the batch that change from a step of this flush on, in the order in which they came."""

    steps: list[int] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    values: list[int] = field(default_factory=list)

    def add(self, step: int, row: int, value: int) -> None:
        """From forward `step` of this flush on, `row` has `value`."""
        self.steps.append(step)
        self.rows.append(row)
        self.values.append(value)

    def extend(self, step: int, rows: Sequence[int], values: Sequence[int]) -> None:
        """The same for several rows."""
        self.steps += [step] * len(rows)
        self.rows += rows
        self.values += values

    def latest(self, start: NDArray[np.int64], count: int) -> tuple[NDArray[Any], ...]:
        """Which change holds at each (forward, row): an index matrix, then the changes' values, forwards and rows.

        The first `len(start)` changes are the values that held before this flush.
        """
        size = len(start)
        steps = np.concatenate([np.zeros(size, np.int64), np.array(self.steps, np.int64)])
        rows = np.concatenate([np.arange(size), np.array(self.rows, np.int64)])
        values = np.concatenate([start, np.array(self.values, np.int64)])
        index = np.zeros((count + 1, size), np.int32)
        index[steps, rows] = np.arange(len(steps))
        np.maximum.accumulate(index, axis=0, out=index)
        return index, values, steps, rows


@dataclass
class BatchOccupancy:
    """The batch's rows between two flushes: which request holds each, its computed tokens and blocks."""

    request: NDArray[np.int64]
    computed: NDArray[np.int64]
    blocks: NDArray[np.int64]

    @classmethod
    def empty(cls, size: int = 0) -> BatchOccupancy:
        """No row is held."""
        return cls(np.full(size, -1, np.int64), np.zeros(size, np.int64), np.zeros(size, np.int64))

    def grow(self, size: int) -> None:
        """Make room for at least `size` rows."""
        more = size - len(self.request)
        if more > 0:
            self.request = np.concatenate([self.request, np.full(more, -1, np.int64)])
            self.computed = np.concatenate([self.computed, np.zeros(more, np.int64)])
            self.blocks = np.concatenate([self.blocks, np.zeros(more, np.int64)])


class Forwards:
    """The forwards of one flush, of equal numbers of rows and item sizes (`shape`)."""

    def __init__(self, shape: tuple[int, int], batch: BatchOccupancy) -> None:
        self.shape, self.batch = shape, batch
        self.forwards: list[ForwardFrame] = []
        self.steps: list[int] = []
        """The step of the trace that each is, and the scheduling call that each belongs to."""
        self.calls: list[CallFrame] = []
        self.requests, self.computed, self.blocks = Changes(), Changes(), Changes()
        self._decoded: tuple[NDArray[Any], ...] = ()

    def __len__(self) -> int:
        return len(self.forwards)

    def _matrix(self, parts: list[bytes], code: int) -> NDArray[Any]:
        kind = np.dtype(f"<i{wire.ITEM_SIZES[code]}")
        return np.frombuffer(b"".join(parts), kind).reshape(len(parts), -1)

    def _prefills(self) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        prefill_rows = [forward.prefill_rows for forward in self.forwards]
        counts = [len(rows) >> 1 for rows in prefill_rows]
        rows = np.frombuffer(b"".join(prefill_rows), "<u2")
        steps = np.repeat(np.arange(len(self)), counts)
        prefill = np.zeros((len(self), self.shape[0]), bool)
        last = np.zeros_like(prefill)
        at = rows & (wire.LAST_CHUNK - 1)
        prefill[steps, at] = True
        last[steps, at] = (rows & wire.LAST_CHUNK) != 0
        return prefill, last

    def decode(self) -> tuple[ColumnArrays, ColumnArrays, NDArray[np.int64], NDArray[np.int64]]:
        """Columns of `step` (totals) and of `step_request`, and each request's number and its output tokens.

        Leaves `batch` as it is after the last forward.
        """
        count = len(self)
        size = len(self.batch.request)
        tokens = np.zeros((count, size), np.int32)
        emitted = np.zeros((count, size), np.int32)
        prefill, last = np.zeros((count, size), bool), np.zeros((count, size), bool)
        if count:
            rows = self.shape[0]
            tokens[:, :rows] = self._matrix([forward.tokens for forward in self.forwards], self.shape[1] & 3)
            emitted[:, :rows] = self._matrix(
                [forward.emitted for forward in self.forwards], self.shape[1] >> 4 & 3
            )
            prefill[:, :rows], last[:, :rows] = self._prefills()
        ran = tokens > 0
        accepted = np.where(ran & ~prefill, np.maximum(emitted - 1, 0), 0)
        advance = np.where(prefill, tokens + last, np.where(ran, emitted, 0))
        requests = self._held(self.requests, self.batch.request)
        blocks = self._held(self.blocks, self.batch.blocks)
        computed = self._computed(advance)
        totals = {
            "num_tokens": tokens.sum(1),
            "num_prefill_tokens": np.where(prefill, tokens, 0).sum(1),
            "num_draft_tokens": np.where(ran & ~prefill, tokens - 1, 0).sum(1),
            "num_accepted_tokens": accepted.sum(1),
        }
        self._decoded = ran, requests[:count], computed[:count], blocks[:count]
        known = ran & (requests[:count] >= 0)
        at = np.nonzero(known)
        decode = ~prefill[at]
        per_request = {
            "forward": at[0],
            "request": requests[at],
            "prefill": prefill[at],
            "num_tokens": tokens[at],
            "num_computed_tokens": computed[at],
            "num_draft_tokens": np.where(decode, tokens[at] - 1, 0),
            "num_accepted_tokens": accepted[at],
            "num_blocks": blocks[at],
        }
        outputs = np.where(prefill, last, emitted)[at]
        self.batch.request, self.batch.blocks, self.batch.computed = (
            requests[count],
            blocks[count],
            computed[count],
        )
        numbers, inverse = np.unique(per_request["request"], return_inverse=True)
        return totals, per_request, numbers, np.bincount(inverse, outputs, len(numbers)).astype(np.int64)

    @property
    def requests_held(self) -> NDArray[np.int64]:
        """The request of each (forward, row), after `decode`."""
        held: NDArray[np.int64] = self._decoded[1]
        return held

    def idle(self) -> tuple[NDArray[np.int64], ...]:
        """Where a held row ran nothing, after `decode`: forward, row, request, tokens computed before, blocks."""
        ran, requests, computed, blocks = self._decoded
        at = np.nonzero(~ran & (requests >= 0))
        return at[0], at[1], requests[at], computed[at], blocks[at]

    def _held(self, changes: Changes, start: NDArray[np.int64]) -> NDArray[np.int64]:
        index, values, _, _ = changes.latest(start, len(self))
        held: NDArray[np.int64] = values[index]
        return held

    def _computed(self, advance: NDArray[Any]) -> NDArray[np.int64]:
        """Tokens computed before each step: what a row started from, plus all it advanced since."""
        count, size = advance.shape
        before = np.zeros((count + 1, size), np.int64)
        np.cumsum(advance, axis=0, out=before[1:])
        index, values, steps, rows = self.computed.latest(self.batch.computed, count)
        base = values - before[steps, rows]
        computed: NDArray[np.int64] = base[index] + before
        return computed
