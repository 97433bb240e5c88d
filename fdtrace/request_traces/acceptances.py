"""Draws how many drafts each decode forward accepts: for a given rate, or as in a recording."""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

from fdtrace.recorder.errors import UsageError


class Acceptances:
    """Draws from a distribution of accepted drafts."""

    def __init__(self, weights: Sequence[float], seed: int) -> None:
        """`weights[n]`: how often n drafts are accepted."""
        self.weights = tuple(weights)
        self._sums = list(accumulate(weights))
        self._chance = random.Random(seed)

    @property
    def num_drafts(self) -> int:
        """Drafts of a forward."""
        return len(self.weights) - 1

    @property
    def rate(self) -> float:
        """Accepted drafts, as a share of the drafts."""
        total = sum(self.weights)
        accepted = sum(number * weight for number, weight in enumerate(self.weights))
        return accepted / total / self.num_drafts if self.num_drafts and total else 0.0

    def drawn(self, output: int) -> list[int]:
        """Accepted drafts of the decode forwards of a request of so many output tokens. Its prefill makes the first."""
        accepts, made = list[int](), 1
        while made < output:
            accepted = bisect_right(self._sums, self._chance.random() * self._sums[-1], 0, self.num_drafts)
            accepts.append(accepted)
            made += 1 + accepted
        return accepts


def acceptances_at(rate: float, num_drafts: int, seed: int) -> Acceptances:
    """So that a share `rate` of all drafts is accepted: each draft with one chance, if those before it were.

    Args:
        rate: accepted drafts by verified drafts, as engines' own metrics count it: 0 to 1.
        num_drafts: drafts of a forward.
        seed: of the drawing.

    Raises:
        UsageError: the rate is no share, or there are no drafts.
    """
    if not 0 <= rate <= 1:
        raise UsageError(f"--accept is {rate:g}", hint="a share of the drafts, as 0.7")
    if num_drafts < 1:
        raise UsageError(f"--drafts is {num_drafts}", why="there is nothing to accept", hint="1 or more")
    low, high = 0.0, 1.0
    for _ in range(60):
        chance = (low + high) / 2
        share = sum(chance**number for number in range(1, num_drafts + 1)) / num_drafts
        low, high = (chance, high) if share < rate else (low, chance)
    weights = [high**number * (1 - high) for number in range(num_drafts)]
    return Acceptances([*weights, high**num_drafts], seed)
