"""Engines and workers of the stand-in, as processes or as one.

    deployment.py --log PATH [--inline] [--ranks N] [--dp N] [--overlap] [--batch-request] [--requests N] …

Each worker of rank 0 writes a JSON line a forward to PATH.<dp rank>, each engine one a call to PATH.<dp rank>.calls;
the last line on stdout counts what finished.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from importlib.metadata import EntryPoint
from types import SimpleNamespace
from typing import Any

import paddle  # noqa: F401
from fastdeploy.engine.request import Request
from fastdeploy.engine.sched.resource_manager_v1 import ResourceManagerV1
from fastdeploy.worker.gpu_model_runner import GPUModelRunner


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    for name in ("log", "worker", "begin-when"):
        parser.add_argument(f"--{name}")
    for name, value in (
        ("ranks", 1), ("dp", 1), ("requests", 40), ("blocks", 400), ("drafts", 2), ("fail-at", 0), ("dp-rank", 0),
        ("restart-at", 0), ("seconds", 0), ("budget", 64), ("rest", 0),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--role", default="mixed")
    parser.add_argument("--sleep", type=float, default=0.0)
    for name in (
        "inline",
        "overlap",
        "batch-request",
        "aborts",
        "skips",
        "strange",
        "plugins",
        "prefix-caching",
    ):
        parser.add_argument(f"--{name}", action="store_true")
    return parser.parse_args()


def configuration(options: argparse.Namespace) -> SimpleNamespace:
    name = SimpleNamespace
    return name(
        scheduler_config=name(max_num_batched_tokens=options.budget, max_num_seqs=8, splitwise_role=options.role),
        cache_config=name(total_block_num=options.blocks, block_size=4, enable_prefix_caching=options.prefix_caching),
        speculative_config=name(method="mtp" if options.drafts else None, num_speculative_tokens=options.drafts or 1),
        parallel_config=name(local_data_parallel_id=options.dp_rank, tensor_parallel_size=options.ranks, use_ep=False),
        model_config=name(max_model_len=4096, enable_mm=False),
        get_max_chunk_tokens=lambda: options.budget,
        overlap=options.overlap, batch_request=options.batch_request, fail_at=options.fail_at,
    )  # fmt: skip


def log_forward(log: int, runner: GPUModelRunner) -> None:
    stalled = int(runner.share_inputs["is_block_step_cpu"].values.sum())
    if runner.plan:
        line = {"ts": time.time_ns(), "stalled": stalled, "rows": list(runner.plan.values())}
        os.write(log, (json.dumps(line) + "\n").encode())


class Worker:
    """A model runner here, or in a process of its own that the tasks reach pickled."""

    def __init__(self, options: argparse.Namespace, rank: int) -> None:
        self.child = None
        if options.inline:
            self.runner = GPUModelRunner(configuration(options))
            self.log = open_log(options)
            return
        environment = dict(os.environ, STANDIN_RANK=str(rank))
        command = [
            sys.executable,
            __file__,
            *sys.argv[1:],
            "--worker",
            str(rank),
            "--dp-rank",
            str(options.dp_rank),
        ]
        self.child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)

    def send(self, tasks: Any) -> None:
        if self.child is None:
            self.tasks = tasks
        else:
            assert self.child.stdin is not None
            pickle.dump(tasks, self.child.stdin)
            self.child.stdin.flush()

    def receive(self) -> list[Any]:
        if self.child is not None:
            assert self.child.stdout is not None
            saved: list[Any] = pickle.load(self.child.stdout)
            return saved
        return forward(self.runner, self.tasks, self.log)

    def close(self) -> None:
        if self.child is not None:
            assert self.child.stdin is not None
            self.child.stdin.close()
            self.child.wait()


def open_log(options: argparse.Namespace) -> int:
    return os.open(f"{options.log}.{options.dp_rank}", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)


def forward(runner: GPUModelRunner, tasks: Any, log: int | None) -> list[Any]:
    if len(tasks):
        runner.insert_tasks_v1(tasks, len(tasks))
    try:
        runner.execute_model(tasks if len(tasks) else None, len(tasks))
    except MemoryError:
        if log is not None:
            for row in runner.plan.values():
                row[4] = 0 if row[1] == "decode" else row[4]
            log_forward(log, runner)
        raise
    if log is not None:
        log_forward(log, runner)
    saved: list[Any] = runner.saved
    return saved


def run_worker(options: argparse.Namespace) -> None:
    rank = int(options.worker)
    runner = GPUModelRunner(configuration(options), rank)
    log = open_log(options) if rank == 0 else None
    while True:
        try:
            tasks = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        pickle.dump(forward(runner, tasks, log), sys.stdout.buffer)
        sys.stdout.buffer.flush()


class Engine:
    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.rng = options, random.Random(5 + options.dp_rank)
        # As EngineService and its workers do: the port of their queue, which no other engine of the host has.
        os.environ["INFERENCE_MSG_QUEUE_ID"] = str(os.getpid())
        self.manager = ResourceManagerV1(8, configuration(options))
        self.workers = [Worker(options, rank) for rank in range(options.ranks)]
        self.made = self.finished = self.steps = 0
        self.asking: list[Request] = []
        self.coming: list[tuple[int, Request]] = []
        self.sending: list[tuple[int, str]] = []
        self.did: list[tuple[str, str, int]] = []
        self.calls = open(f"{options.log}.{options.dp_rank}.calls", "w", buffering=1)  # noqa: SIM115

    def add(self) -> None:
        request = Request(
            f"d{self.options.dp_rank}-r{self.made}", self.rng.randint(3, 90), self.rng.randint(2, 40)
        )
        if self.options.skips and self.made % 5 == 2:
            request.async_process_futures = [object()] * 2
        if self.options.role == "mixed":
            self.manager.add_request(request)
        else:
            self.asking.append(request)
        self.made += 1

    def note(self, kind: str, request_id: str) -> None:
        """Something beside the tokens, with the forwards that had run (known where the worker is in this process)."""
        forwards = self.workers[0].runner.forwards if self.options.inline else -1
        self.did.append((kind, request_id, forwards))

    def hand_over(self) -> None:
        """What comes from the other instance: an answer to each request that has its blocks, some steps later."""
        decode, manager = self.options.role == "decode", self.manager
        ask = manager.preallocate_resource_in_d if decode else manager.preallocate_resource_in_p
        while self.asking and ask(self.asking[0]):
            request = self.asking.pop(0)
            self.note("preallocated", request.request_id)
            self.coming.append((self.steps + self.rng.randint(0, 4), request))
        for due in [due for due in self.coming if due[0] <= self.steps]:
            self.coming.remove(due)
            request = due[1]
            if self.rng.random() < 0.2:
                manager.pre_recycle_resource(request.request_id)
                self.note("discarded", request.request_id)
                continue
            if decode:
                outputs = SimpleNamespace(token_ids=[1], draft_token_ids=[1, 1])
                manager.add_prefilled_request(SimpleNamespace(request_id=request.request_id, outputs=outputs))
            else:
                manager.add_request_in_p([request])
            self.note("joined", request.request_id)

    def send(self) -> None:
        """Caches that have been sent: a prefill instance ends their requests."""
        for due in [due for due in self.sending if due[0] <= self.steps]:
            self.sending.remove(due)
            self.manager.finish_requests(due[1])
            self.note("finished", due[1])
            self.finished += 1

    def step(self) -> None:
        manager = self.manager
        if self.options.aborts and self.steps % 9 == 5 and manager.running:
            manager.add_abort_req_ids([manager.running[0].request_id])
        if self.options.strange and self.steps == 20:
            del manager.cache_manager.num_gpu_blocks
        if self.options.role != "mixed":
            self.hand_over()
        before = self.found()
        result = manager.schedule()
        self.note_call(before, result)
        tasks = result[0] if isinstance(result, tuple) else result
        self.steps += 1
        if self.options.restart_at == self.steps:
            self.restart()
        for worker in self.workers:
            worker.send(tasks)
        emitted, *_ = [worker.receive() for worker in self.workers]
        for task in tasks:
            if task.task_type.name == "PREEMPTED" and self.options.role != "decode":
                manager.reschedule_preempt_task(task.request_id)
            elif task.task_type.name == "ABORT":
                manager.recycle_abort_task(task.request_id)
        for request_id, n in emitted:
            request = manager.requests.get(request_id)
            if request is None or request not in manager.running:
                continue
            request.output_token_ids += [1] * n
            if self.options.role == "prefill":
                self.sending.append((self.steps + self.rng.randint(0, 5), request_id))
                continue
            if len(request.output_token_ids) >= request.sampling_params.max_tokens:
                manager.finish_requests(request_id)
                self.finished += 1
        self.send()

    def found(self) -> dict[str, Any]:
        """What a call is about to find, by the stand-in's own account."""
        manager, options = self.manager, self.options
        decodes = [r.request_id for r in manager.running if r.num_computed_tokens >= r.need_prefill_tokens]
        prefilling = {r.request_id for r in manager.running} - set(decodes)
        budget = options.budget - len(decodes) * (options.drafts + 1 if options.drafts else 1)
        ready = [not r.async_process_futures for r in manager.waiting]
        return {
            "token_budget": max(budget, 0), "num_running_decodes": len(decodes), "num_prefilling": len(prefilling),
            "prefilling": prefilling, "unready": len(ready) - sum(ready),
        }  # fmt: skip

    def note_call(self, before: dict[str, Any], result: Any) -> None:
        """A JSON line of what a call found and did, as the trace names it."""
        manager, prefilling = self.manager, before.pop("prefilling")
        kinds: dict[str, list[Any]] = {}
        for task in result[0] if isinstance(result, tuple) else result:
            kinds.setdefault(task.task_type.name, []).append(task)
        chunks = kinds.get("PREFILL", [])
        held = {r.request_id for r in manager.requests.values() if r.block_tables}
        queued = {r.request_id for r in (*manager.running, *manager.waiting)}
        counted = sum(task.prefill_end_index - task.prefill_start_index for task in chunks)
        line = before | {
            "idle": not kinds, "num_running": len(manager.running), "num_waiting": len(manager.waiting),
            "num_scheduled_tokens": self.options.budget - before["token_budget"] + counted,
            "num_chunks": len(chunks), "num_extended": len(kinds.get("DECODE", ())),
            "num_admitted": sum(task.request_id not in prefilling for task in chunks),
            "num_preempted": len(kinds.get("PREEMPTED", ())), "num_aborted": len(kinds.get("ABORT", ())),
            "num_free_blocks": len(manager.cache_manager.gpu_free_block_list),
            "num_preallocated": None if self.options.role == "mixed" else len(held - queued),
            "head": manager.waiting[0].request_id if manager.waiting else None,
        }  # fmt: skip
        if line["num_running"] or line["num_waiting"] or kinds or line["num_preallocated"]:
            self.calls.write(json.dumps(line) + "\n")

    def restart(self) -> None:
        """The worker ends and another takes its place; what it ran is preempted first, so that nothing is lost."""
        self.workers[0].close()
        self.workers = [Worker(self.options, 0)]

    def idle(self) -> None:
        """The workers run without tasks until a file is there, as FastDeploy's do until their engine has started."""
        while not os.path.exists(self.options.begin_when):
            for worker in self.workers:
                worker.send([])
            for worker in self.workers:
                worker.receive()
            time.sleep(0.02)

    def run(self) -> None:
        if self.options.begin_when:
            self.idle()
        end = time.time() + self.options.seconds

        def leave(_number: int, _frame: Any) -> None:
            nonlocal end
            end = 0.0

        signal.signal(signal.SIGTERM, leave)  # add no more, and end when all have finished
        while self.made < self.options.requests or self.asking or self.manager.requests or time.time() < end:
            while len(self.manager.waiting) + len(self.asking) < 3 and (
                self.made < self.options.requests or time.time() < end
            ):
                self.add()
            self.step()
            if self.steps == 1:
                print("ready", os.getpid(), flush=True)
            if self.options.sleep:
                time.sleep(self.options.sleep)
        for _ in range(self.options.rest):  # nothing is there any more
            self.step()
        for worker in self.workers:
            worker.close()


def load_plugin(name: str) -> None:
    """As FastDeploy does: an entry point is loaded, and called for a class."""
    cls = EntryPoint(
        "fdtrace", f"fdtrace.recorder.agent.fastdeploy_plugins:{name}", f"fastdeploy.{name}_plugins"
    ).load()()
    assert cls.__name__ == {"token_processor": "TokenProcessor", "model_runner": "GPUModelRunner"}[name]


def main() -> None:
    options = arguments()
    if options.plugins:
        load_plugin("token_processor" if options.worker is None else "model_runner")
    if options.worker is not None:
        run_worker(options)
        return
    children: list[int] = []
    for rank in range(1, options.dp):
        child = os.fork()
        if child == 0:
            options.dp_rank, children = rank, []
            break
        children.append(child)
    engine = Engine(options)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    engine.run()
    for child in children:
        os.waitpid(child, 0)
    if options.dp_rank == 0:
        print(
            json.dumps(
                {"finished": engine.finished, "made": engine.made, "calls": engine.steps, "did": engine.did}
            ),
            flush=True,
        )


if __name__ == "__main__":
    main()
