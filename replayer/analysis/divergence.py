"""The first step in which a replay departs from its recording, side by side, and the rule that differed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from fdtrace.recorder.trace.column_values import MISSING
from numpy.typing import NDArray

from fdtrace.recorder.trace.recording import Recording
from fdtrace.replayer.history.as_recorded import RowsOfStep
from fdtrace.replayer.history.history import Divergence
from fdtrace.replayer.model.events import StepRow
from fdtrace.replayer.recorded.step_state import column

COMPARED = (
    "num_tokens",
    "num_prefill_tokens",
    "num_decode_tokens",
    "num_preempted",
    "num_running",
    "num_waiting",
    "num_free_blocks",
    "token_budget",
)
"""What must be equal for a step to count as reproduced, where the recording knows it."""

STATE = ("num_running", "num_waiting", "num_free_blocks")
"""What is shown of the state before."""

RULES = (
    ("token_budget", "the budget formula: the calls began with other budgets"),
    ("num_preempted", "preemption: one of the two preempted more"),
    ("num_prefill_tokens", "prefill: what was admitted, or how large its chunks were"),
    ("num_decode_tokens", "decodes: which of them ran, or what they drafted"),
    ("num_running", "admission, or when requests came and went"),
    ("num_waiting", "admission, or when requests came and went"),
    ("num_free_blocks", "KV blocks: how many were allocated or freed"),
    (
        "num_tokens",
        "none: the recorded prefill and decode tokens are reproduced, and do not add up to num_tokens",
    ),
)
"""A column that differs -> the rule that it speaks of, the most telling column first."""

ROWS_RULE = "which requests ran, their tokens or their drafts: the figures of the whole step are equal"
"""Where no column differs."""

MOST_ROWS = 6
"""Requests shown of each side."""


def divergence_at(
    recording: Recording,
    columns: Mapping[str, NDArray[Any]],
    at: int,
    *,
    recorded_rows: RowsOfStep | None,
    replayed_rows: RowsOfStep | None,
    reasons: Sequence[str],
) -> Divergence:
    """The `at`-th step of both: it must be in both. Rows None: of one of them it is not known what ran."""
    pairs = [(name, int(column(recording, name)[at]), int(columns[name][at])) for name in COMPARED]
    known = tuple(pair for pair in pairs if MISSING not in pair)
    different = {name for name, recorded, replayed in known if recorded != replayed}
    number = int(recording.steps["step"][at])
    only_recorded: tuple[str, ...] = ()
    only_replayed: tuple[str, ...] = ()
    if recorded_rows is not None and replayed_rows is not None and (mine := recorded_rows(number)):
        only_recorded, only_replayed = _unlike(mine, replayed_rows(int(columns["step"][at])), not different)
    return Divergence(
        step=number,
        compared=known,
        before=() if at == 0 else _state(recording, at - 1),
        rule=next((rule for name, rule in RULES if name in different), ROWS_RULE),
        only_recorded=only_recorded,
        only_replayed=only_replayed,
        reasons=tuple(reasons),
    )


def _state(recording: Recording, at: int) -> tuple[tuple[str, int], ...]:
    values = ((name, int(column(recording, name)[at])) for name in STATE)
    return tuple((name, value) for name, value in values if value != MISSING)


def _unlike(
    mine: list[StepRow], theirs: list[StepRow], drafts: bool
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The requests of a step that only one of the two has, or has otherwise: kind, tokens and, if asked, drafts."""
    ours, others = {_key(row, drafts) for row in mine}, {_key(row, drafts) for row in theirs}
    return (
        tuple(_as_text(row, drafts) for row in mine if _key(row, drafts) not in others)[:MOST_ROWS],
        tuple(_as_text(row, drafts) for row in theirs if _key(row, drafts) not in ours)[:MOST_ROWS],
    )


def _key(row: StepRow, drafts: bool) -> tuple[str, str, int, int]:
    return row.request_id, row.kind, row.num_tokens, row.num_draft_tokens if drafts else 0


def _as_text(row: StepRow, drafts: bool) -> str:
    said = f" with {row.num_draft_tokens} drafts" if drafts else ""
    return f"{row.request_id} {row.kind} {row.num_tokens}{said} after {row.num_computed_tokens}"


def equal_steps(recording: Recording, columns: Mapping[str, NDArray[Any]], common: int) -> NDArray[np.bool_]:
    """Whether each of the first `common` steps is reproduced, in what both know."""
    equal = np.ones(common, dtype=bool)
    for name in COMPARED:
        theirs, mine = column(recording, name)[:common], columns[name][:common]
        equal &= (theirs == MISSING) | (mine == MISSING) | (theirs == mine)
    return equal
