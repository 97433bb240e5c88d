"""What a recording found when it began, besides requests, as events for the scheduler: cached blocks, lost slots, the
reserve for running requests, whether it may admit.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True, slots=True)
class Cached:
    """Blocks that the prefix cache held before the first step, by the keys of `Arrived.block_key`. Only an engine's
    real scheduler uses it.
    """

    blocks: tuple[Hashable, ...]


class CachedBlock(NamedTuple):
    """One block of FastDeploy's prefix cache: its `BlockNode` (cache_manager/cache_data.py)."""

    parent: int | None
    """The number of the block before it in its prefix; None: it is the first block of its prefix."""
    key: Hashable
    """Its content, as of `Arrived.block_key`."""
    num_sharing: int
    """Requests that use it."""
    used_at: int
    """The order of its last use: a larger number is later; equal numbers were at the same time."""
    on_device: bool
    is_child: bool
    """Whether a request finds it behind its parent; False: another block of the same content hides it."""
    heap_place: int | None
    """Its place in the heap of blocks that can be evicted; None: it is not there."""


@dataclass(frozen=True, slots=True)
class PrefixCacheAtStart:
    """Blocks that FastDeploy's prefix cache held when the model begins, each after its parent.

    Several of these events hold one cache: blocks are numbered through all of them. `num_free_blocks` are the free
    blocks then, without those that running requests hold.
    """

    blocks: tuple[CachedBlock, ...]
    num_free_blocks: int


class CacheLeaf(NamedTuple):
    """A running request in the prefix cache that `PrefixCacheAtStart` describes."""

    block: int | None
    """The number of its last block there; None: it has none."""
    num_cached_tokens: int
    """Its tokens up to there."""
    num_cached_blocks: int
    """Its blocks that the cache owns."""


@dataclass(frozen=True, slots=True)
class SlotLost:
    """A slot that stays taken: its request finished while it was being aborted, before the model begins.

    FastDeploy before commit 9ef8467d7: the request's id stays in `to_be_aborted_req_id_set`.
    """


@dataclass(frozen=True, slots=True)
class LeavingAtStart:
    """A request that has left the running queue when the model begins, and still holds its blocks, until `Freed`.

    `request_id` is a name for these two events only. `leaf`: its place in the prefix cache of `PrefixCacheAtStart`.
    """

    request_id: str
    num_blocks: int
    leaf: CacheLeaf | None = None


@dataclass(frozen=True, slots=True)
class Preallocated:
    """In the prefill and decode roles, in the order of a recording: a request that asks got its slot and blocks.

    Unlike `Preallocate` it is certain: no threshold is checked. KeyError if the blocks are not there.
    """

    request_id: str


@dataclass(frozen=True, slots=True)
class AdmissionBlocked:
    """When the model begins, no waiting request is admitted before a running one ends. Only an engine's real
    scheduler uses it.
    """


@dataclass(frozen=True, slots=True)
class ReserveAtStart:
    """The reserve for running requests when the model begins.

    `value` is a ratio of the tokens that they may still emit, or a number of blocks for each of them. `relaxed`: at
    first no blocks are reserved.
    """

    value: float
    relaxed: bool = False
