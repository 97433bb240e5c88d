"""When a replay hangs: found under every formula and policy, dated and explained; and no false alarm."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from fdtrace.replayer import (
    ORIGINAL,
    POLICIES,
    RELEASE_2_6,
    Replay,
    Simulation,
    history_of,
    workload_from_case,
)
from fdtrace.replayer.formulas import BUILTIN
from fdtrace.replayer.history import Hang
from tests.replayer.conftest import read_case
from tests.replayer.test_golden import CASES, VERSIONS

SIZES = {
    "max_num_seqs": 8,
    "num_blocks": 8,
    "block_size": 16,
    "max_num_batched_tokens": 64,
    "max_model_len": 512,
}


def case_of(*requests: tuple[int, int, int], **changes: Any) -> dict[str, Any]:
    """Requests of (arrival, prompt, output), called a, b, c …"""
    specs = [
        {"id": chr(ord("a") + i), "arrival": arrival, "prompt": prompt, "output": output}
        for i, (arrival, prompt, output) in enumerate(requests)
    ]
    return {**SIZES, **changes, "requests": specs}


def simulated(case: dict[str, Any], version: str = "original") -> Simulation:
    policy = POLICIES.get(version, ORIGINAL)
    formula = BUILTIN[policy.formula if version in POLICIES else version]
    simulation = Simulation(workload_from_case(case), formula, policy, with_rows=False)
    for _ in simulation:
        pass
    return simulation


def hang_of(case: dict[str, Any], version: str = "original") -> Hang:
    """How it hangs, the same as a simulation and as a replay of a recording."""
    simulation = simulated(case, version)
    assert simulation.hang is not None
    assert simulation.cut is None
    run = Replay(simulation.workload, simulation.scheduler.formula, simulation.scheduler.policy)
    run.run()
    assert run.hang is not None
    assert run.hang.cause.partition(" (")[0] == simulation.hang.cause.partition(" (")[0]
    outcome = history_of(run).outcome
    assert outcome.hang == run.hang
    assert outcome.cut is None
    return simulation.hang


@pytest.mark.parametrize("version", ["original", "pr7438", "pr7499", "exact"])
def test_a_request_that_preempts_itself_again_and_again(version: str) -> None:
    hang = hang_of(case_of((0, 200, 5), (3, 20, 5)), version)
    assert hang.step == 2  # its first 128 tokens, all that 8 blocks hold, are computed in two steps
    assert "a preempts itself again and again" in hang.cause
    assert "needs 13 of 8 blocks" in hang.cause


def test_the_same_under_release_2_6_waits_for_blocks() -> None:
    hang = hang_of(case_of((0, 200, 5), (3, 20, 5)), "release_2_6")
    assert hang.step <= 2
    assert "the running prefill of a needs 13 of 8 blocks" in hang.cause


@pytest.mark.parametrize("version", VERSIONS)
def test_a_head_of_the_queue_that_is_larger_than_the_cache(version: str) -> None:
    case = case_of(
        *((0, 100, 5), (1, 1000, 5), (2, 50, 5)),
        num_blocks=10,
        max_num_batched_tokens=4096,
        max_model_len=4096,
    )
    hang = hang_of(case, version)
    assert hang.step == 5
    assert "the head of the queue, b, needs 63 of 10 blocks" in hang.cause


@pytest.mark.parametrize("version", VERSIONS)
def test_extensions_by_no_blocks(version: str) -> None:
    case = case_of((0, 100, 60), num_blocks=64, max_num_batched_tokens=128, env={"FD_ENC_DEC_BLOCK_NUM": 0})
    hang = hang_of(case, version)
    assert hang.step == 13  # its 7 blocks hold 12 tokens more than the prompt
    assert "1 request stalls, and each call extends by 0 blocks" in hang.cause


@pytest.mark.parametrize("version", VERSIONS)
def test_requests_that_hold_their_blocks_and_never_join(version: str) -> None:
    held = [
        {"id": f"d{i}", "arrival": i, "prompt": 100, "output": 9, "join_after": 9999, "abort_after": 20}
        for i in range(2)
    ]
    asks = [{"id": f"e{i}", "arrival": 5 + i, "prompt": 100, "output": 9, "join_after": 1} for i in range(3)]
    case = {**SIZES, "num_blocks": 20, "role": "decode", "requests": held + asks}
    hang = simulated({**case, "max_steps": 500}, version).hang
    assert hang is not None
    assert hang.step == 2
    assert "2 requests hold 18 of 20 blocks and did not join" in hang.cause
    assert "asks for 9 blocks with 2 free" in hang.cause
    later = simulated(case, version)  # where the limit lies behind their joining, they join
    assert later.hang is None
    assert later.num_finished + later.num_aborted + later.num_failed == 5


def test_a_hang_begins_with_the_first_call_that_moves_nothing_whatever_arrives_later() -> None:
    stuck = case_of((3, 1000, 5), (40, 20, 5), max_model_len=4096, max_num_batched_tokens=4096)
    assert hang_of(stuck).step == 3
    idle = case_of((0, 20, 5), (300, 1000, 5), max_model_len=4096, max_num_batched_tokens=4096)
    hang = simulated(idle).hang
    assert hang is not None
    assert hang.step == 300


def test_an_abort_that_is_still_to_come_can_end_it() -> None:
    case = case_of((0, 100, 500), (1, 20, 5), max_num_batched_tokens=128, env={"FD_ENC_DEC_BLOCK_NUM": 0})
    case["max_model_len"] = 1024
    case["num_blocks"] = 100
    case["requests"][0]["abort_after"] = 200
    simulation = simulated(case)
    assert simulation.hang is None
    assert (simulation.num_finished, simulation.num_aborted) == (1, 1)


# No false alarm -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", CASES)
def test_the_labs_cases_hang_where_the_real_scheduler_does(name: str, version: str) -> None:
    simulation = simulated(read_case(name), version)
    hangs = name == "full_reservation" and version in ("pr7499", "pr7623", "release_2_6")
    assert (simulation.hang is not None) == hangs
    assert (simulation.cut is not None) == (name == "full_reservation" and not hangs)


def test_a_long_storm_of_preemptions_is_no_hang() -> None:
    """Each of them computes its prompt anew many times, and every round makes a token."""
    requests = [(0, 60, 60) for _ in range(6)]
    simulation = simulated(case_of(*requests, num_blocks=9, max_num_batched_tokens=20), "original")
    assert simulation.hang is None
    assert simulation.num_finished == 6
    assert simulation.step > 400


def test_a_request_that_preempts_itself_and_comes_back_is_no_hang() -> None:
    simulation = simulated(case_of((0, 60, 60), (0, 30, 90), num_blocks=9))
    assert simulation.hang is None
    assert simulation.num_finished == 2


def drawn(random: Random) -> tuple[dict[str, Any], str]:
    """A small workload with few blocks, and a version."""
    requests = [
        (random.randint(0, 30), random.randint(1, 200), random.randint(2, 40))
        for _ in range(random.randint(1, 6))
    ]
    case = case_of(
        *requests,
        num_blocks=random.randint(4, 20),
        max_num_batched_tokens=random.randint(1, 80),
        num_speculative_tokens=random.choice([0, 3]),
        prefix_caching=random.random() < 0.5,
        env={"FD_ENC_DEC_BLOCK_NUM": random.choice([0, 1, 2, 2])},
    )
    return case, random.choice([*VERSIONS, "exact"])


@pytest.mark.parametrize("seed", range(6))
def test_what_hangs_never_goes_on_and_what_does_not_hang_ends(seed: int) -> None:
    """From the first step of a hang on, no request gains a token of output or ends, however long one goes on."""
    random = Random(seed)
    for _ in range(20):
        case, version = drawn(random)
        policy = POLICIES.get(version, ORIGINAL)
        formula = BUILTIN[policy.formula if version in POLICIES else version]
        ended = Simulation(workload_from_case(case), formula, policy, with_rows=False)
        gains = [step.number for step in ended if step.forward.num_decodes or step.forward.started]
        assert ended.cut is None
        if ended.hang is None:
            assert ended.num_finished == len(case["requests"])
            continue
        assert ended.hang.step > max(gains, default=-1)
        on = Simulation(
            workload_from_case({**case, "max_steps": ended.step + 500}), formula, policy, with_rows=False
        )
        later = [step for step in on if step.number >= ended.hang.step]
        assert len(later) >= 500
        assert not any(step.forward.num_decodes or step.forward.started for step in later)


def test_a_hang_of_release_2_6_whose_reserve_still_decays_is_none() -> None:
    """The ratio comes down with each call that does something, until the head of the queue is admitted."""
    case = case_of((0, 20, 200), (1, 60, 5), num_blocks=24, max_num_batched_tokens=128)
    simulation = simulated(case, "release_2_6")
    assert simulation.hang is None
    assert simulation.num_finished == 2
    assert RELEASE_2_6.new_token_ratio


# A cut --------------------------------------------------------------------------------------------------------


def test_a_cut_is_no_end_and_no_hang() -> None:
    simulation = simulated(case_of((0, 20, 50), (100, 20, 5), max_steps=5))
    assert simulation.hang is None
    assert simulation.cut is not None
    assert (simulation.cut.step, simulation.cut.num_unfinished, simulation.cut.num_to_come) == (5, 1, 1)
    assert (
        simulation.cut.text == "cut at step 5 by the limit of 5 steps, with 1 unfinished and 1 still to come"
    )


def test_the_limit_grows_with_what_is_to_come() -> None:
    late = simulated(case_of((25_000, 40, 30), (25_000, 400, 30), num_blocks=64))
    assert late.cut is None
    assert late.num_finished == 2
    long = workload_from_case(case_of((0, 20, 490), (0, 20, 490), num_blocks=400, max_num_batched_tokens=1))
    assert long.max_steps > 2 * 490


def test_a_replay_that_its_limit_ends_is_cut() -> None:
    workload = workload_from_case(case_of((0, 20, 50), max_steps=5))
    run = Replay(workload, BUILTIN["original"])
    run.run()
    outcome = history_of(run).outcome
    assert outcome.hang is None
    assert outcome.cut is not None
    assert (outcome.cut.step, outcome.cut.num_unfinished) == (5, 1)
    whole = Replay(workload_from_case(case_of((0, 20, 50), max_steps=50)), BUILTIN["original"])
    whole.run()
    assert (history_of(whole).outcome.num_steps, whole.cut) == (50, None)
