"""Blocks of prompts that a request trace names by `hash_ids`: equal ids mean equal content, also of all before it.

Mooncake's traces have blocks of 512 tokens and Bailian's of 16, whatever the engine's blocks are. A block of the engine
is known by the parts of hashed blocks that it covers, so prefixes are shared at the engine's own block size.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

from fdtrace.recorder.errors import UsageError
from fdtrace.replayer.workload.case_fields import as_json
from fdtrace.replayer.workload.workload import BlockKey

LARGEST_ID: int = 10**17
"""Ids of a case lie below it: JSON readers hold such numbers exactly."""


def read_hash_ids(value: Any, place: str) -> tuple[int, ...]:
    """The `hash_ids` of a request of a case.

    Args:
        value: what the case says; None: nothing.
        place: where, for the error.

    Raises:
        UsageError: it is no list of whole numbers from 0 to `LARGEST_ID`.
    """
    if value is None:
        return ()
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise UsageError(
            f"`{place}` must be a list of whole numbers, not {as_json(value)}", hint="[46, 47, 2353]"
        )
    for i, number in enumerate(value):
        if type(number) is not int or not 0 <= number < LARGEST_ID:
            raise UsageError(
                f"`{place}[{i}]` is {as_json(number)}",
                why=f"an id is a whole number from 0 to {LARGEST_ID - 1}",
                hint="number the blocks anew, equal ones with equal numbers",
            )
    return tuple(value)


def hashed_key(
    name: str, num_prompt_tokens: int, ids: Sequence[int], hashed_size: int, size: int
) -> BlockKey:
    """The keys of a request's blocks.

    Args:
        name: its id: what no hash covers, its output too, is its own.
        num_prompt_tokens: tokens of its prompt. Ids beyond it have no meaning.
        ids: the ids of its hashed blocks, from the first on. The last of them may be a part of a block.
        hashed_size: tokens of a hashed block.
        size: tokens of a block of the engine.
    """
    hashed_tokens = min(num_prompt_tokens, len(ids) * hashed_size)

    def key(i: int) -> Hashable:
        place, end = i * size, (i + 1) * size
        parts: list[Hashable] = []
        while place < min(end, hashed_tokens):
            block = place // hashed_size
            stop = min(end, hashed_tokens, (block + 1) * hashed_size)
            parts.append((ids[block], place - block * hashed_size, stop - place))
            place = stop
        if place < end:
            parts.append((name, place, end - place))
        return tuple(parts)

    return key
