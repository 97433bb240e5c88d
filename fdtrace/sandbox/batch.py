"""The tokens of one forward as flat arrays, with each token's position in its sequence and in the KV cache.

Nothing here needs Paddle.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fdtrace.recorder.trace.column_values import Ints

TILE = 32
"""Most queries of one row in one attention."""
GROUP_KEYS = 1024
"""Most keys of a group. `TILE` and this limit bound the memory of one attention. So the memory of a forward depends on
its tokens, as with the fused kernels of a large engine."""


@dataclass(frozen=True)
class BatchRow:
    """The tokens of one sequence in a forward: `tokens` (int32 [n]) at positions `start` to `start` + n - 1."""

    tokens: NDArray[np.int32]
    start: int
    block_table: Sequence[int]
    num_logits: int
    """For how many of its last positions the next token is to be computed."""


@dataclass(frozen=True)
class Group:
    """Tiles of equal length in one attention: a slice of the flat tokens."""

    first: int
    batch: int
    length: int
    block_tables: Ints
    """[batch, blocks], padded with block 0, whose keys are masked there."""
    positions: Ints
    """[batch, length], the position of each query in its sequence."""

    @property
    def end(self) -> int:
        """One past its last flat token."""
        return self.first + self.batch * self.length


@dataclass(frozen=True)
class Batch:
    """One forward. `tokens`, `positions` and `where` (positions in the KV cache) are flat, [num_tokens] each."""

    tokens: Ints
    positions: Ints
    where: Ints
    groups: tuple[Group, ...]
    logits: Ints
    """Indices of the flat tokens after which the next token is to be computed."""

    @classmethod
    def pack(cls, rows: Sequence[BatchRow], block_size: int) -> Batch:
        """Put `rows` one after another into a batch. IndexError if a block table does not reach a row's last token."""
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
    """Cut rows into tiles of `TILE` queries. Join neighbouring tiles of equal length, up to `GROUP_KEYS` keys."""
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
    """Some queries of a row, and the blocks that they can see. The row may own further blocks."""

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
