"""N-gram drafting: guess the next tokens from what the same request has said before."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

MAX_NGRAM = 3
"""Longest trailing n-gram that is looked up; shorter ones are tried when it does not occur."""


def draft(tokens: NDArray[np.int32], num_drafts: int, max_ngram: int = MAX_NGRAM) -> NDArray[np.int32]:
    """Exactly `num_drafts` guesses, int32 [num_drafts], for what follows `tokens` (int32 [n], n >= 1).

    The continuation of the latest earlier match of the longest trailing n-gram that has one, padded by
    repeating its last token; without any match the last token, repeated. A step's shape is fixed, so there is
    always a full draft.
    """
    drafts = np.full(num_drafts, tokens[-1], dtype=np.int32)
    end = _latest_match(tokens, max_ngram)
    if end is not None and num_drafts:
        found = tokens[end : end + num_drafts]
        drafts[: len(found)] = found
        drafts[len(found) :] = found[-1]
    return drafts


def _latest_match(tokens: NDArray[np.int32], max_ngram: int) -> int | None:
    """One past the latest earlier occurrence of the longest trailing n-gram that has one."""
    last = len(tokens) - 1
    ends = np.flatnonzero(tokens[:last] == tokens[last])
    best = int(ends[-1]) + 1 if len(ends) else None
    for back in range(1, max_ngram):
        ends = ends[ends >= back]
        ends = ends[tokens[ends - back] == tokens[last - back]] if len(ends) and last >= back else ends[:0]
        if not len(ends):
            break
        best = int(ends[-1]) + 1
    return best


def count_accepted(drafts: NDArray[np.int32], chosen: NDArray[np.int32]) -> int:
    """Drafts accepted: the leading ones that equal the model's own choice at their place.

    `drafts` is int32 [K]; `chosen` int32 [K + 1], the argmax after the last known token and after each draft.
    The model's `chosen[: accepted + 1]` are the tokens that the step emits.
    """
    wrong = np.flatnonzero(drafts != chosen[: len(drafts)])
    return int(wrong[0]) if len(wrong) else len(drafts)
