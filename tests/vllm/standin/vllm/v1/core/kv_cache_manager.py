"""KV blocks, counted only."""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace
from typing import Any


class KVCacheManager:
    def __init__(self, blocks: int, block_size: int) -> None:
        self.block_size, self.left = block_size, list(range(1, blocks))
        self.req_to_blocks: dict[str, list[int]] = defaultdict(list)
        self.coordinator = SimpleNamespace(
            single_type_managers=(SimpleNamespace(req_to_blocks=self.req_to_blocks),)
        )
        self.block_pool = SimpleNamespace(get_num_free_blocks=lambda: len(self.left), num_gpu_blocks=blocks)

    def allocate_slots(self, request: Any, tokens: int) -> list[int] | None:
        held = self.req_to_blocks[request.request_id]
        more = -(-(request.num_computed_tokens + tokens) // self.block_size) - len(held)
        if more > len(self.left):
            return None
        new = [self.left.pop() for _ in range(max(0, more))]
        held += new
        return new

    def free(self, request: Any) -> None:
        self.left += self.req_to_blocks.pop(request.request_id, [])
