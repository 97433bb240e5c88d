"""Forms of a step's duration as a function of its batch. Each is fitted by least squares; no term is negative.

    tokens    a + b·prefill tokens + c·decode tokens
    additive  the same, and prefilling requests, KV tokens that are read, attention of the chunks
    shapes    `additive`, and a time for each step that has a number of tokens for the first time
    hinges    `additive`, and bends: in prefill and in decode tokens, and for "has a prefill"
    roofline  max(a + b·KV tokens, c + d·tokens + e·attention): the memory or the arithmetic, whichever takes longer

A GPU is nearest to `roofline` or `hinges`, a CPU to `additive` or `shapes`. `time_model.py` finds out which form fits a
recording.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fdtrace.recorder.trace.column_values import Floats

P, N, D, KV, ATTENTION, NEW_SHAPE = range(6)
"""Columns of `batch_rows.FEATURES`."""
LEAST_SIDE = 12
"""Each side of `roofline` must explain at least so many steps."""
ROUNDS = 40


class TimeForm(ABC):
    """A fitted form."""

    @property
    @abstractmethod
    def name(self) -> str:
        """The name of the form."""

    @abstractmethod
    def us(self, features: Floats) -> Floats:
        """Microseconds of each row of features."""

    def us_of_step(self, features: Sequence[float]) -> float:
        """Microseconds of one step. A replay asks at each step, so the forms compute it without arrays."""
        return float(self.us(np.array([features], np.float64))[0])


@dataclass(frozen=True, eq=False)
class SumOfTerms(TimeForm):
    """A sum of terms. Each is a multiple of a feature, or of the part of a feature above a bend."""

    called: str
    factors: Floats
    columns: tuple[int, ...]
    bends: tuple[tuple[int, float], ...] = ()

    @property
    def name(self) -> str:
        """The name of the form."""
        return self.called

    def us(self, features: Floats) -> Floats:
        """Microseconds of each row of features."""
        durations: Floats = _terms(features, self.columns, self.bends) @ self.factors
        return durations

    @cached_property
    def _numbers(self) -> tuple[float, list[tuple[float, int]], list[tuple[float, int, float]]]:
        """The constant; factor and column of each feature; factor, column and bend of each bend. None is 0."""
        constant, *rest = self.factors.tolist()
        plain = [(factor, at) for factor, at in zip(rest, self.columns, strict=False) if factor]
        bent = [
            (factor, at, bend)
            for factor, (at, bend) in zip(rest[len(self.columns) :], self.bends, strict=True)
            if factor
        ]
        return constant, plain, bent

    def us_of_step(self, features: Sequence[float]) -> float:
        """Microseconds of one step."""
        duration, plain, bent = self._numbers
        for factor, at in plain:
            duration += factor * features[at]
        for factor, at, bend in bent:
            if bend < 0:
                duration += factor * (features[at] > 0)
            elif features[at] > bend:
                duration += factor * (features[at] - bend)
        return duration


@dataclass(frozen=True, eq=False)
class Roofline(TimeForm):
    """The longer of two sums."""

    memory: Floats
    compute: Floats

    @property
    def name(self) -> str:
        """The name of the form."""
        return "roofline"

    def us(self, features: Floats) -> Floats:
        """Microseconds of each row of features."""
        memory, compute = _sides(features)
        return np.maximum(memory @ self.memory, compute @ self.compute)

    @cached_property
    def _numbers(self) -> tuple[float, ...]:
        return (*self.memory.tolist(), *self.compute.tolist())

    def us_of_step(self, features: Sequence[float]) -> float:
        """Microseconds of one step."""
        a, b, c, d, e = self._numbers
        return max(a + b * features[KV], c + d * (features[P] + features[D]) + e * features[ATTENTION])


def _terms(features: Floats, columns: tuple[int, ...], bends: tuple[tuple[int, float], ...]) -> Floats:
    parts: list[Any] = [np.ones(len(features)), *(features[:, column] for column in columns)]
    parts += [
        (features[:, column] > 0).astype(float) if bend < 0 else np.maximum(features[:, column] - bend, 0)
        for column, bend in bends
    ]
    return np.stack(parts, axis=1)


def _sides(features: Floats) -> tuple[Floats, Floats]:
    ones = np.ones(len(features))
    memory = np.stack([ones, features[:, KV]], axis=1)
    compute = np.stack([ones, features[:, P] + features[:, D], features[:, ATTENTION]], axis=1)
    return memory, compute


def fit_tokens(features: Floats, durations: Floats) -> TimeForm:
    """`tokens`."""
    return _sum("tokens", features, durations, (P, D))


def fit_additive(features: Floats, durations: Floats) -> TimeForm:
    """`additive`."""
    return _sum("additive", features, durations, (P, D, N, KV, ATTENTION))


def fit_shapes(features: Floats, durations: Floats) -> TimeForm:
    """`shapes`."""
    return _sum("shapes", features, durations, (P, D, N, KV, ATTENTION, NEW_SHAPE))


def fit_hinges(features: Floats, durations: Floats) -> TimeForm:
    """`hinges`: the bends are at the quartiles of the steps' tokens, each value once."""
    bends: list[tuple[int, float]] = [(P, -1.0)]
    for column in (P, D):
        positive = features[features[:, column] > 0, column]
        if len(positive):
            bends += [
                (column, bend) for bend in sorted(set(np.quantile(positive, (0.25, 0.5, 0.75)).tolist()))
            ]
    return _sum("hinges", features, durations, (P, D, N, KV, ATTENTION), tuple(bends))


