"""Any order of events that an engine can give keeps the model's invariants."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from fdtrace.replayer import (
    POLICIES,
    Aborted,
    Arrived,
    Decision,
    Emitted,
    Finished,
    Forwarded,
    Ready,
    Recycled,
    Rescheduled,
    Resumed,
    Schedule,
    Scheduler,
    SchedulerConfig,
)
from fdtrace.replayer.formulas import BUILTIN, MODEL_FORMULAS
from fdtrace.replayer.model.state import SchedulerFailed


class Engine(RuleBasedStateMachine):
    """An engine that schedules live, its worker letting go of requests now or later."""

    requests = Bundle("requests")

    @initialize(
        policy=st.sampled_from(list(POLICIES.values())),
        formula=st.sampled_from(list(MODEL_FORMULAS.values())),
        method=st.sampled_from([None, "mtp"]),
        drafts=st.integers(1, 4),
        num_seqs=st.integers(1, 6),
        extra=st.integers(0, 20),
        chunked=st.booleans(),
        caching=st.booleans(),
        reserve=st.integers(0, 3),
        split=st.sampled_from([0, 0, 16]),
    )
    def start(  # type: ignore[no-untyped-def]
        self, policy, formula, method, drafts, num_seqs, extra, chunked, caching, reserve, split
    ) -> None:
        config = SchedulerConfig(
            max_num_batched_tokens=max(96, num_seqs * (drafts + 1)),
            max_num_seqs=num_seqs,
            num_blocks=256 // 16 + 3 + extra,
            block_size=16,
            max_model_len=256,
            num_speculative_tokens=drafts if method else 1,
            spec_method=method,
            chunked_prefill=chunked,
            prefix_caching=caching,
            reserve_blocks=reserve,
            split_kv_size=split,
        )
        self.scheduler = Scheduler(config, formula, policy)
        self.made: dict[str, int] = {}
        self.left: dict[str, int] = {}
        self.failed = False

    @rule(
        target=requests,
        prompt=st.integers(1, 120),
        output=st.integers(1, 100),
        ready=st.booleans(),
        group=st.sampled_from([None, "a"]),
    )
    def arrive(self, prompt: int, output: int, ready: bool, group: str | None) -> str:
        name = f"r{len(self.left)}"
        key = None if group is None else (lambda i: (group, i) if i < 2 else (name, i))
        self.scheduler.apply(Arrived(name, prompt, output, ready=ready, block_key=key))
        self.left[name], self.made[name] = output, 0
        return name

    @rule(name=requests)
    def ready(self, name: str) -> None:
        if name in self.scheduler:
            self.scheduler.apply(Ready(name))

    @rule(name=requests)
    def abort(self, name: str) -> None:
        if name in self.scheduler:
            self.scheduler.apply(Aborted(name))

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
            self.check_decision(decision)
            self.forward(decision, data)
            self.scheduler.check()

    def check_decision(self, decision: Decision) -> None:
        scheduler = self.scheduler
        assert sum(end - start for _, start, end in decision.chunks) <= max(0, decision.token_budget)
        assert decision.num_free_blocks == scheduler.num_free_blocks >= 0
        assert len(set(decision.preempted)) == len(decision.preempted)
        if decision.token_budget <= 0:
            assert decision.is_empty
        if decision.preempted:
            assert decision.not_admitted in (None, "preemption")
        told = {(reason.kind, reason.request_id) for reason in decision.reasons}
        assert {("preempted", name) for name in decision.preempted} <= told
        assert {("aborted", name) for name in decision.aborted} <= told

    def forward(self, decision: Decision, data: st.DataObject) -> None:
        scheduler = self.scheduler
        decodes = scheduler.decodes()
        assert not set(decodes) & set(scheduler.stalled())
        assert not set(decodes) & {name for name, _, _ in decision.chunks}
        emitted = {name: 1 for name, _, end in decision.chunks if end >= scheduler.num_total_tokens_of(name)}
        drafts = scheduler.config.num_draft_tokens
        for name in decodes:
            assert scheduler.can_decode(name)
            emitted[name] = data.draw(st.integers(1, 1 + drafts))
        scheduler.apply(Emitted(emitted))
        for name, count in emitted.items():
            self.made[name] += count
            assert scheduler.num_output_tokens_of(name) == self.made[name]
            if self.made[name] >= self.left[name]:
                scheduler.apply(Finished(name))
                assert name not in scheduler
        for name in decision.preempted:
            scheduler.apply(Rescheduled(name))
        for name in decision.aborted:
            scheduler.apply(Recycled(name))

    @invariant()
    def holds(self) -> None:
        if hasattr(self, "scheduler") and not self.failed:
            self.scheduler.check()


TestEngine = Engine.TestCase
TestEngine.settings = settings(
    max_examples=100, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)


def test_live_events_and_known_acceptances_decide_alike() -> None:
    """The same acceptances, told after each forward or known beforehand, lead to the same decisions."""
    config = SchedulerConfig(256, 8, 60, 16, 512, num_speculative_tokens=2, spec_method="mtp")
    accepts = [[(i * 7 + j * 3) % 3 for j in range(200)] for i in range(12)]
    for policy in POLICIES.values():
        for formula in MODEL_FORMULAS.values():
            live, planned = (Scheduler(config, formula, policy) for _ in range(2))
            for i in range(12):
                prompt, output = 20 + 13 * i, 40 + 5 * i
                live.apply(Arrived(f"r{i}", prompt, output))
                planned.apply(Arrived(f"r{i}", prompt, output, accepts=accepts[i], num_output_tokens=output))
            forwards, made = [0] * 12, [0] * 12
            for _ in range(400):
                decision, same = live.apply(Schedule()), planned.apply(Schedule())
                assert decision == same
                assert (live.decodes(), live.stalled()) == (planned.decodes(), planned.stalled())
                emitted = {n: 1 for n, _, end in decision.chunks if end >= live.num_total_tokens_of(n)}
                for name in live.decodes():
                    i = int(name[1:])
                    emitted[name] = min(1 + accepts[i][forwards[i]], 40 + 5 * i - made[i])
                    forwards[i] += 1
                finished = planned.apply(Forwarded()).finished
                live.apply(Emitted(emitted))
                for name, count in emitted.items():
                    made[int(name[1:])] += count
                for name in finished:
                    assert made[int(name[1:])] == 40 + 5 * int(name[1:])
                    live.apply(Finished(name))
                for name in decision.preempted:
                    live.apply(Rescheduled(name))
                    planned.apply(Rescheduled(name))
                live.check()
                planned.check()


@pytest.mark.parametrize("policy", POLICIES)
def test_resumed_requests_share_the_blocks_of_their_prefix(policy: str) -> None:
    """What they have computed is in the prefix cache, those that decode and those whose prefill goes on."""
    config = SchedulerConfig(64, 8, 60, 16, 512, prefix_caching=True)
    scheduler = Scheduler(config, BUILTIN["original"], POLICIES[policy])
    request = {name: Arrived(name, 100, 40, block_key=lambda i: ("same", i)) for name in "abc"}
    scheduler.apply(Resumed(request["a"], 100, 9, num_emitted_tokens=3))
    assert scheduler.num_free_blocks == 60 - 9
    scheduler.apply(Resumed(request["b"], 40, 3, decoding=False))
    assert scheduler.num_free_blocks == 60 - 9 - 1  # two of its three are those of `a`
    scheduler.apply(request["c"])
    scheduler.check()
    for _ in range(3):
        decision = scheduler.apply(Schedule())
        ended = [name for name, _, end in decision.chunks if end == 100]
        scheduler.apply(Emitted(dict.fromkeys(ended, 1)))
        scheduler.check()
    assert scheduler.num_running_decodes == 3
    for name in "abc":
        scheduler.apply(Finished(name))
    scheduler.check()
    assert scheduler.num_requests == 0


def test_events_that_cannot_happen_are_refused() -> None:
    scheduler = Scheduler(SchedulerConfig(100, 4, 100), BUILTIN["original"])
    scheduler.apply(Arrived("a", 10, 5))
    for event in (
        Arrived("a", 10, 5),
        Rescheduled("a"),
        Recycled("a"),
        Finished("b"),
        Ready("b"),
        Aborted("b"),
    ):
        with pytest.raises(KeyError):
            scheduler.apply(event)
