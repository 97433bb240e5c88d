"""Watches where `Scheduler.schedule()` of a real vLLM stops, beside what fdtrace's adapter says about it.

    python scheduler_stops.py DRIVERS AGENT -

Run by a Python that has vLLM. DRIVERS and AGENT are the directories of fdtrace's drivers and of its agent. It answers
one question a line of stdin: {"sizes": …, "recorded": …, "seed": …, "given": requests}. The engine is that of
`vllm_engine.py`. The truth is a line of vLLM's own code: a trace function notes the last `break` of the loop over the
waiting requests, and the line at which the loop over the running ones passed each. The answer has
[truth, adapter's reason, …] for each call, and of each call that left running requests out both reasons of each.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import json
import os
import random
import sys
import tempfile
import textwrap
import threading
from pathlib import Path
from typing import Any

GUARDS = {
    "num_running >= self.max_num_active_reqs": "slots",
    "defer_prefills and num_computed_tokens < request.num_tokens - 1": "throttle",
    "padded_num_tokens > request_token_budget": "padding",
    "not self.scheduler_config.enable_chunked_prefill and num_new_tokens > request_token_budget "
    "and (not self.is_mm_encoder_only)": "too long",
    "not request_queue or input_budget <= draft_slots": "no request or input",
    "new_blocks is None": "no blocks",
}
"""Condition before a `break` in the loop over waiting requests -> what it means."""


PASSED = {
    "input_budget <= draft_slots": "input_budget",
    "self.current_step < request.next_decode_eligible_step": "pipeline",
    "defer_prefills and request.is_prefill_chunk": "throttle",
    "new_blocks is None": "blocks",
}
"""The same of the loop over the running requests, before a `break` or a `continue`."""
ENDING = "request.num_output_placeholders > 0 and"
"""How a condition begins that is not compared as a whole."""
RUNNING_LOOP = "req_index < len(self.running) and token_budget > 0"


def passes_of(code: Any) -> dict[int, str]:
    """Line of each `break` and `continue` of the loop over the running requests -> the condition before it."""
    lines, first = inspect.getsourcelines(code)
    found: dict[int, str] = {}
    for loop in ast.walk(ast.parse(textwrap.dedent("".join(lines)))):
        if isinstance(loop, ast.While) and ast.unparse(loop.test) == RUNNING_LOOP:
            guards = [
                node for node in loop.body if isinstance(node, ast.If)
            ]  # not those of the loop within it
            for guard in guards:
                for inner in guard.body:
                    if isinstance(inner, (ast.Break, ast.Continue)):
                        found[inner.lineno + first - 1] = ast.unparse(guard.test)
    return found


def breaks_of(code: Any, scheduler_module: Any) -> dict[int, str]:
    """Line of each `break` of the loop over the waiting requests -> the condition before it."""
    lines, first = inspect.getsourcelines(code)
    tree = ast.parse(textwrap.dedent("".join(lines)))
    found: dict[int, str] = {}
    for loop in ast.walk(tree):
        if isinstance(loop, ast.While) and ast.unparse(loop.test) == "token_budget > 0":
            for node in ast.walk(loop):
                if isinstance(node, ast.If):
                    for inner in node.body:
                        if isinstance(inner, ast.Break):
                            found[inner.lineno + first - 1] = ast.unparse(node.test)
    return found


class Watched:
    """Wraps `scheduler.schedule`: notes where each call stopped, and the variables that it ended with."""

    def __init__(self, scheduler: Any) -> None:
        cls = next(cls for cls in type(scheduler).__mro__ if "schedule" in vars(cls))
        method = vars(cls)["schedule"]
        self.code = getattr(method, "__wrapped__", method).__code__
        self.breaks = breaks_of(self.code, sys.modules[cls.__module__])
        self.scheduler, self.schedule = scheduler, scheduler.schedule
        self.condition = self.loop_end = ""
        self.passes, self.passed = passes_of(self.code), dict[str, str]()
        self.num_with_rest = 0
        self.end: dict[str, Any] = {}
        self.needed: list[int] = []
        coordinator = scheduler.kv_cache_manager.coordinator
        needed = coordinator.get_num_blocks_to_allocate

        def noted(*args: Any, **kwargs: Any) -> int:
            self.needed.append(int(needed(*args, **kwargs)))
            return self.needed[-1]

        coordinator.get_num_blocks_to_allocate = noted
        allocate = scheduler.kv_cache_manager.allocate_slots

        def allocate_slots(*args: Any, **kwargs: Any) -> Any:
            self.needed.clear()
            return allocate(*args, **kwargs)

        scheduler.kv_cache_manager.allocate_slots = allocate_slots

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.condition, self.loop_end, self.end = "", "", {}
        self.passed.clear()
        sys.settrace(self._calls)
        try:
            output = self.schedule(*args, **kwargs)
        finally:
            sys.settrace(None)
        self.num_with_rest += any(
            r.request_id not in output.num_scheduled_tokens for r in self.scheduler.running
        )
        return output

    def _calls(self, frame: Any, event: str, arg: Any) -> Any:
        return self._lines if frame.f_code is self.code else None

    def _lines(self, frame: Any, event: str, arg: Any) -> Any:
        if event == "line" and frame.f_lineno in self.breaks:
            self.condition = self.breaks[frame.f_lineno]
        elif event == "line" and frame.f_lineno in self.passes:
            self._pass(self.passes[frame.f_lineno], frame.f_locals["request"])
        elif event == "return":
            names = ("token_budget", "input_budget", "preempted_reqs", "num_new_tokens", "request")
            self.end = {name: frame.f_locals.get(name) for name in names}
        return self._lines

    def _pass(self, condition: str, request: Any) -> None:
        if condition.startswith(ENDING):
            reason = "ending"
        elif condition == "num_new_tokens == 0":
            wanted = request.num_tokens_with_spec + request.num_output_placeholders
            reason = "in_flight" if wanted <= request.num_computed_tokens else "max_model_len"
        else:
            reason = PASSED[condition]
        self.passed[request.request_id] = reason
        if reason in ("input_budget", "blocks"):
            self.loop_end = reason

    def rests(self, scheduled: dict[str, int]) -> dict[str, str]:
        """Why the last call gave nothing to each running request that it left out, in the words of fdtrace."""
        paused = self.scheduler._pause_state.name == "PAUSED_ALL"
        return {
            r.request_id: "paused" if paused else self.passed.get(r.request_id, self.loop_end or "budget")
            for r in self.scheduler.running
            if r.request_id not in scheduled
        }

    @property
    def reason(self) -> str:
        """The reason of the last call, in the words of fdtrace."""
        if self.end["preempted_reqs"]:
            return "preemption"
        if self.scheduler._pause_state.name == "PAUSED_ALL":
            return "paused"
        found = GUARDS.get(self.condition, self.condition) if self.condition else "budget"
        exact = {
            "too long": self._too_long,
            "no request or input": self._nobody_or_input,
            "no blocks": self._no_blocks,
        }
        return exact[found]() if found in exact else found

    def _too_long(self) -> str:
        return "budget" if self.end["num_new_tokens"] > self.end["token_budget"] else "input_budget"

    def _nobody_or_input(self) -> str:
        speculation = self.scheduler.vllm_config.speculative_config
        slots = speculation.max_num_new_slots_for_drafting if speculation else 0
        if self.scheduler._pause_state.name == "UNPAUSED":
            return "input_budget" if self.end["input_budget"] <= slots else "deferred"
        return "input_budget" if self.scheduler.kv_holding_waiting else "paused"

    def _no_blocks(self) -> str:
        free = self.scheduler.kv_cache_manager.block_pool.get_num_free_blocks()
        return "watermark" if max(self.needed) <= free else "blocks"


class SilentWriter:
    """Stands for the agent's writer: it only keeps the numbers of the requests."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}
        self.ids: list[str] = []
        self.skipped: list[tuple[str, str]] = []

    def request(self, request_id: str, *more: Any) -> None:
        self.numbers[request_id] = len(self.ids)
        self.ids.append(request_id)

    def finish(self, request_id: str, *more: Any) -> None:
        del self.numbers[request_id]

    def event(self, kind: str, request_id: str, reason: str = "", detail: Any = None) -> None:
        if kind == "skipped":
            self.skipped.append((request_id, reason))

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: None


