"""How long the recorded steps took, by their batches: read and fitted once for all replays of a recording."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from fdtrace.recorder.errors import UsageError
from fdtrace.recorder.trace.recording import Recording
from fdtrace.replayer.recorded.batch_rows import BatchRowColumns
from fdtrace.replayer.recorded.step_durations import call_times, requests_left
from fdtrace.replayer.recorded.time_model import TimeModel, fit_time_model


class RecordedTiming:
    """The rows of a recording's steps, and the time model fitted from them."""

    def __init__(self, recording: Recording, read: Callable[[], BatchRowColumns | None]) -> None:
        """`read` gives the requests of every step; None: there are too many to read into memory."""
        self.recording, self._read = recording, read

    @cached_property
    def rows(self) -> BatchRowColumns | None:
        """The requests of every step."""
        return self._read()

    @cached_property
    def calls(self) -> NDArray[np.int64]:
        """When each step's scheduling call began, ns. UsageError if the recording has no times."""
        return call_times(self.recording)

    @cached_property
    def features(self) -> NDArray[np.float64]:
        """`batch_rows.FEATURES` of each step. UsageError if there are too many rows."""
        if self.rows is None:
            raise UsageError(
                "how long a step takes cannot be computed from this recording",
                why="the requests of its steps are too many to be taken into memory",
                hint="arrivals=steps",
            )
        return self.rows.features(self.recording.num_steps)

    @cached_property
    def busy(self) -> NDArray[np.bool_]:
        """Whether requests ran or waited after a step (but the last). Then it took all the time to the next call."""
        durations = np.diff(self.calls)
        is_busy: NDArray[np.bool_] = (requests_left(self.recording)[:-1] > 0) & (durations > 0)
        return is_busy

    @cached_property
    def model(self) -> TimeModel:
        """Fitted from the steps that another step followed at once. UsageError if its errors are too large."""
        return fit_time_model(*self.fitted)

    @property
    def fitted(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The features of the steps that another step followed at once, and their durations in microseconds."""
        return self.features[:-1][self.busy], np.diff(self.calls)[self.busy] / 1000.0

    @cached_property
    def ends_us(self) -> NDArray[np.float64]:
        """When each step ended, microseconds since the first call: at the next call, or after the modelled duration."""
        starts = (self.calls - self.calls[0]) / 1000.0
        ends = starts + self.model.form.us(self.features)
        ends[:-1][self.busy] = starts[1:][self.busy]
        ends[:-1] = np.minimum(ends[:-1], starts[1:])
        ends_us: NDArray[np.float64] = ends
        return ends_us


class RankTiming(RecordedTiming):
    """The same for one rank of a deployment, with a time model that all ranks share."""

    def __init__(
        self,
        recording: Recording,
        read: Callable[[], BatchRowColumns | None],
        shared: Callable[[], TimeModel],
    ) -> None:
        """`shared` gives the model of all ranks."""
        super().__init__(recording, read)
        self._shared = shared

    @cached_property
    def model(self) -> TimeModel:
        """That of all ranks. UsageError if its errors are too large."""
        return self._shared()


def shared_time_model(timings: Sequence[RecordedTiming]) -> TimeModel:
    """The time model of several ranks, fitted from the steps of all of them. UsageError if its errors are too large."""
    features, durations, times = zip(
        *((*timing.fitted, timing.calls[:-1][timing.busy]) for timing in timings), strict=True
    )
    by_time = np.argsort(np.concatenate(times), kind="stable")  # so that a half of them is a half of the time
    try:
        return fit_time_model(np.concatenate(features)[by_time], np.concatenate(durations)[by_time])
    except UsageError as error:
        hint = "--ranks alone shows the ranks as recorded; or record on a machine that does nothing else"
        raise UsageError(error.what, why=error.why, hint=hint) from None
