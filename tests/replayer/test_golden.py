"""The model decides what the real FastDeploy scheduler decided, line for line, on every case and version."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fdtrace.replayer import ORIGINAL, POLICIES
from fdtrace.replayer.case import workload_from_case
from fdtrace.replayer.formulas import BUILTIN
from fdtrace.replayer.simulation import Simulation, golden_line

DATA = Path(__file__).parent.parent / "data"
CASES = (
    "aborts",
    "full_reservation",
    "no_speculation",
    "preemptions",
    "shared_prefix",
    "speculative",
    "tight_blocks",
    "whole_prefill",
)
DRAWN = (
    *(f"case{i}" for i in range(8)),
    *(f"prefill{i}" for i in range(3)),
    *(f"decode{i}" for i in range(3)),
)
VERSIONS = ("original", "pr7438", "pr7499", "pr7623", "release_2_6")


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", CASES)
def test_decisions_equal_the_real_schedulers(
    name: str,
    version: str,
    case_of: Callable[[str], dict[str, Any]],
    golden_of: Callable[[str, str], list[dict[str, Any]]],
) -> None:
    policy = POLICIES.get(version, ORIGINAL)
    formula = BUILTIN[policy.formula if version in POLICIES else version]
    golden = golden_of(name, version)
    simulation = Simulation(workload_from_case(case_of(name)), formula, policy)
    steps = 0
    for step, expected in zip(simulation, golden, strict=True):
        assert golden_line(step) == expected
        if steps % 50 == 0:
            simulation.scheduler.check()
        steps += 1
    simulation.scheduler.check()
    assert steps == len(golden) > 100


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", DRAWN)
def test_decisions_equal_on_drawn_cases(name: str, version: str) -> None:
    """Cases drawn at random, with the real scheduler's decisions: small blocks, aligned chunks, other
    reserves and thresholds; and instances that prefill or decode.
    """
    case = json.loads((DATA / "random" / f"{name}.json").read_text())
    with gzip.open(DATA / "random" / f"{name}.{version}.jsonl.gz", "rt") as lines:
        golden = [json.loads(line) for line in lines]
    policy = POLICIES.get(version, ORIGINAL)
    formula = BUILTIN[policy.formula if version in POLICIES else version]
    simulation = Simulation(workload_from_case(case), formula, policy)
    for step, expected in zip(simulation, golden, strict=True):
        assert golden_line(step) == expected
        simulation.scheduler.check()


def test_reasons_change_no_decision(case_of: Callable[[str], dict[str, Any]]) -> None:
    workload = workload_from_case(case_of("tight_blocks"))
    plain = [golden_line(step) for step in Simulation(workload, BUILTIN["original"])]
    explained = list(Simulation(workload, BUILTIN["original"], explain=True))
    assert [golden_line(step) for step in explained] == plain
    for step in explained:
        told = [reason.request_id for reason in step.decision.reasons if reason.kind == "prefill"]
        assert told == [name for name, _, _ in step.decision.chunks]
        extended = [reason.request_id for reason in step.decision.reasons if reason.kind == "extended"]
        assert extended == step.decision.extended
