"""N-gram drafting: guess the next tokens from the earlier tokens of the same request."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

MAX_NGRAM = 3
"""Longest n-gram at the end of the tokens that is searched for. If it does not occur before, shorter ones are tried."""


def draft(tokens: NDArray[np.int32], num_drafts: int, max_ngram: int = MAX_NGRAM) -> NDArray[np.int32]:
    """Exactly `num_drafts` guesses, int32 [num_drafts], for the tokens after `tokens` (int32 [n], n >= 1).

    It finds the longest n-gram at the end of `tokens` that also occurs earlier, and copies what follows its last
    earlier occurrence. If that is too short, its last token is repeated; without an occurrence, the last token of
    `tokens` is. The shape of a step is fixed, so the draft always has its full length.
    """
    drafts = np.full(num_drafts, tokens[-1], dtype=np.int32)
    end = _latest_match(tokens, max_ngram)
    if end is not None and num_drafts:
        continuation = tokens[end : end + num_drafts]
        drafts[: len(continuation)] = continuation
        drafts[len(continuation) :] = continuation[-1]
    return drafts


def _latest_match(tokens: NDArray[np.int32], max_ngram: int) -> int | None:
    """The index after the last earlier occurrence of the longest n-gram at the end of `tokens`; None: there is none."""
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
    """How many drafts are accepted: those before the first one that differs from the model's choice.

    `drafts` is int32 [K]. `chosen` is int32 [K + 1]: the model's choice after the last token and after each draft. The
    step emits `chosen[: accepted + 1]`.
    """
    rejected = np.flatnonzero(drafts != chosen[: len(drafts)])
    return int(rejected[0]) if len(rejected) else len(drafts)
