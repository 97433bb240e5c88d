"""The physical KV blocks that nobody holds."""

from __future__ import annotations

from collections import deque


class BlockList:
    """Free blocks by number; the one given back first is the next to be taken."""

    def __init__(self, num_blocks: int) -> None:
        self._free = deque(range(num_blocks))

    @property
    def num_free(self) -> int:
        """Blocks that nobody holds."""
        return len(self._free)

    def take(self, count: int) -> list[int]:
        """`count` blocks; raises `IndexError` where fewer are free."""
        return [self._free.popleft() for _ in range(count)]

    def give_back(self, blocks: list[int]) -> None:
        """Blocks whose content is not needed any more."""
        self._free.extend(blocks)
