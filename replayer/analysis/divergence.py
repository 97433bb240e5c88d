"""The first step in which a replay differs from its recording: both side by side, and the rule that differed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fdtrace.recorder.trace.column_values import MISSING
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
"""Columns that must be equal for a step to count as reproduced, if the recording has them."""

STATE = ("num_running", "num_waiting", "num_free_blocks")
"""Columns that show the state before the step."""

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
"""Column that differs -> the rule that it points to. The most significant column comes first."""

ROWS_RULE = "which requests ran, their tokens or their drafts: the figures of the whole step are equal"
"""The rule if no column differs."""

MOST_ROWS = 6
"""At most so many requests are shown on each side."""


def divergence_at(
    recording: Recording,
    columns: Mapping[str, NDArray[Any]],
    at: int,
    *,
    recorded_rows: RowsOfStep | None,
    replayed_rows: RowsOfStep | None,
    reasons: Sequence[str],
) -> Divergence:
    """Compare one step of a recording and its replay.

    Args:
        recording: the recording.
        columns: the columns of the replay.
        at: index of the step in both; it must be in both.
        recorded_rows: gives the requests of a recorded step; None: they are not known.
        replayed_rows: the same for the replay.
        reasons: what the replay decided in this step.
    """
    pairs = [(name, int(column(recording, name)[at]), int(columns[name][at])) for name in COMPARED]
    compared = tuple(pair for pair in pairs if MISSING not in pair)
    different = {name for name, recorded, replayed in compared if recorded != replayed}
    number = int(recording.steps["step"][at])
    only_recorded: tuple[str, ...] = ()
    only_replayed: tuple[str, ...] = ()
    if recorded_rows is not None and replayed_rows is not None and (rows := recorded_rows(number)):
        only_recorded, only_replayed = _different_rows(
            rows, replayed_rows(int(columns["step"][at])), drafts=not different
        )
    return Divergence(
        step=number,
        compared=compared,
        before=() if at == 0 else _state(recording, at - 1),
        rule=next((rule for name, rule in RULES if name in different), ROWS_RULE),
        only_recorded=only_recorded,
        only_replayed=only_replayed,
        reasons=tuple(reasons),
    )


def _state(recording: Recording, at: int) -> tuple[tuple[str, int], ...]:
    values = ((name, int(column(recording, name)[at])) for name in STATE)
    return tuple((name, value) for name, value in values if value != MISSING)


def _different_rows(
    recorded: list[StepRow], replayed: list[StepRow], *, drafts: bool
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The rows that are only recorded, and those that are only replayed.

    Rows are equal if request, kind, tokens and, with `drafts`, drafts are equal.
    """
    recorded_keys = {_key(row, drafts) for row in recorded}
    replayed_keys = {_key(row, drafts) for row in replayed}
    return (
        tuple(_as_text(row, drafts) for row in recorded if _key(row, drafts) not in replayed_keys)[
            :MOST_ROWS
        ],
        tuple(_as_text(row, drafts) for row in replayed if _key(row, drafts) not in recorded_keys)[
            :MOST_ROWS
        ],
    )


def _key(row: StepRow, drafts: bool) -> tuple[str, str, int, int]:
    return row.request_id, row.kind, row.num_tokens, row.num_draft_tokens if drafts else 0


def _as_text(row: StepRow, drafts: bool) -> str:
    drafts_text = f" with {row.num_draft_tokens} drafts" if drafts else ""
    return f"{row.request_id} {row.kind} {row.num_tokens}{drafts_text} after {row.num_computed_tokens}"


def equal_steps(recording: Recording, columns: Mapping[str, NDArray[Any]], common: int) -> NDArray[np.bool_]:
    """Whether each of the first `common` steps is reproduced: all values that both have are equal."""
    equal = np.ones(common, dtype=bool)
    for name in COMPARED:
        recorded, replayed = column(recording, name)[:common], columns[name][:common]
        equal &= (recorded == MISSING) | (replayed == MISSING) | (recorded == replayed)
    return equal
