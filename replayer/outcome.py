"""A history's figures, from its columns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from replayer.clock import Clock
from replayer.history import Fidelity, Hang, History, Outcome
from replayer.memory import MemoryFit


def outcome_of(
    columns: Mapping[str, NDArray[Any]],
    limit: int,
    *,
    num_refused_tokens: int | None,
    num_unfinished: int,
    hang: Hang | None = None,
    reserved_high_water: int | None = None,
    fidelity: Fidelity | None = None,
    clock: Clock | None = None,
) -> Outcome:
    """The outcome of a history with these columns."""
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
        reserved_high_water=reserved_high_water,
        fidelity=fidelity,
        clock=clock,
    )


def _total(values: NDArray[Any]) -> int:
    return int(np.maximum(values, 0).sum())


def implied_memory(columns: dict[str, NDArray[Any]], memory: MemoryFit | None) -> int | None:
    """Add `reserved_bytes` as the fit implies it; the high-water."""
    if memory is None or not len(columns["num_tokens"]):
        return None
    columns["reserved_bytes"] = memory.reserved(columns["num_tokens"])
    return int(columns["reserved_bytes"][-1])


def outcome_dict(history: History) -> dict[str, Any]:
    """A history's name, kind and outcome, of values that JSON knows."""
    found = asdict(history.outcome)
    if history.outcome.fidelity is not None:
        found["fidelity"]["share"] = history.outcome.fidelity.share
    return {"name": history.name, "how": history.how, "limit": history.limit, **found}
