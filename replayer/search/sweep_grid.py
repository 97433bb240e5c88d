"""A sweep's grid of settings, what is asked of its results, and which of them no other one beats."""

from __future__ import annotations

import itertools
import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from fdtrace.recorder.errors import UsageError

MOST_VALUES, MOST_VARIANTS = 1000, 20_000
NOT_KNOWN, LEAST_VIOLATION = 1e9, 1e-6
"""How far a figure that is not known is from keeping a condition; what a figure at a bound it may not reach adds."""
FIGURES: Mapping[str, str] = {
    "exceeded": "steps over the limit",
    "max_excess": "tokens over it, at most",
    "peak_tokens": "tokens of the largest step",
    "steps": "steps to the end",
    "preempted": "preemptions",
    "stalls": "stalls of decodes",
    "unfinished": "requests that did not end",
    "hangs": "1: it hangs, or is cut",
    "rejected": "requests that a server would answer with 400",
    "budget_use": "mean share of the limit that a step runs",
    "ttft_p50": "time to first token, ms", "ttft_p95": "", "ttft_p99": "",
    "itl_p50": "time between tokens, ms", "itl_p95": "", "itl_p99": "",
    "latency_p50": "time of whole requests, ms", "latency_p95": "", "latency_p99": "",
    "output_tokens_per_s": "output tokens a second",
    "requests_per_s": "requests a second",
    "goodput_per_s": "requests a second within every objective of --slo",
}  # fmt: skip
"""Figure of a result -> its meaning. Times and rates are known of a trace alone."""

LARGER_IS_BETTER = ("budget_use", "output_tokens_per_s", "requests_per_s", "goodput_per_s")
"""Figures of which more is better; of all others, less is."""

_NUMBER = r"-?[0-9]+(?:\.[0-9]+)?"
_RANGE = re.compile(rf"({_NUMBER}):({_NUMBER})(?::([x+]?)({_NUMBER}))?\Z")
_CONDITION = re.compile(rf"\s*([A-Za-z_][A-Za-z0-9_]*)\s*(<=|>=|==|=|<|>)\s*({_NUMBER})\s*(us|ms|s)?\s*\Z")
_MILLISECONDS = {"us": 1e-3, "ms": 1.0, "s": 1e3}
"""Units of a bound, in that of the figures of time."""
_TIMES = ("ttft_", "itl_", "latency_")
_COMPARE: Mapping[str, Callable[[float, float], bool]] = {
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge, "=": operator.eq, "==": operator.eq,
}  # fmt: skip

SweepValue = int | float | str
SweepRow = Mapping[str, "int | float | str | None"]


@dataclass(frozen=True)
class VariedSetting:
    """One setting and the values that it takes."""

    name: str
    values: tuple[SweepValue, ...]


def parse_varied(text: str) -> VariedSetting:
    """`NAME=1,2,4`, `NAME=32:256:x2` (each twice the last), `NAME=32:256:+32` or `NAME=1:8`. UsageError."""
    name, equals, values = (part.strip() for part in text.partition("="))
    hint = "--vary max_num_seqs=32:256:x2, or max_num_batched_tokens=2048,4096"
    if not equals or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) or not values:
        raise UsageError(f"--vary {text:.60} varies nothing", hint=hint)
    match = _RANGE.match(values)
    if match is None:
        chosen = [_value(value.strip()) for value in values.split(",") if value.strip()]
    else:
        chosen = _ranged(text, match)
    if not chosen:
        raise UsageError(f"--vary {text:.60} has no value", hint=hint)
    return VariedSetting(name, tuple(dict.fromkeys(chosen)))


def _ranged(text: str, match: re.Match[str]) -> list[SweepValue]:
    first, last = _number(match[1]), _number(match[2])
    way, step = match[3] or "+", _number(match[4] or "1")
    if (way == "x" and (step <= 1 or first <= 0)) or (way == "+" and step <= 0) or last < first:
        raise UsageError(
            f"--vary {text:.60} does not come to its end", hint="FIRST:LAST:xFACTOR, or FIRST:LAST:+STEP"
        )
    chosen: list[SweepValue] = []
    value = first
    while value <= last:
        chosen.append(value)
        if len(chosen) > MOST_VALUES:
            raise UsageError(f"--vary {text:.60} has more than {MOST_VALUES} values", hint="a larger step")
        value = _number(str(value * step if way == "x" else value + step))
    return chosen


