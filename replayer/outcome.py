"""A history's figures, from its columns."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fdtrace.replayer.clock import Clock
from fdtrace.replayer.history import Cut, Hang, History, Order, Outcome
from fdtrace.replayer.memory import MemoryFit, first_over


@dataclass(frozen=True)
class MemoryQuestion:
    """How memory grows with a step's tokens, and the size of the device that is asked about."""

    fit: MemoryFit | None
    device_bytes: int | None = None

    def answer(self, columns: dict[str, NDArray[Any]]) -> dict[str, Any]:
        """The outcome's figures of memory. Adds `reserved_bytes` as the fit implies it, where it is not recorded."""
        if self.fit is None or not len(columns["num_tokens"]):
            return {}
        if "reserved_bytes" not in columns:
            columns["reserved_bytes"] = self.fit.reserved(columns["num_tokens"])
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
    columns: dict[str, NDArray[Any]],
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
    """The outcome of a history with these columns; `reserved_bytes` is added to them where it is implied."""
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
    return {"name": history.name, "how": history.how, "limit": history.limit, **found}
