"""How long a step takes, fitted from a recording, and how far that can be trusted.

The form is chosen by its errors on steps unlike those that it was fitted from: whole regions of the batch (largest
prefills, smallest prefills, many decodes, few decodes) are held out in turn. Random held-out steps do not show which
form is right: a sum of tokens explained 94% of the steps of one paced server, and was 30% off when chunks became
smaller.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fdtrace.recorder.errors import UsageError
from fdtrace.recorder.trace.column_values import Floats
from fdtrace.replayer.recorded.batch_rows import BATCH_FEATURES
from fdtrace.replayer.recorded.time_forms import FORMS, KV, D, P, TimeForm

FEWEST_TIMED = 60
"""Steps that the choice of a form needs: 30 are too few; 100 lead to the same choice as 1,600."""
FEWEST_HELD = 15
"""A region must have at least so many steps to be held out. Three times as many steps must be left."""
CLEARLY = 0.9
"""A richer form is taken only if its error is below this share of the simpler form's error."""
WORST_MEDIAN, WORST_TOTAL = 0.5, 0.3
"""With larger errors the model is refused: the median error of held-out steps, the total error of half a recording."""


@dataclass(frozen=True)
class HeldOutErrors:
    """The errors of a form on steps that it was not fitted from, as shares."""

    region: str
    num_steps: int
    total_error: float
    """Error of the sum of their durations; positive: the prediction is too long."""
    median_error: float
    """Half of the steps have a smaller error than this."""


@dataclass(frozen=True)
class TimeModel:
    """The chosen form with its errors, and the largest features of the fitted steps."""

    form: TimeForm = field(repr=False)
    num_steps: int
    mean_us: float
    variation: float
    """Standard deviation of the durations, as a share of their mean."""
    regions: tuple[HeldOutErrors, ...]
    """The errors of the chosen form on each held-out region."""
    halves: tuple[HeldOutErrors, ...]
    """The errors on each half of the recording, fitted from the other half: they show a machine that became slower."""
    random: HeldOutErrors
    """The errors on every second step, fitted from the other steps."""
    largest: tuple[float, ...]
    """The largest of each of `BATCH_FEATURES` in the fitted steps."""

    @property
    def name(self) -> str:
        """The name of the form."""
        return self.form.name

    def us(self, features: Sequence[float]) -> float:
        """Microseconds of one step, from its `FEATURES`."""
        return self.form.us_of_step(features)

    def beyond(self, features: Sequence[float]) -> bool:
        """Whether a feature of a step is larger than in every fitted step."""
        p, n, d, kv, attention, _ = features
        most_p, most_n, most_d, most_kv, most_attention = self._bounds
        return p > most_p or n > most_n or d > most_d or kv > most_kv or attention > most_attention

    @cached_property
    def _bounds(self) -> tuple[float, ...]:
        return tuple(1.02 * value for value in self.largest)

    def as_dict(self) -> dict[str, Any]:
        """The fitted steps and the errors, as values that JSON can hold."""
        return {
            "form": self.name,
            "num_steps": self.num_steps,
            "mean_us": self.mean_us,
            "variation": self.variation,
            "held_out": [asdict(error) for error in (self.random, *self.halves, *self.regions)],
            "largest": dict(zip(BATCH_FEATURES, self.largest, strict=True)),
        }

    @property
    def worst_region(self) -> HeldOutErrors | None:
        """The region with the largest error of the total."""
        return max(self.regions, key=lambda region: abs(region.total_error), default=None)

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
            f"the {half.region} predicted from the other is {half.total_error:+.0%}"
            for half in self.halves[1:]
        ]
        ranges = (("prefill tokens", P), ("decode tokens", D), ("KV tokens", KV))
        parts.append("holds up to " + ", ".join(f"{self.largest[at]:.0f} {name}" for name, at in ranges))
        return "; ".join(parts)


