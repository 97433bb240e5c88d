"""Invariants of the scheduler model: what is true between two events."""

from __future__ import annotations

from fdtrace.replayer.model.request import RUNNING, Request, Status
from fdtrace.replayer.model.state import State


def check(state: State) -> None:
    """AssertionError where blocks are lost or owned twice, queues overlap, or tokens are not conserved."""
    _check_queues(state)
    state.pool.check([*state.requests.values(), *state.leaving.values()])
    for request in state.requests.values():
        _check_request(state, request)


def _check_queues(state: State) -> None:
    waiting = [request.id for request in state.waiting]
    running = [request.id for request in state.running]
    asking = [request.id for request in state.asking]
    places = [*asking, *state.preallocated, *waiting, *running, *state.preempted, *state.aborting]
    assert len(places) == len(set(places)), "a request is in two places"
    assert set(places) == set(state.requests), "a request is lost"
    orders = [request.order for request in state.running]
    assert orders == sorted(set(orders)), "the running queue is out of order"
    assert [state.position(request) for request in state.running] == list(range(len(running)))
    assert all(request.status in RUNNING for request in state.running)
    assert all(request.status in (Status.WAITING, Status.REQUEUED) for request in state.waiting)
    assert state.num_requeued == sum(request.status is Status.REQUEUED for request in state.waiting)
    assert state.num_skipped == 0
    assert all(request.status is Status.LEAVING for request in state.leaving.values())
    assert state.num_slots_taken() - state.num_lost_slots <= state.config.max_num_seqs, (
        "more sequences than slots"
    )
    assert all(request.status is Status.ASKING for request in state.asking)
    assert all(request.status is Status.PREALLOCATED for request in state.preallocated.values())
    assert state.first_decodes <= set(state.decoding)
    assert set(state.decoding) <= set(running)
    assert set(state.due) <= set(running)
    prefilling = {request.id for request in state.running if request.computed < request.need_prefill}
    assert set(state.prefilling) == prefilling


def _check_request(state: State, request: Request) -> None:
    assert 0 <= request.computed <= request.need_prefill, (request.id, request.computed, request.need_prefill)
    assert request.num_blocks >= 0
    if request.status in RUNNING:
        assert request.computed <= request.num_blocks * state.config.block_size, "tokens without blocks"
        decodes = request.computed >= request.need_prefill
        short = state.free_slots(request) <= state.wake_slots
        started = request.plan is None or request.start >= 0
        if decodes and started and state.config.role != "prefill":
            assert short == (request.id in state.due), (request.id, "its blocks run out unseen")
    elif request.status is Status.PREALLOCATED:
        assert request.prompt <= request.num_blocks * state.config.block_size, "a prompt without blocks"
    elif request.leaf is None:
        assert request.num_blocks == 0, (request.id, "holds blocks while it does not run")
    if request.plan is not None:
        assert request.output_at(state.num_forwards) <= request.plan.output
