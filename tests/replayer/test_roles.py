"""The prefill and decode roles: what happens to a request before it runs, and how it goes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from recorder.errors import UsageError
from replayer import (
    ORIGINAL,
    POLICIES,
    RELEASE_2_6,
    Aborted,
    Arrived,
    Decision,
    Discarded,
    Emitted,
    Finished,
    Joined,
    Preallocate,
    Recycled,
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
from replayer.config import Role
from replayer.formulas import BUILTIN

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
    ({"role": "decode", "requests": [{"prompt": 5, "output": 1}]}, "`output` must be at least 2"),
    (
        {"role": "decode", "requests": [{"prompt": 5, "output": 9, "accepts": [2]}]},
        "more than the 1 draft of its first",
    ),
    ({"role": "decode", "requests": [{"prompt": 5, "output": 9, "join_after": -1}]}, "`join_after` must be"),
]


@pytest.mark.parametrize(("case", "message"), WRONG)
def test_what_a_role_cannot_have_is_told(case: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        workload_from_case({**SIZES, **case})


def test_a_prefill_instance_drafts_one_token() -> None:
    requests = [{"prompt": 5, "output": 9}]
    config = workload_from_case({**SIZES, "role": "prefill", "requests": requests}).config
    assert (config.role, config.num_draft_tokens) == ("prefill", 1)
    suffix = {**SIZES, "role": "prefill", "spec_method": "suffix", "requests": requests}
    assert workload_from_case(suffix).config.num_draft_tokens == 2


class Instance(RuleBasedStateMachine):
    """One instance of a deployment in roles: the other answers now, later or never."""

    requests = Bundle("requests")

    @initialize(
        role=st.sampled_from(ROLES),
        version=st.sampled_from(sorted(POLICIES)),
        method=st.sampled_from([None, "mtp"]),
        drafts=st.integers(1, 3),
        num_seqs=st.integers(1, 5),
        extra=st.integers(0, 20),
        caching=st.booleans(),
        reserve=st.integers(0, 3),
    )
    def start(  # type: ignore[no-untyped-def]
        self, role, version, method, drafts, num_seqs, extra, caching, reserve
    ) -> None:
        config = config_of(
            role,
            max_num_seqs=num_seqs,
            num_blocks=18 + extra,
            num_speculative_tokens=drafts if method else 1,
            spec_method=method,
            prefix_caching=caching,
            reserve_blocks=reserve,
        )
        self.scheduler = scheduler_of(config, version)
        self.made: dict[str, int] = {}
        self.left: dict[str, int] = {}
        self.given: list[str] = []
        self.sending: list[str] = []
        self.failed = False

    @rule(
        target=requests,
        prompt=st.integers(1, 120),
        output=st.integers(2, 100),
        group=st.sampled_from([None, "a"]),
    )
    def arrive(self, prompt: int, output: int, group: str | None) -> str:
        name = f"r{len(self.left)}"
        key = None if group is None else (lambda i: (group, i) if i < 2 else (name, i))
        self.scheduler.apply(Arrived(name, prompt, output, block_key=key))
        self.left[name], self.made[name] = output, 0
        return name

    @rule(name=requests)
    def abort(self, name: str) -> None:
        if name in self.scheduler:
            self.scheduler.apply(Aborted(name))

    @rule(joins=st.integers(0, 3), discards=st.integers(0, 1))
    def hand_over(self, joins: int, discards: int) -> None:
        if self.failed:
            return
        before = self.scheduler.num_asking
        try:
            given = self.scheduler.apply(Preallocate())
        except SchedulerFailed:
            self.failed = True
            return
        assert self.scheduler.num_asking == before - len(given)
        self.given += given
        for _ in range(min(joins, len(self.given))):
            self.scheduler.apply(Joined(self.given.pop(0)))
        for _ in range(min(discards, len(self.given))):
            name = self.given.pop()
            self.scheduler.apply(Discarded(name))
            assert name not in self.scheduler

    @rule(data=st.data(), steps=st.integers(1, 6))
    def run(self, data: st.DataObject, steps: int) -> None:
        for _ in range(steps):
            if self.failed:
                return
            try:
                decision = self.scheduler.apply(Schedule())
            except SchedulerFailed:
                self.failed = True
                return
            assert decision.num_free_blocks == self.scheduler.num_free_blocks >= 0
            self.forward(decision, data)
            self.scheduler.check()

    def forward(self, decision: Decision, data: st.DataObject) -> None:
        scheduler, role = self.scheduler, self.scheduler.config.role
        emitted = {
            row.request_id: data.draw(st.integers(1, row.num_tokens)) for row in self.decodes(decision)
        }
        if role == "prefill":
            assert not emitted
            prompts = {name: scheduler.num_total_tokens_of(name) for name, _, _ in decision.chunks}
            emitted = {name: 1 for name, _, end in decision.chunks if end >= prompts[name]}
            self.sending += [name for name in emitted if name not in self.sending]
        scheduler.apply(Emitted(emitted))
        for name, count in emitted.items():
            self.made[name] += count
            if role == "decode" and 1 + self.made[name] >= self.left[name]:
                scheduler.apply(Finished(name))
        for name in decision.preempted:
            assert (name in scheduler) == (role == "prefill")
            if role == "prefill":
                scheduler.apply(Rescheduled(name))
        for name in decision.aborted:
            scheduler.apply(Recycled(name))

    def decodes(self, decision: Decision) -> list[Any]:
        return [row for row in self.scheduler.rows(decision) if row.kind == "decode"]

    @rule(count=st.integers(0, 3))
    def sent(self, count: int) -> None:
        for _ in range(min(count, len(self.sending))):
            self.scheduler.apply(Finished(self.sending.pop(0)))

    @invariant()
    def holds(self) -> None:
        if hasattr(self, "scheduler") and not self.failed:
            self.scheduler.check()


TestInstance = Instance.TestCase
TestInstance.settings = settings(
    max_examples=100, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
