"""Drives the `Scheduler` of a vLLM package on the CPU, step by step, as a process of its own.

    python vllm_driver.py [DIRECTORY]

It runs under a Python that can import vLLM; if DIRECTORY (a checkout, a site-packages directory) holds the package, its
requirements are enough. It needs nothing of fdtrace. It reads a JSON object a line on stdin, and answers with one a
line on the original stdout:

    {"open": {"sizes": …, "recorded": …, "changed": …}}  -> {"opened": vLLM's version}
    {"open": {…, "rules": the formula's rules}}   -> the same; before each call of the scheduler it asks for the budgets
                                                     {"question": what the call finds}, then {"budget": …} comes back
    {"open": {"knobs": recorded}}, then anything  -> {"knobs": [what can be changed]}
    {"arrived": [requests], "aborted": [ids]}     -> what this step decided and ran
    anything that cannot be done                  -> {"failed": why, "where": "import" | "open" | "schedule" | "step"}

vLLM's own code schedules, and takes in the output of each forward. It is called in the order of `EngineCore.step` or,
with batches in flight, of `EngineCore.step_with_batch_queue`. The forward is played: the last chunk of a prompt samples
one token. A decode samples one token and, of the drafts that were scheduled, as many as the request is to accept.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fdtrace.drivers import vllm_build as build
    from fdtrace.drivers.driver_protocol import CannotGoOn, Message, ServedEngine, run
    from fdtrace.drivers.vllm_budgets import FormulaBudgets
    from fdtrace.drivers.vllm_played import DRAFT, STOP, PlayedVllmRequest
    from fdtrace.drivers.vllm_settings import KnobList, RefusedSetting, with_changes
    from fdtrace.drivers.vllm_stops import AdmissionStops
else:  # beside this script, without fdtrace
    import vllm_build as build
    from driver_protocol import CannotGoOn, Message, ServedEngine, run
    from vllm_budgets import FormulaBudgets
    from vllm_played import DRAFT, STOP, PlayedVllmRequest
    from vllm_settings import KnobList, RefusedSetting, with_changes
    from vllm_stops import AdmissionStops


class VllmEngine:
    """vLLM's scheduler with a played worker."""

    def __init__(self, sizes: Message, recorded: Message, changed: Message, rules: list[str] | None) -> None:
        from vllm.sampling_params import SamplingParams
        from vllm.v1.outputs import DraftTokenIds, ModelRunnerOutput
        from vllm.v1.request import Request, RequestStatus

        recorded = with_changes(sizes, recorded, changed)
        config = build.build_config(sizes, recorded, changed)
        self.scheduler = build.build_scheduler(config, sizes, recorded)
        self.budgets = None if rules is None else FormulaBudgets(self.scheduler, rules)
        self.new_request, self.statuses, self.sampling = Request, RequestStatus, SamplingParams
        self.output, self.draft_ids = ModelRunnerOutput, DraftTokenIds
        self.block_size = sizes["block_size"]
        self.stops = AdmissionStops(self.scheduler, self.block_size)
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
        """Nothing outside the process is held."""

    def ask_by(self, ask: Callable[[Message], Message]) -> None:
        """Ask questions by this function."""
        if self.budgets is not None:
            self.budgets.ask = ask

    # Requests -----------------------------------------------------------------------------------------------

    def add(self, spec: Message) -> None:
        """A request arrives, or enters in its recorded state; or blocks enter the prefix cache before all requests."""
        if "cached" in spec:
            self._cache(spec["cached"])
            return
        playing = self.playing[spec["id"]] = PlayedVllmRequest(spec, self.block_size, self.drafts)
        self.arrivals += 1
        tokens = playing.tokens(0, playing.prompt)
        request = self._request(spec["id"], tokens, playing.max_tokens, spec.get("priority", 0))
        if spec.get("resumed"):
            self._resume(request, playing, spec["resumed"])
        else:
            self.scheduler.add_request(request)

    def _request(self, name: str, tokens: list[int], max_tokens: int, priority: int = 0) -> Any:
        arguments = {
            "request_id": name,
            "prompt_token_ids": tokens,
            "sampling_params": self.sampling(
                max_tokens=max_tokens, ignore_eos=True, stop_token_ids=[STOP], temperature=0.0
            ),
            "pooling_params": None,
            "eos_token_id": None,
            "arrival_time": float(self.arrivals),
            "priority": priority,
            "block_hasher": self.hasher,
        }
        return self.new_request(**build.supported_arguments(self.new_request, arguments))

    def _cache(self, contents: list[int]) -> None:
        """Put blocks with these contents into the prefix cache, held by no request, if there is room for them."""
        manager, size = self.scheduler.kv_cache_manager, self.block_size
        request = self._request("cached", [token for token in contents for _ in range(size)] + [DRAFT], 1)
        blocks, cached = manager.get_computed_blocks(request)[:2]
        num_new = len(contents) * size - cached
        if num_new > 0 and manager.allocate_slots(
            request, num_new, num_new_computed_tokens=cached, new_computed_blocks=blocks
        ):
            manager.free(request)

    def _resume(self, request: Any, playing: PlayedVllmRequest, state: Message) -> None:
        """A request enters in its recorded state: with its output tokens and, if it runs, its computed tokens."""
        manager = self.scheduler.kv_cache_manager
        request.append_output_token_ids(playing.emit(state["num_emitted_tokens"]))
        if state["waiting"]:
            if playing.emitted:
                request.status = self.statuses.PREEMPTED
            self.scheduler.add_request(request)
            return
        playing.prefills = not state["decoding"]
        computed = request.num_tokens - 1 if state["decoding"] else state["num_computed_tokens"]
        cached_prefix = manager.get_computed_blocks(request)
        blocks, cached = (
            cached_prefix[0],
            min(cached_prefix[1], computed // self.block_size * self.block_size),
        )
        if cached != cached_prefix[1]:
            blocks, cached = None, 0
        # As many blocks as it held: rejected drafts may have left it more blocks than its tokens need.
        lookahead = max(0, state["num_blocks"] * self.block_size - computed)
        prefix = {} if blocks is None else {"num_new_computed_tokens": cached, "new_computed_blocks": blocks}
        if (
            manager.allocate_slots(request, computed - cached, num_lookahead_tokens=lookahead, **prefix)
            is None
        ):
            raise RuntimeError(f"no KV blocks for {request.request_id}, which runs when the recording begins")
        request.num_computed_tokens = computed
        if state["decoding"] and self.drafts:
            request.spec_token_ids = [DRAFT] * playing.proposed()
        request.status = self.statuses.RUNNING
        self.scheduler.requests[request.request_id] = request
        self.scheduler.running.append(request)

    # Steps --------------------------------------------------------------------------------------------------

    def answer(self, message: Message) -> Message:
        """The answer to one message."""
        return self.step(message["arrived"], message["aborted"])

    def step(self, arrived: list[Message], aborted: list[str]) -> Message:
        """All that happens until the next forward that runs tokens, or until nothing more can run."""
        answer: Message = {"preempted": [], "finished": [], "scheduler_ns": 0}
        for spec in arrived:
            while spec.get("after_idle") and self.in_flight:
                self._update(answer)
            self.add(spec)
        known_aborts = answer["aborted"] = [name for name in aborted if name in self.scheduler.requests]
        if known_aborts:
            self.scheduler.finish_requests(known_aborts, self.statuses.FINISHED_ABORTED)
        while True:
            ran = self._schedule(answer)
            moves = False
            if not ran or len(self.in_flight) >= self.most_in_flight:
                moves = self._update(answer)
            if ran or not (moves or any(sampled for _, sampled in self.in_flight)):
                break
        if not ran:
            self.in_flight.clear()  # batches without tokens
        for name in (*answer["finished"], *known_aborts):
            self.playing.pop(name, None)
        answer["idle"] = not (self.playing or self.in_flight)
        return answer

    def _schedule(self, answer: Message) -> bool:
        """One call of the scheduler and its played forward. True: the forward runs tokens."""
        scheduler = self.scheduler
        decodes_before = {request.request_id: self._decodes(request) for request in scheduler.running}
        budgets = self.budgets
        if budgets is not None:
            running = {"running": len(scheduler.running), "running_decodes": sum(decodes_before.values())}
            budgets.set({**running, "waiting": self._waiting()})
        began = time.thread_time_ns()
        try:
            output = scheduler.schedule()
        except Exception as error:
            raise CannotGoOn("schedule", error) from error
        answer["scheduler_ns"] += time.thread_time_ns() - began
        running_after = {request.request_id for request in scheduler.running}
        preempted = [name for name in decodes_before if name not in running_after]
        for name in preempted:
            self.playing[name].prefills = True
        answer["preempted"] += preempted
        answer.update(
            budget=getattr(scheduler, "max_num_scheduled_tokens", -1) if budgets is None else budgets.budget,
            scheduled=output.total_num_scheduled_tokens,
            running=len(scheduler.running),
            waiting=self._waiting(),
            running_decodes=sum(decodes_before.values()),
            free_blocks=scheduler.kv_cache_manager.block_pool.get_num_free_blocks(),
        )
        answer.update(self.stops.after(output, decodes_before, len(preempted)))
        answer["rows"], sampled = self._forward(output)
        self.in_flight.append((output, sampled))
        return bool(answer["rows"])

    def _decodes(self, request: Any) -> bool:
        return not self.playing[request.request_id].prefills

    def _waiting(self) -> int:
        """Requests in the waiting queues of this version."""
        return sum(map(len, self.stops.queues))

    def _forward(self, output: Any) -> tuple[list[list[Any]], dict[str, list[int]]]:
        """Play a forward. Returns a row for each request (id, decode, tokens, tokens before, drafts, accepted, blocks,
        emitted), and the tokens that each request sampled.
        """
        computed = {new.req_id: new.num_computed_tokens for new in output.scheduled_new_reqs}
        cached = output.scheduled_cached_reqs
        computed.update(dict(zip(cached.req_ids, cached.num_computed_tokens)))  # noqa: B905 - Python 3.9
        rows: list[list[Any]] = []
        sampled: dict[str, list[int]] = {}
        for name, num_tokens in output.num_scheduled_tokens.items():
            playing, before = self.playing[name], computed[name]
            drafts = len(output.scheduled_spec_decode_tokens.get(name, ()))
            if (
                drafts and playing.prefills
            ):  # all tokens but the last are cached: vLLM pads it to a decode's shape
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
        """The scheduler takes the output of the oldest batch. True: that batch ran tokens."""
        scheduled, sampled = self.in_flight.popleft()
        names = list(scheduled.num_scheduled_tokens)
        output_fields = {
            "req_ids": names,
            "req_id_to_index": {name: i for i, name in enumerate(names)},
            "sampled_token_ids": [sampled[name] for name in names],
            "logprobs": None,
            "prompt_logprobs_dict": {},
            "pooler_output": [],
        }
        present = [name for name in names if name in self.scheduler.requests]
        began = time.thread_time_ns()
        self.scheduler.update_from_output(
            scheduled, self.output(**build.supported_arguments(self.output, output_fields))
        )
        self._propose([name for name in present if sampled[name]])
        answer["scheduler_ns"] += time.thread_time_ns() - began
        answer["finished"] += [name for name in present if name not in self.scheduler.requests]
        return bool(names)

    def _propose(self, names: list[str]) -> None:
        """Give drafts for the next step to requests that sampled. With batches in flight vLLM uses placeholders."""
        present = [name for name in names if name in self.scheduler.requests]
        if self.gives_drafts and present:
            drafts = [[DRAFT] * self.playing[name].proposed() for name in present]
            self.scheduler.update_draft_token_ids(self.draft_ids(present, drafts))


def _open(message: Message) -> ServedEngine:
    try:
        import vllm.v1.core.sched.scheduler  # noqa: F401
    except Exception as error:
        raise CannotGoOn("import", error) from error
    try:
        if "knobs" in message:
            return KnobList(message["knobs"])
        changed, rules = message.get("changed") or {}, message.get("rules")
        return VllmEngine(message["sizes"], message["recorded"], changed, rules)
    except RefusedSetting as refused:
        raise CannotGoOn("settings", refused) from None
    except Exception as error:
        raise CannotGoOn("open", error) from error


if __name__ == "__main__":
    run(_open, build.version)
