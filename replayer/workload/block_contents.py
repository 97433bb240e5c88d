"""What the blocks of a recording's requests held: hashes of prompts are recorded, the rest is told by what was found.

An engine that caches also the blocks of outputs (vLLM) finds them again in the prompt of the next turn of a
conversation. Its hash is known there, and the block before it tells whose output it was.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

LOOKED_AT = 64
"""Requests looked at, the latest first, for the one whose output a block was."""


@dataclass
class Blocks:
    """One request's blocks: their hashes as far as they are known, those found in the cache when it began, and how many
    it filled in the end (0 also where its prefill was cut off). `begins` and `ends` are steps; None: it did not end.
    """

    entry: int
    hashes: list[int]
    num_found: int
    num_filled: int
    begins: int
    ends: int | None


@dataclass
class Prefixes:
    """The content of the blocks of all requests; `feed` takes them in order of their arrival."""

    cached: list[list[Hashable]] = field(default_factory=list)
    """Chains of blocks that were found although no request of the recording had made them: they were there before."""

    def __post_init__(self) -> None:
        self._known: set[int] = set()
        self._of: dict[int, Blocks] = {}
        self._open: dict[int | None, list[Blocks]] = {}

    def feed(self, sequences: Sequence[Blocks]) -> None:
        """Take every request, in order of arrival."""
        for one in sequences:
            self._of[one.entry] = one
            self._explain(one)
            if one.num_filled:
                self._known.update(one.hashes)
                self._leave_open(one)

    def key(self, entry: int, block: int) -> Hashable:
        """What stands for the content of a request's block."""
        hashes = self._of[entry].hashes
        return hashes[block] if block < len(hashes) else (entry, block)

    def _explain(self, one: Blocks) -> None:
        for block in range(min(one.num_found, len(one.hashes))):
            if one.hashes[block] in self._known:
                continue
            owner = self._owner(one, block)
            if owner is None:
                break
            owner.hashes.append(one.hashes[block])
            self._known.add(one.hashes[block])
            self._leave_open(owner)
        else:
            if one.num_found <= len(one.hashes):
                return
        self.cached.append([self.key(one.entry, block) for block in range(one.num_found)])

    def _owner(self, one: Blocks, block: int) -> Blocks | None:
        """Whose output the block was: of those with the same blocks before it, the last to end before this began."""
        before = one.hashes[block - 1] if block else None
        there = [
            other
            for other in self._open.get(before, ())[-LOOKED_AT:]
            if len(other.hashes) == block < other.num_filled
        ]
        if not there:
            return None
        ended = [other for other in there if other.ends is not None and other.ends <= one.begins]
        return max(ended, key=lambda other: other.ends or 0) if ended else there[-1]

    def _leave_open(self, one: Blocks) -> None:
        if len(one.hashes) < one.num_filled:
            self._open.setdefault(one.hashes[-1] if one.hashes else None, []).append(one)
