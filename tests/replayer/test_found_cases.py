"""What long searches found in FastDeploy, as small cases: each still shows it."""

from __future__ import annotations

import json

import pytest

from fdtrace.replayer.config import ORIGINAL, POLICIES
from fdtrace.replayer.formulas import BUILTIN
from fdtrace.replayer.search.falsifier import SearchTarget
from fdtrace.replayer.search.findings import FaultBounds, FaultKind
from tests.replayer.conftest import DATA

FOUND: list[tuple[str, str, FaultKind, str]] = [
    ("prefill_preempts_itself", "original", "preempted", "r1 is preempted 21 times by step 41"),
    ("prefill_preempts_itself", "pr7623", "preempted", "r1 is preempted 21 times by step 41"),
    (
        "no_slot_for_the_next_request",
        "release_2_6",
        "fails",
        "the scheduler raises: No available position is available for new request",
    ),
    ("preempted_again_and_again", "release_2_6", "preempted", "r3 is preempted 21 times by step 210"),
    (
        "starved_behind_a_later_one",
        "release_2_6",
        "starved",
        "r2 ran nothing in 101 steps in a row, up to step 268",
    ),
]


@pytest.mark.parametrize(("name", "formula", "kind", "text"), FOUND)
def test_a_found_case_shows_its_fault(name: str, formula: str, kind: FaultKind, text: str) -> None:
    case = json.loads((DATA / "found" / f"{name}.json").read_text())
    by = BUILTIN[formula]
    policy = ORIGINAL if by.policy is None else POLICIES[by.policy]
    finding = SearchTarget(by, policy, (kind,), FaultBounds()).shows(case)
    assert finding is not None, "FastDeploy's own checks let it start, and it shows the fault"
    assert finding.text.startswith(text)
