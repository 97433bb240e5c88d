"""When each request of a replay came, ran and ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from fdtrace.recorder.trace.column_values import MISSING, Ints
from fdtrace.replayer.history.lives import RequestLives, recorded_ends
from fdtrace.replayer.replay.deployment_replay import DeploymentReplay
from fdtrace.replayer.replay.other_instance import HandoverChanges
from fdtrace.replayer.replay.pipeline import PipelineReplay
from fdtrace.replayer.replay.row_log import RowReader
from fdtrace.replayer.replay.step_log import StepReader
from fdtrace.replayer.replay.timed_steps import StepTimes
from fdtrace.replayer.replay.workload_replay import Replay
from fdtrace.replayer.workload.workload import Workload, WorkRequest

NEVER = 1 << 62
"""The entry of a step after every other: the request had not come when the replay ended."""


@dataclass(frozen=True)
class RequestTimes:
    """What a replay noted of its requests: entries of steps, and times of a replay by time."""

    arrived: Ints
    """Each request, by entry in the workload, came before the scheduling of this step; NEVER: it did not come."""
    ended: Ints
    """In this step it ended; MISSING: it did not."""
    timed: StepTimes | None = None
    """When the steps began; None: the replay has no times."""
    after_answers: Mapping[str, float] = field(default_factory=dict)
    """When the requests came whose clients waited for an answer, by id."""
    handed: Sequence[tuple[int, HandoverChanges]] = ()
    """What the other instance of a deployment in roles did before the scheduling of a step."""


def moments_of(run: Replay | DeploymentReplay | PipelineReplay) -> RequestTimes:
    """What a replay noted of its requests."""
    requests = run.workload.requests
    if isinstance(run, Replay):
        come = np.array(run.arrived_before, np.int64)
        others = [_arrived_else(requests[i]) for i in range(len(come), len(requests))]
        arrived, ended = np.concatenate([come, np.array(others, np.int64)]), np.array(run.ended_in, np.int64)
        return RequestTimes(arrived, ended, run.timed, run.arrivals_after_answers, run.handed)
    if isinstance(run, PipelineReplay):
        come_before, ended_in = run.arrived_before, run.ended_in
    else:  # in the recorded order, each came and ended when it was recorded
        come_before = {request.request_id: int(request.arrival) for request in requests}
        ids, ends = run.recording.requests["request_id"].tolist(), recorded_ends(run.recording).tolist()
        ended_in = dict(zip(ids, ends, strict=True))
    moments = [come_before.get(request.request_id, _arrived_else(request)) for request in requests]
    return RequestTimes(
        np.array(moments, np.int64),
        np.array([ended_in.get(request.request_id, MISSING) for request in requests], np.int64),
    )


def _arrived_else(request: WorkRequest) -> int:
    """Of a request of which the replay noted nothing: it was there when the replay began, or never came."""
    return 0 if request.resumed is not None or request.arrival == 0 else NEVER


def lives_of(workload: Workload, reader: StepReader | RowReader, moments: RequestTimes) -> RequestLives:
    """The lives of a replay's requests, by entry in its workload."""
    requests = workload.requests
    starts = None if moments.timed is None else moments.timed.starts_us
    lives = RequestLives(
        [request.request_id for request in requests],
        moments.arrived,
        moments.ended,
        reader.batches(),
        starts,
        None if starts is None else _arrived_us(requests, moments.after_answers),
    )
    if workload.config.role == "mixed":
        resumed = (request.resumed for request in requests)
        running = [state is not None and state.place == "running" and not state.waiting for state in resumed]
        return replace(lives, found_running=np.array(running, bool))
    got = {name: step for step, handed in moments.handed for name in handed.preallocated}
    left = {name: step for step, handed in moments.handed for name in (*handed.joined, *handed.discarded)}
    held_from, held_to = (
        np.array([found.get(request.request_id, MISSING) for request in requests], np.int64)
        for found in (got, left)
    )
    return replace(lives, held_from=held_from, held_to=held_to)


def _arrived_us(requests: Sequence[WorkRequest], after_answers: Mapping[str, float]) -> NDArray[np.float64]:
    sent = (
        after_answers.get(request.request_id, np.nan)
        if request.think is not None
        else request.arrival - request.on_its_way
        for request in requests
    )
    known = [
        np.nan if request.resumed is not None else moment
        for request, moment in zip(requests, sent, strict=True)
    ]
    return np.array(known, np.float64)
