"""A replay knows all acceptances beforehand and looks at a decode only when something happens to it; a live engine
tells each token. Both ways decide alike, whatever the workload.
"""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fdtrace.replayer import (
    POLICIES,
    Arrived,
    Emitted,
    Finished,
    Forward,
    Forwarded,
    Joined,
    Policy,
    Scheduler,
    SchedulerFailed,
    Simulation,
    Workload,
    golden_line,
    workload_from_case,
)
from fdtrace.replayer.formulas import BUILTIN, MODEL_FORMULAS, Formula


class Told:
    """The model with every token told as a live engine tells it, from the acceptances that it does not see.

    No class of its own kind: one that is compiled has no heirs.
    """

    def __init__(self, workload: Workload, formula: Formula, policy: Policy) -> None:
        self.model = Scheduler(workload.config, formula, policy)
        self.work = {request.request_id: request for request in workload.requests}
        self.made: dict[str, int] = {}
        self.forwards: dict[str, int] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self.model

    def apply(self, event: Any) -> Any:
        handlers: dict[type, Any] = {Arrived: self.arrive, Joined: self.join, Forwarded: self.forward}
        return handlers.get(type(event), self.model.apply)(event)

    def arrive(self, event: Arrived) -> None:
        self.made[event.request_id] = self.forwards[event.request_id] = 0
        self.model.apply(event._replace(accepts=None, num_output_tokens=None))

    def join(self, event: Joined) -> None:
        if self.config.role == "decode":
            self.made[event.request_id] = 1
        self.model.apply(event)

    def forward(self, event: Forwarded) -> Forward:
        role, drafts, stalled = self.config.role, self.config.num_draft_tokens, self.stalled()
        first = {name for name, _, _ in self._chunks} if role == "decode" else set()
        chunks = self._chunks if role != "decode" else []
        done = [name for name, _, end in chunks if end >= self._state.requests[name].need_prefill]
        emitted = dict.fromkeys(done, 1)
        decodes = self.decodes()
        for name in decodes:
            accepts, at = self.work[name].accepts, self.forwards[name]
            accepted = int(accepts[min(at, len(accepts) - 1)]) if len(accepts) else 0
            emitted[name] = min(1 + accepted, self.work[name].num_output_tokens - self.made[name])
            self.forwards[name] += 1
        self.apply(Emitted(emitted))
        finished = []
        for name, count in emitted.items():
            self.made[name] += count
            if role != "prefill" and self.made[name] >= self.work[name].num_output_tokens:
                finished.append(name)
                self.apply(Finished(name))
        num_decode_tokens = sum(1 + (min(1, drafts) if name in first else drafts) for name in decodes)
        started = [name for name in done if name not in finished]
        tokens = sum(end - start for _, start, end in chunks)
        self.model._chunks = []
        return Forward(tokens, num_decode_tokens, len(decodes), stalled, started, finished)


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    role, drafts = draw(st.sampled_from(["mixed", "mixed", "prefill", "decode"])), draw(st.integers(0, 3))
    seqs = draw(st.integers(1, 6))
    requests = []
    for _ in range(draw(st.integers(1, 10))):
        request: dict[str, Any] = {
            "arrival": draw(st.integers(0, 30)),
            "prompt": draw(st.integers(1, 120)),
            "output": draw(st.integers(2, 100)),
            "accepts": draw(st.lists(st.integers(0, drafts), max_size=12)),
            "join_after": draw(st.integers(0, 2)),
            "send_after": draw(st.integers(0, 2)),
            "group": draw(st.integers(0, 1)),
        }
        if role == "decode" and request["accepts"]:
            request["accepts"][0] = min(1, request["accepts"][0])
        if draw(st.booleans()) and draw(st.booleans()):
            request["abort_after"] = draw(st.integers(0, 40))
        requests.append(request)
    requests.sort(key=lambda request: request["arrival"])
    return {
        "role": role,
        "max_num_seqs": seqs,
        "num_blocks": draw(st.integers(18, 30)),
        "block_size": 16,
        "max_num_batched_tokens": max(draw(st.integers(20, 120)), seqs * (drafts + 1)),
        "max_model_len": 256,
        "num_speculative_tokens": drafts,
        "prefix_caching": draw(st.booleans()),
        "shared_tokens": 40,
        "prealloc_dec_block_slot_num_threshold": draw(st.sampled_from([0, 4, 12, 20])),
        "max_steps": 150,
        "requests": [{"id": f"r{i}", **request} for i, request in enumerate(requests)],
    }


def lines(simulation: Simulation) -> list[Any]:
    found: list[Any] = []
    try:
        found += map(golden_line, simulation)
    except SchedulerFailed as failure:
        found.append(str(failure))
    return found


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    case=cases(), version=st.sampled_from(sorted(POLICIES)), formula=st.sampled_from(sorted(MODEL_FORMULAS))
)
def test_known_and_told_acceptances_decide_alike(case: dict[str, Any], version: str, formula: str) -> None:
    workload, policy = workload_from_case(case), POLICIES[version]
    known = Simulation(workload, BUILTIN[formula], policy)
    by: Any = Told(workload, BUILTIN[formula], policy)
    told = Simulation(workload, by)
    assert lines(known) == lines(told)
    known.scheduler.check()  # type: ignore[attr-defined]
    told.scheduler.check()  # type: ignore[attr-defined]
