"""Turns forwards into columns: what each row of the batch ran, vectorised over the steps of a flush."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fdtrace.recorder.agent import wire
from fdtrace.recorder.collector.frames import CallFrame, ForwardFrame
from fdtrace.recorder.trace.column_values import MISSING, ColumnArrays


def columns_by_name(fields: tuple[str, ...], rows: Sequence[tuple[int, ...]]) -> ColumnArrays:
    """int64 columns of rows that have the same fields, by the fields' names."""
    # Not `np.array`: for each row that is not a plain tuple, it checks whether the row is an array.
    values = np.fromiter(chain.from_iterable(rows), np.int64).reshape(len(rows), len(fields))
    return {name: values[:, i] for i, name in enumerate(fields)}


def reservations(calls: ColumnArrays, figures: ColumnArrays) -> ColumnArrays:
    """The two columns for what a call keeps free. The call's flags say which of them its figure belongs to."""
    reserved, flags = figures["reservation"], calls["flags"]
    ratio = (flags & wire.RATIO) != 0
    is_known = reserved >= 0
    return {
        "reserved_output_blocks": np.where(is_known & ~ratio, reserved, MISSING),
        "new_token_ratio": np.where(is_known & ratio, reserved / 1e6, MISSING),
    }


def _sums(numbers: NDArray[np.int64], values: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Different numbers in order, and the sum of the values of each."""
    first = numbers.min() if len(numbers) else 0
    if len(numbers) and numbers.max() - first > 8 * len(numbers):  # too far apart to count them in an array
        different, inverse = np.unique(numbers, return_inverse=True)
        return different, np.bincount(inverse, values, len(different)).astype(np.int64)
    sums = np.bincount(numbers - first, values).astype(np.int64)
    different = np.flatnonzero(np.bincount(numbers - first))  # ten times as quick as sorting them
    return different + first, sums[different]


@dataclass
class RowChanges:
    """Values of the batch's rows that change within this flush, in the order in which the changes came."""

    steps: list[int] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    values: list[int] = field(default_factory=list)

    def add(self, step: int, row: int, value: int) -> None:
        """From forward `step` of this flush on, `row` has `value`."""
        self.steps.append(step)
        self.rows.append(row)
        self.values.append(value)

    def extend(self, step: int, rows: Sequence[int], values: Sequence[int]) -> None:
        """The same as `add`, for several rows."""
        self.steps += [step] * len(rows)
        self.rows += rows
        self.values += values

    def latest(self, start: NDArray[np.int64], count: int) -> tuple[NDArray[Any], ...]:
        """Which change is in effect at each (forward, row).

        Returns an index matrix, then the values, forwards and rows of the changes that it refers to. The first
        `len(start)` changes are the values from before this flush.
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
    """The rows of the batch between two flushes: the request in each row, its computed tokens and its blocks."""

    request: NDArray[np.int64]
    computed: NDArray[np.int64]
    blocks: NDArray[np.int64]

    @classmethod
    def empty(cls, size: int = 0) -> BatchOccupancy:
        """A batch in which no row holds a request."""
        return cls(np.full(size, -1, np.int64), np.zeros(size, np.int64), np.zeros(size, np.int64))

    def grow(self, size: int) -> None:
        """Make room for at least `size` rows."""
        more = size - len(self.request)
        if more > 0:
            self.request = np.concatenate([self.request, np.full(more, -1, np.int64)])
            self.computed = np.concatenate([self.computed, np.zeros(more, np.int64)])
            self.blocks = np.concatenate([self.blocks, np.zeros(more, np.int64)])


class Forwards:
    """The forwards of one flush. All have the same number of rows and the same item sizes (`shape`)."""

    def __init__(self, shape: tuple[int, int], batch: BatchOccupancy) -> None:
        self.shape, self.batch = shape, batch
        self.forwards: list[ForwardFrame] = []
        self.steps: list[int] = []
        """`steps[i]` is the step of `forwards[i]` in the trace; `calls[i]` is its scheduling call."""
        self.calls: list[CallFrame] = []
        self.requests, self.computed, self.blocks = RowChanges(), RowChanges(), RowChanges()
        self._decoded: tuple[NDArray[Any], ...] = ()

    def __len__(self) -> int:
        return len(self.forwards)

    def _matrix(self, rows: list[bytes], code: int) -> NDArray[Any]:
        kind = np.dtype(f"<i{wire.ITEM_SIZES[code]}")
        return np.frombuffer(b"".join(rows), kind).reshape(len(rows), -1)

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
        """Columns of `step` (totals), columns of `step_request`, request numbers, and output tokens of these requests.

        Afterwards `batch` is as it was after the last forward.
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
        decoded = ran & ~prefill
        chunks = np.nonzero(prefill)  # few: what differs in them is set one by one
        accepted = np.where(decoded, np.maximum(emitted - 1, 0), 0)
        drafts = np.where(decoded, tokens - 1, 0)
        advance = np.where(ran, emitted, 0)
        advance[chunks] = tokens[chunks] + last[chunks]
        emitted[chunks] = last[chunks]
        requests = self._held(self.requests, self.batch.request)
        blocks = self._held(self.blocks, self.batch.blocks)
        computed = self._computed(advance)
        totals = {
            "num_tokens": tokens.sum(1),
            "num_prefill_tokens": np.bincount(chunks[0], tokens[chunks], count).astype(np.int64),
            "num_draft_tokens": drafts.sum(1),
            "num_accepted_tokens": accepted.sum(1),
        }
        self._decoded = ran, requests[:count], computed[:count], blocks[:count]
        recorded = ran & (requests[:count] >= 0)
        chosen = np.flatnonzero(recorded)

        def rows_of(matrix: NDArray[Any]) -> NDArray[Any]:
            flat = matrix.reshape(-1)
            return flat if len(chosen) == len(flat) else flat.take(chosen)

        per_request = {
            "forward": np.repeat(np.arange(count), np.count_nonzero(recorded, axis=1)),
            "request": rows_of(requests[:count]),
            "prefill": rows_of(prefill),
            "num_tokens": rows_of(tokens),
            "num_computed_tokens": rows_of(computed[:count]),
            "num_draft_tokens": rows_of(drafts),
            "num_accepted_tokens": rows_of(accepted),
            "num_blocks": rows_of(blocks[:count]),
        }
        self.batch.request, self.batch.blocks, self.batch.computed = (
            requests[count],
            blocks[count],
            computed[count],
        )
        return totals, per_request, *_sums(per_request["request"], rows_of(emitted))

    @property
    def requests_held(self) -> NDArray[np.int64]:
        """The request of each (forward, row). Call it after `decode`."""
        held: NDArray[np.int64] = self._decoded[1]
        return held

    def idle(self) -> tuple[NDArray[np.int64], ...]:
        """Held rows that ran nothing: forward, row, request, computed tokens, blocks. Call it after `decode`."""
        ran, requests, computed, blocks = self._decoded
        at = np.nonzero(~ran & (requests >= 0))
        return at[0], at[1], requests[at], computed[at], blocks[at]

    def _held(self, changes: RowChanges, start: NDArray[np.int64]) -> NDArray[np.int64]:
        index, values, _, _ = changes.latest(start, len(self))
        held: NDArray[np.int64] = values[index]
        return held

    def _computed(self, advance: NDArray[Any]) -> NDArray[np.int64]:
        """Tokens computed before each step: the row's value at its last change, plus all that it advanced since."""
        count, size = advance.shape
        before = np.zeros((count + 1, size), np.int64)
        np.cumsum(advance, axis=0, out=before[1:])
        index, values, steps, rows = self.computed.latest(self.batch.computed, count)
        base = values - before[steps, rows]
        computed: NDArray[np.int64] = base[index] + before
        return computed
