"""KV blocks, counted: how many are free, how many a request holds."""

from __future__ import annotations

from collections.abc import Hashable

from fdtrace.replayer.model.found_events import CacheLeaf, PrefixCacheAtStart
from fdtrace.replayer.model.request import Request


class BlockPool:
    """Free blocks without sharing: FastDeploy's `PrefixCacheManager` without prefix caching."""

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self.num_free = num_blocks

    def can_allocate(self, num_blocks: int) -> bool:
        """Whether `num_blocks` are free or can be made free."""
        return self.num_free >= num_blocks

    def allocate(self, request: Request, num_blocks: int) -> None:
        """Give a request blocks; they must be free."""
        assert num_blocks <= self.num_free, (request.id, num_blocks, self.num_free)
        self.num_free -= num_blocks
        request.num_blocks += num_blocks

    def found(self, event: PrefixCacheAtStart) -> None:
        """Take over the prefix cache as it was when the model begins."""

    def resume(
        self, request: Request, num_blocks: int, num_cached: int, leaf: CacheLeaf | None = None
    ) -> None:
        """Give blocks to a request that ran before the model begins; `num_cached` of its tokens are in the cache, at
        `leaf` if that is known.
        """
        self.allocate(request, num_blocks)

    def release(self, request: Request) -> None:
        """Take all blocks of a request back."""
        self.num_free += request.num_blocks
        request.num_blocks = 0

    def match(self, request: Request) -> None:
        """Give a request the cached blocks of its prefix."""

    def computed(self, request: Request, num_tokens: int) -> None:
        """Note that the first `num_tokens` of a request's prefill are computed, or will be."""

    def output_cached(self, request: Request, num_tokens: int) -> None:
        """Note that a request ended, and its first `num_tokens` (prompt and output) can be reused from the cache."""

    def snapshot(self) -> Hashable:
        """The state that decides its later answers, apart from the requests."""
        return self.num_free

    def check(self, holders: list[Request]) -> None:
        """AssertionError unless every block is free or held, once."""
        held = sum(request.num_blocks for request in holders)
        assert all(request.num_blocks >= 0 for request in holders)
        assert 0 <= self.num_free <= self.num_blocks
        assert held + self.num_free == self.num_blocks, (held, self.num_free, self.num_blocks)
