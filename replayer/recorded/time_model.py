"""How long a step takes, fitted from a recording, and how far that can be trusted.

The form is chosen by what it says of steps unlike those that it was fitted from: whole regions of the batch (largest
prefills, smallest, many decodes, few) are held out in turn. Random steps held out do not show which form is right: a
sum of tokens explained 94% of the steps of one paced server, and was 30% off where chunks became smaller.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fdtrace.recorder.errors import UsageError
from fdtrace.recorder.trace.column_values import Floats
from fdtrace.replayer.recorded.batch_rows import FEATURES
from fdtrace.replayer.recorded.time_forms import FORMS, KV, D, P, TimeForm

FEWEST_TIMED = 60
"""Steps that a choice of form needs: 30 do not suffice, 100 say what 1,600 say."""
FEWEST_HELD = 15
"""Steps that a region must have to be held out, and those left must be three times as many."""
CLEARLY = 0.9
"""A richer form is taken where its error is below so much of the simpler one's."""
WORST_MEDIAN, WORST_TOTAL = 0.5, 0.3
"""Errors beyond which the model says nothing: of half the held-out steps, and of all of a half of the recording."""


@dataclass(frozen=True)
class HeldOut:
    """What a form told of steps that it was not fitted from; shares."""

    region: str
    num_steps: int
    total_error: float
    """Of the sum of their durations; positive: told too long."""
    median_error: float
    """Half of the steps are nearer than this."""


@dataclass(frozen=True)
class TimeModel:
    """The chosen form with its errors, and what the fitted steps had at most."""

    form: TimeForm = field(repr=False)
    num_steps: int
    mean_us: float
    variation: float
    """Standard deviation of the durations, as a share of their mean."""
    regions: tuple[HeldOut, ...]
    """What the chosen form told of each region held out."""
    halves: tuple[HeldOut, ...]
    """Of either half of the recording, fitted from the other: a machine that became slower shows here."""
    random: HeldOut
    """Of every second step, fitted from the others."""
    largest: tuple[float, ...]
    """The largest of each of `FEATURES` in the fitted steps."""

    @property
    def name(self) -> str:
        """The name of the form."""
        return self.form.name

    def us(self, features: Floats) -> float:
        """Microseconds of one step."""
        return float(self.form.us(features.reshape(1, -1))[0])

    def beyond(self, features: Floats) -> bool:
        """Whether a step has more of something than any step that this was fitted from."""
        return bool((features > np.asarray(self.largest) * 1.02).any())

    def as_dict(self) -> dict[str, Any]:
        """What it was fitted from and its errors, of values that JSON knows."""
        return {
            "form": self.name,
            "num_steps": self.num_steps,
            "mean_us": self.mean_us,
            "variation": self.variation,
            "held_out": [asdict(one) for one in (self.random, *self.halves, *self.regions)],
            "largest": dict(zip(FEATURES, self.largest, strict=True)),
        }

    @property
    def worst_region(self) -> HeldOut | None:
        """The region of which it told the total worst."""
        return max(self.regions, key=lambda one: abs(one.total_error), default=None)

    @property
    def text(self) -> str:
        """Its form and errors, as one sentence."""
        worst = self.worst_region
        parts = [
            f"time: form {self.name}, fitted from {self.num_steps} steps of {self.mean_us / 1000:.1f} ms that vary by "
            f"{self.variation:.0%}; half of the held-out steps are within {self.random.median_error:.0%}"
        ]
        if worst is not None:
            parts.append(f"the worst region held out ({worst.region}) is {worst.total_error:+.0%} in total")
        parts += [
            f"the {half.region} told from the other is {half.total_error:+.0%}" for half in self.halves[1:]
        ]
        ranges = (("prefill tokens", P), ("decode tokens", D), ("KV tokens", KV))
        parts.append("holds up to " + ", ".join(f"{self.largest[at]:.0f} {name}" for name, at in ranges))
        return "; ".join(parts)


