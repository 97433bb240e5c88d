"""Why the head of the queue stayed, in the inspector's words, for the reasons that only some engines have."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fdtrace.replayer.analysis.step_account import StepAccounting
from fdtrace.tui.inspector.inspector import Inspection
from fdtrace.tui.inspector.text import inspection_lines
from fdtrace.tui.theme import BLOCKS, DARK, Look
from tests.tui.recordings import case_recording

LOOK = Look(BLOCKS, DARK)


def said_of(reason: str, **values: int | None) -> str:
    """What the inspector says of a step whose head of the queue was refused for a reason."""
    recording, history = case_recording("tight_blocks")
    account = StepAccounting(recording).account(history, None, int(history.columns["step"][40]))
    assert account is not None
    changed = replace(account, not_admitted=reason, values={**account.values, **values})
    lines = inspection_lines(Inspection(0, account.step, account=changed), 100, LOOK)
    return " ".join(" ".join(line.plain for line in lines).split())


@pytest.mark.parametrize(
    ("reason", "values", "sentence"),
    [
        (
            "cache_read",
            {"cache_read_budget": 1024, "num_cache_read_tokens": 1000},
            "was not admitted: its computed tokens did not fit what the batch may still read from the KV cache: "
            "1000 of 1024 were counted",
        ),
        (
            "cache_read",
            {"cache_read_budget": None},
            "was not admitted: its computed tokens did not fit what the batch may still read from the KV cache",
        ),
        (
            "safety_margin",
            {"num_missing_blocks": 3},
            "was not admitted: fewer blocks were free than the safety margin keeps: 3 more were needed",
        ),
        (
            "preemption",
            {"num_preempted": 0},
            "was not admitted: a request was preempted, and none is admitted until a running one ends",
        ),
        (
            "preemption",
            {"num_preempted": 2},
            "was not admitted: this call preempted a request, and then admits none",
        ),
    ],
)
def test_a_refusal_is_a_sentence(reason: str, values: dict[str, int | None], sentence: str) -> None:
    assert sentence in said_of(reason, **values)
