"""What the model can be told where calls and outputs are not in step, and a replay in the order of a recording."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fdtrace.replayer import ORIGINAL, RELEASE_2_6, Policy, Scheduler, SchedulerConfig
from fdtrace.replayer.formulas import BUILTIN
from fdtrace.replayer.model.events import (
    Aborted,
    Arrived,
    Decision,
    DecodeTokenCounts,
    Emitted,
    Freed,
    Left,
    OutputCached,
    Recycled,
    Schedule,
)
from fdtrace.replayer.replay.ordered_replay import OrderedReplay, RecordedCall, RecordedEvent, rescheduled
from fdtrace.replayer.replay.worker import DispatchedChunk, Tasks, Worker
from fdtrace.replayer.workload.workload import WorkRequest

CONFIG = SchedulerConfig(max_num_batched_tokens=512, max_num_seqs=4, num_blocks=20, max_model_len=1024)
CACHING = replace(CONFIG, prefix_caching=True, output_caching=True)


def scheduler_of(config: SchedulerConfig = CONFIG, policy: Policy = ORIGINAL) -> Scheduler:
    return Scheduler(config, BUILTIN[policy.formula], policy)


def call(scheduler: Scheduler, schedule: Schedule | None = None) -> Decision:
    decision = scheduler.apply(schedule or Schedule())
    scheduler.check()
    return decision


def prefilled(scheduler: Scheduler, *names: str, tokens: int = 100) -> None:
    """Requests of so many prompt tokens, their prefills scheduled in one call."""
    for name in names:
        scheduler.apply(Arrived(name, tokens, 500))
    assert [chunk[0] for chunk in call(scheduler).chunks] == list(names)


def test_a_finished_request_keeps_its_blocks_until_they_are_freed() -> None:
    scheduler = scheduler_of()
    prefilled(scheduler, "a")
    scheduler.apply(DecodeTokenCounts({"a": 101}))
    held = scheduler.num_blocks_of("a")
    scheduler.apply(Left("a"))
    assert "a" not in scheduler
    between = call(scheduler)
    assert (between.num_running, between.num_free_blocks) == (0, CONFIG.num_blocks - held)
    scheduler.apply(Freed("a"))
    assert call(scheduler).num_free_blocks == CONFIG.num_blocks
    scheduler.apply(Freed("a"))  # the second half of one that held none says nothing
    scheduler.check()


def test_an_id_may_come_again_before_the_blocks_of_its_first_request_are_freed() -> None:
    scheduler = scheduler_of()
    prefilled(scheduler, "a")
    scheduler.apply(Left("a"))
    prefilled(scheduler, "a")
    scheduler.apply(Freed("a"))
    scheduler.check()
    assert scheduler.num_free_blocks == CONFIG.num_blocks - scheduler.num_blocks_of("a")


def preempting() -> Scheduler:
    """`a` and `b` decode, and the next extension of `a` has no blocks but those of `b`."""
    scheduler = scheduler_of(replace(CONFIG, num_blocks=4))
    prefilled(scheduler, "a", "b")
    scheduler.apply(DecodeTokenCounts({"a": 101, "b": 101}))
    return scheduler


def test_tokens_of_a_preempted_request_count_when_it_is_prefilled_anew() -> None:
    scheduler = preempting()
    scheduler.apply(DecodeTokenCounts({"a": 120}))
    assert call(scheduler).preempted == ["b"]
    scheduler.apply(Emitted({"b": 3}))  # of a forward that was under way
    for event in rescheduled("b", 106):
        scheduler.apply(event)
    scheduler.apply(Left("a"))
    scheduler.apply(Freed("a"))
    assert call(scheduler).chunks == [("b", 0, 106)]


def test_tokens_of_requests_that_are_gone_change_nothing() -> None:
    scheduler = scheduler_of()
    prefilled(scheduler, "a")
    scheduler.apply(Left("a"))
    scheduler.apply(Emitted({"a": 2, "never": 1}))
    scheduler.apply(DecodeTokenCounts({"a": 300, "never": 5}))
    scheduler.check()


def test_a_call_extends_by_what_it_knew() -> None:
    """100 prompt tokens have two blocks: 128 slots, of which 12 may be left."""
    scheduler = scheduler_of()
    prefilled(scheduler, "a")
    scheduler.apply(DecodeTokenCounts({"a": 115}))
    assert call(scheduler).extended == []
    scheduler.apply(DecodeTokenCounts({"a": 116}))
    assert call(scheduler).extended == ["a"]


def test_known_tokens_of_a_prefill_are_ignored() -> None:
    scheduler = scheduler_of()
    scheduler.apply(Arrived("a", 700, 500))
    assert call(scheduler).chunks == [("a", 0, 512)]
    scheduler.apply(DecodeTokenCounts({"a": 513}))
    assert scheduler.num_output_tokens_of("a") == 0
    assert call(scheduler).chunks == [("a", 512, 700)]


@pytest.mark.parametrize("told", [True, False])
def test_release_2_6_preempts_those_whose_first_token_the_engine_took_in(told: bool) -> None:
    config = replace(CONFIG, num_blocks=8, use_new_token_ratio=False)
    scheduler = scheduler_of(config, RELEASE_2_6)
    prefilled(scheduler, "a", "b", "c")
    if told:
        scheduler.apply(DecodeTokenCounts({"c": 101}))
    scheduler.apply(DecodeTokenCounts({"a": 116, "b": 101}))
    assert call(scheduler).extended == ["a"]
    scheduler.apply(DecodeTokenCounts({"a": 244}))
    assert call(scheduler).preempted == ["c" if told else "b"]


@pytest.mark.parametrize("needed", [17, 18])
def test_a_call_uses_the_thresholds_that_were_recorded(needed: int) -> None:
    scheduler = scheduler_of(policy=RELEASE_2_6)
    prefilled(scheduler, "a")
    scheduler.apply(Arrived("b", 100, 500))
    decision = call(scheduler, Schedule(needed_blocks=(needed + 1,)))
    assert bool(decision.chunks) == (needed + 1 <= 18)
    assert decision.num_reserve_faults == 1  # the model's own is far below
    usual = scheduler_of(policy=RELEASE_2_6)
    prefilled(usual, "a")
    usual.apply(Arrived("b", 100, 500))
    assert call(usual, Schedule(needed_blocks=(7,))).num_reserve_faults == 0


def test_a_call_skips_those_that_it_found_not_ready_and_drops_the_failed() -> None:
    scheduler = scheduler_of()
    for name in ("a", "b", "c"):
        scheduler.apply(Arrived(name, 64))
    decision = call(scheduler, Schedule(not_ready=frozenset({"a"}), failed=frozenset({"b"})))
    assert (decision.chunks, decision.skipped) == ([("c", 0, 64)], ["a"])
    assert "b" not in scheduler
    assert call(scheduler, Schedule(not_ready=frozenset())).chunks == [("a", 0, 64)]


@pytest.mark.parametrize("keeps", [True, False])
def test_a_request_that_ends_while_it_is_aborted_can_keep_its_slot(keeps: bool) -> None:
    config = replace(CONFIG, max_num_seqs=1, keeps_aborted_slots=keeps)
    scheduler = scheduler_of(config)
    prefilled(scheduler, "a")
    scheduler.apply(DecodeTokenCounts({"a": 101}))
    scheduler.apply(Aborted("a"))
    assert call(scheduler).aborted == ["a"]
    scheduler.apply(Left("a"))
    with pytest.raises(KeyError):
        scheduler.apply(Recycled("a"))
    scheduler.apply(Arrived("b", 64))
    decision = call(scheduler)
    assert (decision.not_admitted == "slots") is keeps


def test_outputs_that_are_cached_are_found_by_the_next_turn() -> None:
    scheduler = scheduler_of(CACHING)
    scheduler.apply(Arrived("a", 128, 200, block_key=lambda i: i))
    call(scheduler)
    scheduler.apply(DecodeTokenCounts({"a": 181}))
    call(scheduler)
    scheduler.apply(OutputCached("a", 250))
    scheduler.apply(Left("a"))
    scheduler.apply(Freed("a"))
    assert call(scheduler).num_free_blocks == CACHING.num_blocks - 3
    scheduler.apply(Arrived("b", 250, 200, block_key=lambda i: i))
    assert call(scheduler).chunks == [("b", 192, 250)]


def test_output_blocks_that_are_there_already_are_freed() -> None:
    scheduler = scheduler_of(CACHING)
    for name in ("a", "b"):
        scheduler.apply(Arrived(name, 128, 200, block_key=lambda i: i))
        call(scheduler)
        scheduler.apply(DecodeTokenCounts({name: 181}))
        call(scheduler)
    free = scheduler.num_free_blocks
    for name in ("a", "b"):
        scheduler.apply(OutputCached(name, 250))
        scheduler.check()
    assert scheduler.num_free_blocks == free + 1


def test_without_output_caching_an_end_token_caches_nothing() -> None:
    scheduler = scheduler_of(replace(CACHING, output_caching=False))
    scheduler.apply(Arrived("a", 128, 200))
    call(scheduler)
    scheduler.apply(OutputCached("a", 250))
    scheduler.apply(Left("a"))
    scheduler.apply(Freed("a"))
    assert call(scheduler).num_free_blocks == CACHING.num_blocks - 2


EVENTS: tuple[RecordedEvent, ...] = (
    Arrived("a", 100, 500),
    RecordedCall(0, chunks=(("a", 0, 100),), num_running=1, num_free_blocks=18),
    Arrived("b", 50, 500),
    RecordedCall(1, num_running=1, num_waiting=1, num_free_blocks=18, not_ready=frozenset("b")),
    RecordedCall(2, (("b", 0, 50),), ("a",), num_running=2, num_free_blocks=15, known={"a": 120}),
    Left("a"),
    RecordedCall(3, num_running=1, num_free_blocks=15),
    Freed("a"),
    RecordedCall(4, num_running=1, num_free_blocks=19),
)


def test_events_in_their_order_decide_each_call_as_it_was_recorded() -> None:
    replay = OrderedReplay(scheduler_of(), EVENTS)
    replay.run()
    assert (replay.num_calls, replay.num_equal, replay.num_left_out) == (5, 5, 0)
    assert replay.departure is None


def test_a_departure_is_shown_with_the_events_since_the_second_call_before_it() -> None:
    last = EVENTS[-1]
    assert isinstance(last, RecordedCall)
    wrong = replace(last, num_free_blocks=18)
    replay = OrderedReplay(scheduler_of(), (*EVENTS[:-1], wrong))
    replay.run()
    assert (replay.num_calls, replay.num_equal) == (5, 4)
    assert replay.departure is not None
    assert replay.departure.call == 4
    assert replay.departure.differences == (("free blocks", "18", "19"),)
    assert replay.departure.before == (
        "call 2: chunk b 0 to 50, extended a; 2 run, 0 wait, 15 blocks free",
        "Left a",
        "call 3: nothing; 1 run, 0 wait, 15 blocks free",
        "Freed a",
    )


def test_events_in_another_order_depart() -> None:
    events = list(EVENTS)
    events[6], events[7] = events[7], events[6]
    replay = OrderedReplay(scheduler_of(), events)
    replay.run()
    assert replay.departure is not None
    assert replay.departure.call == 3


def test_an_event_that_the_state_does_not_allow_is_counted_and_left_out() -> None:
    replay = OrderedReplay(scheduler_of(), (*EVENTS, Left("gone"), *rescheduled("b", 70)))
    replay.run()
    assert (replay.num_equal, replay.num_left_out) == (5, 2)


def test_a_worker_runs_chunks_once_then_decodes_and_stalls_where_blocks_are_short() -> None:
    config = replace(CONFIG, spec_method="mtp", num_speculative_tokens=3)
    worker = Worker(config, {"a": WorkRequest("a", 0, 122, 6, accepts=(1, 3))})
    worker.land(Tasks((DispatchedChunk("a", 0, 100, 122, 2),), (), ()))
    first, idle = worker.forward(), worker.forward()
    assert (first.num_prefill_tokens, idle.num_tokens) == (100, 0)
    worker.land(Tasks((DispatchedChunk("a", 100, 122, 122, 2),), (), ()))
    assert worker.forward().started == ["a"]
    assert [row.num_computed_tokens for row in worker.rows(Decision(0, 0, 0))] == [100]
    assert worker.forward().num_decode_tokens == 4
    assert worker.forward().finished == ["a"]
    assert worker.forward().num_tokens == 0
    worker.land(Tasks((DispatchedChunk("a", 0, 126, 126, 2),), (), ()))
    worker.forward()
    assert worker.forward().stalled == ["a"]
    worker.land(Tasks((), (("a", 4),), ()))
    assert worker.forward().num_decodes == 1
    worker.land(Tasks((), (), ("a",)))
    assert worker.forward().num_tokens == 0
