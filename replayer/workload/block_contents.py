"""What the blocks of a recording's requests held. Hashes of prompts are recorded; hashes of outputs are inferred.

An engine that also caches the blocks of outputs (vLLM) finds them again in the prompt of the next turn of a
conversation. There the block's hash is recorded, and the block before it shows which request's output it was.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field

MOST_CANDIDATES = 64
"""At most so many requests, the latest first, are candidates for the request whose output a block was."""


MOST_CACHED = 1 << 20
"""Most blocks in a prefix cache that a replay begins with."""


def cached_chains(
    hashes: Sequence[int], total: int, prompts: Iterable[Sequence[int]]
) -> list[list[Hashable]]:
    """Chains of blocks by which a prefix cache gets blocks with these hashes, in their order, and so many in `total`.

    The hashes of `prompts` say which blocks come before a block. A block that is in none of them gets a key of its own:
    no request will find it.
    """
    held = set(hashes)
    prompt_with: dict[int, tuple[Sequence[int], int]] = {}
    for prompt in prompts:
        for place, value in enumerate(prompt):
            if value in held:
                prompt_with.setdefault(value, (prompt, place))
    chains: list[list[Hashable]] = []
    done: set[int] = set()
    for number, value in enumerate(hashes):
        if value in done:
            continue
        prompt, place = prompt_with.get(value, ((), 0))
        end = place
        while end < len(prompt) and prompt[end] in held and prompt[end] not in done:
            end += 1
        done.update(prompt[:end])
        chains.append(list(prompt[:end]) or [("cached", number)])
    chains += [[("cached", number)] for number in range(len(hashes), min(total, MOST_CACHED))]
    return chains


@dataclass
class Blocks:
    """One request's blocks.

    `hashes` are those that are known. `num_found` blocks were in the cache when it began. It filled `num_filled` blocks
    in the end; 0 also if its prefill was cut off. `begins` and `ends` are steps; None: it did not end.
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
    """Chains of blocks that were found in the cache although no request of the recording made them: they were there
    before the recording.
    """
    held: frozenset[int] = frozenset()
    """Hashes of blocks that the recorder found in the cache."""

    def __post_init__(self) -> None:
        self._known_hashes: set[int] = set(self.held)
        self._blocks_of: dict[int, Blocks] = {}
        self._unfinished: dict[int | None, list[Blocks]] = {}

    def feed(self, sequences: Sequence[Blocks]) -> None:
        """Take every request, in order of arrival."""
        for blocks in sequences:
            self._blocks_of[blocks.entry] = blocks
            self._explain(blocks)
            if blocks.num_filled:
                self._known_hashes.update(blocks.hashes)
                self._leave_open(blocks)

    def key(self, entry: int, block: int) -> Hashable:
        """A key for the content of a request's block: equal keys mean equal content."""
        hashes = self._blocks_of[entry].hashes
        return hashes[block] if block < len(hashes) else (entry, block)

    def _explain(self, blocks: Blocks) -> None:
        for block in range(min(blocks.num_found, len(blocks.hashes))):
            if blocks.hashes[block] in self._known_hashes:
                continue
            owner = self._owner(blocks, block)
            if owner is None:
                break
            owner.hashes.append(blocks.hashes[block])
            self._known_hashes.add(blocks.hashes[block])
            self._leave_open(owner)
        else:
            if blocks.num_found <= len(blocks.hashes):
                return
        self.cached.append([self.key(blocks.entry, block) for block in range(blocks.num_found)])

    def _owner(self, blocks: Blocks, block: int) -> Blocks | None:
        """The request whose output the block was: of those with the same blocks before it, the last that ended before
        this request began.
        """
        previous_hash = blocks.hashes[block - 1] if block else None
        candidates = [
            other
            for other in self._unfinished.get(previous_hash, ())[-MOST_CANDIDATES:]
            if len(other.hashes) == block < other.num_filled
        ]
        if not candidates:
            return None
        ended = [other for other in candidates if other.ends is not None and other.ends <= blocks.begins]
        return max(ended, key=lambda other: other.ends or 0) if ended else candidates[-1]

    def _leave_open(self, blocks: Blocks) -> None:
        if len(blocks.hashes) < blocks.num_filled:
            self._unfinished.setdefault(blocks.hashes[-1] if blocks.hashes else None, []).append(blocks)
