"""Any order of what the two instances of a deployment in roles can do keeps the model's invariants."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from fdtrace.replayer import (
    POLICIES,
    Aborted,
    Arrived,
    Decision,
    Discarded,
    Emitted,
    Finished,
    Joined,
    Preallocate,
    Recycled,
    Rescheduled,
    Schedule,
    SchedulerFailed,
)
from tests.replayer.test_roles import ROLES, config_of, scheduler_of


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
