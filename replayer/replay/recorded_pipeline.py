"""A recorded deployment for replays under other formulas and policies: its times, and what its clients did."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from fdtrace.recorder.trace.call_order import CallOrder
from fdtrace.recorder.trace.column_values import MISSING
from fdtrace.recorder.trace.recording import Recording
from fdtrace.replayer.config import Policy, SchedulerConfig
from fdtrace.replayer.formulas.base import Formula
from fdtrace.replayer.history.history import PipelineFigures
from fdtrace.replayer.model.events import Notification, Resumed
from fdtrace.replayer.model.found_events import LeavingAtStart, PrefixCacheAtStart, ReserveAtStart
from fdtrace.replayer.recorded.pipeline_fit import fit_pipeline, is_lockstep
from fdtrace.replayer.recorded.pipeline_times import PipelineTimes, pace_of
from fdtrace.replayer.replay.beginning import PipelineStart
from fdtrace.replayer.replay.deployment_replay import ReportSteps, requests_by_number, resumed_slots
from fdtrace.replayer.replay.fetching import SentRequest
from fdtrace.replayer.replay.pipeline import PipelineReplay
from fdtrace.replayer.replay.recorded_order import initial_events
from fdtrace.replayer.replay.worker import Slot
from fdtrace.replayer.workload.deployment_arrivals import abort_ms_by_request, arrival_ms_by_request
from fdtrace.replayer.workload.workload import Workload

SLOWER = 0.02
"""How much slower the forwards of the second replay are. It shows how certain the time to first token is."""


@dataclass(frozen=True)
class PipelineRun:
    """One replay, and its figures beside its steps."""

    run: PipelineReplay
    figures: PipelineFigures | None
    """None: they were not asked for."""


class RecordedPipeline:
    """Replays one recorded deployment."""

    def __init__(
        self, workload: Workload, times: PipelineTimes, beginning: PipelineStart, *, by_ratio: bool
    ) -> None:
        """`by_ratio`: whether the recorded scheduler reserved blocks by a ratio."""
        self.by_ratio = by_ratio
        self.workload, self.times, self.beginning = workload, times, beginning
        self._sent = {sent.request.request_id: sent.at for sent in beginning.sent}

    def replay(
        self, formula: Formula, policy: Policy, report: ReportSteps | None = None, *, alone: bool = False
    ) -> PipelineRun:
        """A replay under a formula and a policy; `alone`: without reasons, and without the figures of times."""
        beginning = self.beginning_of(policy)
        run = PipelineReplay(self.workload, self.times, beginning, formula, policy, explain=not alone)
        run.run(report)
        if alone:
            return PipelineRun(run, None)
        slower = PipelineReplay(self.workload, self.times.slower(SLOWER), beginning, formula, policy)
        slower.run(report)
        p50, p95 = self._waits(run)
        began = min(self._sent.values(), default=0.0)
        figures = PipelineFigures(
            max(0.0, run.ends[-1] - began) if run.ends else 0.0,
            p50,
            p95,
            self._waits(slower)[0],
            pace_of(np.array(run.ends)),
            self.times.disturbed,
        )
        return PipelineRun(run, figures)

    def beginning_of(self, policy: Policy) -> PipelineStart:
        """What a replay under a policy begins with: with its own reserve if the recorded one is of another kind."""
        start = self.beginning
        if policy.new_token_ratio == self.by_ratio:
            return start
        return replace(
            start,
            initial_events=tuple(
                event for event in start.initial_events if not isinstance(event, ReserveAtStart)
            ),
        )

    def _waits(self, run: PipelineReplay) -> tuple[float, float]:
        waits = [at - self._sent[name] for name, at in run.first_tokens.items() if name in self._sent]
        return (float(np.median(waits)), float(np.percentile(waits, 95))) if waits else (0.0, 0.0)


def pipeline_of(recording: Recording, workload: Workload) -> RecordedPipeline | None:
    """The pipeline of a recording; None if it was in lockstep, or has too few steps or calls."""
    order = recording.details.order
    if order is None or workload.config.role != "mixed" or is_lockstep(recording, order):
        return None
    times = fit_pipeline(recording, order)
    if times is None:
        return None
    by_ratio = bool((recording.steps.get("new_token_ratio", np.full(1, MISSING)) != MISSING).any())
    return RecordedPipeline(workload, times, _beginning(recording, order, workload), by_ratio=by_ratio)


def _beginning(recording: Recording, order: CallOrder, workload: Workload) -> PipelineStart:
    requests = requests_by_number(recording, workload)
    first_call = (int(order.calls["ts"][0]) - int(recording.steps["ts"][0])) / 1e6
    sent = arrival_ms_by_request(recording, order)
    events = tuple(initial_events(order, requests))
    if not _has_recorded_blocks(recording, workload):
        events = tuple(_without_cache(events))
    slots = tuple(resumed_slots(recording, order, requests))
    running = {
        event.arrived.request_id: event
        for event in events
        if isinstance(event, Resumed) and event.place == "running"
    }
    return PipelineStart(
        first_call,
        tuple(SentRequest(requests[number], at) for number, at in sent.items() if number in requests),
        abort_ms_by_request(recording, order, requests),
        events,
        slots,
        _unseen(slots, running),
        tuple(name for name in running if name not in {slot.request_id for slot in slots}),
        _until(recording, workload),
    )


def _has_recorded_blocks(recording: Recording, workload: Workload) -> bool:
    recorded, config = SchedulerConfig.from_engine(recording.engine), workload.config
    return all(
        getattr(recorded, name) == getattr(config, name)
        for name in ("num_blocks", "block_size", "prefix_caching")
    )


def _without_cache(events: Sequence[Notification]) -> Iterator[Notification]:
    """With other blocks a replay begins without the blocks of ended requests."""
    for event in events:
        if not isinstance(event, (PrefixCacheAtStart, LeavingAtStart)):
            yield replace(event, leaf=None) if isinstance(event, Resumed) else event


def _until(recording: Recording, workload: Workload) -> float | None:
    if all(request.target is None for request in workload.requests):
        return None
    steps = recording.steps
    return (int(steps["ts"][-1]) - int(steps["ts"][0])) / 1e6 + max(0, int(steps["forward_us"][-1])) / 1e3


def _unseen(slots: Sequence[Slot], running: Mapping[str, Resumed]) -> dict[str, int]:
    """Tokens of forwards that were running at the begin: the worker's slots have them, the first call had not."""
    num_unseen = {}
    for slot in slots:
        event = running.get(slot.request_id)
        if event is not None and slot.cached >= slot.need:
            num_tokens = slot.cached + 1 - event.arrived.num_prompt_tokens - event.num_emitted_tokens
            if num_tokens > 0:
                num_unseen[slot.request_id] = num_tokens
    return num_unseen
