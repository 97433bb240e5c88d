"""An engine's real scheduler behind the interface of the replayer's model, so that both are replayed alike."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable
from dataclasses import asdict
from typing import Any, overload

from fdtrace.drivers.child import Child
from fdtrace.drivers.known import KnownRequest, head_of, state_of
from fdtrace.recorder.errors import TargetError, UsageError
from fdtrace.recorder.recording import MISSING
from fdtrace.replayer.config import SchedulerConfig
from fdtrace.replayer.events import (
    Aborted,
    Arrived,
    Cached,
    Decision,
    Discarded,
    Event,
    Finished,
    Forward,
    Forwarded,
    Joined,
    Preallocate,
    Recycled,
    Rescheduled,
    Resumed,
    Schedule,
    Told,
)
from fdtrace.replayer.history import StepRow
from fdtrace.replayer.request import Plan
from fdtrace.replayer.state import SchedulerFailed

FIRST_TOKEN = 1000
"""Tokens below have meanings to some engines."""


class DrivenScheduler:
    """The scheduler that a `Child` runs. It tells what it decides, but neither its budget nor its reasons."""

    explains = False
    tells_rows = False
    engine: str | None = "fastdeploy"
    needs = "Paddle and this engine's requirements"
    """What the Python that runs it must have."""

    def __init__(self, child: Child, config: SchedulerConfig, name: str) -> None:
        self.config, self.name, self._child = config, name, child
        self.scheduler_ns = 0
        """Nanoseconds of CPU that the engine's own code took so far."""
        self._known: dict[str, KnownRequest] = {}
        self._contents: dict[Hashable, int] = {}
        """Content of a block -> the token that it is made of."""
        self._arrived: list[dict[str, Any]] = []
        self._aborted: list[str] = []
        self._told: dict[str, list[str]] = {"joined": [], "discarded": [], "sent": []}
        self._asking: list[str] = []
        self._preallocated: dict[str, int] = {}
        """Requests that have their slots and blocks and have not joined -> these blocks."""
        self._answer: dict[str, Any] = {"decodes": [], "chunks": [], "chunk_blocks": [], "idle": True}
        self._calls = 0
        self._open()

    def _open(self) -> None:
        answer = self._child.ask({"open": self._opening()})
        if "failed" not in answer:
            return
        what, why = self._child.what, answer["failed"]
        if answer["where"] == "import":
            raise TargetError(
                f"the scheduler of {what} cannot be imported",
                why=f"{why}, in {self._child.python}",
                hint=f"--scheduler-python PATH: a Python that has {self.needs}",
            )
        raise UsageError(f"{what} refuses this configuration", why=why)

    def _opening(self) -> dict[str, Any]:
        return asdict(self.config)

    # Events -------------------------------------------------------------------------------------------------

    @overload
    def apply(self, event: Schedule) -> Decision: ...
    @overload
    def apply(self, event: Forwarded) -> Forward: ...
    @overload
    def apply(self, event: Preallocate) -> list[str]: ...
    @overload
    def apply(self, event: Told) -> None: ...
    def apply(self, event: Event) -> Decision | Forward | list[str] | None:
        """As the model's. What follows a forward has happened when it is told: the worker is in lockstep."""
        if isinstance(event, Schedule):
            return self._schedule()
        if isinstance(event, Forwarded):
            return self._forwarded()
        if isinstance(event, Preallocate):
            return self._preallocate()
        if isinstance(event, Arrived):
            self._arrive(event, None)
        elif isinstance(event, Resumed):
            self._arrive(event.arrived, event)
        elif isinstance(event, Cached):
            self._cache(event)
        elif isinstance(event, Aborted):
            self._aborted.append(event.request_id)
        elif isinstance(event, Joined):
            self._told["joined"].append(event.request_id)
            self._preallocated.pop(event.request_id)
        elif isinstance(event, Discarded):
            self._gone("discarded", event.request_id)
        elif isinstance(event, Finished) and self.config.role == "prefill":
            self._gone("sent", event.request_id)
        elif not isinstance(event, (Rescheduled, Recycled)):
            raise TypeError(f"a driven scheduler takes no {type(event).__name__}")
        return None

    def _arrive(self, event: Arrived, resumed: Resumed | None) -> None:
        assert event.accepts is not None
        assert event.num_output_tokens is not None
        accepts = [int(n) for n in event.accepts]
        known = KnownRequest(event.num_prompt_tokens, Plan(accepts, event.num_output_tokens))
        if self.config.role == "decode":
            known.emitted = 1  # its first token is the prefill instance's
        if resumed is not None:
            known.emitted, known.forwards = resumed.num_emitted_tokens, resumed.num_forwards
        self._known[event.request_id] = known
        if self.config.role != "mixed" and resumed is None:
            self._asking.append(event.request_id)
        self._arrived.append(self._spec(event, accepts, None if resumed is None else state_of(resumed)))

    def _cache(self, event: Cached) -> None:
        raise TypeError("this scheduler takes no cached blocks")

    def _spec(self, event: Arrived, accepts: list[int], resumed: dict[str, int] | None) -> dict[str, Any]:
        """A request as the driver is told of it."""
        prompt, output_token = self._tokens(event)
        most = event.max_tokens
        return {
            "id": event.request_id,
            "prompt": prompt,
            "output_token": output_token,
            "max_tokens": event.num_output_tokens if most is None else most,
            "output": event.num_output_tokens,
            "accepts": accepts,
            "resumed": resumed,
        }

    def _tokens(self, event: Arrived) -> tuple[list[list[int]], int]:
        """The prompt as runs of equal tokens, and the token that its output is made of.

        Blocks of equal content are made of equal tokens, others of others.
        """
        size, left = self.config.block_size, event.num_prompt_tokens
        key: Callable[[int], Hashable] = event.block_key or (lambda block: (event.request_id, block))
        if not self.config.prefix_caching:
            return [[FIRST_TOKEN, left]], FIRST_TOKEN
        runs = []
        for block in range(-(-left // size)):
            runs.append([self._token(key(block)), min(size, left)])
            left -= size
        return runs, self._token(key(len(runs)))

    def _token(self, content: Hashable) -> int:
        return self._contents.setdefault(content, FIRST_TOKEN + len(self._contents))

    def _gone(self, how: str, request_id: str) -> None:
        self._told[how].append(request_id)
        self._preallocated.pop(request_id, None)
        del self._known[request_id]

    def _ask(self, message: dict[str, Any]) -> dict[str, Any]:
        """What the driver answers. SchedulerFailed, TargetError."""
        answer = self._child.ask(message)
        if "failed" in answer:
            if answer["where"] == "schedule":
                raise SchedulerFailed(answer["failed"])
            raise TargetError(f"the scheduler of {self._child.what} cannot be driven", why=answer["failed"])
        return answer

    def _preallocate(self) -> list[str]:
        message = {"preallocate": self._arrived, "sent": self._told["sent"]}
        self._arrived, self._told["sent"] = [], []
        granted: list[str] = self._ask(message)["preallocated"]
        for request_id in granted:
            self._asking.remove(request_id)
            self._preallocated[request_id] = self._blocks_at_first(request_id)
        return granted

    def _blocks_at_first(self, request_id: str) -> int:
        """Blocks of the whole prompt and of the first extension, as FastDeploy's preallocate_resource_in_d has it."""
        return -(-self._known[request_id].prompt // self.config.block_size) + self.config.enc_dec_block_num

    def _step(self) -> dict[str, Any]:
        """What the driver answers to the events so far: what its step decided and ran."""
        message = {"arrived": self._arrived, "aborted": self._aborted, **self._told}
        self._arrived, self._aborted = [], []
        self._told = {name: [] for name in self._told}
        answer = self._ask(message)
        self._answer = answer
        self.scheduler_ns += answer["scheduler_ns"]
        self._calls += 1
        return answer

    def _schedule(self) -> Decision:
        answer = self._step()
        return Decision(
            call=self._calls - 1,
            token_budget=MISSING,
            num_running_decodes=answer["running_decodes"],
            num_scheduled_tokens=MISSING,
            chunks=[(name, start, end) for name, start, end in answer["chunks"]],
            extended=answer["extended"],
            preempted=answer["preempted"],
            aborted=answer["aborted"],
            errors=[(error[0], error[-1]) for error in answer["errors"]],
            num_free_blocks=answer["free_blocks"],
            num_running=answer["running"],
            num_waiting=answer["waiting"],
            new_token_ratio=answer.get("new_token_ratio"),
            **head_of(answer),
        )

    def _forwarded(self) -> Forward:
        answer, known = self._answer, self._known
        for name, *_ in answer["decodes"]:
            known[name].forwards += 1
        finished = set(answer["finished"])
        for name, _, _ in answer["chunks"]:
            if name in finished or name in answer["started"]:
                known[name].emitted += 1
        lost = answer["preempted"] if self.config.role == "decode" else ()
        for name in (*finished, *answer["aborted"], *lost):
            known.pop(name, None)
        decodes = len(answer["decodes"])
        prefilled = () if self.config.role == "decode" else answer["chunks"]
        return Forward(
            num_prefill_tokens=sum(end - start for _, start, end in prefilled),
            num_decode_tokens=sum(1 + self._drafts(name) for name, *_ in answer["decodes"]),
            num_decodes=decodes,
            stalled=answer["stalled"],
            started=answer["started"],
            finished=answer["finished"],
        )

    def _drafts(self, request_id: str) -> int:
        """Drafts that a decode of the last call's forward verifies."""
        first = self.config.role == "decode" and any(
            request_id == name for name, *_ in self._answer["chunks"]
        )
        return self.config.num_draft_tokens_of(first=first)

    # What can be asked --------------------------------------------------------------------------------------

    @property
    def idle(self) -> bool:
        """Whether nothing runs, waits or is about to be rescheduled."""
        if self.config.role != "mixed":
            return not self._known
        return bool(self._answer["idle"]) and not self._arrived

    @property
    def num_requests(self) -> int:
        """Requests that have arrived and not gone."""
        return len(self._known)

    @property
    def num_asking(self) -> int:
        """In the prefill and decode roles: of these, those that hold no slot."""
        return len(self._asking)

    @property
    def num_preallocated(self) -> int:
        """Of the requests: those that have their slots and blocks and have not joined."""
        return len(self._preallocated)

    @property
    def num_preallocated_blocks(self) -> int:
        """KV blocks that these hold, cached ones among them."""
        return sum(self._preallocated.values())

    @property
    def num_blocks_asked(self) -> int | None:
        """Blocks that the first request without a slot asks for; None: there is none."""
        return self._blocks_at_first(self._asking[0]) if self._asking else None

    @property
    def num_blocks(self) -> int:
        """KV blocks that requests can have, all together."""
        return self.config.num_blocks

    @property
    def snapshot_is_whole(self) -> bool:
        """Never: what the engine keeps for itself is not seen."""
        return False

    def snapshot(self, decision: Decision) -> Hashable:
        """What the last call decided and ran, and what it left."""
        seen = ("chunks", "rows", "extended", "preempted", "stalled", "running", "waiting", "free_blocks")
        return json.dumps([self._answer.get(name) for name in seen])

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._known

    def num_output_tokens_of(self, request_id: str) -> int:
        """Output tokens that a request made."""
        known = self._known[request_id]
        return min(known.emitted + known.plan.after(known.forwards), known.plan.output)

    def num_total_tokens_of(self, request_id: str) -> int:
        """Prompt and output tokens of a request."""
        return self._known[request_id].prompt + self.num_output_tokens_of(request_id)

    def progress_of(self, request_id: str) -> tuple[int, int]:
        """Tokens that a request emitted in prefills, and its decode forwards."""
        known = self._known[request_id]
        return known.emitted, known.forwards

    def rows(self, decision: Decision) -> list[StepRow]:
        """The requests of the forward that follows this call."""
        answer = self._answer
        chunks = zip(decision.chunks, answer["chunk_blocks"], strict=True)
        rows = [
            StepRow(name, "prefill", end - start, start, num_blocks=blocks)
            for (name, start, end), blocks in chunks
            if self.config.role != "decode"
        ]
        for name, before, accepted, blocks in answer["decodes"]:
            drafts = self._drafts(name)
            rows.append(StepRow(name, "decode", 1 + drafts, before, drafts, accepted, blocks))
        return rows

    def num_held_back(self, decision: Decision) -> int:
        """Not told."""
        return 0
