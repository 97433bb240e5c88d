"""KV blocks with prefix caching: equal prefixes share blocks, and unused blocks stay cached until they are needed.

FastDeploy: `PrefixCacheManager` (cache_manager/prefix_cache_manager.py), for the GPU only: no CPU cache, no storage.
The order of eviction, ties included, depends on the exact sequence of its heap operations. So the operations here are
the same.
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable

from fdtrace.replayer.model.block_pool import BlockPool
from fdtrace.replayer.model.found_events import CachedBlock, CacheLeaf, PrefixCacheAtStart
from fdtrace.replayer.model.request import Request


class Node:
    """One cached block: FastDeploy's `BlockNode` (cache_manager/cache_data.py)."""

    __slots__ = ("cached", "children", "depth", "heap_place", "key", "parent", "shared_count", "used_at")

    def __init__(self, parent: Node | None, key: Hashable, used_at: int) -> None:
        self.parent = parent
        self.key = key
        self.depth: int = 0 if parent is None else parent.depth + 1
        self.children: dict[Hashable, Node] = {}
        self.shared_count = 1
        self.used_at = used_at
        self.cached = True
        self.heap_place: int | None = None
        """If it was there when the model began: its place then in the heap of blocks that can be evicted."""

    def __hash__(self) -> int:
        """By identity. Said here, since a compiled class with an order has no hash of itself."""
        return id(self)

    def __lt__(self, other: Node) -> bool:
        """Least recently used first, then deepest first."""
        if self.used_at != other.used_at:
            return self.used_at < other.used_at
        return self.depth > other.depth

    @property
    def is_leaf(self) -> bool:
        """Whether it is cached and no cached block follows it."""
        return self.cached and not any(child.cached for child in self.children.values())


