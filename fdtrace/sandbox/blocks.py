"""The physical KV blocks that no request holds."""

from __future__ import annotations

from collections import deque


class BlockList:
    """Free blocks by number. The block that was given back first is taken next."""

    def __init__(self, num_blocks: int) -> None:
        self._free = deque(range(num_blocks))

    @property
    def num_free(self) -> int:
        """Blocks that no request holds."""
        return len(self._free)

    def take(self, count: int) -> list[int]:
        """Take `count` blocks. IndexError if fewer are free."""
        return [self._free.popleft() for _ in range(count)]

    def give_back(self, blocks: list[int]) -> None:
        """Give back blocks whose content is no longer needed."""
        self._free.extend(blocks)