def fit_time_model(features: Floats, took: Floats) -> TimeModel:
    """The form that tells held-out regions best, fitted from all steps.

    Args:
        features: `batch_rows.FEATURES` of each step that had another right after it.
        took: microseconds from its scheduling call to the next.

    Raises:
        UsageError: too few steps, or no form says anything of the steps that it was not fitted from.
    """
    if len(took) < FEWEST_TIMED:
        raise UsageError(
            "how long a step takes cannot be told from this recording",
            why=f"{len(took)} steps have another right after them, and {FEWEST_TIMED} are needed",
            hint="arrivals=steps; or record longer",
        )
    regions = list(_regions(features))
    asked = regions or [("every second step", _second(took))]
    best, told_best = 0, [_required(0, features, took, held, name) for name, held in asked]
    for at in range(1, len(FORMS)):
        told = [_held_out(at, features, took, held, name) for name, held in asked]
        both = [(one, other) for one, other in zip(told, told_best, strict=True) if one is not None]
        if 2 * len(both) < len(asked) or FORMS[at](features, took) is None:
            continue  # too little is left of a side of it, so that nothing speaks for it
        if _error([one for one, _ in both]) < CLEARLY * _error([other for _, other in both]):
            best = at
            told_best = [one or other for one, other in zip(told, told_best, strict=True)]
    return _checked(best, features, took, regions)


def _checked(
    at: int, features: Floats, took: Floats, regions: list[tuple[str, NDArray[np.bool_]]]
) -> TimeModel:
    form = FORMS[at](features, took)
    assert form is not None
    first = np.arange(len(took)) < len(took) // 2
    halves = tuple(
        _required(at, features, took, held, name)
        for held, name in ((first, "first half"), (~first, "second half"))
    )
    found = TimeModel(
        form=form,
        num_steps=len(took),
        mean_us=float(took.mean()),
        variation=float(took.std() / took.mean()),
        regions=tuple(_required(at, features, took, held, name) for name, held in regions),
        halves=halves,
        random=_required(at, features, took, _second(took), "every second step"),
        largest=tuple(features.max(axis=0).tolist()),
    )
    total = max(abs(half.total_error) for half in halves)
    if found.random.median_error > WORST_MEDIAN or total > WORST_TOTAL:
        raise UsageError(
            "how long a step takes cannot be told from this recording",
            why=f"half of the held-out steps are off by more than {found.random.median_error:.0%}, and one half of "
            f"the recording, told from the other, by {total:.0%} in total",
            hint="arrivals=steps; or record on a machine that does nothing else",
        )
    return found


def _second(took: Floats) -> NDArray[np.bool_]:
    return np.asarray(np.arange(len(took)) % 2 == 1)


def _regions(features: Floats) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """Regions of the batch that can be held out, with their names."""
    for name, column in (("prefill tokens", P), ("decode tokens", D)):
        values = features[:, column]
        some = values[values > 0]
        if not len(some):
            continue
        low, high = np.quantile(some, (0.3, 0.7))
        for which, held in (
            (f"{name} over {high:.0f}", values > high),
            (f"{name} 1 to {low:.0f}", (values > 0) & (values <= low)),
        ):
            if held.sum() >= FEWEST_HELD and (~held).sum() >= 3 * FEWEST_HELD:
                yield which, held


def _required(at: int, features: Floats, took: Floats, held: NDArray[np.bool_], region: str) -> HeldOut:
    """As `_held_out`; where the form cannot be fitted without these steps, the simplest is."""
    found = _held_out(at, features, took, held, region) or _held_out(0, features, took, held, region)
    assert found is not None
    return found


def _held_out(
    at: int, features: Floats, took: Floats, held: NDArray[np.bool_], region: str
) -> HeldOut | None:
    form = FORMS[at](features[~held], took[~held])
    if form is None:
        return None
    told, real = form.us(features[held]), took[held]
    return HeldOut(
        region=region,
        num_steps=int(held.sum()),
        total_error=float(told.sum() / real.sum() - 1),
        median_error=float(np.median(np.abs(told / real - 1))),
    )


def _error(told: Sequence[HeldOut]) -> float:
    """The mean over regions of what a form is off in total and in half of the steps."""
    return float(np.mean([abs(one.total_error) + one.median_error for one in told]))
