"""One number for all that a step ran, so that recordings of millions of rows can be compared step by step."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

PRIME = 2**31 - 1
FACTORS = (48271, 69621, 40692)
"""The factors of the request's number, its tokens and its draft tokens."""

_MIXED = (
    "(("
    + " + ".join(
        f"{column}::BIGINT * {factor}"
        for column, factor in zip(
            ("request", "num_tokens", "coalesce(num_draft_tokens, 0)"), FACTORS, strict=True
        )
    )
    + f" + 1) % {PRIME})"
)

SQL = f"sum({_MIXED}::HUGEINT * {_MIXED} % {PRIME})::BIGINT"
"""The digest of a group of rows of `step_request`."""


def digests_of(
    step: NDArray[np.int64], rows: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]], length: int
) -> NDArray[np.int64]:
    """The digests of `length` steps (int64); 0 for a step without rows.

    Args:
        step: for each row, in any order, the index of its step.
        rows: for each row, the number of its request, its tokens and its draft tokens.
        length: how many steps there are.
    """
    mixed = sum((values * factor for values, factor in zip(rows, FACTORS, strict=True)), np.int64(1)) % PRIME
    digests = np.zeros(length, np.int64)
    np.add.at(digests, step, mixed * mixed % PRIME)
    return digests