class Here:
    """Stands for the agent in this process: it records, and a hook that fails fails here."""

    on = True
    lock = threading.Lock()
    mark = (True,)
    next_look = float("inf")

    def needs_attention(self) -> bool:
        return False

    def attend(self) -> None:
        """Nothing waits."""

    def switch_off(self, error: BaseException) -> None:
        raise error


def loaded(agent: Path, *names: str) -> dict[str, Any]:
    """Modules of fdtrace's agent for vLLM, by name."""
    spec = importlib.util.spec_from_file_location("agent_load", agent / "load.py")
    assert spec is not None
    assert spec.loader is not None
    load = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(load)
    load.load(load.read_sources(str(agent), ("vllm",)))
    return {name: sys.modules[f"{load.NAME}.{name}"] for name in (*names, "hooks")}


def hooked(adapter_class: Any, modules: dict[str, Any]) -> Any:
    """An adapter of this class, with its hooks installed."""
    here = Here()
    adapter = adapter_class(here)
    for hook in adapter.hooks:
        modules["hooks"].install(here, hook)
    return adapter


def adapter_of(agent: Path) -> tuple[Any, tuple[Any, Any, Any]]:
    """fdtrace's adapter for vLLM, hooked, and its modules of figures, of running requests' reasons, and of frames."""
    modules = loaded(agent, "vllm", "vllm_figures", "vllm_resting", "wire")
    adapter = hooked(modules["vllm"].VllmAdapter, modules)
    return adapter, (modules["vllm_figures"], modules["vllm_resting"], modules["wire"])


