"""Brings a continuous batching processor of transformers into the state in which a recording found it.

`transformers_driver.py` imports it from its own directory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fdtrace.drivers.driver_protocol import Message
    from fdtrace.drivers.transformers_played import PLACEHOLDER, STOP, PlayedSequence
else:  # beside this script, without fdtrace
    from transformers_played import PLACEHOLDER, STOP, PlayedSequence


class InitialState:
    """Enters requests and cached blocks. `batch`: the requests of the batch that was in flight, as transformers'
    `FutureRequestState`s.
    """

    def __init__(self, processor: Any, block_size: int) -> None:
        from transformers.generation.continuous_batching.requests import (
            FutureRequestState,
            RequestState,
            RequestStatus,
        )

        self.scheduler, self.cache = processor.scheduler, processor.cache
        self.offloading = processor.offloading_manager
        self.block_size = block_size
        self.new_request, self.new_future, self.statuses = RequestState, FutureRequestState, RequestStatus
        self.batch: list[Any] = []

    def request(self, name: str, played: PlayedSequence, tokens: int) -> Any:
        """The `RequestState` of a request whose prefill computes its first `tokens`."""
        state = self.new_request(
            request_id=name, initial_tokens=played.tokens(tokens), eos_token_id=STOP,
            max_new_tokens=played.max_tokens - (tokens - played.prompt),
        )  # fmt: skip
        if tokens > played.prompt:
            state._true_initial_tokens = played.prompt
        return state

    def resume(self, name: str, played: PlayedSequence, recorded: Message) -> None:
        """A request enters in its recorded state: with its output tokens and, if it runs, its computed tokens."""
        played.emitted = recorded["num_emitted_tokens"]
        if recorded["waiting"]:
            self._wait(name, played, recorded)
        else:
            self._run(name, played, recorded)

    def _wait(self, name: str, played: PlayedSequence, recorded: Message) -> None:
        num_tokens, offloaded = played.prompt + played.emitted, recorded["num_offloaded_tokens"]
        if not (offloaded and self._keep_on_cpu(name, recorded["num_offloaded_blocks"])):
            self.scheduler.add_waiting_request(self.request(name, played, num_tokens))
            return
        state, tokens = self._with_outputs(name, played, recorded, num_tokens)
        state.position_offset, state.is_cpu_offloaded = offloaded, True
        state.remaining_prefill_tokens = tokens[offloaded:]
        self.scheduler.add_waiting_request(state)

    def _with_outputs(
        self, name: str, played: PlayedSequence, recorded: Message, num_tokens: int
    ) -> tuple[Any, list[int]]:
        """A request with outputs since its prefill, and its first `num_tokens` tokens."""
        tokens, num_initial = played.tokens(num_tokens), min(recorded["num_prefill_tokens"], num_tokens)
        state = self.request(name, played, num_initial)
        state.generated_tokens = tokens[num_initial:]
        return state, tokens

    def _keep_on_cpu(self, name: str, num_blocks: int) -> bool:
        """Take blocks of the CPU's pool for a request. False: there is no room."""
        offloading = self.offloading
        if hasattr(offloading, "_reserve_cpu_blocks"):
            (layers,) = self.cache.cache_allocators
            kept = offloading._reserve_cpu_blocks({layers: num_blocks})
        else:
            free = offloading._free_cpu_blocks
            kept, offloading._free_cpu_blocks = free[:num_blocks], free[num_blocks:]
            if len(kept) < num_blocks:
                offloading._free_cpu_blocks, kept = free, None
            else:
                offloading._request_id_to_group_block_counts[name] = [num_blocks]
        if kept is None:
            return False
        offloading._request_id_to_cpu_blocks[name] = kept
        return True

    def _run(self, name: str, played: PlayedSequence, recorded: Message) -> None:
        decodes, in_flight = bool(recorded["decoding"]), recorded["num_in_flight_tokens"]
        num_tokens = played.prompt + played.emitted
        samples = decodes and in_flight > 0
        if decodes:
            state, tokens = self._with_outputs(name, played, recorded, num_tokens - samples)
            state.tokens_to_process = [PLACEHOLDER] if samples else [tokens[-1]]
            state.remaining_prefill_tokens = []
            computed = num_tokens - 1
        else:
            state, computed = self.request(name, played, num_tokens), recorded["num_computed_tokens"]
            state.remaining_prefill_tokens = state.initial_tokens[computed:]
        state.status = self.statuses.DECODING if decodes else self.statuses.PREFILLING
        played.prefills = not decodes
        self._hold(state, played, computed - in_flight, in_flight)
        if self._missing(name, recorded["num_blocks"]):
            state.allocated_blocks += self.cache.allocate_blocks(1, name, state.allocated_blocks) or 0
        if in_flight:
            self.batch.append(self._future(state, in_flight, samples=samples))
        state.position_offset = computed
        self.scheduler.active_requests[name] = state

    def _hold(self, state: Any, played: PlayedSequence, complete: int, in_flight: int) -> None:
        """Let a request hold the blocks of its `complete` tokens, shared where they can be, and of those in flight."""
        name = state.request_id
        num_cached = (
            self.cache.search_prefix_match(name, played.tokens(complete + 1))
            if self.cache.use_prefix_sharing
            else 0
        )
        self._found_in_cache(state, num_cached)
        more = complete + in_flight - num_cached
        if more > 0 and not self._allocate(state, more):
            raise RuntimeError(f"no KV blocks for {name}, which runs when the recording begins")
        state.position_offset = complete
        self._mark(state, complete // self.block_size - num_cached // self.block_size)

    def _found_in_cache(self, state: Any, num_cached: int) -> None:
        state.position_offset = num_cached
        if not hasattr(self.cache, "cache_allocators"):
            state.allocated_blocks = num_cached // self.block_size

    def _allocate(self, state: Any, tokens: int) -> bool:
        store = getattr(self.cache, "can_store_request_tokens", None)
        return bool(
            store(state, tokens) if store else self.scheduler._allocate_blocks_if_needed(state, tokens)
        )

    def _missing(self, name: str, num_blocks: int) -> bool:
        """Whether the recorded request had a block more: some versions allocate one ahead, others never do."""
        managers = getattr(self.cache, "group_cache_managers", ())
        return any(len(manager.block_table.get(name, ())) < num_blocks for manager in managers)

    def _mark(self, state: Any, complete: int) -> None:
        """If blocks are shared, let other requests share the full ones."""
        if complete <= 0 or not self.cache.use_prefix_sharing:
            return
        if hasattr(self.cache, "mark_complete_blocks"):
            self.cache.mark_complete_blocks(state, dict.fromkeys(self.cache.cache_allocators, complete))
        else:
            self.cache.mark_shareable_blocks_as_complete(state, complete)

    def _future(self, state: Any, tokens: int, *, samples: bool) -> Any:
        """A request's part in the batch in flight. Its position is that before the batch."""
        if hasattr(self.cache, "count_new_complete_blocks"):
            blocks = self.cache.count_new_complete_blocks(state, tokens)
        else:
            full = (state.position_offset % self.block_size + tokens) // self.block_size
            blocks = full if self.cache.allow_block_sharing else 0
        return self.new_future(state, samples, blocks, tokens)

    def cache_blocks(self, contents: list[int]) -> None:
        """Put blocks with these contents into the prefix cache, held by no request, if there is room for them."""
        tokens = [token for token in contents for _ in range(self.block_size)]
        state = self.new_request(request_id="cached", initial_tokens=[*tokens, STOP])
        num_cached = self.cache.search_prefix_match("cached", state.initial_tokens)
        self._found_in_cache(state, num_cached)
        if len(tokens) > num_cached and self._allocate(state, len(tokens) - num_cached):
            self._mark(state, (len(tokens) - num_cached) // self.block_size)
        self.cache.free_blocks("cached")