def _number(text: str) -> int | float:
    number = float(text)
    return int(number) if number.is_integer() else number


def _value(text: str) -> SweepValue:
    return _number(text) if re.fullmatch(_NUMBER, text) else text


def combination_count(varied: Sequence[VariedSetting]) -> int:
    """How many combinations there are. UsageError if a setting is given twice."""
    names = [setting.name for setting in varied]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"--vary {name} is given twice")
    return math.prod(len(setting.values) for setting in varied)


def grid_of(varied: Sequence[VariedSetting]) -> list[dict[str, SweepValue]]:
    """Every combination, in order. UsageError if a setting is given twice, or there are too many."""
    names = [setting.name for setting in varied]
    count = combination_count(varied)
    if count > MOST_VARIANTS:
        raise UsageError(
            f"these are {count:,} variants", why=f"at most {MOST_VARIANTS:,} are run", hint="larger steps"
        )
    return [
        dict(zip(names, values, strict=True)) for values in itertools.product(*(s.values for s in varied))
    ]


@dataclass(frozen=True)
class SweepGoal:
    """A figure to make small or large."""

    figure: str
    largest: bool

    def cost(self, row: SweepRow) -> float:
        """Smaller is better; infinite where the figure is not known."""
        value = row.get(self.figure)
        if not isinstance(value, (int, float)):
            return float("inf")
        return -value if self.largest else value


def parse_goals(text: str) -> list[SweepGoal]:
    """`min ttft_p95`, `max output_tokens_per_s, min ttft_p95`. UsageError names the figures."""
    goals = []
    for part in text.split(","):
        words = part.split()
        if len(words) != 2 or words[0] not in ("min", "max") or words[1] not in FIGURES:
            raise UsageError(f"{part.strip()!r:.60} is no goal", hint=f"min or max of {', '.join(FIGURES)}")
        goals.append(SweepGoal(words[1], words[0] == "max"))
    return goals


@dataclass(frozen=True)
class SweepCondition:
    """What a figure must be for a result to be allowed. A figure that is not known allows nothing."""

    figure: str
    sign: str
    bound: float

    def holds(self, row: SweepRow) -> bool:
        """Whether a result keeps it."""
        value = row.get(self.figure)
        return isinstance(value, (int, float)) and _COMPARE[self.sign](value, self.bound)

    def violation(self, row: SweepRow) -> float:
        """How far a result is from keeping it; 0: it keeps it."""
        if self.holds(row):
            return 0.0
        value = row.get(self.figure)
        return NOT_KNOWN if not isinstance(value, (int, float)) else abs(value - self.bound) + LEAST_VIOLATION


def parse_conditions(text: str | None) -> list[SweepCondition]:
    """`exceeded = 0 and ttft_p95 < 300ms`; a time without a unit is in milliseconds. UsageError names the figures."""
    conditions = []
    for part in re.split(r"\band\b|,", text or ""):
        if not part.strip():
            continue
        match = _CONDITION.match(part)
        if match is None or match[1] not in FIGURES or (match[4] and not match[1].startswith(_TIMES)):
            hint = f"as 'exceeded = 0' or 'ttft_p95 < 300ms'; {', '.join(FIGURES)}"
            raise UsageError(f"{part.strip()!r:.60} is no condition", hint=hint)
        bound = float(match[3]) * (_MILLISECONDS[match[4]] if match[4] else 1.0)
        conditions.append(SweepCondition(match[1], match[2], bound))
    return conditions


def pareto_front(rows: Sequence[SweepRow], goals: Sequence[SweepGoal]) -> list[int]:
    """Indices of the results that no other one beats: better in one goal and worse in none. The best by the first goal
    comes first.
    """
    costs = [tuple(goal.cost(row) for goal in goals) for row in rows]
    order = sorted((i for i in range(len(rows)) if float("inf") not in costs[i]), key=lambda i: (costs[i], i))
    front: list[int] = []
    for i in order:
        beaten = any(
            all(other <= own for other, own in zip(costs[j], costs[i], strict=True)) and costs[j] != costs[i]
            for j in front
        )
        if not beaten:
            front.append(i)
    return front
