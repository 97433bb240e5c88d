"""The search: known faults are found and shrunk within a number of runs, and a shrunk case shows the same."""

from __future__ import annotations

import json
from dataclasses import replace
from random import Random
from typing import Any

import pytest

from fdtrace.recorder.errors import UsageError
from fdtrace.replayer import ORIGINAL, POLICIES, workload_from_case
from fdtrace.replayer.formulas import BUILTIN, parse_formula
from fdtrace.replayer.search.case_of_workload import as_case
from fdtrace.replayer.search.draw_case import SearchSpace, drawn_case
from fdtrace.replayer.search.falsifier import Falsifier, FaultyCase, SearchTarget, signature
from fdtrace.replayer.search.finding_account import account_lines
from fdtrace.replayer.search.findings import FAULT_KINDS, HARD, FaultBounds, FaultKind, Finding, parse_kinds
from fdtrace.replayer.search.mutate_case import mutated_case
from fdtrace.replayer.search.probing import probe
from fdtrace.replayer.search.shrink_case import Shrinker
from fdtrace.replayer.workload.from_recording import workload_from_recording
from tests.replayer.conftest import make_recording, read_case, read_golden

SIZES = {
    "max_num_seqs": 8,
    "num_blocks": 40,
    "block_size": 16,
    "max_num_batched_tokens": 64,
    "max_model_len": 512,
}


def target_of(formula: str, *kinds: FaultKind, **changes: Any) -> SearchTarget:
    found = BUILTIN[formula]
    policy = ORIGINAL if found.policy is None else POLICIES[found.policy]
    return replace(SearchTarget(found, policy, kinds or tuple(FAULT_KINDS), FaultBounds()), **changes)


def search(target: SearchTarget, space: SearchSpace, most_runs: int, seed: int = 0) -> FaultyCase | None:
    falsifier = Falsifier(target, space, lambda i: Random(f"{seed}/{i}"))
    for _ in range(most_runs):
        if (found := falsifier.step()) is not None:
            return found
    return None


def shrunk(target: SearchTarget, found: FaultyCase, **fixed: Any) -> Shrinker:
    shrinker = Shrinker(found.case, found.finding, target.same_as(found.case, found.finding), fixed=fixed)
    shrinker.run()
    return shrinker


KNOWN: list[tuple[str, FaultKind, str, SearchSpace]] = [
    ("original", "exceeded", "", SearchSpace()),
    ("pr7438", "exceeded", "", SearchSpace()),
    ("pr7499", "hang", "the budget is", SearchSpace(variables=False)),
    ("pr7623", "hang", "the budget is", SearchSpace(variables=False)),
    ("release_2_6", "hang", "the budget is", SearchSpace(variables=False)),
    ("release_2_6", "held", "", SearchSpace(role="decode")),
    ("original", "livelock", "preempts itself", SearchSpace()),
    ("ternary", "withheld", "a budget of 1", SearchSpace(fixed={"num_speculative_tokens": 0})),
]
"""Formula, fault, a part of its sentence, where it is searched: what was known before there was a search."""


@pytest.mark.parametrize(("formula", "kind", "cause", "space"), KNOWN)
def test_a_known_fault_is_found_and_shrunk(
    formula: str, kind: FaultKind, cause: str, space: SearchSpace
) -> None:
    target = target_of(formula, kind, cause=cause)
    found = search(target, space, 20_000)
    assert found is not None
    small = shrunk(target, found, **space.fixed)
    assert small.finding.kind == kind
    assert cause in small.finding.text
    assert 1 <= len(small.best["requests"]) <= 6
    assert len(json.dumps(small.best)) <= len(json.dumps(found.case)) + 20
    again = target_of(formula, kind).shows(json.loads(json.dumps(small.best)))
    assert again == small.finding
    assert target.workload(small.best) is not None, "FastDeploy's own checks would let it start"
    assert account_lines(small.best, small.finding, target.formula, target.policy)


def test_a_formula_is_searched_with_all_its_rules() -> None:
    """A cap of 7 tokens a chunk: a request of 70 tokens takes 10 steps to its first token."""
    sizes = {"max_num_batched_tokens": 64, "max_num_seqs": 2, "block_size": 16, "max_model_len": 128}
    case = {**sizes, "num_blocks": 20, "requests": [{"id": "r0", "prompt": 70, "output": 1}]}
    capped = parse_formula("capped: max_num_batched_tokens; chunk_cap 7")
    probed = probe(workload_from_case(case), capped, ORIGINAL, ("exceeded",))
    assert (probed.num_steps, probed.peak_tokens) == (10, 7)
    assert probe(workload_from_case(case), BUILTIN["original"], ORIGINAL, ("exceeded",)).peak_tokens == 64
    found = Finding("exceeded", 2, "")
    assert "chunks: r0 14 to 21" in account_lines(case, found, capped, ORIGINAL)


