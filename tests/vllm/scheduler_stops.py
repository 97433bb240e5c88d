"""Watches where `Scheduler.schedule()` of a real vLLM stops, beside what fdtrace's adapter says about it.

    python scheduler_stops.py DRIVERS AGENT -

Run by a Python that has vLLM. DRIVERS and AGENT are the directories of fdtrace's drivers and of its agent. It answers
one question a line of stdin: {"sizes": …, "recorded": …, "seed": …, "given": requests}. The engine is that of
`vllm_engine.py`. The truth is a line of vLLM's own code: a trace function notes the last `break` of the loop over the
waiting requests. The answer has [truth, adapter's reason, …] for each call.
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
        self.condition = ""
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
        self.condition, self.end = "", {}
        sys.settrace(self._calls)
        try:
            return self.schedule(*args, **kwargs)
        finally:
            sys.settrace(None)

    def _calls(self, frame: Any, event: str, arg: Any) -> Any:
        return self._lines if frame.f_code is self.code else None

    def _lines(self, frame: Any, event: str, arg: Any) -> Any:
        if event == "line" and frame.f_lineno in self.breaks:
            self.condition = self.breaks[frame.f_lineno]
        elif event == "return":
            names = ("token_budget", "input_budget", "preempted_reqs", "num_new_tokens", "request")
            self.end = {name: frame.f_locals.get(name) for name in names}
        return self._lines

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

    def needs_attention(self) -> bool:
        return False

    def attend(self) -> None:
        """Nothing waits."""

    def switch_off(self, error: BaseException) -> None:
        raise error


def adapter_of(agent: Path) -> tuple[Any, Any]:
    """fdtrace's adapter for vLLM, hooked, and its module of figures."""
    spec = importlib.util.spec_from_file_location("agent_load", agent / "load.py")
    assert spec is not None
    assert spec.loader is not None
    load = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(load)
    load.load(load.read_sources(str(agent), ("vllm",)))
    modules = {name: sys.modules[f"{load.NAME}.{name}"] for name in ("vllm", "vllm_figures", "hooks")}
    here = Here()
    adapter = modules["vllm"].VllmAdapter(here)
    for hook in adapter.hooks:
        modules["hooks"].install(here, hook)
    return adapter, modules["vllm_figures"]


def unsettle(scheduler: Any, rng: random.Random, asked: dict[str, Any]) -> None:
    """Pause the scheduler now and then, and let waiting requests be not ready for a while."""
    from vllm.v1.core.sched.interface import PauseState
    from vllm.v1.request import RequestStatus

    if asked.get("pauses"):
        scheduler._pause_state = rng.choice([PauseState.UNPAUSED] * 8 + list(PauseState))
    for request in list(scheduler.waiting) if asked.get("defers") else ():
        if request.status is RequestStatus.WAITING and rng.random() < 0.4:
            request.status = RequestStatus.WAITING_FOR_STREAMING_REQ
        elif request.status is RequestStatus.WAITING_FOR_STREAMING_REQ and rng.random() < 0.3:
            request.status = RequestStatus.WAITING


def run(asked: dict[str, Any], build: Any, engine_module: Any, adapter: Any, figures: Any) -> dict[str, Any]:
    """What each call that left a request waiting stopped at: by vLLM's code, and by the adapter."""
    sizes, recorded = asked["sizes"], asked["recorded"]
    config = build.build_config(sizes, recorded, None)
    scheduler = build.build_scheduler(config, sizes, recorded)
    writer = SilentWriter()
    adapter.begin(writer)
    watched = scheduler.schedule = Watched(scheduler)
    calls: list[list[Any]] = []

    def noted(*args: Any) -> Any:
        reason, found = of_call(*args)
        head = writer.ids[found.head] if found.head >= 0 else ""
        left = [found.token_budget - found.num_scheduled_tokens, found.input_budget - found.num_input_tokens]
        truth = [watched.end["token_budget"], watched.end["input_budget"]]
        if scheduler._pause_state.name == "PAUSED_ALL":
            left[0], truth[0] = 0, 0
        waiting = found.num_waiting > 0
        calls.append([watched.reason if waiting else "", reason, truth, left, head, found.num_missing_blocks])
        return reason, found

    of_call, figures.of_call = figures.of_call, noted
    rng = random.Random(asked["seed"])
    in_flight = build.batches_in_flight(config)
    worker = engine_module.Worker(rng, sizes["num_speculative_tokens"], in_flight)
    recorder = engine_module.Recorder(scheduler, worker)
    engine = engine_module.engine_of(scheduler, config, worker, in_flight)
    engine._should_throttle_prefills = lambda: bool(asked.get("throttles")) and rng.random() < 0.5
    clients = engine_module.Clients(asked, scheduler, worker, recorder)
    hasher, given = build.block_hasher(sizes, recorded), asked["given"]
    while len(clients.requests) < len(given) or scheduler.has_requests():
        clients.bring(given, build, hasher)
        unsettle(scheduler, rng, asked)
        engine.post_step(engine.step_fn()[1])
    figures.of_call = of_call
    return {"calls": calls, "skipped": writer.skipped, "known": sorted(set(watched.breaks.values()))}


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
    adapter, figures = adapter_of(agent)
    with os.fdopen(told, "w", encoding="utf-8") as answers:
        for question in sys.stdin:
            answers.write(
                json.dumps(run(json.loads(question), build, engine_module, adapter, figures)) + "\n"
            )
            answers.flush()


if __name__ == "__main__":
    main()
