"""The prefill and decode roles: what happens to a request before it runs, and how it goes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from fdtrace.recorder.errors import UsageError
from fdtrace.replayer import (
    ORIGINAL,
    POLICIES,
    RELEASE_2_6,
    Arrived,
    Discarded,
    Emitted,
    Finished,
    Joined,
    Preallocate,
    Replay,
    Rescheduled,
    Schedule,
    Scheduler,
    SchedulerConfig,
    SchedulerFailed,
    Simulation,
    golden_line,
    workload_from_case,
)
from fdtrace.replayer.config import Role
from fdtrace.replayer.formulas import BUILTIN

DATA = Path(__file__).parent.parent / "data" / "random"
ROLES: tuple[Role, ...] = ("prefill", "decode")


def config_of(role: Role, **changes: Any) -> SchedulerConfig:
    sizes: dict[str, Any] = {
        "max_num_batched_tokens": 64,
        "max_num_seqs": 3,
        "num_blocks": 20,
        "block_size": 16,
        "max_model_len": 256,
    }
    return SchedulerConfig(role=role, **{**sizes, **changes})


def scheduler_of(config: SchedulerConfig, version: str = "original") -> Scheduler:
    return Scheduler(config, BUILTIN[POLICIES[version].formula], POLICIES[version])


@pytest.mark.parametrize("role", ROLES)
def test_a_request_has_its_slot_and_blocks_before_it_runs(role: Role) -> None:
    scheduler = scheduler_of(config_of(role))
    scheduler.apply(Arrived("a", 40, 20))
    assert (scheduler.num_asking, scheduler.num_running) == (1, 0)
    assert scheduler.apply(Preallocate()) == ["a"]
    assert scheduler.num_blocks_of("a") == 3 + 2  # its prompt's, and those of an extension
    assert scheduler.apply(Schedule()).is_empty
    scheduler.apply(Joined("a"))
    chunk = (0, 40) if role == "prefill" else (40, 41)
    assert scheduler.apply(Schedule()).chunks == [("a", *chunk)]
    scheduler.check()


@pytest.mark.parametrize("role", ROLES)
def test_none_passes_one_that_is_refused(role: Role) -> None:
    scheduler = scheduler_of(config_of(role))
    for name, prompt in (("a", 160), ("b", 160), ("c", 16)):
        scheduler.apply(Arrived(name, prompt, 20))
    assert scheduler.apply(Preallocate()) == ["a"]
    assert scheduler.num_asking == 2
    scheduler.apply(Discarded("a"))
    assert "a" not in scheduler
    assert scheduler.apply(Preallocate()) == ["b", "c"]


@pytest.mark.parametrize("role", ROLES)
def test_slots_are_given_to_as_many_as_run(role: Role) -> None:
    scheduler = scheduler_of(config_of(role))
    for i in range(5):
        scheduler.apply(Arrived(f"r{i}", 16, 20))
    assert scheduler.apply(Preallocate()) == ["r0", "r1", "r2"]
    scheduler.apply(Joined("r1"))
    assert scheduler.apply(Preallocate()) == []
    scheduler.apply(Discarded("r0"))
    assert scheduler.apply(Preallocate()) == ["r3"]


def test_a_prefill_instance_holds_a_request_until_its_cache_is_sent() -> None:
    scheduler = scheduler_of(config_of("prefill"))
    scheduler.apply(Arrived("a", 100, 20))
    scheduler.apply(Preallocate())
    scheduler.apply(Joined("a"))
    assert scheduler.apply(Schedule()).chunks == [("a", 0, 64)]
    assert scheduler.apply(Schedule()).chunks == [("a", 64, 100)]
    scheduler.apply(Emitted({"a": 1}))
    decision = scheduler.apply(Schedule())
    assert (decision.is_empty, decision.num_running, scheduler.decodes()) == (True, 1, [])
    assert decision.num_scheduled_tokens == 0  # no decode is charged there
    scheduler.apply(Finished("a"))
    assert (scheduler.num_free_blocks, scheduler.num_requests) == (20, 0)


def test_a_decode_instance_decodes_the_first_token_that_came() -> None:
    config = config_of("decode", num_speculative_tokens=3, spec_method="mtp")
    scheduler = scheduler_of(config)
    scheduler.apply(Arrived("a", 40, 20))
    scheduler.apply(Preallocate())
    scheduler.apply(Joined("a"))
    decision = scheduler.apply(Schedule())
    (row,) = scheduler.rows(decision)
    assert (row.kind, row.num_tokens, row.num_computed_tokens) == ("decode", 2, 41)
    scheduler.apply(Emitted({"a": 2}))
    (row,) = scheduler.rows(scheduler.apply(Schedule()))
    assert (row.num_tokens, row.num_computed_tokens) == (4, 43)


@pytest.mark.parametrize("version", POLICIES)
def test_what_a_decode_instance_preempts_is_gone(version: str) -> None:
    config = config_of("decode", num_blocks=14, init_new_token_ratio=0.0, min_new_token_ratio=0.0)
    scheduler = scheduler_of(config, version)
    for name in ("a", "b"):
        scheduler.apply(Arrived(name, 70, 90))
        assert scheduler.apply(Preallocate()) == [name]
        scheduler.apply(Joined(name))
        scheduler.apply(Schedule())
    preempted: list[str] = []
    while not preempted:
        preempted = scheduler.apply(Schedule()).preempted
        scheduler.apply(Emitted(dict.fromkeys(scheduler.decodes(), 1)))
        scheduler.check()
    assert preempted == ["b"]
    assert "b" not in scheduler
    with pytest.raises(KeyError):
        scheduler.apply(Rescheduled("b"))
    assert scheduler.num_free_blocks == 14 - scheduler.num_blocks_of("a")


def test_a_prefill_of_release_2_6_fails_where_speculation_finds_no_block() -> None:
    config = config_of("prefill", num_blocks=17, num_speculative_tokens=1, spec_method="mtp")
    scheduler = scheduler_of(config, "release_2_6")
    scheduler.apply(Arrived("a", 240, 20))
    scheduler.apply(Preallocate())
    assert scheduler.num_free_blocks == 0
    scheduler.apply(Joined("a"))
    with pytest.raises(SchedulerFailed, match="1 blocks with 0 free"):
        scheduler.apply(Schedule())


def test_a_request_that_waits_for_its_reserve_hangs_a_decode_instance_of_release_2_6() -> None:
    workload = workload_from_case(json.loads((DATA / "decode2.json").read_text()))
    simulation = Simulation(workload, BUILTIN["pr7623"], RELEASE_2_6, with_rows=False)
    for step in simulation:
        if simulation.hang is not None:
            assert step.forward.num_tokens == 0
            break
    assert simulation.hang is not None
    assert "the next request that joined lacks" in simulation.hang.cause
    before = Simulation(workload, BUILTIN["original"], ORIGINAL, with_rows=False)
    assert sum(1 for _ in before) > simulation.hang.step
    assert before.hang is None


def test_one_that_gets_no_blocks_is_named_as_the_hang() -> None:
    sizes = {
        "role": "decode",
        "max_num_seqs": 2,
        "num_blocks": 8,
        "max_num_batched_tokens": 64,
        "max_steps": 9,
    }
    case = {**sizes, "block_size": 16, "max_model_len": 512, "requests": [{"prompt": 200, "output": 9}]}
    simulation = Simulation(workload_from_case(case), BUILTIN["original"])
    assert len(list(simulation)) == 9
    assert simulation.hang is not None
    assert "given no slot and no blocks" in simulation.hang.cause


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", ["prefill0", "prefill1", "decode0", "decode1"])
def test_a_replay_ends_as_the_simulation_does(name: str, policy: str) -> None:
    """Its steps are the simulation's that ran tokens; its rows come from its tape."""
    case = json.loads((DATA / f"{name}.json").read_text())
    for spec in case["requests"]:  # waiting calls are no steps: there, clocks differ
        spec.pop("abort_after", None)
        spec["arrival"] = spec["join_after"] = spec["send_after"] = 0
    workload = workload_from_case(case)
    formula = BUILTIN[POLICIES[policy].formula]
    lines = [golden_line(step) for step in Simulation(workload, formula, POLICIES[policy])]
    ran = [line for line in lines if line["tokens"]]
    replay = Replay(workload, formula, POLICIES[policy])
    replay.run()
    columns, rows = replay.tape.columns(), replay.tape.reader()
    assert columns["num_tokens"].tolist()[: len(ran)] == [line["tokens"] for line in ran]
    assert columns["num_free_blocks"].tolist()[: len(ran)] == [line["free_blocks"] for line in ran]
    for step in range(0, len(ran), 7):
        told = [[r.request_id, r.kind, r.num_tokens, r.num_computed_tokens] for r in rows(step)]
        assert sorted(told) == sorted(ran[step]["rows"])


SIZES = {"max_num_seqs": 2, "num_blocks": 50, "max_num_batched_tokens": 64, "num_speculative_tokens": 2}
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"role": "both", "requests": []}, "unknown role 'both'"),
    ({"role": "decode", "requests": [{"prompt": 5, "output": 1}]}, "`requests[0].output` must be at least 2"),
    (
        {"role": "decode", "requests": [{"prompt": 5, "output": 9, "accepts": [2]}]},
        "more than the 1 draft of its first",
    ),
    (
        {"role": "decode", "requests": [{"prompt": 5, "output": 9, "join_after": -1}]},
        "`requests[0].join_after` must be",
    ),
]


@pytest.mark.parametrize(("case", "message"), WRONG)
def test_what_a_role_cannot_have_is_told(case: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        workload_from_case({**SIZES, **case})


def test_a_prefill_instance_drafts_one_token() -> None:
    requests = [{"prompt": 5, "output": 9}]
    config = workload_from_case({**SIZES, "role": "prefill", "requests": requests}).config
    assert (config.role, config.num_draft_tokens) == ("prefill", 1)
    suffix = {**SIZES, "role": "prefill", "spec_method": "suffix", "requests": requests}
    assert workload_from_case(suffix).config.num_draft_tokens == 2