def fit_time_model(features: Floats, durations: Floats) -> TimeModel:
    """The form with the smallest errors on held-out regions, fitted from all steps.

    Args:
        features: `batch_rows.FEATURES` of each step that another step followed at once.
        durations: microseconds from the scheduling call of each step to the next call.

    Raises:
        UsageError: there are too few steps, or the errors on held-out steps are too large.
    """
    if len(durations) < FEWEST_TIMED:
        raise UsageError(
            "how long a step takes cannot be computed from this recording",
            why=f"{len(durations)} steps have another right after them, and {FEWEST_TIMED} are needed",
            hint="arrivals=steps; or record longer",
        )
    regions = list(_regions(features))
    tested_regions = regions or [("every second step", _second(durations))]
    best_index, best_errors = (
        0,
        [_required(0, features, durations, is_held, name) for name, is_held in tested_regions],
    )
    for index in range(1, len(FORMS)):
        new_errors = [
            _held_out(index, features, durations, is_held, name) for name, is_held in tested_regions
        ]
        pairs = [(new, old) for new, old in zip(new_errors, best_errors, strict=True) if new is not None]
        if 2 * len(pairs) < len(tested_regions) or FORMS[index](features, durations) is None:
            continue  # in most regions too few steps are left to fit it: its errors are not known
        if _error([new for new, _ in pairs]) < CLEARLY * _error([old for _, old in pairs]):
            best_index = index
            best_errors = [new or old for new, old in zip(new_errors, best_errors, strict=True)]
    return _checked(best_index, features, durations, regions)


def _checked(
    index: int, features: Floats, durations: Floats, regions: list[tuple[str, NDArray[np.bool_]]]
) -> TimeModel:
    form = FORMS[index](features, durations)
    assert form is not None
    in_first_half = np.arange(len(durations)) < len(durations) // 2
    halves = tuple(
        _required(index, features, durations, is_held, name)
        for is_held, name in ((in_first_half, "first half"), (~in_first_half, "second half"))
    )
    model = TimeModel(
        form=form,
        num_steps=len(durations),
        mean_us=float(durations.mean()),
        variation=float(durations.std() / durations.mean()),
        regions=tuple(_required(index, features, durations, is_held, name) for name, is_held in regions),
        halves=halves,
        random=_required(index, features, durations, _second(durations), "every second step"),
        largest=tuple(features[:, : len(BATCH_FEATURES)].max(axis=0).tolist()),
    )
    worst_half = max(abs(half.total_error) for half in halves)
    if model.random.median_error > WORST_MEDIAN or worst_half > WORST_TOTAL:
        raise UsageError(
            "how long a step takes cannot be computed from this recording",
            why=f"half of the held-out steps are off by more than {model.random.median_error:.0%}, and one half of "
            f"the recording, predicted from the other, by {worst_half:.0%} in total",
            hint="arrivals=steps; or record on a machine that does nothing else",
        )
    return model


def _second(durations: Floats) -> NDArray[np.bool_]:
    return np.asarray(np.arange(len(durations)) % 2 == 1)


def _regions(features: Floats) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """The regions of the batch that can be held out: name, and which steps are in it."""
    for name, column in (("prefill tokens", P), ("decode tokens", D)):
        values = features[:, column]
        positive = values[values > 0]
        if not len(positive):
            continue
        low, high = np.quantile(positive, (0.3, 0.7))
        for region, is_held in (
            (f"{name} over {high:.0f}", values > high),
            (f"{name} 1 to {low:.0f}", (values > 0) & (values <= low)),
        ):
            if is_held.sum() >= FEWEST_HELD and (~is_held).sum() >= 3 * FEWEST_HELD:
                yield region, is_held


def _required(
    index: int, features: Floats, durations: Floats, is_held: NDArray[np.bool_], region: str
) -> HeldOutErrors:
    """As `_held_out`. If the form cannot be fitted without these steps, the simplest form is fitted instead."""
    error = _held_out(index, features, durations, is_held, region) or _held_out(
        0, features, durations, is_held, region
    )
    assert error is not None
    return error


def _held_out(
    index: int, features: Floats, durations: Floats, is_held: NDArray[np.bool_], region: str
) -> HeldOutErrors | None:
    form = FORMS[index](features[~is_held], durations[~is_held])
    if form is None:
        return None
    predicted, recorded = form.us(features[is_held]), durations[is_held]
    return HeldOutErrors(
        region=region,
        num_steps=int(is_held.sum()),
        total_error=float(predicted.sum() / recorded.sum() - 1),
        median_error=float(np.median(np.abs(predicted / recorded - 1))),
    )


def _error(errors: Sequence[HeldOutErrors]) -> float:
    """The mean over regions of the total error plus the median error."""
    return float(np.mean([abs(error.total_error) + error.median_error for error in errors]))
