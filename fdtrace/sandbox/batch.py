"""One forward's tokens laid flat, and where each lies in its sequence and in the KV cache. No Paddle here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Row:
    """One sequence's part of a forward: `tokens` (int32 [n]) at positions `start` to `start` + n - 1."""

    tokens: NDArray[np.int32]
    start: int
    block_table: Sequence[int]
    num_logits: int
    """How many of its last positions the next token is wanted for."""


@dataclass(frozen=True)
class Group:
    """Rows of equal length that attend together: a slice of the flat tokens, `batch` rows of `length`
    tokens."""

    first: int
    batch: int
    length: int
    block_tables: Ints
    """[batch, blocks], padded with block 0: what lies there is masked."""
    positions: Ints
    """[batch, length], of each query in its sequence."""

    @property
    def end(self) -> int:
        """One past its last flat token."""
        return self.first + self.batch * self.length


@dataclass(frozen=True)
class Batch:
    """A forward: flat `tokens`, `positions` and KV places `where` ([num_tokens] each), groups, rows wanting
    logits."""

    tokens: Ints
    positions: Ints
    where: Ints
    groups: tuple[Group, ...]
    logits: Ints
    """Indices into the flat tokens."""

    @classmethod
    def pack(cls, rows: Sequence[Row], block_size: int) -> Batch:
        """Lay `rows` end to end. Neighbours of equal length (decodes) form one group, others one each.

        Raises `IndexError` where a block table does not reach a row's last token.
        """
        positions = [np.arange(row.start, row.start + len(row.tokens), dtype=np.int64) for row in rows]
        where = [_places(row, at, block_size) for row, at in zip(rows, positions, strict=True)]
        firsts = np.cumsum([0, *(len(row.tokens) for row in rows)])
        logits = [np.arange(end - row.num_logits, end) for row, end in zip(rows, firsts[1:], strict=True)]
        return cls(
            np.concatenate([row.tokens for row in rows]).astype(np.int64),
            np.concatenate(positions),
            np.concatenate(where),
            tuple(_groups(rows, positions, firsts, block_size)),
            np.concatenate(logits).astype(np.int64),
        )


def _places(row: Row, positions: Ints, block_size: int) -> Ints:
    table = np.asarray(row.block_table, dtype=np.int64)
    places: Ints = table[positions // block_size] * block_size + positions % block_size
    return places


def _groups(rows: Sequence[Row], positions: Sequence[Ints], firsts: Ints, block_size: int) -> list[Group]:
    groups: list[Group] = []
    begin = 0
    for end in range(1, len(rows) + 1):
        if end < len(rows) and len(rows[end].tokens) == len(rows[begin].tokens):
            continue
        members = rows[begin:end]
        tables = _pad([_reached(row, block_size) for row in members])
        queries = np.stack(positions[begin:end])
        groups.append(Group(int(firsts[begin]), len(members), len(rows[begin].tokens), tables, queries))
        begin = end
    return groups


def _reached(row: Row, block_size: int) -> Sequence[int]:
    """The blocks that the row's tokens can see; more may be reserved for it."""
    return row.block_table[: (row.start + len(row.tokens) - 1) // block_size + 1]


def _pad(tables: Sequence[Sequence[int]]) -> Ints:
    padded = np.zeros((len(tables), max(len(table) for table in tables)), dtype=np.int64)
    for i, table in enumerate(tables):
        padded[i, : len(table)] = table
    return padded
