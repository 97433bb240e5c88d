"""A recording that many variants replay for their figures alone."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from fdtrace.recorder.trace.recording import Recording
from fdtrace.replayer.recorded.step_durations import ClockKind
from fdtrace.replayer.workload.closed_loop import ArrivalMode, with_coming
from fdtrace.replayer.workload.from_recording import workload_from_recording
from fdtrace.replayer.workload.workload import Workload


@dataclass(frozen=True)
class SweptRecording:
    """Given to an `Experiment`, its replays keep figures alone: no fidelity, no reasons, no fit of memory, no second
    replay for how sure a pipeline is. What all variants have in common is read once.
    """

    recording: Recording
    _workloads: dict[ClockKind, Workload] = field(default_factory=dict)
    _coming: dict[ArrivalMode, Workload] = field(default_factory=dict)

    def workload(self, clock: ClockKind) -> Workload:
        """As `workload_from_recording`."""
        if clock not in self._workloads:
            workload = workload_from_recording(self.recording, clock)
            # as objects: many replays read them, and `with_coming` knows by identity which a variant did not change
            self._workloads[clock] = replace(workload, requests=tuple(workload.requests))
        return self._workloads[clock]

    def with_coming(self, workload: Workload, coming: ArrivalMode) -> Workload:
        """As `closed_loop.with_coming`, of the recorded workload by time, or of that under other settings."""
        recorded = self.workload("time")
        own, theirs = recorded.requests, workload.requests
        if len(own) != len(theirs) or any(a is not b for a, b in zip(own, theirs, strict=True)):
            return with_coming(workload, self.recording, coming)
        if coming not in self._coming:
            self._coming[coming] = with_coming(recorded, self.recording, coming)
        arriving = self._coming[coming]
        notes = (*workload.notes, *arriving.notes[len(recorded.notes) :])
        return replace(workload, requests=arriving.requests, notes=notes)
