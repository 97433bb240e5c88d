"""FastDeploy's prefix cache as a recorded call finds it: it still holds blocks of requests that have ended.

FastDeploy: `PrefixCacheManager` (cache_manager/prefix_cache_manager.py) and `BlockNode` (cache_manager/cache_data.py).
The tree is Python objects on the host. A node keeps the tokens of the request that made it, so its block gets the same
hash as in a request's prompt. It is read while the scheduler's lock is held: all changes of the tree are made under
that lock.
"""

from __future__ import annotations

import hashlib
from array import array
from typing import Any, Callable

from .wire_order import CHILD, NOBODY, ON_DEVICE

MOST_BLOCKS = 16_384
"""A larger tree is not read: the scheduler waits meanwhile, about 5 us a block."""

MOST_BLOCKS_AGAIN = 4096
"""The same for each further time: then a flight recorder costs a busy server at most 20 ms now and then."""

FRAME_BLOCKS = 256
"""Blocks in a frame."""


class PrefixCacheReader:
    """Reads the tree of one manager; blocks are numbered, each after the block before it in its prefix."""

    def __init__(self, manager: Any, most_blocks: int | None = None) -> None:
        """`most_blocks`: a larger tree is left out; None: MOST_BLOCKS."""
        most_blocks = MOST_BLOCKS if most_blocks is None else most_blocks
        config = manager.config.cache_config
        self.enabled = bool(getattr(config, "enable_prefix_caching", False))
        self.size = getattr(config, "block_size", 0)
        self.cache: Any = getattr(manager, "cache_manager", None)
        self.numbers: dict[Any, int] = {}
        nodes = getattr(self.cache, "node_map", {})
        self.num_blocks = len(nodes)
        models_images = bool(getattr(getattr(manager.config, "model_config", None), "enable_mm", False))
        # A block's hash also covers its images, and a node does not keep these.
        if self.enabled and 0 < self.num_blocks <= most_blocks and not models_images:
            self._number((*nodes.values(), *getattr(self.cache, "gpu_lru_leaf_heap", ())))

    def _number(self, nodes: tuple[Any, ...]) -> None:
        """Number these nodes and those before them. A node may outlive its parent's place in the tree."""
        numbers, root = self.numbers, self.cache.radix_tree_root
        for node in nodes:
            path, block = [], node
            while block is not root and block not in numbers:
                path.append(block)
                block = block.parent
            for one in reversed(path):
                numbers[one] = len(numbers)

    def write(self, write: Callable[..., None]) -> None:
        """Write the blocks, in the form of `wire_order.CACHED`; or how many there are, if they are left out."""
        if not self.enabled or not self.num_blocks:
            return
        if not self.numbers:
            write("cache left out", None, self.num_blocks)
            return
        num_free, words = len(self.cache.gpu_free_block_list), self._words()
        step = FRAME_BLOCKS * (len(words) // len(self.numbers))
        for start in range(0, len(words), step):
            write("cached", None, num_free, *words[start : start + step])

    def _words(self) -> list[int]:
        numbers = self.numbers
        words: list[int] = []
        used = {ts: rank for rank, ts in enumerate(sorted({node.last_used_time for node in numbers}), 1)}
        evicted_next = {node: place for place, node in enumerate(self.cache.gpu_lru_leaf_heap)}
        content: dict[Any, tuple[int, bytes]] = {self.cache.radix_tree_root: (0, b"")}
        for node in numbers:
            parent = node.parent
            _, value = content[node] = self._content(node, *content[parent])
            flags = ON_DEVICE if node.has_in_gpu else 0
            if parent.children.get(node.hash_value) is node:
                flags |= CHILD
            words += (
                numbers.get(parent, NOBODY),
                int.from_bytes(value[:4], "little"),
                int.from_bytes(value[4:], "little"),
                max(0, node.shared_count),
                used[node.last_used_time],
                flags,
                evicted_next.get(node, NOBODY),
            )
        return words

    def _content(self, node: Any, position: int, before: bytes) -> tuple[int, bytes]:
        """Where a node's block ends, in blocks, and its hash as of `fastdeploy_config.block_hashes`.

        A request that computes its last cached block again adds it a second time, below itself. Then its tokens end
        before its depth does.
        """
        end = (position + 1) * self.size
        if end > len(node.input_ids):
            return position, before
        block = array("q", node.input_ids[end - self.size : end]).tobytes()
        return position + 1, hashlib.blake2b(block, digest_size=8, key=before).digest()

    def leaf_of(self, request: Any) -> tuple[int, ...]:
        """Of a running request: its last block in the cache, its tokens up to there, and its blocks that belong to the
        cache. Empty if the cache is not written.
        """
        leaf = self.cache.req_to_radix_tree_info.get(request.request_id) if self.numbers else None
        if leaf is None:
            return ()
        return self.numbers.get(leaf[0], NOBODY), leaf[1], request.num_cached_blocks
