"""Drives the `Scheduler` of a vLLM package on the CPU, step by step, as a process of its own.

    python vllm_driver.py [DIRECTORY]

Run by a Python that can import vLLM, or its requirements where DIRECTORY holds the package (a checkout, a site-packages
directory); it needs nothing of fdtrace. A JSON object a line on stdin, an answer a line on what was stdout:

    {"open": {"sizes": …, "recorded": …}}         -> {"opened": vLLM's version}
    {"arrived": [requests], "aborted": [ids]}     -> what this step decided and ran
    anything that cannot be done                  -> {"failed": why, "where": "import" | "open" | "schedule" | "step"}

Scheduling, and what the output of a forward does to the scheduler, is vLLM's own code, called in the order of
`EngineCore.step` or, with batches in flight, `EngineCore.step_with_batch_queue`. The forward is played: a prompt's last
chunk samples one token, a decode one and the drafts that it was given to accept, of those that were scheduled.
"""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fdtrace.drivers import vllm_build as build
    from fdtrace.drivers.serving import CannotGoOn, Message, run
else:  # beside this script, without fdtrace
    import vllm_build as build
    from serving import CannotGoOn, Message, run

STOP = 2
"""The token that ends a request before its `max_tokens`; those of prompts and outputs are larger."""
DRAFT = 3
QUEUES = ("waiting", "skipped_waiting", "kv_holding_waiting")
"""Queues of requests that wait; versions differ in which they have."""


