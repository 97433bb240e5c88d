"""The prefill and decode roles: a deployment in which one instance prefills and another decodes.

FastDeploy's `splitwise_role`. A request gets its slot and blocks before it runs, on both instances; what it needs
of them is asked for by the engine (engine/common_engine.py and common_engine_prepare_mixin.py), outside
`schedule()`.
"""

from __future__ import annotations

from fdtrace.replayer.request import Request
from fdtrace.replayer.reserve import Reserve
from fdtrace.replayer.state import SchedulerFailed, State


def preallocate(state: State, reserve: Reserve) -> list[str]:
    """Give slots and blocks to those that ask, in order and up to the first that gets none.

    FastDeploy: `_fetch_request_prefill` asks again for one request until it is given, and
    `_process_allocate_resource_requests` of the decode role stops at the first (FD_ENABLE_CACHE_TASK), or
    refuses it and is asked again by the prefill instance, which does so in order
    (PREFILL_CONTINUOUS_REQUEST_DECODE_RESOURCES, the default).
    """
    granted: list[str] = []
    while state.asking and state.num_slots_taken() < state.config.max_num_seqs:
        request = state.asking[0]
        given = _for_decode(state, reserve, request) if state.config.role == "decode" else _for_prefill(state)
        if not given:
            break
        granted.append(request.id)
    return granted


def num_blocks_for(state: State, request: Request) -> int:
    """Blocks of the whole prompt, and those of the first extension."""
    size = state.config.block_size
    return (request.prompt + size - 1) // size + state.config.enc_dec_block_num


def num_blocks_asked(state: State) -> int | None:
    """Blocks that the first request without a slot asks for, reserve and cached blocks aside; None: there is none."""
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
    """FastDeploy: `ResourceManagerV1.preallocate_resource_in_d`, which refuses while anything waits.

    Its threshold, cut to a sequence's most blocks where a speculative method is set, can be less than what is
    then taken.
    """
    num_blocks = num_blocks_for(state, request)
    if state.waiting or not state.pool.can_allocate(reserve.threshold(num_blocks, state)):
        return False
    _check_free(state, num_blocks)
    state.preallocate_head(num_blocks, request.need_prefill)
    return True


def join(state: State, request: Request) -> None:
    """A request that has its blocks joins the running queue.

    FastDeploy: `ResourceManagerV1.add_request_in_p`, and `add_prefilled_request`, which has its first token
    scheduled as a chunk of one token: its blocks and the budget are asked for like a prefill's.
    """
    state.join(request, num_emitted=1 if state.config.role == "decode" else 0)


def check_prefill_role(state: State, num_blocks: int) -> None:
    """SchedulerFailed where release 2.6 takes blocks for a running prefill that are not free.

    FastDeploy: `schedule()` asks for no threshold in this role, and `get_new_block_nums` adds speculation's
    block to each chunk, though the whole prompt has its blocks.
    """
    _check_free(state, num_blocks)


def _check_free(state: State, num_blocks: int) -> None:
    if num_blocks > state.pool.num_free:
        raise SchedulerFailed(
            f"`allocate_gpu_blocks` is asked for {num_blocks} blocks with {state.pool.num_free} free"
        )
