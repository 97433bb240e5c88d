"""An engine's real scheduler behind the interface of the replayer's model, so that both are replayed alike."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Hashable
from typing import Any, overload

from fdtrace.drivers.child import DriverProcess
from fdtrace.drivers.driven_requests import FIRST_TOKEN, KnownRequest, state_of
from fdtrace.recorder.errors import TargetError, UsageError
from fdtrace.replayer.config import SchedulerConfig
from fdtrace.replayer.formulas.base import Formula
from fdtrace.replayer.model.events import (
    Aborted,
    Arrived,
    Decision,
    Event,
    Forward,
    Forwarded,
    Notification,
    Preallocate,
    Recycled,
    Rescheduled,
    Resumed,
    Schedule,
    StepRow,
)
from fdtrace.replayer.model.found_events import AdmissionBlocked, Cached
from fdtrace.replayer.model.request import AcceptancePlan
from fdtrace.replayer.model.state import SchedulerFailed


def open_driver(child: DriverProcess, opening: dict[str, Any], needs: str) -> None:
    """Let a driver open its scheduler. TargetError if it cannot be imported, UsageError if it refuses."""
    answer = child.ask({"open": opening})
    if "failed" not in answer:
        return
    label, why = child.label, answer["failed"]
    if answer["where"] == "import":
        raise TargetError(
            f"the scheduler of {label} cannot be imported",
            why=f"{why}, in {child.python}",
            hint=f"--scheduler-python PATH: a Python that has {needs}",
        )
    if answer["where"] == "settings":
        raise UsageError(
            f"{label} refuses these settings", why=why, hint="`fdtrace knobs TRACE` lists what they may be"
        )
    raise UsageError(
        f"{label} refuses this configuration",
        why=why,
        hint="change the sizes that it names; formulas (-f) schedule such a workload too",
    )


class DrivenScheduler(ABC):
    """The scheduler that a `DriverProcess` runs, as far as all engines are alike. It gives no reasons."""

    explains = False
    keeps_rows = False
    engine: str | None = None
    formula: Formula | None = None
    needs = ""
    """What the Python that runs it must have installed."""

    def __init__(self, child: DriverProcess, config: SchedulerConfig, name: str) -> None:
        self.config, self.name, self._child = config, name, child
        self.scheduler_ns = 0
        """Nanoseconds of CPU that the engine's own code has taken so far."""
        self._requests: dict[str, KnownRequest] = {}
        self._contents: dict[Hashable, int] = {}
        """Content of a block -> the token that it is made of."""
        self._arrived: list[dict[str, Any]] = []
        self._aborted: list[str] = []
        self._answer: dict[str, Any] = {"decodes": [], "chunks": [], "chunk_blocks": [], "idle": True}
        self._calls = 0
        open_driver(child, self._opening(), self.needs)

    @abstractmethod
    def _opening(self) -> dict[str, Any]:
        """The message that opens its driver."""

    # Events -------------------------------------------------------------------------------------------------

    @overload
    def apply(self, event: Schedule) -> Decision: ...
    @overload
    def apply(self, event: Forwarded) -> Forward: ...
    @overload
    def apply(self, event: Preallocate) -> list[str]: ...
    @overload
    def apply(self, event: Notification) -> None: ...
    def apply(self, event: Event) -> Decision | Forward | list[str] | None:
        """As the model's. The worker runs in lockstep: the answer includes all that follows the forward."""
        if isinstance(event, Schedule):
            return self._schedule()
        if isinstance(event, Forwarded):
            return self._forwarded()
        if isinstance(event, Arrived):
            self._arrive(event, None)
        elif isinstance(event, Resumed):
            self._arrive(event.arrived, event)
        elif isinstance(event, (Cached, AdmissionBlocked)):
            self._begin_with(event)
        elif isinstance(event, Aborted):
            self._aborted.append(event.request_id)
        elif not isinstance(event, (Rescheduled, Recycled)):
            return self._role_event(event)
        return None

    def _role_event(self, event: Event) -> list[str] | None:
        """An event of the prefill and decode roles."""
        raise TypeError(f"this scheduler takes no {type(event).__name__}")

    def _arrive(self, event: Arrived, resumed: Resumed | None) -> None:
        assert event.accepts is not None
        assert event.num_output_tokens is not None
        accepts = [int(n) for n in event.accepts]
        request = KnownRequest(event.num_prompt_tokens, AcceptancePlan(accepts, event.num_output_tokens))
        if resumed is not None:
            request.emitted, request.forwards = resumed.num_emitted_tokens, resumed.num_forwards
        self._requests[event.request_id] = request
        self._arrived.append(self._spec(event, accepts, None if resumed is None else state_of(resumed)))

    def _begin_with(self, event: Cached | AdmissionBlocked) -> None:
        raise TypeError(f"this scheduler takes no {type(event).__name__}")

    @abstractmethod
    def _spec(self, event: Arrived, accepts: list[int], resumed: dict[str, int] | None) -> dict[str, Any]:
        """A request as its driver takes it."""

    @abstractmethod
    def _schedule(self) -> Decision:
        """Let the driver run a step. Returns what it decided."""

    @abstractmethod
    def _forwarded(self) -> Forward:
        """What the forward of that step ran."""

    def _token(self, content: Hashable) -> int:
        return self._contents.setdefault(content, FIRST_TOKEN + len(self._contents))

    def _ask(self, message: dict[str, Any]) -> dict[str, Any]:
        """The driver's answer. SchedulerFailed, TargetError."""
        answer = self._child.ask(message)
        if "failed" in answer:
            if answer["where"] == "schedule":
                raise SchedulerFailed(answer["failed"])
            raise TargetError(f"the scheduler of {self._child.label} cannot be driven", why=answer["failed"])
        return answer

    def _step(self, **fields: Any) -> dict[str, Any]:
        """Send the events so far. The driver answers what its step decided and ran."""
        message = {"arrived": self._arrived, "aborted": self._aborted, **fields}
        self._arrived, self._aborted = [], []
        answer = self._ask(message)
        self._answer = answer
        self.scheduler_ns += answer["scheduler_ns"]
        self._calls += 1
        return answer

    # What can be asked --------------------------------------------------------------------------------------

    @property
    def idle(self) -> bool:
        """Whether nothing runs, waits or is about to be rescheduled."""
        return bool(self._answer["idle"]) and not self._arrived

    @property
    def num_requests(self) -> int:
        """Requests that have arrived and have not left."""
        return len(self._requests)

    @property
    def num_asking(self) -> int:
        """In the prefill and decode roles: requests without a slot."""
        return 0

    @property
    def num_preallocated(self) -> int:
        """In the same roles: requests that have their slots and blocks and have not joined."""
        return 0

    @property
    def num_preallocated_blocks(self) -> int:
        """KV blocks that these hold, including cached ones."""
        return 0

    @property
    def num_blocks_asked(self) -> int | None:
        """Blocks that the first request without a slot asks for; None: there is none."""
        return None

    @property
    def num_blocks(self) -> int:
        """KV blocks that requests can have, all together."""
        return self.config.num_blocks

    @property
    def num_reserved_blocks(self) -> int | None:
        """Not known."""
        return None

    @property
    def new_token_ratio(self) -> float | None:
        """The ratio after the last call, if the engine reserves blocks by a ratio."""
        return self._answer.get("new_token_ratio")

    @property
    def snapshot_is_whole(self) -> bool:
        """Never: the engine's private state is not seen."""
        return False

    def snapshot(self, decision: Decision) -> Hashable:
        """What the last call decided and ran, and the state after it."""
        fields = ("chunks", "rows", "extended", "preempted", "stalled", "running", "waiting", "free_blocks")
        return json.dumps([self._answer.get(name) for name in fields])

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._requests

    def num_output_tokens_of(self, request_id: str) -> int:
        """Output tokens that a request has generated."""
        request = self._requests[request_id]
        return min(request.emitted + request.plan.after(request.forwards), request.plan.output)

    def num_total_tokens_of(self, request_id: str) -> int:
        """Prompt and output tokens of a request."""
        return self._requests[request_id].prompt + self.num_output_tokens_of(request_id)

    def progress_of(self, request_id: str) -> tuple[int, int]:
        """Tokens that a request emitted in prefills, and its decode forwards."""
        request = self._requests[request_id]
        return request.emitted, request.forwards

    @abstractmethod
    def rows(self, decision: Decision) -> list[StepRow]:
        """The requests of the forward that follows this call."""

    def num_held_back(self, decision: Decision) -> int:
        """Not known."""
        return 0
