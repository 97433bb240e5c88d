"""FastDeploy's real scheduler behind the interface of the replayer's model, in all its roles."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from fdtrace.drivers.child import DriverProcess
from fdtrace.drivers.driven_requests import prompt_runs
from fdtrace.drivers.driven_scheduler import DrivenScheduler
from fdtrace.drivers.fastdeploy_in_order import FastDeployInOrder, decision_of
from fdtrace.recorder.trace.recording import EngineInfo
from fdtrace.replayer.config import SchedulerConfig
from fdtrace.replayer.model.events import (
    Arrived,
    Decision,
    Discarded,
    Event,
    Finished,
    Forward,
    Joined,
    Preallocate,
    Resumed,
    StepRow,
)


class DrivenFastDeploy(DrivenScheduler):
    """The `ResourceManagerV1` of a checkout. It does not say with which budget a call began."""

    engine: str | None = "fastdeploy"
    needs = "Paddle and this engine's requirements"

    def __init__(self, child: DriverProcess, config: SchedulerConfig, name: str) -> None:
        self._notices: dict[str, list[str]] = {"joined": [], "discarded": [], "sent": []}
        """In the prefill and decode roles: what happened to requests since the last call."""
        self._asking: list[str] = []
        self._preallocated: dict[str, int] = {}
        """Requests that have their slots and blocks and have not joined -> number of these blocks."""
        super().__init__(child, config, name)

    def in_order_of(self, engine: EngineInfo) -> FastDeployInOrder | None:
        """This checkout's scheduler for a replay in the recorded order of a deployment. Call it before any event.

        None if the recording does not say that this code scheduled it, or if it had other sizes.
        """
        recorded = engine.config.get("scheduler_code")
        if recorded is None or self.config != SchedulerConfig.from_engine(engine):
            return None
        if self._ask({"code": True})["code"] != recorded:
            return None
        return FastDeployInOrder(self._ask, self.config, self.name, self._token)

    def _opening(self) -> dict[str, Any]:
        return asdict(self.config)

    def _role_event(self, event: Event) -> list[str] | None:
        if isinstance(event, Preallocate):
            return self._preallocate()
        if isinstance(event, Joined):
            self._notices["joined"].append(event.request_id)
            self._preallocated.pop(event.request_id)
        elif isinstance(event, Discarded):
            self._leave("discarded", event.request_id)
        elif isinstance(event, Finished):  # its cache is sent
            self._leave("sent", event.request_id)
        else:
            return super()._role_event(event)
        return None

    def _arrive(self, event: Arrived, resumed: Resumed | None) -> None:
        super()._arrive(event, resumed)
        if resumed is not None:
            return
        if self.config.role == "decode":
            self._requests[event.request_id].emitted = 1  # the prefill instance generated its first token
        if self.config.role != "mixed":
            self._asking.append(event.request_id)

    def _spec(self, event: Arrived, accepts: list[int], resumed: dict[str, int] | None) -> dict[str, Any]:
        """A request in the form that its driver takes."""
        prompt, output_token = prompt_runs(self.config, event, self._token)
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

    def _leave(self, notice: str, request_id: str) -> None:
        self._notices[notice].append(request_id)
        self._preallocated.pop(request_id, None)
        del self._requests[request_id]

    def _preallocate(self) -> list[str]:
        message = {"preallocate": self._arrived, "sent": self._notices["sent"]}
        self._arrived, self._notices["sent"] = [], []
        granted: list[str] = self._ask(message)["preallocated"]
        for request_id in granted:
            self._asking.remove(request_id)
            self._preallocated[request_id] = self._blocks_at_first(request_id)
        return granted

    def _blocks_at_first(self, request_id: str) -> int:
        """Blocks of the whole prompt and of the first extension, as in FastDeploy's preallocate_resource_in_d."""
        return -(-self._requests[request_id].prompt // self.config.block_size) + self.config.enc_dec_block_num

    def _schedule(self) -> Decision:
        answer = self._step(**self._notices)
        self._notices = {name: [] for name in self._notices}
        return decision_of(answer, self._calls - 1)

    def _forwarded(self) -> Forward:
        answer, requests = self._answer, self._requests
        for name, *_ in answer["decodes"]:
            requests[name].forwards += 1
        finished = set(answer["finished"])
        for name, _, _ in answer["chunks"]:
            if name in finished or name in answer["started"]:
                requests[name].emitted += 1
        lost = answer["preempted"] if self.config.role == "decode" else ()
        for name in (*finished, *answer["aborted"], *lost):
            requests.pop(name, None)
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
        return super().idle if self.config.role == "mixed" else not self._requests

    @property
    def num_asking(self) -> int:
        """In the prefill and decode roles: requests that hold no slot."""
        return len(self._asking)

    @property
    def num_preallocated(self) -> int:
        """Requests that have their slots and blocks and have not joined."""
        return len(self._preallocated)

    @property
    def num_preallocated_blocks(self) -> int:
        """KV blocks that these hold, including cached ones."""
        return sum(self._preallocated.values())

    @property
    def num_blocks_asked(self) -> int | None:
        """Blocks that the first request without a slot asks for; None: there is none."""
        return self._blocks_at_first(self._asking[0]) if self._asking else None

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