def test_what_is_not_there_is_not_found() -> None:
    """The budget of #7623 subtracts what the decodes run, and FastDeploy's check leaves room for all of them."""
    target = target_of("pr7623", "exceeded")
    falsifier = Falsifier(target, SearchSpace(), lambda i: Random(f"0/{i}"))
    assert all(falsifier.step() is None for _ in range(1500))
    covered = falsifier.covered
    assert covered.num_runs > 1000
    assert covered.with_preemptions > 50 < covered.with_drafts
    assert 0.9 < covered.nearest["exceeded"] < 1


def test_two_searches_with_one_seed_are_the_same_and_can_be_taken_up_again() -> None:
    def falsifier() -> Falsifier:
        return Falsifier(
            target_of("exact", "exceeded", "hang"), SearchSpace(variables=False), lambda i: Random(f"3/{i}")
        )

    whole, first = falsifier(), falsifier()
    for _ in range(120):
        whole.step()
    for _ in range(70):
        first.step()
    second = falsifier()
    second.resume(json.loads(json.dumps(first.state())))
    for _ in range(50):
        second.step()
    assert json.dumps(second.state()) == json.dumps(whole.state())
    with pytest.raises(UsageError, match="no state"):
        second.resume({"next_run": 1})


@pytest.mark.parametrize("role", ["mixed", "prefill", "decode"])
def test_what_is_drawn_and_changed_is_a_case(role: Any) -> None:
    """Every one can be read, and most are such as FastDeploy would serve."""
    space, allowed = SearchSpace(role, {"max_num_seqs": 3}), 0
    target = target_of("pr7499")
    for i in range(150):
        chance = Random(i)
        case = drawn_case(chance, space)
        for _ in range(3):
            workload = workload_from_case(json.loads(json.dumps(case)))
            assert workload.config.max_num_seqs == 3
            assert workload.config.role == role
            allowed += target.workload(case) is not None
            case = mutated_case(chance, case, space)
            case["max_num_batched_tokens"] = max(1, case["max_num_batched_tokens"])
    assert allowed > 150


def test_a_search_near_a_case_keeps_its_sizes_and_lengths() -> None:
    base = read_case("speculative")
    for i in range(20):
        case = drawn_case(Random(i), SearchSpace(base=base))
        assert {key: case.get(key) for key in SIZES} == {key: base.get(key) for key in SIZES}
        lengths = {(request["prompt"], request["output"]) for request in base["requests"]}
        assert {(request["prompt"], request["output"]) for request in case["requests"]} <= lengths
    found = search(target_of("original", "exceeded"), SearchSpace(base=base), 50)
    assert found is not None


# Shrinking ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "version", "kind", "cause"),
    [
        ("speculative", "original", "exceeded", ""),
        ("tight_blocks", "pr7438", "exceeded", ""),
        ("whole_prefill", "original", "exceeded", ""),
        ("shared_prefix", "original", "exceeded", ""),
        ("aborts", "original", "exceeded", ""),
        ("full_reservation", "pr7499", "hang", "the budget is 0"),
        ("full_reservation", "release_2_6", "hang", "the budget is 0"),
        ("preemptions", "original", "exceeded", ""),
    ],
)
def test_the_labs_cases_shrink(name: str, version: str, kind: FaultKind, cause: str) -> None:
    case = read_case(name)
    target = target_of(version, kind, max_steps=None, allow_refused=True)
    finding = target.shows(case)
    assert finding is not None
    assert cause in finding.text
    small = shrunk(target, FaultyCase(case, finding))
    assert len(small.best["requests"]) <= 6
    assert signature(small.best, small.finding) == signature(case, finding)
    assert target.shows(small.best) == small.finding


def test_a_recording_shrinks_as_its_case_does() -> None:
    case = read_case("speculative")
    recording = make_recording(case, read_golden("speculative", "original"), "original")
    taken, notes = as_case(workload_from_recording(recording))
    assert notes == []
    assert len(taken["requests"]) == len(case["requests"])
    target = target_of("original", "exceeded", max_steps=None)
    finding = target.shows(taken)
    told = target.shows(case)
    assert finding is not None
    assert told is not None
    assert finding.amount == told.amount  # the steps differ: a recording counts none before its first tokens
    assert len(shrunk(target, FaultyCase(taken, finding)).best["requests"]) <= 3


def test_a_fixed_size_stays_and_a_stop_is_heeded() -> None:
    case = {**SIZES, "num_speculative_tokens": 3, "env": {"FD_ENC_DEC_BLOCK_NUM": 4}}
    case["requests"] = [{"id": f"x{i}", "arrival": i, "prompt": 100, "output": 30} for i in range(12)]
    target = target_of("original", "exceeded")
    finding = target.shows(case)
    assert finding is not None
    free = shrunk(target, FaultyCase(case, finding))
    assert free.best["max_num_batched_tokens"] < 64
    assert "env" not in free.best
    held = shrunk(
        target, FaultyCase(case, finding), max_num_batched_tokens=64, env={"FD_ENC_DEC_BLOCK_NUM": 4}
    )
    assert held.best["max_num_batched_tokens"] == 64
    assert held.best["env"] == {"FD_ENC_DEC_BLOCK_NUM": 4}
    assert target.shows(held.best) is not None
    few = Shrinker(case, finding, target.same_as(case, finding), most_runs=5)
    few.run()
    assert few.num_runs <= 5
    assert few.is_stopped
    assert target.shows(few.best) is not None


