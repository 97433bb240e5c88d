"""Drives the continuous batching scheduler of a transformers package on the CPU, step by step, as a process of its own.

    python transformers_driver.py [DIRECTORY]

It runs under a Python that can import transformers and PyTorch. DIRECTORY (a checkout's `src`, a site-packages
directory) comes first in its path. It needs nothing of fdtrace. It reads a JSON object a line on stdin, and
answers with one a line on the original stdout:

    {"open": {"sizes": …, "recorded": …}}         -> {"opened": transformers' version}
    {"arrived": [requests], "aborted": [ids]}     -> what this step decided and ran; `budget`: tokens it may hand out
    {"arrived": …, "aborted": …, "look": true}    -> what the next call will find: running, waiting, running_decodes
    anything that cannot be done                  -> {"failed": why, "where": "import" | "open" | "schedule" | "step"}

transformers' own code does all of this: admission, both budgets, the safety margin, KV blocks, prefix sharing,
offloading and resets, and what a batch's tokens do to its requests. `prepare_next_batch` and `update_batch` of its
batch processor are called in the order of `_generation_loop_body`; in asynchronous batching, one batch ahead. The
tensors and the model are played.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fdtrace.drivers import transformers_build as build
    from fdtrace.drivers.driver_protocol import CannotGoOn, Message, run
    from fdtrace.drivers.transformers_initial import InitialState
    from fdtrace.drivers.transformers_played import PlayedOutputs, PlayedSequence, SilentRouter
    from fdtrace.drivers.transformers_refusals import TransformersRefusals
else:  # beside this script, without fdtrace
    import transformers_build as build
    from driver_protocol import CannotGoOn, Message, run
    from transformers_initial import InitialState
    from transformers_played import PlayedOutputs, PlayedSequence, SilentRouter
    from transformers_refusals import TransformersRefusals


class TransformersEngine:
    """transformers' batch processor with a played model."""

    def __init__(self, sizes: Message, recorded: Message) -> None:
        self.playing: dict[str, PlayedSequence] = {}
        self.outputs = PlayedOutputs(self.playing)
        self.processor = build.build_processor(sizes, recorded, self.outputs, SilentRouter())
        self.scheduler, self.cache = self.processor.scheduler, self.processor.cache
        self.block_size, self.budget = sizes["block_size"], sizes["max_num_batched_tokens"]
        self.initial = InitialState(self.processor, self.block_size)
        self.ahead = 2 if self.processor.use_async_batching else 1
        self.preempted: list[str] = []
        self.stalled: list[str] = []
        """Decodes that the last call left out of the batch."""
        self.offloads = False
        self.refusals = TransformersRefusals(self.processor)
        self._watch()

    def close(self) -> None:
        """Nothing outside the process is held."""

    def _watch(self) -> None:
        """Note which requests leave the batch while the next one is prepared: these are offloaded or reset."""
        finish = self.scheduler.finish_request

        def finish_request(request_id: str) -> None:
            if self.offloads and request_id in self.playing:
                state = self.scheduler.active_requests.get(request_id)
                self.preempted.append(request_id)
                played = self.playing[request_id]
                played.prefills = None
                if state is not None:
                    played.emitted = len(state.initial_tokens) - played.prompt + len(state.generated_tokens)
            finish(request_id)

        self.scheduler.finish_request = finish_request
        schedule = self.scheduler.schedule_batch

        def schedule_batch(*budgets: int) -> Any:
            result = schedule(*budgets)
            self.refusals.after(budgets, result)
            ran = {future.state.request_id for future in result[0] or ()}
            self.stalled = [
                name for name in self.scheduler.active_requests
                if name not in ran and name in self.playing and self.playing[name].prefills is False
            ]  # fmt: skip
            return result

        self.scheduler.schedule_batch = schedule_batch

    # Requests -----------------------------------------------------------------------------------------------

    def add(self, spec: Message) -> None:
        """A request arrives, or enters in its recorded state; or blocks enter the prefix cache, or no new request is
        admitted, as at the beginning of a recording.
        """
        if "cached" in spec:
            self.initial.cache_blocks(spec["cached"])
            return
        if "admits_new" in spec:
            self.scheduler.block_new_requests = not spec["admits_new"]
            return
        played = self.playing[spec["id"]] = PlayedSequence(spec, self.block_size)
        if spec.get("resumed"):
            self.initial.resume(spec["id"], played, spec["resumed"])
        else:
            self.processor.input_queue.put(self.initial.request(spec["id"], played, played.prompt))

    # Steps --------------------------------------------------------------------------------------------------

    def answer(self, message: Message) -> Message:
        """The answer to one message."""
        for spec in sorted(message["arrived"], key=lambda spec: "cached" in spec):
            self.add(spec)  # what runs holds its blocks before the cache is filled
        if self.initial.batch:
            self.outputs.in_flight.append(self.initial.batch)
            self.initial.batch = []
        for name in message["aborted"]:
            self.processor.cancel_queue.put(name)
        if message.get("look"):
            return self._state_before_call(len(message["aborted"]))
        return self.step(message["aborted"], message.get("budget"))

    def _state_before_call(self, aborted: int) -> Message:
        running, queued = len(self.scheduler.active_requests), self.processor.input_queue.qsize()
        return {
            "running": running, "waiting": len(self.scheduler.waiting_requests_order) + queued,
            "running_decodes": self._decodes(),
        }  # fmt: skip

    def _decodes(self) -> int:
        return sum(
            self.playing[name].prefills is False
            for name in self.scheduler.active_requests
            if name in self.playing
        )

    def step(self, aborted: list[str], budget: int | None) -> Message:
        """All that happens until the next forward that runs tokens, or until nothing more can run."""
        known_aborts = [name for name in aborted if name in self.playing]
        answer: Message = {"finished": [], "aborted": known_aborts, "scheduler_ns": 0, "rows": []}
        self.preempted = []
        self.processor.max_batch_tokens = self.budget if budget is None else max(0, budget)
        ran = self._prepare(answer)
        for name in known_aborts:
            self.playing.pop(name, None)
        answer.update(self._step_fields(answer))
        if ran and len(self.outputs.in_flight) >= self.ahead:
            self._update(answer)
        elif not ran:
            while self.outputs.in_flight:
                self._update(answer)
        answer["idle"] = not (self.playing or self.outputs.in_flight)
        return answer

    def _prepare(self, answer: Message) -> bool:
        """A turn of the loop up to the forward. True: the forward runs tokens."""
        answer["budget"] = self.processor.max_batch_tokens
        answer["running_decodes"] = self._decodes()
        self.offloads, self.outputs.rows = True, []
        began = time.thread_time_ns()
        try:
            return bool(self.processor.prepare_next_batch())
        except Exception as error:
            raise CannotGoOn("schedule", error) from error
        finally:
            self.offloads = False
            answer["scheduler_ns"] += time.thread_time_ns() - began

    def _step_fields(self, answer: Message) -> Message:
        scheduler, tables = self.scheduler, self._tables()
        rows = [
            [name, decodes, count, before, 0, 0, sum(len(table.get(name, ())) for table in tables), emits]
            for name, decodes, count, before, emits in self.outputs.rows
        ]
        return {
            "rows": rows, "scheduled": sum(row[2] for row in rows), "preempted": self.preempted,
            "stalled": self.stalled if rows else [],
            "running": len(scheduler.active_requests), "waiting": len(scheduler.waiting_requests_order),
            "free_blocks": self._free(), "head": None, **self.refusals.take(len(self.preempted)),
        }  # fmt: skip

    def _tables(self) -> list[dict[str, list[int]]]:
        managers = getattr(self.cache, "cache_allocators", None)
        allocators = list(managers.values()) if managers is not None else self.cache.group_cache_managers
        return [manager.block_table for manager in allocators]

    def _free(self) -> int:
        if hasattr(self.cache, "get_num_free_blocks"):
            return int(self.cache.get_num_free_blocks())
        free: int = round(self.cache.compute_free_capacity() * self.cache.num_blocks)
        return free

    def _update(self, answer: Message) -> None:
        """The requests of the oldest batch take their tokens."""
        futures = self.outputs.in_flight[0]
        began = time.thread_time_ns()
        self.processor.update_batch()
        answer["scheduler_ns"] += time.thread_time_ns() - began
        present = self.scheduler.active_requests.keys() | self.scheduler.waiting_requests.keys()
        for future in futures:
            name = future.state.request_id
            if name not in present and name in self.playing:
                answer["finished"].append(name)
                if not any(name == f.state.request_id for batch in self.outputs.in_flight for f in batch):
                    self.playing.pop(name)


def _open(message: Message) -> TransformersEngine:
    try:
        import transformers.generation.continuous_batching.continuous_api  # noqa: F401
    except Exception as error:
        raise CannotGoOn("import", error) from error
    try:
        return TransformersEngine(message["sizes"], message["recorded"])
    except Exception as error:
        raise CannotGoOn("open", error) from error


if __name__ == "__main__":
    run(_open, build.version)
