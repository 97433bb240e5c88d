"""An engine of the stand-in: its scheduler here, its runners here or in processes that the outputs reach pickled.

    engine.py --log PATH [--inline] [--ranks N] [--asynchronous] [--drafts K] [--blocks N] [--requests N] …

It writes a JSON line a forward to PATH: what each request ran, and its tokens before, by its own account; and one a
call of `schedule()` to PATH.calls.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import random
import subprocess
import sys
import time
from collections import deque
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from vllm.v1.request import Request, RequestStatus
from vllm.v1.worker.gpu_model_runner import GPUModelRunner

NUMBERS = {
    "ranks": 1, "requests": 60, "blocks": 400, "drafts": 2, "fail-at": 0, "budget": 64, "seqs": 8, "skips": 0,
    "slots": 0,
}  # fmt: skip


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    for name in ("log", "worker"):
        parser.add_argument(f"--{name}")
    for name, value in NUMBERS.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--sleep", type=float, default=0.0)
    for name in ("inline", "asynchronous", "aborts", "prefixes", "idle", "bitmask"):
        parser.add_argument(f"--{name}", action="store_true")
    return parser.parse_args()


def configuration(options: argparse.Namespace) -> SimpleNamespace:
    name = SimpleNamespace
    return name(
        scheduler_config=name(
            max_num_batched_tokens=options.budget, max_num_seqs=options.seqs, enable_chunked_prefill=True, policy="fcfs"
        ),
        cache_config=name(
            num_gpu_blocks=options.blocks, block_size=4, enable_prefix_caching=options.prefixes, swap_path="/secret"
        ),
        speculative_config=name(num_speculative_tokens=options.drafts, method="ngram") if options.drafts else None,
        parallel_config=name(
            data_parallel_rank=0, tensor_parallel_size=options.ranks, data_parallel_master_ip="1.2.3.4"
        ),
        compilation_config=name(
            cudagraph_mode=name(name="PIECEWISE"), cudagraph_capture_sizes=[8, 16, 32, 64], cache_dir="/secret",
            max_cudagraph_capture_size=64,
        ),
        model_config=name(max_model_len=4096, model="/home/user/model", hf_token="secret"),
    )  # fmt: skip


def serve(rank: int, options: argparse.Namespace) -> None:
    """A worker process: outputs of schedule() in, what was sampled out."""
    runner = GPUModelRunner(rank, options.fail_at, options.slots, options.budget)
    while True:
        try:
            output = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        ran = runner.execute_model(output)
        if ran is None:
            ran = runner.sample_tokens(None)
        if rank == 0:
            pickle.dump(ran, sys.stdout.buffer)
            sys.stdout.buffer.flush()


class Workers:
    """Runs an output on every rank; `result` gives rank 0's, in order."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.children: list[Any] = []
        self.done: deque[Any] = deque()
        self.runner = None
        if options.inline:
            self.runner = GPUModelRunner(0, options.fail_at, options.slots, options.budget)
        for rank in range(0 if options.inline else options.ranks):
            command = [sys.executable, __file__, *sys.argv[1:], "--worker", str(rank)]
            self.children.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE))

    def execute(self, output: Any) -> None:
        if self.runner is not None:
            ran = self.runner.execute_model(output)
            self.done.append(self.runner.sample_tokens(None) if ran is None else ran)
        for child in self.children:
            pickle.dump(output, child.stdin)
            child.stdin.flush()

    def result(self) -> Any:
        if self.runner is not None:
            return self.done.popleft()
        try:
            return pickle.load(self.children[0].stdout)
        except EOFError:
            raise RuntimeError("the worker failed") from None

    def close(self) -> None:
        for child in self.children:
            child.stdin.close()
            child.wait()


