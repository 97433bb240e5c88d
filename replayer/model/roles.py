"""The prefill and decode roles: a deployment in which one instance prefills and another decodes.

FastDeploy's `splitwise_role`. On both instances a request gets its slot and blocks before it runs. The engine asks for
them outside `schedule()` (engine/common_engine.py and common_engine_prepare_mixin.py).
"""

from __future__ import annotations

from fdtrace.replayer.model.block_reserve import Reserve
from fdtrace.replayer.model.request import Request
from fdtrace.replayer.model.state import SchedulerFailed, State


def preallocate(state: State, reserve: Reserve) -> list[str]:
    """Give slots and blocks to the requests that ask, in order, up to the first that gets none.

    FastDeploy: in the prefill role `_fetch_request_prefill` repeats the question for one request until it gets
    them. In the decode role `_process_allocate_resource_requests` stops at the first that gets none
    (FD_ENABLE_CACHE_TASK), or refuses it; then the prefill instance asks again, in order
    (PREFILL_CONTINUOUS_REQUEST_DECODE_RESOURCES, the default).
    """
    granted: list[str] = []
    while state.asking and state.num_slots_taken() < state.config.max_num_seqs:
        request = state.asking[0]
        served = (
            _for_decode(state, reserve, request) if state.config.role == "decode" else _for_prefill(state)
        )
        if not served:
            break
        granted.append(request.id)
    return granted


def num_blocks_for(state: State, request: Request) -> int:
    """Blocks of the whole prompt, plus those of the first extension."""
    size = state.config.block_size
    return (request.prompt + size - 1) // size + state.config.enc_dec_block_num


def num_blocks_asked(state: State) -> int | None:
    """Blocks that the first request without a slot asks for, without the reserve and before cached blocks are
    subtracted. None: there is no such request.
    """
    return num_blocks_for(state, state.asking[0]) if state.asking else None


def _for_prefill(state: State) -> bool:
    """FastDeploy: `ResourceManagerV1.preallocate_resource_in_p`.

    With prefix caching the whole prompt enters the cache here, before it is computed.
    """
    request, pool = state.asking[0], state.pool
    pool.match(request)
    num_blocks = num_blocks_for(state, request) - request.num_blocks
    if not pool.can_allocate(num_blocks):
        pool.release(request)
        return False
    state.preallocate_head(num_blocks, request.computed)
    pool.computed(request, request.need_prefill)
    return True


def _for_decode(state: State, reserve: Reserve, request: Request) -> bool:
    """FastDeploy: `ResourceManagerV1.preallocate_resource_in_d`. It refuses while any request waits.

    With a speculative method its threshold is limited to the most blocks of one sequence. So the threshold can be
    smaller than the number of blocks that are then taken.
    """
    num_blocks = num_blocks_for(state, request)
    if state.waiting or not state.pool.can_allocate(reserve.threshold(num_blocks, state)):
        return False
    _check_free(state, num_blocks)
    state.preallocate_head(num_blocks, request.need_prefill)
    return True


def preallocate_recorded(state: State, request_id: str) -> None:
    """A request that asks gets its slot and blocks, as in the recording. KeyError: they are not there.

    FastDeploy also compares with a threshold there, which reads outputs that grow without the lock (release 2.6).
    """
    request = state.requests[request_id]
    state.asking.remove(request)
    state.asking.appendleft(request)
    num_blocks = num_blocks_for(state, request)
    if state.config.role == "prefill":
        served = _for_prefill(state)
    else:
        served = num_blocks <= state.pool.num_free
        if served:
            state.preallocate_head(num_blocks, request.need_prefill)
    if not served:
        raise KeyError(request_id)


def join(state: State, request: Request) -> None:
    """A request that has its blocks joins the running queue.

    FastDeploy: `ResourceManagerV1.add_request_in_p` and `add_prefilled_request`. The latter schedules the first
    token as a chunk of one token, which needs blocks and budget like a prefill's chunk.
    """
    state.join(request, num_emitted=1 if state.config.role == "decode" else 0)


def check_prefill_role(state: State, num_blocks: int) -> None:
    """SchedulerFailed where release 2.6 would take blocks for a running prefill though too few are free.

    FastDeploy: in this role `schedule()` checks no threshold, and `get_new_block_nums` adds speculation's extra
    block to each chunk although the whole prompt already has its blocks.
    """
    _check_free(state, num_blocks)


def _check_free(state: State, num_blocks: int) -> None:
    if num_blocks > state.pool.num_free:
        raise SchedulerFailed(
            f"`allocate_gpu_blocks` is asked for {num_blocks} blocks with {state.pool.num_free} free"
        )