def worker_adapter_of(agent: Path) -> tuple[Any, Any]:
    """fdtrace's adapter for vLLM's workers, hooked, and the module that reads vLLM's configuration."""
    modules = loaded(agent, "vllm_worker", "vllm_config")
    return hooked(modules["vllm_worker"].VllmWorkerAdapter, modules), modules["vllm_config"]


def unsettle(scheduler: Any, rng: random.Random, asked: dict[str, Any]) -> None:
    """Pause the scheduler now and then, make its budget small, and let waiting requests be not ready for a while."""
    from vllm.v1.core.sched.interface import PauseState
    from vllm.v1.request import RequestStatus

    if asked.get("pauses"):
        scheduler._pause_state = rng.choice([PauseState.UNPAUSED] * 8 + list(PauseState))
    if asked.get("squeezes"):
        scheduler.max_num_scheduled_tokens = rng.choice((64, 64, 9))
    for request in list(scheduler.waiting) if asked.get("defers") else ():
        if request.status is RequestStatus.WAITING and rng.random() < 0.4:
            request.status = RequestStatus.WAITING_FOR_STREAMING_REQ
        elif request.status is RequestStatus.WAITING_FOR_STREAMING_REQ and rng.random() < 0.3:
            request.status = RequestStatus.WAITING


def run(
    asked: dict[str, Any], build: Any, engine_module: Any, adapter: Any, modules: tuple[Any, Any, Any]
) -> dict[str, Any]:
    """What each call that left a request waiting stopped at: by vLLM's code, and by the adapter."""
    sizes, recorded = asked["sizes"], asked["recorded"]
    config = build.build_config(sizes, recorded, None)
    scheduler = build.build_scheduler(config, sizes, recorded)
    writer = SilentWriter()
    adapter.begin(writer)
    watched = scheduler.schedule = Watched(scheduler)
    calls: list[list[Any]] = []

    def noted(*args: Any) -> Any:
        reason, plain = of_call(*args)
        found = wire.CallFigures(*plain)
        head = writer.ids[found.head] if found.head >= 0 else ""
        left = [found.token_budget - found.num_scheduled_tokens, found.input_budget - found.num_input_tokens]
        truth = [watched.end["token_budget"], watched.end["input_budget"]]
        if scheduler._pause_state.name == "PAUSED_ALL":
            left[0], truth[0] = 0, 0
        waiting = found.num_waiting > 0
        calls.append([watched.reason if waiting else "", reason, truth, left, head, found.num_missing_blocks])
        return reason, plain

    rests: list[list[dict[str, str]]] = []

    def rested(scheduler: Any, scheduled: dict[str, int], budgets: Any) -> dict[str, str]:
        rests.append([watched.rests(scheduled), resting(scheduler, scheduled, budgets)])
        return rests[-1][1]

    figures, resting_module, wire = modules
    of_call, figures.of_call = figures.of_call, noted
    resting, resting_module.resting = resting_module.resting, rested
    rng = random.Random(asked["seed"])
    in_flight = build.batches_in_flight(config)
    worker = engine_module.Worker(rng, sizes["num_speculative_tokens"], in_flight)
    recorder = engine_module.Recorder(scheduler, worker)
    engine = engine_module.engine_of(scheduler, config, worker, in_flight)
    engine._should_throttle_prefills = lambda: bool(asked.get("throttles")) and rng.random() < 0.5
    clients = engine_module.ClientRequests(asked, scheduler, worker, recorder)
    hasher, given = build.block_hasher(sizes, recorded), asked["given"]
    while len(clients.requests) < len(given) or scheduler.has_requests():
        clients.bring(given, build, hasher)
        unsettle(scheduler, rng, asked)
        engine.post_step(engine.step_fn()[1])
    adapter._write_call()
    figures.of_call, resting_module.resting = of_call, resting
    return {
        "calls": calls,
        "skipped": writer.skipped,
        "rests": rests,
        "num_with_rest": watched.num_with_rest,
        "known": sorted(set(watched.breaks.values())),
    }


def main() -> None:
    """Answer each question."""
    drivers, agent = sys.argv[1], Path(sys.argv[2])
    told = os.dup(1)
    os.dup2(2, 1)
    sys.path[1:1] = [drivers, str(Path(__file__).parents[1] / "fdtrace")]
    build, engine_module = importlib.import_module("vllm_build"), importlib.import_module("vllm_engine")
    del sys.path[1:3]
    os.chdir(tempfile.mkdtemp())
    importlib.import_module("vllm.v1.core.sched.scheduler")
    importlib.import_module("vllm.v1.core.kv_cache_manager")
    adapter, modules = adapter_of(agent)
    with os.fdopen(told, "w", encoding="utf-8") as answers:
        for question in sys.stdin:
            answers.write(
                json.dumps(run(json.loads(question), build, engine_module, adapter, modules)) + "\n"
            )
            answers.flush()


if __name__ == "__main__":
    main()
