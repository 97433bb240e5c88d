"""The `hash_ids` of a request trace from a recording's hashes of prompt blocks, at another block size if need be."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import count

from fdtrace.recorder.errors import UsageError


def hashed_block_size(engine_size: int, wanted: int, *, given: bool) -> int:
    """Tokens of a block of `hash_ids`: as wanted if the engine's blocks can be grouped or divided so, else its own.

    Args:
        engine_size: tokens of a block of the engine.
        wanted: the format's size, or the user's.
        given: whether the user gave it.

    Raises:
        UsageError: the user's size cannot be had.
    """
    if wanted % engine_size == 0 or engine_size % wanted == 0:
        return wanted
    if given:
        raise UsageError(
            f"--block-size {wanted} cannot be made of the engine's blocks of {engine_size} tokens",
            why="a hash covers such a block, no part of it",
            hint=f"a multiple of {engine_size}, or a number by which it can be divided",
        )
    return engine_size


class HashedBlocks:
    """Numbers the blocks of prompts: equal numbers mean equal content of a block and of all before it.

    A hash is recorded of each full block of the engine. What comes after the last of them is known of no prompt. So a
    last block that no hash reaches into gets a number of its own; one that some reach into is equal to another if
    these hashes and its length are.
    """

    def __init__(self, engine_size: int, size: int) -> None:
        self.engine_size, self.size = engine_size, size
        self._numbers: dict[int, int] = {}
        self._next = count()

    def ids(self, prompt: int, hashes: Sequence[int]) -> list[int]:
        """The ids of a prompt's blocks, the last of which may be a part.

        Args:
            prompt: its tokens.
            hashes: those of its full blocks in the engine, from the first on.
        """
        ids: list[int] = []
        before = 0
        for begin in range(0, prompt, self.size):
            tokens = min(self.size, prompt - begin)
            covered = hashes[begin // self.engine_size : -(-(begin + tokens) // self.engine_size)]
            if not covered:
                ids.append(next(self._next))
                continue
            part = begin % self.engine_size if self.size < self.engine_size else 0
            before = _digest(before, part, tokens, covered)
            number = self._numbers.get(before)
            if number is None:
                number = self._numbers[before] = next(self._next)
            ids.append(number)
        return ids


def _digest(before: int, part: int, tokens: int, hashes: Sequence[int]) -> int:
    text = f"{before} {part} {tokens} {' '.join(map(str, hashes))}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
