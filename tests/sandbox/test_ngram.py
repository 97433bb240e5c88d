"""Drafting from a request's own tokens, and counting what the model agrees with."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fdtrace.sandbox.ngram import count_accepted, draft


def ints(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int32)


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ((1, 2, 3, 4, 9, 1, 2, 3), [4, 9, 1, 2]),  # the continuation of 1 2 3
        ((5, 6, 7, 5, 6, 8, 5, 6), [8, 5, 6, 6]),  # the latest of two matches, padded with its last token
        ((7, 1, 2, 9, 2, 5, 1, 2), [9, 2, 5, 1]),  # a match of two tokens before a later one of one token
        ((1, 2, 3, 4), [4, 4, 4, 4]),  # no match: the last token
        ((8,), [8, 8, 8, 8]),
        ((3, 3, 3), [3, 3, 3, 3]),
    ],
)
def test_draft(tokens: tuple[int, ...], expected: list[int]) -> None:
    assert draft(ints(*tokens), 4).tolist() == expected


def slow_draft(tokens: list[int], num_drafts: int, max_ngram: int) -> list[int]:
    for n in range(min(max_ngram, len(tokens) - 1), 0, -1):
        for end in range(len(tokens) - 1, n - 1, -1):
            if tokens[end - n : end] == tokens[-n:]:
                found = tokens[end : end + num_drafts]
                return found + [found[-1]] * (num_drafts - len(found))
    return [tokens[-1]] * num_drafts


@given(st.lists(st.integers(0, 3), min_size=1, max_size=30), st.integers(1, 6), st.integers(1, 4))
def test_draft_equals_plain_search(tokens: list[int], num_drafts: int, max_ngram: int) -> None:
    assert draft(ints(*tokens), num_drafts, max_ngram).tolist() == slow_draft(tokens, num_drafts, max_ngram)


@pytest.mark.parametrize(
    ("drafts", "chosen", "accepted"),
    [
        ((1, 2, 3), (1, 2, 3, 4), 3),
        ((1, 2, 3), (1, 9, 3, 4), 1),  # an agreement after a wrong draft is worth nothing
        ((1, 2, 3), (9, 2, 3, 4), 0),
        ((), (7,), 0),
    ],
)
def test_count_accepted(drafts: tuple[int, ...], chosen: tuple[int, ...], accepted: int) -> None:
    assert count_accepted(ints(*drafts), ints(*chosen)) == accepted


def test_no_drafts_asked_for() -> None:
    assert draft(ints(4, 4, 4), 0).tolist() == []
