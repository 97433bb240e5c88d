"""What a sweep advises: the best allowed settings, what they cost, how sure that is, and what decided."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fdtrace.recorder.errors import FdtraceError
from fdtrace.replayer.search.sweep_grid import (
    LARGER_IS_BETTER,
    SweepCondition,
    SweepGoal,
    SweepRow,
    SweepValue,
    VariedSetting,
)
from fdtrace.replayer.search.sweep_parting import VariantSplit, neighbours_of, variant_split_of

if TYPE_CHECKING:
    from fdtrace.replayer.recorded.time_model import TimeModel
    from fdtrace.searching.sweep_runner import SweepRunner

WORSE = 0.01
"""A figure costs something if it becomes worse by a larger share than this."""
NO_FIGURES = ("refused", "beyond")


@dataclass(frozen=True)
class SweepNeighbour:
    """A combination beside the best one: its next value of one setting."""

    name: str
    value: SweepValue
    row: SweepRow
    parting: VariantSplit | None
    """None: it decides the same in every step, or is refused."""
    reasons: tuple[str, str] = ("", "")
    """What the model decided in that step, of the best and of this one, where they say different things."""
    not_kept: str = ""
    """The condition that it does not keep; empty: it is allowed."""


@dataclass(frozen=True)
class SweepAdvice:
    """The advice of one sweep."""

    best: SweepRow
    names: tuple[str, ...]
    """The settings that were varied."""
    before: SweepRow | None
    """The same figures under the recorded settings; None: they are not known, or cannot be replayed."""
    costs: tuple[str, ...]
    """The figures that become worse by the best."""
    model: TimeModel | None
    """How long a step takes; None: times are not among the figures."""
    neighbours: tuple[SweepNeighbour, ...] = ()
    as_good: tuple[SweepRow, ...] = field(default=(), repr=False)
    """Other allowed results whose goal differs from the best by less than the error."""

    @property
    def error(self) -> float:
        """The largest error of the time model on a held-out part, as a share; 0 without one."""
        return 0.0 if self.model is None else model_error(self.model)

    def as_dict(self) -> dict[str, Any]:
        """For programs."""
        return {
            "flags": flags_of(self.best, self.names),
            "settings": {name: self.best[name] for name in self.names},
            "best": dict(self.best),
            "recorded": None if self.before is None else dict(self.before),
            "costs": list(self.costs),
            "time_model": None if self.model is None else {**self.model.as_dict(), "error": self.error},
            "as_good": [{name: row[name] for name in self.names} for row in self.as_good],
            "neighbours": [
                {
                    "setting": neighbour.name,
                    "value": neighbour.value,
                    "row": dict(neighbour.row),
                    "not_kept": neighbour.not_kept or None,
                    "parting": None
                    if neighbour.parting is None
                    else {
                        "step": neighbour.parting.step,
                        "differing": [list(values) for values in neighbour.parting.differing],
                        "not_admitted": list(neighbour.parting.not_admitted),
                        "reasons": list(neighbour.reasons),
                    },
                }
                for neighbour in self.neighbours
            ],
        }


def model_error(model: TimeModel) -> float:
    """The largest error of a sum of durations among all held-out parts, as a share."""
    return max(abs(part.total_error) for part in (model.random, *model.halves, *model.regions))


def flags_of(row: SweepRow, names: Sequence[str]) -> str:
    """The settings of a result as a server takes them: options, and environment variables before them."""
    from fdtrace.replayer.workload.engine_settings import ALIASES

    variables, options = [], []
    for name in names:
        setting, value = ALIASES.get(name, name), row[name]
        if setting.startswith("FD_"):
            variables.append(f"{setting}={value}")
        elif setting in ("formula", "policy", "arrivals", "acceptances", "scheduler"):
            continue
        elif setting == "num_speculative_tokens":
            options.append(f"--speculative-config {shlex.quote(json.dumps({setting: value}))}")
        elif isinstance(value, str) and value in ("true", "false"):
            options.append(f"--{'no-' if value == 'false' else ''}{setting.replace('_', '-')}")
        else:
            options.append(f"--{setting.replace('_', '-')} {value}")
    return " ".join([*variables, *options]) or "as it is"


def cell(value: Any) -> str:
    """A figure as text."""
    if value is None:
        return "-"
    return f"{value:,.1f}" if isinstance(value, float) and not value.is_integer() else f"{value}"


def advice_of(
    worker: SweepRunner,
    varied: Sequence[VariedSetting],
    rows: Sequence[SweepRow],
    allowed: Sequence[SweepRow],
    best: SweepRow,
    goals: Sequence[SweepGoal],
    conditions: Sequence[SweepCondition],
) -> SweepAdvice:
    """The advice that results give. Neighbours that were not run, and the recorded settings, are run now."""
    names = tuple(setting.name for setting in varied)
    known = {_key(row, names): row for row in rows}
    recorded = worker.recorded_settings(names)
    before = None if recorded is None else known.get(_key(recorded, names)) or worker.row(recorded)
    if before is not None and before["refused"] is not None:
        before = None
    timed = goals and any(_is_of_time(name) and best[name] is not None for name in best)
    own = {name: value for name in names if (value := best[name]) is not None}
    model = worker.time_model(own) if timed else None
    error = 0.0 if model is None else model_error(model)
    cost = goals[0].cost(best)
    as_good = [
        row
        for row in allowed
        if row is not best and _is_of_time(goals[0].figure) and goals[0].cost(row) - cost <= error * abs(cost)
    ]
    return SweepAdvice(
        best=best,
        names=names,
        before=before,
        costs=() if before is None else tuple(_costs(best, before, names)),
        model=model,
        neighbours=tuple(_neighbours(worker, varied, known, best, conditions)),
        as_good=tuple(as_good),
    )


def _key(row: Mapping[str, Any], names: Sequence[str]) -> tuple[Any, ...]:
    return tuple(row[name] for name in names)


def _is_of_time(figure: str) -> bool:
    return figure.startswith(("ttft_", "itl_", "latency_")) or figure.endswith("_per_s")


def _costs(best: SweepRow, before: SweepRow, names: Sequence[str]) -> list[str]:
    found = []
    for name, value in best.items():
        old = before.get(name)
        if name in names or name in NO_FIGURES or isinstance(value, str) or isinstance(old, str):
            continue
        if value is None or old is None:
            continue
        more = (old - value) if name in LARGER_IS_BETTER else (value - old)
        if more > WORSE * abs(old):
            found.append(name)
    return found


def _neighbours(
    worker: SweepRunner,
    varied: Sequence[VariedSetting],
    known: Mapping[tuple[Any, ...], SweepRow],
    best: SweepRow,
    conditions: Sequence[SweepCondition],
) -> list[SweepNeighbour]:
    names = [setting.name for setting in varied]
    own = {name: best[name] for name in names}
    found, columns = [], None
    for name, settings in neighbours_of(varied, best):
        row = known.get(_key(settings, names)) or worker.row(settings)
        broken = next((c for c in conditions if not c.holds(row)), None)
        not_kept = "" if broken is None else f"{broken.figure} {cell(row.get(broken.figure))}"
        parting, reasons = None, ("", "")
        if row["refused"] is None:
            try:
                columns = columns or worker.columns(own)  # type: ignore[arg-type]  # the values of settings
                parting = variant_split_of(columns, worker.columns(settings))
                if parting is not None:
                    reasons = _reasons(worker, own, settings, parting)
            except FdtraceError:
                parting = None  # its figures were computed, so this says nothing about it
        found.append(SweepNeighbour(name, settings[name], row, parting, reasons, not_kept))
    return found


def _reasons(
    worker: SweepRunner, own: Mapping[str, Any], other: Mapping[str, Any], parting: VariantSplit
) -> tuple[str, str]:
    """What each decided in that step and the other one did not."""
    one, two = worker.reasons(own, parting.index), worker.reasons(other, parting.index)
    return _only_in(one, two), _only_in(two, one)


def _only_in(reasons: Sequence[str], others: Sequence[str]) -> str:
    """The first decision on a request that the others do not take at all; else one that they take otherwise."""
    taken = {text.partition(":")[0] for text in others}
    news = [text for text in reasons if text.partition(":")[0] not in taken]
    return next(iter(news or [text for text in reasons if text not in others]), "")
