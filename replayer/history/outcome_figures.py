"""The outcome of a history, computed from its columns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fdtrace.replayer.history.history import Hang, History, Order, Outcome, StepLimitReached
from fdtrace.replayer.history.step_columns import StepColumns
from fdtrace.replayer.recorded.memory_fit import MemoryFit, first_over
from fdtrace.replayer.recorded.step_durations import Clock


@dataclass(frozen=True)
class MemoryQuestion:
    """How memory grows with a step's tokens, and the size of the device that the user asks about."""

    fit: MemoryFit | None
    device_bytes: int | None = None

    @property
    def column(self) -> str:
        """The column of a history that holds its memory: `reserved_bytes`, or what its tensors need."""
        needs = self.fit is not None and self.fit.column == "peak_allocated_bytes"
        return "peak_allocated_bytes" if needs else "reserved_bytes"

    def with_memory(self, columns: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
        """The columns with `column` computed by the fit, unless they have it or there is no fit that holds for them."""
        if self.fit is None or not len(columns["num_tokens"]) or self.column in columns:
            return columns
        if not self.fit.holds_for(columns):
            return columns
        if isinstance(columns, StepColumns):
            return columns.with_column(self.column, self.fit.after_each(columns))
        return {**columns, self.column: self.fit.after_each(columns)}

    def answer(self, columns: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
        """The memory figures of an outcome, from columns with memory; empty without a fit."""
        if self.fit is None or not len(columns["num_tokens"]):
            return {}
        if self.column not in columns:
            return {"memory": self.fit}
        return self.of(columns["step"], columns[self.column])

    def of(self, steps: NDArray[np.int64], used: NDArray[np.int64]) -> dict[str, Any]:
        """The memory figures of steps after which so many bytes were reserved, or needed at most."""
        assert self.fit is not None
        mark = "allocated_high_water" if self.column == "peak_allocated_bytes" else "reserved_high_water"
        figures = {"memory": self.fit, mark: int(used.max())}
        if self.device_bytes is None:
            return figures
        over = first_over(used, self.device_bytes - self.fit.other_bytes)
        number = None if over is None else int(steps[over])
        return {**figures, "device_bytes": self.device_bytes, "out_of_memory_step": number}


NOT_ASKED = MemoryQuestion(None)

FIGURES = ("step", "num_tokens", "num_preempted", "num_stalled")
"""Columns of which an outcome is made, besides that of memory."""


def outcome_of(
    columns: Mapping[str, NDArray[Any]],
    limit: int,
    *,
    num_refused_tokens: int | None,
    num_unfinished: int | None,
    hang: Hang | None = None,
    cut: StepLimitReached | None = None,
    clock: Clock | None = None,
    order: Order | None = None,
    memory: MemoryQuestion = NOT_ASKED,
) -> Outcome:
    """The outcome of a history with these columns; `MemoryQuestion.with_memory` has completed them."""
    tokens = columns["num_tokens"]
    over = tokens[tokens > limit]
    return Outcome(
        num_steps=len(tokens),
        num_exceeded=len(over),
        max_excess=int(over.max() - limit) if len(over) else 0,
        peak_tokens=int(tokens.max()) if len(tokens) else 0,
        total_tokens=int(tokens.sum()),
        budget_use=float(tokens.mean() / limit) if len(tokens) else 0.0,
        num_refused_tokens=num_refused_tokens,
        num_preemptions=_total(columns["num_preempted"]),
        num_stalls=_total(columns["num_stalled"]),
        num_unfinished=num_unfinished,
        hang=hang,
        cut=cut,
        clock=clock,
        order=order,
        **memory.answer(columns),
    )


def _total(values: NDArray[Any]) -> int:
    return int(np.maximum(values, 0).sum())


def outcome_dict(history: History) -> dict[str, Any]:
    """A history's name, kind and outcome, in values that JSON has."""
    plain = history.outcome
    model = None if plain.clock is None else plain.clock.model
    if plain.clock is not None and model is not None:  # it has a way of its own to become JSON
        plain = replace(plain, clock=replace(plain.clock, model=None))
    outcome = asdict(plain)
    if model is not None:
        outcome["clock"]["model"] = model.as_dict()
    if history.outcome.fidelity is not None:
        outcome["fidelity"]["share"] = history.outcome.fidelity.share
        if history.outcome.fidelity.calls is not None:
            outcome["fidelity"]["calls"]["share"] = history.outcome.fidelity.calls.share
    if history.outcome.pipeline is not None:
        outcome["pipeline"]["is_saturated"] = history.outcome.pipeline.is_saturated
        outcome["pipeline"]["is_disturbed"] = history.outcome.pipeline.is_disturbed
    return {"name": history.name, "how": history.how, "limit": history.limit, **outcome}
