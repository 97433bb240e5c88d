"""One number for what a step ran, so that two recordings of millions of rows are compared step by step."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

PRIME = 2**31 - 1
FACTORS = (48271, 69621, 40692)
"""Of the request's number, its tokens and its drafts."""

_SUM = " + ".join(
    f"{column} * {factor}"
    for column, factor in zip(
        ("request", "num_tokens", "coalesce(num_draft_tokens, 0)"), FACTORS, strict=True
    )
)

SQL = f"sum((({_SUM} + 1)::BIGINT % {PRIME}) ** 2 % {PRIME})::BIGINT"
"""The digest of a group of rows of `step_request`."""


def digests_of(
    step: NDArray[np.int64], rows: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]], length: int
) -> NDArray[np.int64]:
    """The digests of `length` steps, from rows in any order: each row's index of its step, and its request's number,
    tokens and drafts. A step without rows has 0.
    """
    mixed = sum((values * factor for values, factor in zip(rows, FACTORS, strict=True)), np.int64(1)) % PRIME
    found = np.zeros(length, np.int64)
    np.add.at(found, step, mixed * mixed % PRIME)
    return found
