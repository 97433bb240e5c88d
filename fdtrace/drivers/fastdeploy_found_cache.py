"""Builds the prefix cache of a driven FastDeploy scheduler as a recording found it. FastDeploy has no method for this.

`fastdeploy_events.py` imports it from its own directory. The nodes are FastDeploy's own `BlockNode`s, with the hashes
that its code looks for, in the order of eviction that was recorded.
"""

from __future__ import annotations

import heapq
from typing import Any


class PrefixCacheBuilder:
    """The blocks of one `PrefixCacheManager`, by their numbers in the recording."""

    def __init__(self, cache: Any) -> None:
        self.cache = cache
        self.nodes: list[Any] = []
        self._places: list[tuple[int, Any]] = []
        self._num_free: int | None = None

    def add(self, blocks: list[list[Any]], num_free: int) -> None:
        """Add blocks, each after its parent: parent, token of which it consists, running requests that use it, order of
        its last use, whether it is on the device, whether it is its parent's child, its place in the heap.
        """
        for parent, token, num_sharing, used_at, on_device, is_child, place in blocks:
            node = self._node(
                self.cache.radix_tree_root if parent is None else self.nodes[parent], token, used_at
            )
            node.shared_count = num_sharing
            if on_device:
                (node.block_id,) = self.cache.allocate_gpu_blocks(1)
                self.cache.node_map[node.node_id] = node
            else:
                self._evicted(node)
            if is_child:
                node.parent.children[node.hash_value] = node
            if place is not None:
                self._places.append((place, node))
            self.nodes.append(node)
        self._places.sort(key=lambda pair: pair[0])
        self.cache.gpu_lru_leaf_heap = [node for _, node in self._places]
        self.cache.gpu_lru_leaf_set = set(self.cache.gpu_lru_leaf_heap)
        self._num_free = num_free

    def _node(self, parent: Any, token: int, used_at: int) -> Any:
        from fastdeploy.cache_manager.cache_data import BlockNode
        from fastdeploy.utils import get_hash_str

        size = self.cache.cache_config.block_size
        before = [] if parent.hash_value is None else [parent.hash_value]
        value = get_hash_str([token] * size, before)
        number, depth = self.cache.node_id_pool.pop(), parent.depth + 1
        return BlockNode(number, [], 0, depth, -1, size, value, float(used_at), parent=parent)

    def _evicted(self, node: Any) -> None:
        from fastdeploy.cache_manager.cache_data import CacheStatus

        node.cache_status = CacheStatus.CPU
        self.cache.node_id_pool.append(node.node_id)

    def enter(self, request: Any, block: int | None, num_cached_tokens: int, num_cached_blocks: int) -> None:
        """Give a running request its place in the cache, and the blocks up to there."""
        cache, name = self.cache, request.request_id
        leaf = cache.radix_tree_root if block is None else self.nodes[block]
        cache.req_leaf_map[name] = leaf
        cache.leaf_req_map[leaf].add(name)
        cache.req_to_radix_tree_info[name] = [leaf, num_cached_tokens]
        path, node = [], leaf
        while node is not cache.radix_tree_root:
            path.append(node.block_id)
            node.req_id_set.add(name)
            node = node.parent
        request.num_cached_blocks = num_cached_blocks
        request.block_tables = path[::-1][:num_cached_blocks]

    def settle(self) -> None:
        """Before the first call: make as many blocks free as there were.

        If there were fewer, requests that were just ending held the others. If there were more, FastDeploy counted
        blocks twice: then a block is twice in its list of free blocks.
        """
        num_free, self._num_free = self._num_free, None
        if num_free is None:
            return
        free = self.cache.gpu_free_block_list
        while len(free) > num_free:
            heapq.heappop(free)
        while len(free) < num_free:
            heapq.heappush(free, 0)