# Faults with a bound --------------------------------------------------------------------------------------------


def test_a_request_is_starved_where_later_ones_run() -> None:
    """Its block table is too short, and with a budget of 0 no call extends it, while the others still have room."""
    case = {
        **SIZES,
        "max_num_seqs": 4,
        "max_num_batched_tokens": 16,
        "num_speculative_tokens": 3,
        "requests": [{"id": "first", "prompt": 16, "output": 200, "accepts": [3]}]
        + [{"id": f"x{i}", "prompt": 1, "output": 200} for i in range(3)],
    }
    bounds = FaultBounds(starved_steps=5)
    found = probe(workload_from_case(case), BUILTIN["pr7499"], ORIGINAL, ("starved",), bounds)
    assert found.finding is not None
    assert found.finding.amount == 6
    assert "ran nothing in 6 steps in a row" in found.finding.text
    fair = probe(workload_from_case(case), BUILTIN["exact"], ORIGINAL, ("starved",), bounds)
    assert fair.finding is None


def test_waiting_behind_others_is_not_starving() -> None:
    requests = [{"id": f"x{i}", "prompt": 40, "output": 300} for i in range(3)]
    case = {**SIZES, "max_num_seqs": 1, "requests": requests}
    probed = probe(workload_from_case(case), BUILTIN["original"], ORIGINAL, ("starved",), FaultBounds(5))
    assert probed.finding is None
    assert probed.num_steps == 900


def test_preemptions_of_one_request_are_counted() -> None:
    case: dict[str, Any] = {**SIZES, "num_blocks": 9, "max_num_batched_tokens": 20}
    case["requests"] = [{"id": f"x{i}", "prompt": 60, "output": 60} for i in range(6)]
    most = FaultBounds(preemptions=3)
    probed = probe(workload_from_case(case), BUILTIN["original"], ORIGINAL, ("preempted",), most)
    assert probed.finding is not None
    assert probed.finding.amount == 4
    assert "is preempted 4 times" in probed.finding.text


def test_a_reservation_for_sequences_that_do_not_run_withholds() -> None:
    case: dict[str, Any] = {
        **SIZES,
        "max_num_seqs": 8,
        "max_num_batched_tokens": 1024,
        "max_model_len": 4096,
        "num_blocks": 300,
    }
    case |= {"num_speculative_tokens": 5, "requests": [{"id": "a", "prompt": 4000, "output": 2}]}
    wide = {**case, "max_num_seqs": 128}
    bounds = FaultBounds(withheld_steps=2)
    kinds: tuple[FaultKind, ...] = ("withheld",)
    assert probe(workload_from_case(wide), BUILTIN["ternary"], ORIGINAL, kinds, bounds).finding is not None
    assert probe(workload_from_case(case), BUILTIN["pr7438"], ORIGINAL, kinds, bounds).finding is None


def test_a_hang_is_told_before_the_stalls_that_come_first() -> None:
    case = read_case("full_reservation")
    kinds = tuple(FAULT_KINDS)
    soft = probe(workload_from_case(case), BUILTIN["pr7499"], ORIGINAL, kinds, FaultBounds())
    assert soft.finding is not None
    assert soft.finding.kind not in HARD
    told = target_of("pr7499", max_steps=None, allow_refused=True).shows(case)
    assert told is not None
    assert told.kind == "hang"


def test_a_signature_holds_neither_numbers_nor_names() -> None:
    one = Finding(
        "hang", 3, "it hangs at step 3: the budget is 0 with 2 requests decoding: r1, r2 and r7 stall (x)"
    )
    two = Finding("hang", 9, "it hangs at step 9: the budget is -4 with 1 request decoding: b stalls (y)")
    names = ["r1", "r2", "r7"]
    assert one.signature(names) == two.signature(["b"])
    assert Finding("exceeded", 1, "step 1 runs 9 tokens").signature(["a"]) == "exceeded"


def test_a_formula_that_cannot_be_computed_is_a_finding() -> None:
    formula = parse_formula("mine: max_num_batched_tokens + 0 * (1 // (num_running_decodes - 2))")
    target = SearchTarget(formula, ORIGINAL, ("fails",), FaultBounds())
    found = search(target, SearchSpace(), 3000)
    assert found is not None
    assert "mine" in found.finding.text
    small = shrunk(target, found)
    assert len(small.best["requests"]) == 2
    assert account_lines(small.best, small.finding, formula, ORIGINAL)[0].startswith("budget: ")


def test_kinds_are_given_by_name() -> None:
    assert parse_kinds(None) == tuple(FAULT_KINDS)
    assert parse_kinds(["hang, exceeded", "held"]) == ("exceeded", "hang", "held")
    with pytest.raises(UsageError, match="no fault 'hangs'"):
        parse_kinds(["hangs"])
    with pytest.raises(UsageError, match="preemptions is 0"):
        FaultBounds(preemptions=0)
