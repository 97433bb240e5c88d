"""A history's figures, from its columns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fdtrace.replayer.history.history import Cut, Hang, History, Order, Outcome
from fdtrace.replayer.recorded.memory_fit import MemoryFit, first_over
from fdtrace.replayer.recorded.step_durations import Clock


@dataclass(frozen=True)
class MemoryQuestion:
    """How memory grows with a step's tokens, and the size of the device that is asked about."""

    fit: MemoryFit | None
    device_bytes: int | None = None

    def with_reserved(self, columns: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """The columns with `reserved_bytes` as the fit implies it, where they have none and there is a fit."""
        if self.fit is None or not len(columns["num_tokens"]) or "reserved_bytes" in columns:
            return dict(columns)
        return {**columns, "reserved_bytes": self.fit.reserved(columns["num_tokens"])}

    def answer(self, columns: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
        """The outcome's figures of memory, from columns with `reserved_bytes`; none without a fit."""
        if self.fit is None or not len(columns["num_tokens"]):
            return {}
        return self.of(columns["step"], columns["reserved_bytes"])

    def of(self, steps: NDArray[np.int64], reserved: NDArray[np.int64]) -> dict[str, Any]:
        """The figures of steps with these reserved bytes."""
        assert self.fit is not None
        found = {"memory": self.fit, "reserved_high_water": int(reserved.max())}
        if self.device_bytes is None:
            return found
        over = first_over(reserved, self.device_bytes - self.fit.other_bytes)
        number = None if over is None else int(steps[over])
        return {**found, "device_bytes": self.device_bytes, "out_of_memory_step": number}


NOT_ASKED = MemoryQuestion(None)


def outcome_of(
    columns: Mapping[str, NDArray[Any]],
    limit: int,
    *,
    num_refused_tokens: int | None,
    num_unfinished: int,
    hang: Hang | None = None,
    cut: Cut | None = None,
    clock: Clock | None = None,
    order: Order | None = None,
    memory: MemoryQuestion = NOT_ASKED,
) -> Outcome:
    """The outcome of a history with these columns, as `MemoryQuestion.with_reserved` gives them."""
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
    """A history's name, kind and outcome, of values that JSON knows."""
    found = asdict(history.outcome)
    if history.outcome.fidelity is not None:
        found["fidelity"]["share"] = history.outcome.fidelity.share
        if history.outcome.fidelity.calls is not None:
            found["fidelity"]["calls"]["share"] = history.outcome.fidelity.calls.share
    if history.outcome.pipeline is not None:
        found["pipeline"]["is_saturated"] = history.outcome.pipeline.is_saturated
        found["pipeline"]["is_disturbed"] = history.outcome.pipeline.is_disturbed
    return {"name": history.name, "how": history.how, "limit": history.limit, **found}
