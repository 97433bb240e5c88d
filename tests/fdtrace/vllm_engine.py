"""Runs vLLM's own `EngineCore` loop over its own scheduler with a made-up worker, and prints what it did as JSON.

    python vllm_engine.py DRIVERS '{"sizes": …, "recorded": …, "seed": …, "requests": …, "steps": …}'

Run by a Python that has vLLM; DRIVERS is the directory of fdtrace's drivers, whose `vllm_build.py` makes the scheduler.
Requests come and are aborted at random iterations; acceptances, drafts and stops are random too. With "-" in place of
the question, it answers one question a line of stdin.
"""

from __future__ import annotations

import importlib
import json
import os
import queue
import random
import sys
import tempfile
import time
from collections import deque
from concurrent.futures import Future
from typing import Any

STOP, SHARED = 2, 7
MOST_GIVEN = 2
"""Drafts that a forward of a given request accepts at most."""


class Later(Future[Any]):
    """An output that is there when it is asked for, and not sooner: early versions run ahead of no other."""

    def done(self) -> bool:
        return False


class Worker:
    """Stands for the executor: it knows of each request how many tokens it has and how many it will make."""

    def __init__(self, rng: random.Random, drafts: int, in_flight: int) -> None:
        from vllm.v1.executor.abstract import Executor
        from vllm.v1.outputs import DraftTokenIds, ModelRunnerOutput

        self.rng, self.drafts, self.in_flight = rng, drafts, in_flight
        self.samples_apart = hasattr(Executor, "sample_tokens")
        self.output_cls, self.drafts_cls = ModelRunnerOutput, DraftTokenIds
        self.total: dict[str, int] = {}
        self.ends: dict[str, int] = {}
        self.given: dict[str, int] = {}
        """Requests whose acceptances follow from their own forwards, and so many of these so far."""
        self.computed: dict[str, int] = {}
        self.prefills: dict[str, bool] = {}
        self.sampled: list[str] = []
        self.last: Any = None
        self.rows: dict[int, list[list[Any]]] = {}

    def execute_model(self, output: Any, non_block: bool | None = None) -> Any:
        """Early versions sample here, and do not say whether they wait: they do unless batches are in flight."""
        if not self.samples_apart:
            return self._done(self._run(output), self.in_flight > 1 if non_block is None else non_block)
        self.last = output
        return self._done(None if output.total_num_scheduled_tokens else self._run(output), non_block)

    def sample_tokens(self, grammar: Any, non_block: bool = False) -> Any:
        return self._done(self._run(self.last), non_block)

    def _done(self, value: Any, non_block: bool | None) -> Any:
        if not non_block:
            return value
        future = Later()
        future.set_result(value)
        return future

    def _run(self, output: Any) -> Any:
        starts = {new.req_id: new.num_computed_tokens for new in output.scheduled_new_reqs}
        cached = output.scheduled_cached_reqs
        starts.update(dict(zip(cached.req_ids, cached.num_computed_tokens, strict=True)))
        made, self.sampled, rows = [], [], []
        for name, tokens in output.num_scheduled_tokens.items():
            drafts = len(output.scheduled_spec_decode_tokens.get(name, ()))
            last = starts[name] + tokens - drafts >= self.total[name]
            decodes = not self.prefills[name]
            accepted = self._accepted(name, drafts) if decodes else 0
            if decodes or last:
                self.prefills[name] = False
                made.append([self._token(name, i) for i in range(1 + accepted)])
                self.sampled.append(name)
            else:
                made.append([])
            before = starts[name] + decodes
            rows.append([name, decodes, tokens, before, drafts, accepted if decodes else 0])
            self.total[name] += len(made[-1])
        self.rows[id(output)] = rows
        names = list(output.num_scheduled_tokens)
        return self.output_cls(
            req_ids=names,
            req_id_to_index={name: i for i, name in enumerate(names)},
            sampled_token_ids=made,
            logprobs=None,
            prompt_logprobs_dict={},
            pooler_output=[],
        )

    def _accepted(self, name: str, drafts: int) -> int:
        if name not in self.given:
            return self.rng.randint(0, drafts)
        self.given[name] += 1
        return min(drafts, random.Random(f"{name} {self.given[name]}").randint(0, MOST_GIVEN))

    def _token(self, name: str, more: int) -> int:
        return STOP if self.total[name] + more == self.ends[name] else 50_000 + self.total[name] + more

    def take_draft_token_ids(self) -> Any:
        if self.given:
            return self.drafts_cls(list(self.sampled), [[9] * self.drafts for _ in self.sampled])
        proposed = [
            [9] * self.rng.choice((0, self.drafts, self.rng.randint(0, self.drafts))) for _ in self.sampled
        ]
        return self.drafts_cls(list(self.sampled), proposed)