class Engine:
    def __init__(self, options: argparse.Namespace) -> None:
        from vllm.v1.core.sched.scheduler import Scheduler  # noqa: PLC0415 - as in vLLM, not in its workers

        self.options, self.workers = options, Workers(options)
        self.scheduler = Scheduler(configuration(options), asynchronous=options.asynchronous)
        self.in_flight: deque[Any] = deque()
        self.log = open(options.log, "w", buffering=1)  # noqa: SIM115
        self.calls = open(options.log + ".calls", "w", buffering=1)  # noqa: SIM115
        self.rng = random.Random(3)
        self.made = 0

    def step(self) -> None:
        self._arrivals()
        prefilling = {r.request_id for r in self.scheduler.running if not r.prefilled}
        before = {r.request_id for r in self.scheduler.running}
        output = self.scheduler.schedule()
        self._note_call(output, before, prefilling)
        if output.num_scheduled_tokens:
            self.in_flight.append(output)
            self.workers.execute(output)
            if self.options.bitmask:  # as vLLM does while its workers run
                self.scheduler.get_grammar_bitmask(output)
        if self.in_flight and (
            len(self.in_flight) > self.options.asynchronous or not output.num_scheduled_tokens
        ):
            self._aborts()
            self._finish(self.in_flight.popleft())
        if self.options.sleep:
            time.sleep(self.options.sleep)

    def _note_call(self, output: Any, before: set[str], prefilling: set[str]) -> None:
        """A JSON line of what a call found and did, as the trace names it."""
        scheduler, cached = self.scheduler, output.scheduled_cached_reqs
        now = {r.request_id for r in scheduler.running}
        line = {
            "token_budget": self.options.budget, "num_scheduled_tokens": sum(output.num_scheduled_tokens.values()),
            "idle": not output.num_scheduled_tokens, "num_running": len(now), "num_waiting": len(scheduler.waiting),
            "num_running_decodes": len(before) - len(prefilling), "num_prefilling": len(prefilling),
            "num_chunks": len(output.prefills), "num_admitted": len(now - before),
            "num_extended": sum(bool(new and new[0]) for new in cached.new_block_ids),
            "num_preempted": len(before - now), "num_aborted": 0,
            "num_free_blocks": scheduler.kv_cache_manager.block_pool.get_num_free_blocks(),
            "head": self._head(),
        }  # fmt: skip
        if now or scheduler.waiting or output.num_scheduled_tokens:
            self.calls.write(json.dumps(line) + "\n")

    def _head(self) -> str | None:
        """The first waiting request that is ready, else the first of all."""
        waiting = self.scheduler.waiting
        ready = [r for r in waiting if r.status is not RequestStatus.WAITING_FOR_REMOTE_KVS]
        return (ready or list(waiting))[0].request_id if waiting else None

    def _arrivals(self) -> None:
        while self.made < self.options.requests and len(self.scheduler.waiting) < 3:
            family = self.rng.randrange(3) if self.options.prefixes else -1
            prompt, most = self.rng.randint(1, 90), self.rng.randint(1, 30)
            request = Request(f"r{self.made}", prompt, most, family, priority=self.made % 4 - 2)
            if self.options.skips and self.made % self.options.skips == 1:
                request.status = RequestStatus.WAITING_FOR_REMOTE_KVS
            self.made += 1
            if self.options.prefixes:
                request.hash_blocks(self.scheduler.block_size)
            self.scheduler.add_request(request)
        for request in self.scheduler.waiting:
            if request.status is RequestStatus.WAITING_FOR_REMOTE_KVS and self.rng.random() < 0.3:
                request.status = RequestStatus.WAITING

    def _aborts(self) -> None:
        if self.options.aborts and self.rng.random() < 0.1 and self.scheduler.running:
            self.scheduler.finish(self.rng.choice(self.scheduler.running), RequestStatus.FINISHED_ABORTED)

    def _finish(self, output: Any) -> None:
        ran = self.workers.result()
        requests, made = self.scheduler.requests, dict(zip(ran.req_ids, ran.sampled_token_ids, strict=True))
        rows = []
        for name, tokens in output.num_scheduled_tokens.items():
            request, start = requests.get(name), output.starts[name]
            if request is None or request.num_stale_output_tokens:
                rows.append([name, None, tokens, None, 0])
                continue
            prefill = name in output.prefills
            if prefill and start + tokens < request.num_tokens:
                made[name].clear()
            accepted = 0 if prefill else len(made[name]) - 1
            rows.append(
                [
                    name,
                    "prefill" if prefill else "decode",
                    tokens,
                    start if prefill else request.num_tokens,
                    accepted,
                ]
            )
        self.log.write(json.dumps({"rows": rows, "running": len(self.scheduler.running)}) + "\n")
        self.scheduler.update_from_output(output, ran)

    def run(self) -> None:
        try:
            while self.made < self.options.requests or self.scheduler.requests or self.in_flight:
                self.step()
        finally:
            self.scheduler.shutdown()
            self.workers.close()


def main() -> None:
    options = arguments()
    if options.worker is not None:
        serve(int(options.worker), options)
        return
    engine = Engine(options)
    print("ready", os.getpid(), flush=True)
    if options.idle:  # a file that appears ends it
        while not Path(options.log + ".go").exists():
            time.sleep(0.01)
    engine.run()


if __name__ == "__main__":
    main()
