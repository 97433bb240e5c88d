"""One forward's tokens laid flat, and where each lies in its sequence and in the KV cache. No Paddle here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

TILE = 32
"""Most queries of one row that attend at once."""
GROUP_KEYS = 1024
"""Most keys that a group gathers. With `TILE` it bounds what attention holds at once, so that a forward's
memory follows its tokens, as it does with the fused kernels of a large engine."""


@dataclass(frozen=True)
class BatchRow:
    """One sequence's part of a forward: `tokens` (int32 [n]) at positions `start` to `start` + n - 1."""

    tokens: NDArray[np.int32]
    start: int
    block_table: Sequence[int]
    num_logits: int
    """How many of its last positions the next token is wanted for."""


@dataclass(frozen=True)
class Group:
    """Tiles of equal length that attend together: a slice of the flat tokens."""

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
    """One forward: `tokens`, `positions` and KV places `where` are flat, [num_tokens] each."""

    tokens: Ints
    positions: Ints
    where: Ints
    groups: tuple[Group, ...]
    logits: Ints
    """Indices of the flat tokens after which the next one is wanted."""

    @classmethod
    def pack(cls, rows: Sequence[BatchRow], block_size: int) -> Batch:
        """Lay `rows` end to end.

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
            tuple(_groups(rows, positions, block_size)),
            np.concatenate(logits).astype(np.int64),
        )


def _places(row: BatchRow, positions: Ints, block_size: int) -> Ints:
    table = np.asarray(row.block_table, dtype=np.int64)
    places: Ints = table[positions // block_size] * block_size + positions % block_size
    return places


def _groups(rows: Sequence[BatchRow], positions: Sequence[Ints], block_size: int) -> list[Group]:
    """Cut rows into tiles of `TILE` queries; join neighbours of equal length up to `GROUP_KEYS` keys."""
    groups: list[Group] = []
    members: list[_Tile] = []
    first = 0
    for tile in _tiles(rows, positions, block_size):
        blocks = max(len(member.blocks) for member in [*members, tile])
        fits = blocks * block_size * (len(members) + 1) <= GROUP_KEYS
        if members and not (fits and len(members[0].positions) == len(tile.positions)):
            groups.append(_group(first, members))
            first, members = groups[-1].end, []
        members.append(tile)
    return [*groups, _group(first, members)]


@dataclass(frozen=True)
class _Tile:
    """Some queries of a row, and the blocks that they can see; more may be reserved for it."""

    positions: Ints
    blocks: Sequence[int]


def _tiles(rows: Sequence[BatchRow], positions: Sequence[Ints], block_size: int) -> Iterator[_Tile]:
    for row, all_queries in zip(rows, positions, strict=True):
        for start in range(0, len(all_queries), TILE):
            queries = all_queries[start : start + TILE]
            yield _Tile(queries, row.block_table[: int(queries[-1]) // block_size + 1])


def _group(first: int, tiles: Sequence[_Tile]) -> Group:
    tables = np.zeros((len(tiles), max(len(tile.blocks) for tile in tiles)), dtype=np.int64)
    for i, tile in enumerate(tiles):
        tables[i, : len(tile.blocks)] = tile.blocks
    queries = np.stack([tile.positions for tile in tiles])
    return Group(first, len(tiles), queries.shape[1], tables, queries)
