"""Chooses which variants of a large grid are run: Optuna's tree of Parzen estimators, with the conditions as
constraints.

The same seed chooses the same variants, on any number of processes: they are chosen in batches of a fixed size, and the
results of a batch are taken in its order. A sweep that goes on from a state asks for the same variants again, and takes
the saved results of those that it has.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fdtrace.recorder.errors import UsageError
from fdtrace.replayer.search.sweep_grid import (
    SweepCondition,
    SweepGoal,
    SweepRow,
    SweepValue,
    VariedSetting,
    combination_count,
)

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial, Trial

WHOLE_GRID = 1000
"""Variants of which all are run, unless --runs says less."""
GUIDED_RUNS = 300
"""Variants that are run of a larger grid, unless --runs says otherwise."""
BATCH = 8
FIRST = 16
"""Variants that are drawn before any are chosen by results."""
MOST_REPEATS = 200
"""Batches in a row that may hold nothing new before the search ends."""
NO_RESULT = 1e30
"""The cost of a variant that is refused, or whose figure is not known."""
VIOLATED = "violated"


class GuidedSweep:
    """One search. `ask` gives the next variants, `tell` takes their results in the same order."""

    def __init__(
        self,
        varied: Sequence[VariedSetting],
        goals: Sequence[SweepGoal],
        conditions: Sequence[SweepCondition],
        *,
        runs: int,
        seed: int,
    ) -> None:
        """UsageError: Optuna is not installed."""
        try:
            import optuna
        except ImportError:
            raise UsageError(
                f"{combination_count(varied):,} variants are searched with Optuna, which is not installed here",
                hint=f"python -m pip install 'fdtrace[search]'; or at most {WHOLE_GRID:,} variants",
            ) from None
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.varied, self.goals, self.conditions, self.runs = varied, goals, conditions, runs
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # constraints and several goals are marked experimental
            sampler = optuna.samplers.TPESampler(
                seed=seed, n_startup_trials=FIRST, multivariate=True, constant_liar=True,
                constraints_func=_violations,
            )  # fmt: skip
        self._study = optuna.create_study(sampler=sampler, directions=["minimize"] * len(goals))
        self._known: dict[tuple[SweepValue, ...], SweepRow] = {}
        self._asked: list[Trial] = []

    def ask(self) -> list[dict[str, SweepValue]]:
        """The next variants that have no result yet; empty: the search has ended."""
        most = min(self.runs, combination_count(self.varied))
        for _ in range(MOST_REPEATS):
            if len(self._known) >= most:
                return []
            self._asked = [self._study.ask() for _ in range(BATCH)]
            chosen = {self._values(trial): None for trial in self._asked}
            new = [values for values in chosen if values not in self._known][: most - len(self._known)]
            if new:
                return [self._settings(values) for values in new]
            self._take()
        return []

    def tell(self, rows: Sequence[SweepRow]) -> None:
        """The results of the variants of the last `ask`."""
        for row in rows:
            self._known[tuple(row[setting.name] for setting in self.varied)] = row  # type: ignore[misc]
        self._take()

    def _values(self, trial: Trial) -> tuple[SweepValue, ...]:
        found: list[SweepValue] = []
        for setting in self.varied:
            values = setting.values
            if any(isinstance(value, str) for value in values):
                index = trial.suggest_categorical(setting.name, range(len(values)))
            else:
                index = trial.suggest_int(setting.name, 0, len(values) - 1)
            found.append(values[index])
        return tuple(found)

    def _settings(self, values: Sequence[SweepValue]) -> dict[str, SweepValue]:
        return {setting.name: value for setting, value in zip(self.varied, values, strict=True)}

    def _take(self) -> None:
        """Give Optuna the results of the batch. What lies beyond the budget has none."""
        from optuna.trial import TrialState

        for trial in self._asked:
            row = self._known.get(self._values(trial))
            if row is None:
                self._study.tell(trial, state=TrialState.FAIL)
                continue
            violated = [condition.violation(row) for condition in self.conditions]
            trial.set_user_attr(VIOLATED, [1.0, *violated] if row["refused"] else [0.0, *violated])
            costs = [min(goal.cost(row), NO_RESULT) for goal in self.goals]
            self._study.tell(trial, costs)
        self._asked = []


def _violations(trial: FrozenTrial) -> Sequence[float]:
    """For Optuna: more than 0 where a condition is not kept."""
    violated: Any = trial.user_attrs.get(VIOLATED, [0.0])
    return [float(value) for value in violated]
