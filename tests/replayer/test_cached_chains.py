"""What a recorder found in a prefix cache, as chains of blocks that put it there again."""

from __future__ import annotations

from fdtrace.replayer.workload.block_contents import Blocks, Prefixes, cached_chains


def test_a_block_comes_with_those_before_it() -> None:
    prompts = [[1, 2, 3], [1, 7], [4, 5]]
    assert cached_chains([2, 1, 3], 3, prompts) == [[1, 2, 3]]
    assert cached_chains([7, 1], 2, prompts) == [[1, 7]]
    assert cached_chains([1, 7, 4], 3, prompts) == [[1], [1, 7], [4]]


def test_blocks_that_no_prompt_has_take_their_room_and_are_never_found() -> None:
    chains = cached_chains([9, 1, 8], 5, [[1, 2]])
    assert chains[1] == [1]
    others = [chain for chain in chains if chain != [1]]
    assert len(others) == 4
    assert all(len(chain) == 1 and not isinstance(chain[0], int) for chain in others)
    assert len({chain[0] for chain in others}) == 4


def test_what_was_cached_by_then_is_not_taken_for_an_output_of_the_recording() -> None:
    before = Blocks(0, [1], num_found=0, num_filled=3, begins=0, ends=4)
    later = Blocks(1, [1, 2], num_found=2, num_filled=2, begins=5, ends=None)
    guessed = Prefixes()
    guessed.feed([before, later])
    assert guessed.key(0, 1) == 2
    known = Prefixes(held=frozenset([2]))
    known.feed([Blocks(0, [1], num_found=0, num_filled=3, begins=0, ends=4), later])
    assert known.key(0, 1) == (0, 1)
    assert known.cached == []
