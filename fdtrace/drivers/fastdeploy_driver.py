"""Drives the `ResourceManagerV1` of a FastDeploy checkout on the CPU, step by step, as a process of its own.

    python fastdeploy_driver.py CHECKOUT

It runs under a Python that can import Paddle and FastDeploy's requirements. It needs nothing of fdtrace. It reads a
JSON object a line on stdin, and answers with one a line on the original stdout (FastDeploy's own prints go to stderr):

    {"open": {sizes and switches}}                -> {"opened": FastDeploy's version}
    {"code": true}                                -> {"code": digest of the scheduler's source}
    {"preallocate": [requests], "sent": [ids]}    -> {"preallocated": [ids]}, in the prefill and decode roles
    {"arrived": [requests], "aborted": [ids],
     "joined": [ids], "discarded": [ids]}         -> what this step decided and ran
    {"known": {id: tokens}, "event": […]}         -> {"taken": whether it could happen}, for a recorded event
    {"known": {id: tokens}, "call": {…}}          -> what this call decided, in recorded order
    anything that cannot be done                  -> {"failed": why, "where": "import" | "open" | "schedule" | "step"}

FastDeploy's own code schedules. The forward is played: a scheduled chunk runs whole. Every request past its prefill
runs one token and its drafts, and accepts as many drafts as `accepts` says. If its block table is too short, it stalls.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fdtrace.drivers.driver_protocol import CannotGoOn, Message, run
    from fdtrace.drivers.fastdeploy_driver_config import build_config, code_digest
    from fdtrace.drivers.fastdeploy_driver_roles import RoleRequests
    from fdtrace.drivers.fastdeploy_events import RecordedEvents
    from fdtrace.drivers.fastdeploy_refusals import FastDeployRefusals
else:  # beside this script, without fdtrace
    from driver_protocol import CannotGoOn, Message, run
    from fastdeploy_driver_config import build_config, code_digest
    from fastdeploy_driver_roles import RoleRequests
    from fastdeploy_events import RecordedEvents
    from fastdeploy_refusals import FastDeployRefusals


class PlayedRequest:
    """What the played worker knows of a request: its future acceptances, and its progress."""

    def __init__(self, spec: Message) -> None:
        self.output, self.accepts, self.output_token = spec["output"], spec["accepts"], spec["output_token"]
        self.forwards = 0

    def next_accepted(self) -> int:
        """Drafts that the next decode forward accepts. After the last number of the list, that number is repeated."""
        if not self.accepts:
            return 0
        return int(self.accepts[min(self.forwards, len(self.accepts) - 1)])


class FastDeployEngine:
    """FastDeploy's scheduler with a played worker in lockstep with it."""

    def __init__(self, sizes: Message) -> None:
        config = build_config(sizes)
        from fastdeploy.engine.request import Request, RequestStatus
        from fastdeploy.engine.sched.resource_manager_v1 import ResourceManagerV1

        self.new_request, self.statuses = Request.from_dict, RequestStatus
        self.drafts = sizes["num_speculative_tokens"] if sizes["spec_method"] is not None else 0
        self.block_size = sizes["block_size"]
        self.manager = ResourceManagerV1(sizes["max_num_seqs"], config, 1, sizes["role"])
        self.refusals = FastDeployRefusals(self.manager)
        self.role = sizes["role"]
        self.role_requests = RoleRequests(self.role, self.manager, self.drafts)
        """Requests that do not run yet, in the prefill and decode roles."""
        self.playing: dict[str, PlayedRequest] = {}
        self.recorded: RecordedEvents | None = None
        """Set if it follows a recording's events: then nothing is played."""
        self.decoding: dict[str, Any] = {}
        """Requests that the worker holds past their first token, in the order in which they got there."""

    def close(self) -> None:
        """Release the shared memory."""
        signal = getattr(self.manager, "need_block_num_signal", None)
        if signal is not None:
            signal.shm.unlink()  # its own clear() closes it first, which fails while its array exists

    def _request(self, spec: Message) -> Any:
        tokens = [token for token, count in spec["prompt"] for _ in range(count)]
        return self.new_request(
            {
                "request_id": spec["id"],
                "prompt_token_ids": tokens,
                "prompt_token_ids_len": len(tokens),
                "max_tokens": spec["max_tokens"],
            }
        )

    def add(self, spec: Message) -> None:
        """A request arrives. Waits until its preprocessing is done."""
        request = self._request(spec)
        self.playing[spec["id"]] = PlayedRequest(spec)
        if spec.get("resumed"):
            self._resume(request, spec["resumed"])
            return
        if self.role != "mixed":
            self.role_requests.add(request)
            return
        self.manager.add_request(request)
        for future in getattr(request, "async_process_futures", ()):
            future.result()

    def _resume(self, request: Any, state: Message) -> None:
        """A request enters as running, with its slot, its blocks, and its computed and generated tokens."""
        manager, slot = self.manager, self.manager.get_available_position()
        manager.requests[request.request_id] = request
        manager.tasks_list[slot], manager.stop_flags[slot] = request, False
        manager.req_dict[request.request_id] = request.idx = slot
        request.need_prefill_tokens = request.prompt_token_ids_len
        self._give_blocks(request, state)
        request.num_computed_tokens = state["num_computed_tokens"]
        manager.running.append(request)
        self._set_status(request, "RUNNING_PREFILL", "RUNNING")
        if state["decoding"]:
            self._emit(request, state["num_emitted_tokens"])

    def _give_blocks(self, request: Any, state: Message) -> None:
        """Give a request the blocks that it had. With prefix caching, what it has computed is in the cache."""
        manager, cache = self.manager, self.manager.cache_manager
        cached = 0
        if cache.cache_config.enable_prefix_caching and self.role != "decode":
            computed = state["num_computed_tokens"] if self.role == "mixed" else request.need_prefill_tokens
            prompt, request.prompt_token_ids = request.prompt_token_ids, request.prompt_token_ids[:computed]
            manager.get_prefix_cached_blocks(request)  # matches only what it has computed
            request.prompt_token_ids, cached = prompt, len(request.block_tables)
        request.block_tables.extend(cache.allocate_gpu_blocks(max(0, state["num_blocks"] - cached)))
        if cache.cache_config.enable_prefix_caching and self.role != "decode":
            cache.update_cache_blocks(request, self.block_size, computed)

    def _set_status(self, request: Any, *names: str) -> None:
        """Set the first of these statuses that this version has."""
        for name in names:
            if hasattr(self.statuses, name):
                request.status = getattr(self.statuses, name)
                return

    def _emit(self, request: Any, num_tokens: int) -> bool:
        """Append the tokens of a forward, as FastDeploy's token processor does. True: the request is done."""
        playing = self.playing[request.request_id]
        room = playing.output - len(request.output_token_ids)
        request.output_token_ids.extend([playing.output_token] * min(num_tokens, room))
        self._set_status(request, "RUNNING_DECODE")
        self.decoding.setdefault(request.request_id, request)
        return bool(len(request.output_token_ids) >= playing.output)

    def _can_decode(self, request: Any) -> bool:
        """Whether its block table holds the last token that the forward may write."""
        last = int(request.num_total_tokens) - 1 + self.drafts
        return bool(last // self.block_size < len(request.block_tables))

    def answer(self, message: Message) -> Message:
        """The answer to one message."""
        if "code" in message:
            return {"code": code_digest(self.manager, self.manager.cache_manager)}
        if "preallocate" in message:
            return self.preallocate(message["preallocate"], message["sent"])
        if "known" in message:
            return self.recorded_event(message)
        return self.step(message)

    def recorded_event(self, message: Message) -> Message:
        """An event or a call of a recording."""
        if self.recorded is None:
            self.recorded = RecordedEvents(self.manager, self._request, self.statuses)
        return self.recorded.answer(message, self._schedule)

    def preallocate(self, arrived: list[Message], sent: list[str]) -> Message:
        """The requests that get slots and blocks before the call."""
        self.role_requests.settle([], sent)
        for spec in arrived:
            self.add(spec)
        try:
            return {"preallocated": self.role_requests.preallocate()}
        except AssertionError as error:
            raise CannotGoOn("schedule", error) from error

    def step(self, message: Message) -> Message:
        """One scheduling call, and the forward that follows."""
        manager = self.manager
        self.role_requests.settle(message["discarded"], message["sent"])
        for spec in message["arrived"]:
            self.add(spec)
        for name in message["joined"]:
            self.role_requests.join(name, self.playing[name].output_token)
        known_aborts = [name for name in message["aborted"] if name in self.playing]
        if known_aborts:
            manager.add_abort_req_ids(known_aborts)
        answer, took = self._schedule()
        answer.update(self._forward(answer["chunks"]))
        answer["scheduler_ns"] = took + self._settle(answer)
        answer["idle"] = not (manager.running or manager.waiting or manager.to_be_rescheduled_request_id_set)
        return answer

    def _schedule(self) -> tuple[Message, int]:
        """One call: what it decided, and the nanoseconds of CPU that it took."""
        manager = self.manager
        decodes = sum(1 for r in manager.running if r.num_computed_tokens >= r.need_prefill_tokens)
        began = time.thread_time_ns()
        try:
            result = manager.schedule()
        except Exception as error:
            raise CannotGoOn("schedule", error) from error
        took = time.thread_time_ns() - began
        tasks, errors = result if isinstance(result, tuple) else (result, [])
        answer: Message = {
            "running": len(manager.running),
            "waiting": len(manager.waiting),
            "free_blocks": len(manager.cache_manager.gpu_free_block_list),
            "running_decodes": decodes,
            "head": self._head(),
            "new_token_ratio": getattr(manager, "new_token_ratio", None),
            "errors": [[str(part) for part in error] for error in errors],
        }
        answer.update(self._sort(tasks), **self.refusals.take())
        return answer, took

    def _head(self) -> list[Any] | None:
        """The first waiting request, and the KV blocks that all its tokens need: a list, for JSON."""
        for request in self.manager.waiting:
            spare = 1 if self.drafts else 0
            return [request.request_id, -(-request.num_total_tokens // self.block_size) + spare]
        return None

    def _sort(self, tasks: list[Any]) -> Message:
        """The tasks of a call by kind. Preempted and aborted requests leave the worker."""
        by_kind: Message = {"chunks": [], "preempted": [], "aborted": [], "extended": []}
        kinds = {"PREEMPTED": "preempted", "ABORT": "aborted"}
        for task in tasks:
            name = task.request_id
            if task.task_type.name == "PREFILL":
                by_kind["chunks"].append([name, task.prefill_start_index, task.prefill_end_index])
                continue
            kind = kinds.get(task.task_type.name, "extended")
            by_kind[kind].append(name)
            if kind != "extended":
                self.decoding.pop(name, None)
        return by_kind

    def _forward(self, chunks: list[list[Any]]) -> Message:
        """Play the forward. A decode's row: id, tokens before, drafts accepted, blocks."""
        requests, emitted = self.manager.requests, []
        chunked = {name for name, _, _ in chunks}
        stalled, decodes = [], []
        joined = (
            chunked if self.role == "decode" else set()
        )  # they join with their first token, so they decode
        for name, _, end in chunks:
            if name in joined:
                self.decoding[name] = requests[name]
            elif end >= requests[name].need_prefill_tokens:
                emitted.append((name, 1))
        for name, request in self.decoding.items():
            if name in chunked and name not in joined:
                continue
            if name not in joined and not self._can_decode(request):
                stalled.append(name)
                continue
            playing = self.playing[name]
            accepted = playing.next_accepted()
            playing.forwards += 1
            decodes.append([name, request.num_total_tokens, accepted, len(request.block_tables)])
            emitted.append((name, 1 + accepted))
        blocks = [len(requests[name].block_tables) for name, _, _ in chunks]
        finished = [name for name, num_tokens in emitted if self._emit(requests[name], num_tokens)]
        if self.role == "prefill":  # a request makes one token, and stays until its cache is sent
            finished = []
            self.decoding.clear()
        done = set(finished)
        started = [name for name, _ in emitted if name in chunked - joined and name not in done]
        return {
            "decodes": decodes,
            "stalled": stalled,
            "started": started,
            "finished": finished,
            "chunk_blocks": blocks,
        }

    def _settle(self, answer: Message) -> int:
        """After a forward, finished requests leave, preempted requests wait again, aborted requests are removed.

        Returns the nanoseconds of CPU that FastDeploy's code took for it.
        """
        manager = self.manager
        for name in answer["finished"]:
            self.decoding.pop(name)
        began = time.thread_time_ns()
        for name in answer["finished"]:
            manager.finish_requests(name)
        for name in answer["preempted"]:
            manager.reschedule_preempt_task(name)
        for name in answer["aborted"]:
            manager.recycle_abort_task(name)
        took = time.thread_time_ns() - began
        dropped = answer["preempted"] if self.role == "decode" else []
        for name in (*answer["finished"], *answer["aborted"], *dropped):
            self.playing.pop(name, None)
        return took


def _open(sizes: Message) -> FastDeployEngine:
    try:
        import fastdeploy.engine.sched.resource_manager_v1  # noqa: F401
    except Exception as error:
        raise CannotGoOn("import", error) from error
    try:
        return FastDeployEngine(sizes)
    except Exception as error:
        raise CannotGoOn("open", error) from error


def _version() -> str:
    return str(getattr(sys.modules.get("fastdeploy"), "__version__", "unknown"))


if __name__ == "__main__":
    run(_open, _version)
