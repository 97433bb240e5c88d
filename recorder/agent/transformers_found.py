"""What is there when a recording of transformers' continuous batching begins. A replay begins with it.

For a flight recorder it is written again now and then (a checkpoint): a kept trace can begin with each of these.

It is read at the top of a turn of the generation loop, in the loop's own thread. In asynchronous batching, one batch is
in flight then: it is updated only after the next call, so its tokens are not in the requests yet.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, NamedTuple

from . import transformers_config as config
from . import wire
from .checkpoint_times import CheckpointTimes
from .writer import ROOM_FOR_A_STEP

if TYPE_CHECKING:
    from .transformers_figures import KVBlocks
    from .writer import Writer

MOST_HASHES = 8192
"""Most hashes of cached blocks that are written: 64 KiB, half of the room that a step finds in a segment."""


class RequestsAtStart(NamedTuple):
    """`RequestState`s in the scheduler's order, and the `FutureRequestState`s of those in a batch in flight, by id."""

    running: list[Any]
    waiting: list[Any]
    in_flight: dict[str, Any]

    def samples(self, request_id: str) -> bool:
        """Whether a request has a token in flight."""
        future = self.in_flight.get(request_id)
        return future is not None and bool(future.has_new_token)


def find_requests(processor: Any) -> RequestsAtStart:
    """The requests that run or wait in a `ContinuousBatchProcessor`."""
    scheduler = processor.scheduler
    active, waiting = scheduler.active_requests, scheduler.waiting_requests
    in_order = [waiting[name] for name in scheduler.waiting_requests_order if name in waiting]
    outputs = processor.inputs_and_outputs
    in_flight: dict[str, Any] = {}
    pairs = getattr(outputs, "io_pairs", None)
    if pairs is not None:  # the other pair is that of the batch before, which has been updated
        for future in pairs[1 - outputs.current_pair].host_io.requests_in_batch:
            if active.get(future.state.request_id) is future.state:
                in_flight[future.state.request_id] = future
    return RequestsAtStart(list(active.values()), in_order, in_flight)


def write_found(writer: Writer, processor: Any, found: RequestsAtStart, blocks: KVBlocks) -> None:
    """Add an event `found` for the engine, and for each request. If there is nothing, none."""
    hashes = _cached_hashes(processor.cache)
    if found.running or found.waiting or hashes or not _admits_new(processor):
        _write(writer, "found", processor, found, blocks, hashes)


class TransformersCheckpoints:
    """Writes again what is there, at the times of a flight recorder. `next_ns`: the next of them, UTC."""

    def __init__(self, session: dict[str, Any] | None) -> None:
        self.times = CheckpointTimes(session)
        self.next_ns = self.times.after(time.time_ns())

    def write(self, writer: Writer, processor: Any, blocks: KVBlocks) -> None:
        """Add an event `checkpoint` for the engine, and for each request. If the segment has too little room left for
        it and a step, or no step has run, nothing is written: it is still due.
        """
        if writer.next_step < 0 or writer.room < 2 * ROOM_FOR_A_STEP:
            return
        self.next_ns = self.times.after(time.time_ns())
        found = find_requests(processor)
        if all(state.request_id in writer.numbers for state in (*found.running, *found.waiting)):
            _write(writer, "checkpoint", processor, found, blocks, _cached_hashes(processor.cache))


def _write(
    writer: Writer, kind: str, processor: Any, found: RequestsAtStart, blocks: KVBlocks, hashes: list[bytes]
) -> None:
    """First the engine's event: it says what follows."""
    detail = {
        "place": "engine",
        "num_requests": len(found.running) + len(found.waiting),
        "admits_new": _admits_new(processor),
        "num_cached_blocks": len(hashes),
    }
    writer.event(kind, detail=detail)
    for state in found.running:
        name = state.request_id
        writer.event(kind, name, detail=_running(state, found.in_flight.get(name), blocks.of(name)))
    kept = getattr(processor.offloading_manager, "_request_id_to_cpu_blocks", {})
    for state in found.waiting:
        writer.event(kind, state.request_id, detail=_waiting(state, kept))
    if hashes:
        hashes, size = hashes[:MOST_HASHES], config.page_size(processor) or 0
        request = wire.NO_REQUEST if kind == "found" else wire.AT_CHECKPOINT
        head = wire.HashesHead(wire.HASHES, 0, 0, request, num_hashes=len(hashes), block_size=size)
        writer.put(wire.HASHES_HEAD.struct.pack(*head) + b"".join(hashes))


def _admits_new(processor: Any) -> bool:
    return not getattr(processor.scheduler, "block_new_requests", False)


def _running(state: Any, future: Any, num_blocks: int) -> dict[str, Any]:
    num_tokens = len(state.initial_tokens) + len(state.generated_tokens)
    if future is not None:
        num_tokens += bool(future.has_new_token)
    computed = state.position_offset if state.remaining_prefill_tokens else num_tokens
    detail = {
        "place": "running",
        "num_computed_tokens": computed,
        "num_total_tokens": num_tokens,
        "num_blocks": num_blocks,
        **_prefill(state),
    }
    if future is not None:
        detail["num_in_flight_tokens"] = future.query_length
    return detail


def _waiting(state: Any, kept: dict[str, Any]) -> dict[str, Any]:
    detail = {
        "place": "waiting",
        "num_computed_tokens": 0,
        "num_total_tokens": len(state.initial_tokens) + len(state.generated_tokens),
        "num_blocks": 0,
        **_prefill(state),
    }
    if getattr(state, "is_cpu_offloaded", False):
        on_cpu = kept.get(state.request_id, ())
        tables = on_cpu.values() if isinstance(on_cpu, dict) else (on_cpu,)
        detail["num_offloaded_tokens"] = state.position_offset
        detail["num_offloaded_blocks"] = sum(len(table) for table in tables)
    return detail


def _prefill(state: Any) -> dict[str, int]:
    """If it was reset, its prefill covers outputs too."""
    tokens = len(state.initial_tokens)
    return {} if tokens == config.prompt_of(state) else {"num_prefill_tokens": tokens}


def _cached_hashes(cache: Any) -> list[bytes]:
    """Hashes of the blocks that the prefix cache keeps and no request holds, in its order."""
    managers = config.managers_of(cache)
    if not getattr(cache, "use_prefix_sharing", False) or len(managers) != 1:
        return []
    ledger: Any = getattr(managers[0], "ledger", None)
    pool: Any = getattr(cache, "_block_manager", None)
    if ledger is not None:
        return [config.hash_bytes(ledger.block_to_hash[block]) for block in ledger.cached_blocks]
    blocks = getattr(pool, "_init_block_ids", ())
    return [config.hash_bytes(pool._id_to_block[block].hash) for block in blocks]