class Recorder:
    """Notes each call of the scheduler that ran tokens, and when requests came and went."""

    def __init__(self, scheduler: Any, worker: Worker) -> None:
        self.scheduler, self.worker = scheduler, worker
        self.steps: list[dict[str, Any]] = []
        self.outputs: list[Any] = []
        self.held: list[dict[str, int]] = []
        self.schedule = scheduler.schedule
        scheduler.schedule = self
        self.update = scheduler.update_from_output
        scheduler.update_from_output = self.updated
        self.finished_at: dict[str, int] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        before = {request.request_id for request in self.scheduler.running}
        output = self.schedule(*args, **kwargs)
        still = {request.request_id for request in self.scheduler.running}
        for name in before - still:
            self.worker.prefills[name] = True
        self.preempted = getattr(self, "preempted", 0) + len(before - still)
        if output.total_num_scheduled_tokens:
            self.outputs.append(output)
            manager = self.scheduler.kv_cache_manager
            held = {name: len(manager.get_block_ids(name)[0]) for name in output.num_scheduled_tokens}
            self.held.append(held)
            self.steps.append(
                {
                    "num_tokens": output.total_num_scheduled_tokens,
                    "num_running": len(self.scheduler.running),
                    "num_waiting": self.scheduler.get_request_counts()[1],
                    "num_preempted": self.preempted,
                    "num_free_blocks": self.scheduler.kv_cache_manager.block_pool.get_num_free_blocks(),
                    "token_budget": self.scheduler.max_num_scheduled_tokens,
                }
            )
            self.preempted = 0
        return output

    def updated(self, *args: Any) -> Any:
        there = list(self.scheduler.requests)
        found = self.update(*args)
        self.gone(there)
        return found

    def gone(self, names: list[str]) -> None:
        """Note the time of those that are not there any more."""
        now = time.time_ns()
        self.finished_at.update({name: now for name in names if name not in self.scheduler.requests})


def engine_of(scheduler: Any, config: Any, worker: Worker, in_flight: int) -> Any:
    """An `EngineCore` without processes and without a model."""
    from vllm.v1.engine.core import EngineCore

    class Engine(EngineCore):  # type: ignore[misc]  # vLLM is not there where types are checked
        def __init__(self) -> None:
            self.vllm_config, self.scheduler, self.model_executor = config, scheduler, worker
            self.batch_queue_size = in_flight
            self.batch_queue: deque[Any] | None = deque(maxlen=in_flight) if in_flight > 1 else None
            self.step_fn = self.step if self.batch_queue is None else self.step_with_batch_queue
            self.use_spec_decode = self.check_for_draft_tokens = config.speculative_config is not None
            self.is_mm_encoder_only = self.is_pooling_model = self._scheduler_paused = False
            self.is_ec_producer = self.is_ec_consumer = False
            self.async_scheduling = config.scheduler_config.async_scheduling
            self.aborts_queue: queue.Queue[Any] = queue.Queue()
            self.log_stats, self._weight_version = False, "default"
            self._iteration_index = 0

    return Engine()


