"""The engine as a whole: it says what the model would have said alone, whatever the schedule."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fdtrace.recorder.errors import UsageError
from fdtrace.replayer.replay.simulation import Simulation
from fdtrace.replayer.workload.workload import Workload, WorkRequest
from fdtrace.sandbox.engine_config import EngineConfig
from fdtrace.sandbox.engine_loop import SandboxEngine
from fdtrace.sandbox.sandbox_request import NO_SLOT, SandboxRequest
from fdtrace.sandbox.sandbox_scheduler import model_of
from fdtrace.sandbox.seeded_load import Load, LoadShape

pytestmark = pytest.mark.xdist_group("paddle")
Greedy = Callable[[Any, int], list[int]]

SIZES: dict[str, Any] = {
    "max_num_batched_tokens": 64,
    "max_num_seqs": 4,
    "block_size": 8,
    "num_blocks": 96,
    "max_model_len": 160,
}
"""Of the fixture `greedy`: weights depend on the seed and the model's sizes alone."""
SHAPE = LoadShape(num_requests=10, prompt=(3, 70), output=(1, 40), arrival_gap=1.0)


class KeepingEngine(SandboxEngine):
    """Keeps every request that arrives, in order."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.requests: list[SandboxRequest] = []
        add_request = self.scheduler.add_request

        def add(request: SandboxRequest) -> None:
            self.requests.append(request)
            add_request(request)

        self.scheduler.add_request = add  # type: ignore[method-assign]  # as a hook does


def engine_of(paddle: Any, shape: LoadShape = SHAPE, **changes: Any) -> KeepingEngine:
    config = EngineConfig(**{**SIZES, **changes})
    return KeepingEngine(config, Load(shape, config), paddle)


def run_checked(engine: SandboxEngine, max_steps: int = 2000) -> None:
    """Run to the end of the load; after each step, every block is free or in one table."""
    while engine.counts.steps < max_steps and (engine.scheduler.has_work or not engine.load.exhausted):
        engine.run_once()
        scheduler = engine.scheduler
        held = [block for request in scheduler.running for block in request.block_table]
        assert len(set(held)) == len(held)
        assert len(held) + scheduler.num_free_blocks == engine.config.num_blocks
        assert len({request.slot for request in scheduler.running}) == len(scheduler.running)
        assert all(engine.runner.slots[request.slot] is request for request in scheduler.running)
        assert sum(request is not None for request in engine.runner.slots) == len(scheduler.running)
        assert all(request.slot == NO_SLOT and not request.block_table for request in scheduler.waiting)
        scheduler.check()
    assert not engine.scheduler.has_work


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"formula": "pr7499"},
        {"spec_method": None},
        {"num_speculative_tokens": 1, "block_size": 5, "num_blocks": 150},
        {"max_num_batched_tokens": 160, "chunked_prefill": False},
        {"max_num_batched_tokens": 7, "max_num_seqs": 3},
        {"policy": "release_2_6", "formula": "pr7623"},
    ],
    ids=str,
)
def test_output_is_greedy_whatever_the_schedule(paddle: Any, greedy: Greedy, changes: dict[str, Any]) -> None:
    engine = engine_of(paddle, **changes)
    run_checked(engine)
    assert engine.counts.finished == 10
    for request in engine.requests:
        assert request.output == greedy(request.tokens[: request.num_prompt_tokens], request.max_tokens)


@pytest.mark.parametrize("policy", ["original", "release_2_6"])
def test_preempted_requests_are_computed_again(paddle: Any, greedy: Greedy, policy: str) -> None:
    engine = engine_of(paddle, num_blocks=24, policy=policy, shape=LoadShape(10, (20, 60), (30, 60), 0.5))
    run_checked(engine)
    assert engine.counts.preemptions > 0
    assert engine.counts.finished == 10
    for request in engine.requests:
        assert request.output == greedy(request.tokens[: request.num_prompt_tokens], request.max_tokens)


def test_preemption_says_what_it_frees(paddle: Any) -> None:
    engine = engine_of(paddle, num_blocks=24, shape=LoadShape(10, (20, 60), (30, 60), 0.5))
    seen = []
    while engine.scheduler.has_work or not engine.load.exhausted:
        before = {r.request_id: (len(r.block_table), r.num_computed_tokens) for r in engine.scheduler.running}
        scheduled, _ = engine.run_once()
        for request, reason, num_blocks, num_computed in scheduled.preempted:
            seen.append(request)
            assert (num_blocks, num_computed) == before[request.request_id]
            assert request.request_id in reason
            assert request not in [row.request for row in engine.runner.ran]
            assert engine.scheduler.waiting[0] in [r for r, *_ in scheduled.preempted]
            assert request.num_prefill_tokens == request.num_prompt_tokens + request.num_output_tokens
    assert len(seen) == engine.counts.preemptions > 0


def test_original_exceeds_and_pr7499_does_not(paddle: Any) -> None:
    shape = LoadShape(num_requests=24, prompt=(20, 90), output=(10, 40), arrival_gap=0.5)
    exceeded = {}
    for formula in ("original", "pr7499"):
        engine = engine_of(paddle, shape, formula=formula, max_num_seqs=8)
        run_checked(engine)
        exceeded[formula] = engine.counts.exceeded_steps
        assert (engine.counts.peak_tokens > 64) == (exceeded[formula] > 0)
        assert 0 < engine.counts.accepted_tokens < engine.counts.draft_tokens
    assert exceeded["original"] > 5
    assert exceeded["pr7499"] == 0


def test_formula_may_be_an_expression(paddle: Any) -> None:
    engine = engine_of(paddle, formula="tight: max_num_batched_tokens // 4")
    scheduled, _ = engine.run_once()
    assert scheduled.token_budget == 16
    assert sum(end - start for _, start, end in scheduled.prefills) <= 16


def test_runner_tells_each_slot(paddle: Any) -> None:
    """The attributes that a recorder reads, against the tokens that requests really got."""
    engine = engine_of(paddle)
    decoded = 0
    while engine.counts.steps < 25:
        before = {r.request_id: (r.num_output_tokens, r.num_computed_tokens) for r in engine.requests}
        scheduled, ran = engine.run_once()
        runner = engine.runner
        assert ran
        assert runner.step == engine.counts.steps - 1
        assert runner.seq_lens_this_time.dtype == runner.accept_num.dtype == np.int32
        assert runner.seq_lens_this_time.sum() == sum(row.num_tokens for row in runner.ran)
        assert runner.accept_num.sum() == sum(
            r.num_output_tokens - before.get(r.request_id, (0, 0))[0] for r in engine.requests
        )
        chunks = {request.request_id: (start, end) for request, start, end in scheduled.prefills}
        for row in runner.ran:
            if row.kind == "prefill":
                start, end = chunks[row.request.request_id]
                assert (row.num_computed_tokens, row.num_tokens) == (start, end - start)
            else:
                decoded += 1
                output, computed = before[row.request.request_id]
                assert row.num_tokens == 5
                assert row.num_computed_tokens == computed == row.request.num_prompt_tokens + output
        allocated, reserved, peak_allocated, peak_reserved = runner.memory or (0, 0, 0, 0)
        assert 0 < allocated < peak_allocated <= peak_reserved
        assert reserved > 0
    assert decoded > 10


def test_peak_memory_follows_tokens(paddle: Any) -> None:
    gc.collect()  # the allocator counts the whole process: no other test's tensors may go meanwhile
    engine = engine_of(paddle, max_num_seqs=8, ffn_size=512, shape=LoadShape(30, (3, 90), (4, 30), 1.0))
    tokens, peaks = [], []
    while engine.scheduler.has_work or not engine.load.exhausted:
        if engine.run_once()[1]:
            tokens.append(int(engine.runner.seq_lens_this_time.sum()))
            allocated, _, peak, _ = engine.runner.memory or (0, 0, 0, 0)
            peaks.append(peak - allocated)
    assert np.corrcoef(tokens, peaks)[0, 1] > 0.8


def test_stalled_slots_stay_in_the_batch(paddle: Any) -> None:
    """A block table cut short under a decode: it keeps its slot, and goes on when blocks come."""
    engine = engine_of(paddle, shape=LoadShape(1, (20, 20), (30, 30), 1.0))
    scheduled, _ = engine.run_once()
    while not scheduled.extended:
        scheduled, _ = engine.run_once()
    request, step = engine.requests[0], engine.runner.step
    table, request.block_table = request.block_table, request.block_table[:2]
    assert not engine.runner.execute_model(engine.scheduler.schedule())
    assert engine.runner.stalled == [request.slot]
    assert engine.runner.step == step
    assert engine.runner.slots[request.slot] is request
    assert (engine.runner.seq_lens_this_time == 0).all()
    request.block_table = table
    assert engine.run_once()[1]
    assert engine.runner.stalled == []


@pytest.mark.parametrize("policy", ["original", "release_2_6"])
def test_extensions_by_no_blocks_are_reported_as_a_hang(paddle: Any, policy: str) -> None:
    load = LoadShape(1, (30, 30), (60, 60), 0.0, backlog=1)
    engine = engine_of(paddle, load, policy=policy, env={"FD_ENC_DEC_BLOCK_NUM": "0"})
    counts = engine.run()
    assert counts.hang is not None
    assert counts.hang["step"] == counts.steps > 1
    assert "1 request stalls" in counts.hang["cause"]


def test_a_formula_that_hangs_is_reported(paddle: Any) -> None:
    """pr7499 where M = max_num_seqs * (K + 1): once all decode the budget is 0 and no table is extended."""
    shape = LoadShape(num_requests=12, prompt=(4, 8), output=(60, 80), arrival_gap=0.0, backlog=4)
    engine = engine_of(paddle, shape, max_num_batched_tokens=20, max_num_seqs=4, formula="pr7499")
    counts = engine.run(max_steps=3000)
    assert counts.hang is not None
    assert counts.hang["step"] == counts.steps
    assert counts.hang["token_budget"] == 0
    assert counts.hang["num_stalled"] == counts.hang["num_running"] == 4
    assert "budget is 0" in counts.hang["cause"]
    assert counts.finished < 12


def test_quiet_times_are_skipped(paddle: Any) -> None:
    """Requests hundreds of steps apart: each is run alone, nothing is waited for."""
    engine = engine_of(paddle, LoadShape(4, (5, 9), (2, 4), arrival_gap=500.0))
    counts = engine.run()
    assert counts.hang is None
    assert counts.finished == 4
    assert counts.steps < 20


def test_aborted_requests_leave(paddle: Any) -> None:
    shape = LoadShape(12, (5, 60), (20, 60), 0.5, abort_share=0.5, abort_after=(5, 20))
    engine = engine_of(paddle, shape)
    run_checked(engine)
    assert engine.counts.aborted > 0
    assert engine.counts.aborted + engine.counts.finished == engine.counts.arrived == 12


def test_an_overloaded_engine_keeps_the_others_off(paddle: Any) -> None:
    engine = engine_of(paddle, LoadShape(40, (30, 60), (20, 40), arrival_gap=0.1, max_waiting=3))
    longest = 0
    while engine.scheduler.has_work or not engine.load.exhausted:
        longest = max(longest, engine.run_once()[0].num_waiting)
    assert longest == 3
    assert engine.counts.finished == 40


def test_warm_up_leaves_no_trace_in_the_output(paddle: Any, greedy: Greedy) -> None:
    engine = engine_of(paddle, max_num_batched_tokens=200)
    engine.runner.warm_up()
    assert engine.runner.step == -1
    run_checked(engine)
    for request in engine.requests:
        assert request.output == greedy(request.tokens[: request.num_prompt_tokens], request.max_tokens)


def test_request_that_cannot_fit_is_refused(paddle: Any) -> None:
    with pytest.raises(UsageError, match="max_model_len"):
        Load(LoadShape(prompt=(1, 140), output=(1, 30)), EngineConfig(**SIZES))


@pytest.mark.parametrize("changes", [{}, {"num_blocks": 24}, {"policy": "release_2_6", "num_blocks": 24}])
def test_a_replay_that_knows_the_acceptances_reproduces_it(paddle: Any, changes: dict[str, Any]) -> None:
    """Arrivals by step and acceptances by decode forward are all that a replay needs."""
    engine = engine_of(paddle, LoadShape(12, (10, 60), (5, 60), 0.5, backlog=1), **changes)
    arrived: dict[str, int] = {}
    accepts: dict[str, list[int]] = {}
    ran = []
    while engine.scheduler.has_work or not engine.load.exhausted:
        assert engine.run_once()[1]
        rows = engine.runner.ran
        for request in engine.requests:
            arrived.setdefault(request.request_id, engine.runner.step)
        for row in rows:
            if row.kind == "decode":
                accepts.setdefault(row.request.request_id, []).append(row.num_accepted_tokens)
        ran.append(sorted((r.request.request_id, r.kind, r.num_tokens, r.num_computed_tokens) for r in rows))
    requests = [
        WorkRequest(
            request.request_id,
            arrived[request.request_id],
            request.num_prompt_tokens,
            request.num_output_tokens,
            accepts.get(request.request_id, ()),
        )
        for request in engine.requests
    ]
    model = model_of(engine.config)
    replay = Simulation(Workload(model.config, tuple(requests)), model.formula, model.policy)
    assert ran == [
        sorted((r.request_id, r.kind, r.num_tokens, r.num_computed_tokens) for r in step.rows or ())
        for step in replay
    ]
    assert (engine.counts.preemptions > 0) == ("num_blocks" in changes)