class PlayedVllmRequest:
    """What the played worker knows of a request: its tokens, the drafts and acceptances to come, how far it is."""

    def __init__(self, spec: Message, block_size: int, most_drafts: int) -> None:
        self.prompt, self.output, self.max_tokens = spec["prompt"], spec["output"], spec["max_tokens"]
        self.accepts, self.drafts, self.restarts = spec["accepts"], spec["drafts"], spec["restarts"]
        self._contents, self._block_size, self._most = spec["contents"], block_size, most_drafts
        self.emitted = self.forwards = 0
        self.prefills = True
        """Whether its tokens are being computed afresh: until the chunk that ends with its last one."""

    def token(self, position: int) -> int:
        """The token at a position of the whole sequence."""
        if position == self.prompt + self.output - 1 and self.output < self.max_tokens:
            return STOP
        return int(self._contents[min(position // self._block_size, len(self._contents) - 1)])

    def tokens(self, first: int, count: int) -> list[int]:
        """The tokens from a position on."""
        return [self.token(position) for position in range(first, first + count)]

    def emit(self, count: int) -> list[int]:
        """Its next tokens."""
        found = self.tokens(self.prompt + self.emitted, count)
        self.emitted += count
        return found

    def accepted(self, scheduled: int) -> int:
        """Drafts that its next decode forward accepts; the last number goes on."""
        return min(self._now(self.accepts, 0), scheduled)

    def proposed(self) -> int:
        """Drafts that its next decode forward is to verify; the last number goes on.

        Where it was preempted before that, how many these were is not recorded: as many as can be need as many blocks.
        """
        if self.forwards in self.restarts:
            self.restarts.remove(self.forwards)
            return self._most
        found = self._now(self.drafts, self._most)
        return self._most if found < 0 else found

    def _now(self, values: list[int], otherwise: int) -> int:
        return int(values[min(self.forwards, len(values) - 1)]) if values else otherwise


class VllmEngine:
    """vLLM's scheduler with a played worker."""

    def __init__(self, sizes: Message, recorded: Message) -> None:
        from vllm.sampling_params import SamplingParams
        from vllm.v1.outputs import DraftTokenIds, ModelRunnerOutput
        from vllm.v1.request import Request, RequestStatus

        config = build.build_config(sizes, recorded)
        self.scheduler = build.build_scheduler(config, sizes, recorded)
        self.new_request, self.statuses, self.sampling = Request, RequestStatus, SamplingParams
        self.output, self.draft_ids = ModelRunnerOutput, DraftTokenIds
        self.block_size = sizes["block_size"]
        self.hasher = build.block_hasher(sizes, recorded)
        self.drafts = sizes["num_speculative_tokens"] if sizes["spec_method"] is not None else 0
        self.gives_drafts = self.drafts > 0 and not getattr(
            config.scheduler_config, "async_scheduling", False
        )
        self.most_in_flight = build.batches_in_flight(config)
        self.in_flight: deque[tuple[Any, dict[str, list[int]]]] = deque()
        self.playing: dict[str, PlayedVllmRequest] = {}
        self.arrivals = 0

    def close(self) -> None:
        """Nothing is outside the process."""

    # Requests -----------------------------------------------------------------------------------------------

    def add(self, spec: Message) -> None:
        """A request arrives, or is taken up as it was; or blocks are in the prefix cache before any does."""
        if "cached" in spec:
            self._cache(spec["cached"])
            return
        playing = self.playing[spec["id"]] = PlayedVllmRequest(spec, self.block_size, self.drafts)
        self.arrivals += 1
        request = self._request(spec["id"], playing.tokens(0, playing.prompt), playing.max_tokens)
        if spec.get("resumed"):
            self._resume(request, playing, spec["resumed"])
        else:
            self.scheduler.add_request(request)

    def _request(self, name: str, tokens: list[int], max_tokens: int) -> Any:
        given = {
            "request_id": name,
            "prompt_token_ids": tokens,
            "sampling_params": self.sampling(
                max_tokens=max_tokens, ignore_eos=True, stop_token_ids=[STOP], temperature=0.0
            ),
            "pooling_params": None,
            "eos_token_id": None,
            "arrival_time": float(self.arrivals),
            "block_hasher": self.hasher,
        }
        return self.new_request(**build.taken_by(self.new_request, given))

    def _cache(self, contents: list[int]) -> None:
        """Blocks that nobody holds, with these contents, where there is room for them."""
        manager, size = self.scheduler.kv_cache_manager, self.block_size
        request = self._request("cached", [token for token in contents for _ in range(size)] + [DRAFT], 1)
        blocks, cached = manager.get_computed_blocks(request)[:2]
        more = len(contents) * size - cached
        if more > 0 and manager.allocate_slots(
            request, more, num_new_computed_tokens=cached, new_computed_blocks=blocks
        ):
            manager.free(request)

    def _resume(self, request: Any, playing: PlayedVllmRequest, state: Message) -> None:
        """A request enters as it was: with the tokens that it has made; as running, with what it has computed."""
        manager = self.scheduler.kv_cache_manager
        request.append_output_token_ids(playing.emit(state["num_emitted_tokens"]))
        if state["waiting"]:
            if playing.emitted:
                request.status = self.statuses.PREEMPTED
            self.scheduler.add_request(request)
            return
        playing.prefills = not state["decoding"]
        computed = request.num_tokens - 1 if state["decoding"] else state["num_computed_tokens"]
        found = manager.get_computed_blocks(request)
        blocks, cached = found[0], min(found[1], computed // self.block_size * self.block_size)
        if cached != found[1]:
            blocks, cached = None, 0
        # As many blocks as it held: drafts that were rejected may have left it more than its tokens need.
        more = max(0, state["num_blocks"] * self.block_size - computed)
        given = {} if blocks is None else {"num_new_computed_tokens": cached, "new_computed_blocks": blocks}
        if manager.allocate_slots(request, computed - cached, num_lookahead_tokens=more, **given) is None:
            raise RuntimeError(f"no KV blocks for {request.request_id}, which runs when the recording begins")
        request.num_computed_tokens = computed
        if state["decoding"] and self.drafts:
            request.spec_token_ids = [DRAFT] * playing.proposed()
        request.status = self.statuses.RUNNING
        self.scheduler.requests[request.request_id] = request
        self.scheduler.running.append(request)

    # Steps --------------------------------------------------------------------------------------------------

    def answer(self, message: Message) -> Message:
        """To one message."""
        return self.step(message["arrived"], message["aborted"])

    def step(self, arrived: list[Message], aborted: list[str]) -> Message:
        """What happens up to and with the next forward that runs tokens; where nothing more can run, up to there."""
        answer: Message = {"preempted": [], "finished": [], "scheduler_ns": 0}
        for spec in arrived:
            while spec.get("after_idle") and self.in_flight:
                self._update(answer)
            self.add(spec)
        known = answer["aborted"] = [name for name in aborted if name in self.scheduler.requests]
        if known:
            self.scheduler.finish_requests(known, self.statuses.FINISHED_ABORTED)
        while True:
            ran = self._schedule(answer)
            moves = False
            if not ran or len(self.in_flight) >= self.most_in_flight:
                moves = self._update(answer)
            if ran or not (moves or any(sampled for _, sampled in self.in_flight)):
                break
        if not ran:
            self.in_flight.clear()  # batches that nothing ran in
        for name in (*answer["finished"], *known):
            self.playing.pop(name, None)
        answer["idle"] = not (self.playing or self.in_flight)
        return answer

    def _schedule(self, answer: Message) -> bool:
        """One call of the scheduler and the forward that follows, played; whether it runs tokens."""
        scheduler = self.scheduler
        before = {request.request_id: self._decodes(request) for request in scheduler.running}
        began = time.thread_time_ns()
        try:
            output = scheduler.schedule()
        except Exception as error:
            raise CannotGoOn("schedule", error) from error
        answer["scheduler_ns"] += time.thread_time_ns() - began
        still = {request.request_id for request in scheduler.running}
        preempted = [name for name in before if name not in still]
        for name in preempted:
            self.playing[name].prefills = True
        answer["preempted"] += preempted
        answer.update(
            budget=getattr(scheduler, "max_num_scheduled_tokens", -1),
            scheduled=output.total_num_scheduled_tokens,
            running=len(scheduler.running),
            waiting=self._waiting(),
            head=self._head(),
            running_decodes=sum(before.values()),
            free_blocks=scheduler.kv_cache_manager.block_pool.get_num_free_blocks(),
        )
        answer["rows"], sampled = self._forward(output)
        self.in_flight.append((output, sampled))
        return bool(answer["rows"])

    def _decodes(self, request: Any) -> bool:
        return not self.playing[request.request_id].prefills

    def _waiting(self) -> int:
        """Requests in this version's queues."""
        return sum(len(getattr(self.scheduler, name, ())) for name in QUEUES)

    def _head(self) -> list[Any] | None:
        """The first request that waits, and the KV blocks that all its tokens need: a list, for JSON.

        A layer that keeps only a window needs fewer; that is not given.
        """
        queue = next(
            (getattr(self.scheduler, name) for name in QUEUES if getattr(self.scheduler, name, ())), None
        )
        if queue is None or len(self.scheduler.kv_cache_config.kv_cache_groups) != 1:
            return None
        request = next(iter(queue))
        return [request.request_id, -(-request.num_tokens // self.block_size)]

    def _forward(self, output: Any) -> tuple[list[list[Any]], dict[str, list[int]]]:
        """Plays a forward: a row a request (id, decode, tokens, before, drafts, accepted, blocks, emitted), and
        the tokens that each sampled.
        """
        computed = {new.req_id: new.num_computed_tokens for new in output.scheduled_new_reqs}
        cached = output.scheduled_cached_reqs
        computed.update(dict(zip(cached.req_ids, cached.num_computed_tokens)))  # noqa: B905 - Python 3.9
        rows: list[list[Any]] = []
        sampled: dict[str, list[int]] = {}
        for name, num_tokens in output.num_scheduled_tokens.items():
            playing, before = self.playing[name], computed[name]
            drafts = len(output.scheduled_spec_decode_tokens.get(name, ()))
            if drafts and playing.prefills:  # all but its last token is cached: padded to a decode's shape
                playing.prefills, before = False, playing.prompt + playing.emitted - 1
            decodes, accepted = not playing.prefills, 0
            ends = before + num_tokens - drafts >= playing.prompt + playing.emitted
            sampled[name] = []
            if decodes:
                accepted = playing.accepted(drafts)
                playing.forwards += 1
            if decodes or ends:
                sampled[name] = playing.emit(1 + accepted)
                playing.prefills = False
            blocks = len(self.scheduler.kv_cache_manager.get_block_ids(name)[0])
            emitted = len(sampled[name])
            rows.append([name, decodes, num_tokens, before + decodes, drafts, accepted, blocks, emitted])
        return rows, sampled

    def _update(self, answer: Message) -> bool:
        """The scheduler takes the output of the oldest batch; whether it ran any tokens."""
        scheduled, sampled = self.in_flight.popleft()
        names = list(scheduled.num_scheduled_tokens)
        given = {
            "req_ids": names,
            "req_id_to_index": {name: i for i, name in enumerate(names)},
            "sampled_token_ids": [sampled[name] for name in names],
            "logprobs": None,
            "prompt_logprobs_dict": {},
            "pooler_output": [],
        }
        known = [name for name in names if name in self.scheduler.requests]
        began = time.thread_time_ns()
        self.scheduler.update_from_output(scheduled, self.output(**build.taken_by(self.output, given)))
        self._propose([name for name in known if sampled[name]])
        answer["scheduler_ns"] += time.thread_time_ns() - began
        answer["finished"] += [name for name in known if name not in self.scheduler.requests]
        return bool(names)

    def _propose(self, names: list[str]) -> None:
        """The drafts of those that sampled, for their next step; with batches in flight vLLM takes placeholders."""
        there = [name for name in names if name in self.scheduler.requests]
        if self.gives_drafts and there:
            drafts = [[DRAFT] * self.playing[name].proposed() for name in there]
            self.scheduler.update_draft_token_ids(self.draft_ids(there, drafts))


def _open(message: Message) -> VllmEngine:
    try:
        import vllm.v1.core.sched.scheduler  # noqa: F401
    except Exception as error:
        raise CannotGoOn("import", error) from error
    try:
        return VllmEngine(message["sizes"], message["recorded"])
    except Exception as error:
        raise CannotGoOn("open", error) from error


if __name__ == "__main__":
    run(_open, build.version)