class ClientRequests:
    """Requests that come and are aborted at random."""

    def __init__(self, asked: dict[str, Any], scheduler: Any, worker: Worker, recorder: Recorder) -> None:
        self.asked, self.scheduler, self.worker, self.recorder = asked, scheduler, worker, recorder
        self.rng = worker.rng
        self.requests: dict[str, dict[str, Any]] = {}
        self.known: dict[str, Any] = {}

    def arrive(self, build: Any, hasher: Any) -> None:
        rng = self.rng
        prompt = rng.randint(1, self.asked["longest"])
        shared = rng.choice((0, min(prompt, 48)))
        output, most = rng.randint(1, 60), rng.randint(1, 60)
        self._add(f"r{len(self.requests)}", prompt, shared, output, max(output, most), None, build, hasher)

    def _add(
        self,
        name: str,
        prompt: int,
        shared: int,
        output: int,
        most: int,
        priority: int | None,
        build: Any,
        hasher: Any,
    ) -> None:
        from vllm.sampling_params import SamplingParams
        from vllm.v1.request import Request

        worker = self.worker
        tokens = [SHARED] * shared + [1000 + len(self.requests)] * (prompt - shared)
        sampling = SamplingParams(max_tokens=most, ignore_eos=True, stop_token_ids=[STOP])
        given = {
            "request_id": name, "prompt_token_ids": tokens, "sampling_params": sampling, "pooling_params": None,
            "eos_token_id": None, "block_hasher": hasher, "priority": priority or 0,
        }  # fmt: skip
        request = self.known[name] = Request(**build.supported_arguments(Request, given))
        worker.total[name], worker.ends[name], worker.prefills[name] = prompt, prompt + output, True
        self.requests[name] = {
            "id": name, "arrived": len(self.recorder.steps), "arrived_at": time.time_ns(), "prompt": prompt,
            "max_tokens": sampling.max_tokens, "aborted": None, "priority": priority,
            "hashes": [hash(value) & (1 << 63) - 1 for value in request.block_hashes],
        }  # fmt: skip
        self.scheduler.add_request(request)

    def bring(self, given: list[dict[str, Any]], build: Any, hasher: Any) -> None:
        """Given requests come before the step that they name."""
        while len(self.requests) < len(given):
            one = given[len(self.requests)]
            idle = not self.scheduler.has_requests()
            if one["arrival"] > len(self.recorder.steps) and not idle:
                return
            self.worker.given[one["id"]] = 0
            sizes = one["prompt"], one["shared"], one["output"], one["output"]
            self._add(one["id"], *sizes, one.get("priority"), build, hasher)

    def abort(self) -> None:
        from vllm.v1.request import RequestStatus

        name = self.rng.choice(list(self.scheduler.requests))
        self.requests[name]["aborted"] = len(self.recorder.steps)
        self.scheduler.finish_requests(name, RequestStatus.FINISHED_ABORTED)
        self.recorder.gone([name])

    def told(self) -> list[dict[str, Any]]:
        """The requests, with what became of them."""
        for name, request in self.requests.items():
            finished = self.recorder.finished_at.get(name, -1)
            request.update(made=self.known[name].num_output_tokens, finished_at=finished)
        return list(self.requests.values())


def run(asked: dict[str, Any], build: Any) -> dict[str, Any]:
    """Steps, rows by step, requests."""
    sizes, recorded = asked["sizes"], asked["recorded"]
    changed = asked.get("changed") or {}
    if changed:
        with_changes = importlib.import_module("vllm_settings").with_changes
        recorded = with_changes(sizes, recorded, changed)
    config = build.build_config(sizes, recorded, changed)
    scheduler = build.build_scheduler(config, sizes, recorded)
    hasher = build.block_hasher(sizes, recorded)
    rng = random.Random(asked["seed"])
    in_flight = build.batches_in_flight(config)
    worker = Worker(rng, sizes["num_speculative_tokens"], in_flight)
    recorder = Recorder(scheduler, worker)
    engine = engine_of(scheduler, config, worker, in_flight)
    clients = ClientRequests(asked, scheduler, worker, recorder)
    given = asked.get("given")
    while given is not None and (len(clients.requests) < len(given) or scheduler.has_requests()):
        clients.bring(given, build, hasher)
        engine.post_step(engine.step_fn()[1])
    for _ in range(0 if given is not None else asked["iterations"]):
        while len(clients.requests) < asked["requests"] and rng.random() < asked["rate"]:
            clients.arrive(build, hasher)
        if scheduler.requests and rng.random() < 0.03:
            clients.abort()
        if scheduler.has_requests() or engine.batch_queue:
            executed = engine.step_fn()[1]
            engine.post_step(executed)
    rows = [
        [[*row, held[row[0]]] for row in worker.rows[id(output)]]
        for output, held in zip(recorder.outputs, recorder.held, strict=True)
    ]
    return {"steps": recorder.steps, "rows": rows, "requests": clients.told()}


def main() -> None:
    """Run, and print one object; with "-" in place of the question, one for each question on stdin."""
    drivers = sys.argv[1]
    told = os.dup(1)
    os.dup2(2, 1)
    sys.path.insert(1, drivers)
    import vllm_build as build

    importlib.import_module("vllm_settings")  # asked for again

    sys.path.remove(drivers)
    os.chdir(tempfile.mkdtemp())
    with os.fdopen(told, "w", encoding="utf-8") as answers:
        for question in sys.stdin if sys.argv[2] == "-" else (sys.argv[2],):
            answers.write(json.dumps(run(json.loads(question), build)) + "\n")
            answers.flush()


if __name__ == "__main__":
    main()