class PrefixCache(BlockPool):
    """Blocks of requests and of the cache. A request's first `cached_blocks` blocks belong to the cache."""

    def __init__(self, num_blocks: int, block_size: int, *, cache_once: bool = False) -> None:
        super().__init__(num_blocks)
        self.block_size, self.cache_once = block_size, cache_once
        self.root = Node(None, None, 0)
        self.num_nodes = 0
        self.num_owned_twice = 0
        """Blocks that FastDeploy counts twice (see `computed`), minus those that it discards later."""
        self._leaves: list[Node] = []
        self._leaf_set: set[Node] = set()
        self._clock = 0
        self._found: list[Node] = []
        """The blocks that were there when the model began, by their numbers."""

    def can_allocate(self, num_blocks: int) -> bool:
        """FastDeploy: `can_allocate_gpu_blocks`. If too few blocks are free, it evicts up to `num_blocks`."""
        if self.num_free < num_blocks:
            self._evict(num_blocks)
        return self.num_free >= num_blocks

    def match(self, request: Request) -> None:
        """Give a request the cached blocks of its prefix, and count their tokens as computed.

        FastDeploy: `ResourceManagerV1.get_prefix_cached_blocks`, `request_match_blocks`, `mm_match_block`. If all
        blocks of a request are cached, it computes the last one again.
        """
        size, node, touched = self.block_size, self.root, False
        num_matched = 0
        for i in range(request.need_prefill // size):
            child = node.children.get(self._key(request, i))
            if child is None:
                break
            if child in self._leaf_set:
                self._leaf_set.remove(child)
                self._leaves.remove(child)
                touched = True
            node = child
            num_matched += 1
        if touched:
            heapq.heapify(self._leaves)
        self._use(node)
        request.leaf = (node, num_matched * size)
        request.num_blocks = request.cached_blocks = num_matched
        request.computed = num_matched * size
        if request.computed == request.need_prefill:
            request.computed -= size
        request.hit_blocks = request.computed // size

    def found(self, event: PrefixCacheAtStart) -> None:
        """Take over the blocks as the engine had them, and their order of eviction."""
        for block in event.blocks:
            self._add_found(block)
        heap = [node for node in self._found if node.heap_place is not None]
        self._leaves = sorted(heap, key=lambda node: node.heap_place or 0)
        self._leaf_set = set(heap)
        self.num_free = event.num_free_blocks
        self.num_owned_twice = self.num_nodes + self.num_free - self.num_blocks

    def _add_found(self, block: CachedBlock) -> None:
        parent = self.root if block.parent is None else self._found[block.parent]
        node = Node(parent, block.key, block.used_at)
        node.shared_count, node.cached, node.heap_place = block.num_sharing, block.on_device, block.heap_place
        if block.is_child:
            parent.children[block.key] = node
        self._found.append(node)
        self.num_nodes += block.on_device
        self._clock = max(self._clock, block.used_at)

    def resume(
        self, request: Request, num_blocks: int, num_cached: int, leaf: CacheLeaf | None = None
    ) -> None:
        """It gets its place among the blocks that were found. If that is not known, it takes the full blocks of its
        first `num_cached` tokens: it shares those that are cached, and adds the others.
        """
        if leaf is not None:
            node = self.root if leaf.block is None else self._found[leaf.block]
            request.leaf, request.cached_blocks = (node, leaf.num_cached_tokens), leaf.num_cached_blocks
            request.num_blocks = num_blocks
            self.num_owned_twice += max(0, num_blocks - leaf.num_cached_blocks)
            return
        need_prefill, request.need_prefill = request.need_prefill, num_cached
        self.match(request)
        request.need_prefill = need_prefill
        self.allocate(request, max(0, num_blocks - request.num_blocks))
        self.computed(request, num_cached)

    def _use(self, node: Node) -> None:
        """FastDeploy: `_update_matched_node_info`."""
        self._clock += 1
        while node.parent is not None:
            node.shared_count += 1
            node.used_at = self._clock
            node = node.parent

    def computed(self, request: Request, num_tokens: int) -> None:
        """Put the full blocks of a request's first `num_tokens` into the cache.

        FastDeploy: `update_cache_blocks`, `mm_build_path`. If two requests compute the same prefix at the same time,
        both add it, and the later entry hides the earlier one. If a request computes its last cached block again in
        two chunks, it adds that block a second time, below itself: from then on FastDeploy counts the block twice.
        With `cache_once` (release 2.6) it does not.
        """
        leaf, num_cached = request.leaf
        can_cache = num_tokens - num_tokens % self.block_size
        if self.cache_once and can_cache <= num_cached:
            return
        self._clock += 1
        for i in range(num_cached // self.block_size, can_cache // self.block_size):
            key = self._key(request, i)
            node = Node(leaf, key, self._clock)
            leaf.children[key] = node
            self.num_nodes += 1
            leaf = node
        cached_blocks = can_cache // self.block_size
        self.num_owned_twice += max(0, request.cached_blocks - cached_blocks)
        request.leaf = (leaf, can_cache)
        request.cached_blocks = cached_blocks

    def output_cached(self, request: Request, num_tokens: int) -> None:
        """The full blocks of prompt and output enter the cache; the request's copies of cached blocks are freed.

        FastDeploy: `cache_output_blocks`.
        """
        if request.leaf is None:
            return
        node, cached = request.leaf
        size, touched, num_twice = self.block_size, False, 0
        num_tokens = min(num_tokens, request.num_blocks * size)
        self._clock += 1
        while num_tokens - cached >= size:
            child = node.children.get(self._key(request, cached // size))
            if child is None:
                break
            child.shared_count += 1
            child.used_at = self._clock
            if child in self._leaf_set:
                self._leaf_set.remove(child)
                self._leaves.remove(child)
                touched = True
            node, cached, num_twice = child, cached + size, num_twice + 1
        if touched:
            heapq.heapify(self._leaves)
        self._recycle(num_twice)
        for i in range(cached // size, num_tokens // size):
            key = self._key(request, i)
            node.children[key] = child = Node(node, key, self._clock)
            self.num_nodes += 1
            node = child
        request.leaf = (node, num_tokens - num_tokens % size)
        request.cached_blocks = num_tokens // size

    def release(self, request: Request) -> None:
        """Take a request's own blocks back, and release its share of the cache's blocks.

        FastDeploy: `ResourceManagerV1._free_blocks`, `release_block_ids`.
        """
        if request.leaf is not None:
            self._unshare(request.leaf[0])
        self._recycle(max(0, request.num_blocks - request.cached_blocks))
        request.num_blocks = request.cached_blocks = 0
        request.leaf = None

    def _unshare(self, leaf: Node) -> None:
        node = leaf
        while node.parent is not None:
            node.shared_count -= 1
            node = node.parent
        if leaf.parent is not None and leaf not in self._leaf_set and leaf.shared_count == 0 and leaf.is_leaf:
            self._leaf_set.add(leaf)
            heapq.heappush(self._leaves, leaf)

    def _recycle(self, num_blocks: int) -> None:
        """FastDeploy: `recycle_gpu_blocks`. It discards blocks if more would be free than exist."""
        if self.num_free + num_blocks > self.num_blocks:
            self.num_owned_twice -= num_blocks
            return
        self.num_free += num_blocks

    def _evict(self, num_blocks: int) -> None:
        """Free up to `num_blocks` cached blocks, leaf by leaf. FastDeploy: `free_block_ids_async`."""
        num_freed = 0
        while self._leaves and num_freed < num_blocks:
            node = heapq.heappop(self._leaves)
            self._leaf_set.remove(node)
            if node.shared_count != 0 or not node.is_leaf:
                continue
            node.cached = False
            self.num_nodes -= 1
            self._recycle(1)
            num_freed += 1
            parent = node.parent
            assert parent is not None
            parent.children.pop(node.key, None)
            if parent.children or parent in self._leaf_set or parent.parent is None:
                continue
            if parent.shared_count == 0 and parent.is_leaf:
                heapq.heappush(self._leaves, parent)
                self._leaf_set.add(parent)

    def snapshot(self) -> Hashable:
        """Only its counts: not which blocks are cached, nor when they were last used."""
        return self.num_free, self.num_nodes, self.num_owned_twice, len(self._leaves)

    @staticmethod
    def _key(request: Request, i: int) -> Hashable:
        """The key for the content of a request's i-th block, among the children of the block before."""
        return (request.id, i) if request.block_key is None else request.block_key(i)

    def check(self, holders: list[Request]) -> None:
        num_uncached = sum(max(0, request.num_blocks - request.cached_blocks) for request in holders)
        assert 0 <= self.num_free <= self.num_blocks
        total = num_uncached + self.num_nodes + self.num_free
        assert total == self.num_blocks + self.num_owned_twice, (num_uncached, self.num_nodes, self.num_free)
        assert self._leaf_set == set(self._leaves)