def fit_roofline(features: Floats, durations: Floats) -> TimeForm | None:
    """`roofline`; None if one side would explain fewer than `LEAST_SIDE` steps."""
    memory, compute = _sides(features)
    prefill = features[:, P]
    if not (prefill > 0).any():
        return None
    by_compute = prefill > np.quantile(prefill[prefill > 0], 0.3)
    for _ in range(ROUNDS):
        if min(by_compute.sum(), (~by_compute).sum()) < LEAST_SIDE:
            return None
        form = Roofline(
            non_negative(memory[~by_compute], durations[~by_compute]),
            non_negative(compute[by_compute], durations[by_compute]),
        )
        longer_by_compute = compute @ form.compute > memory @ form.memory
        if (longer_by_compute == by_compute).all():
            break
        by_compute = longer_by_compute
    return form


FORMS = (fit_tokens, fit_additive, fit_shapes, fit_hinges, fit_roofline)
"""From the simplest on."""


def _sum(
    name: str,
    features: Floats,
    durations: Floats,
    columns: tuple[int, ...],
    bends: tuple[tuple[int, float], ...] = (),
) -> TimeForm:
    terms = _terms(features, columns, bends)
    return SumOfTerms(name, non_negative(terms, durations), columns, bends)


def non_negative(terms: Floats, durations: Floats) -> Floats:
    """The factors of least squares, none of them negative (Lawson and Hanson, Solving Least Squares Problems, 23)."""
    scale = np.maximum(np.abs(terms).max(axis=0), 1e-12)
    scaled = terms / scale
    factors, passive = np.zeros(terms.shape[1]), np.zeros(terms.shape[1], dtype=bool)
    for _ in range(3 * terms.shape[1]):
        gradient = scaled.T @ (durations - scaled @ factors)
        gradient[passive] = -np.inf
        if gradient.max() <= 1e-9 * max(1.0, float(np.abs(durations).max()) * len(durations)):
            break
        passive[int(gradient.argmax())] = True
        factors = _within(scaled, durations, factors, passive)
    unscaled: Floats = factors / scale
    return unscaled


def _within(terms: Floats, durations: Floats, factors: Floats, passive: NDArray[np.bool_]) -> Floats:
    """The best factors of the passive terms. A term that would become negative is taken out of the passive terms."""
    while True:
        target = np.zeros(len(factors))
        target[passive] = np.linalg.lstsq(terms[:, passive], durations, rcond=None)[0]
        low = passive & (target <= 0)
        if not low.any():
            return target
        step = float((factors[low] / np.maximum(factors[low] - target[low], 1e-300)).min())
        factors = factors + step * (target - factors)
        passive &= factors > 1e-12
        if not passive.any():
            return np.zeros(len(factors))
