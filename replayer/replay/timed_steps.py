"""The steps of a replay by time: when each began, when it ended; and the rows of each, where they are kept."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fdtrace.replayer.model.events import StepRow
from fdtrace.replayer.recorded.batch_rows import BatchRowColumns, ShapesSeen, batch_features_of
from fdtrace.replayer.recorded.time_model import TimeModel
from fdtrace.replayer.workload.workload import Workload

_FIELDS = 6


class StepTimes:
    """Computes how long each step takes from the features of its batch."""

    def __init__(self, model: TimeModel) -> None:
        self.model = model
        self._shapes = ShapesSeen()
        self._starts, self._ends = array("d"), array("d")
        self.num_beyond = 0
        """Steps with a feature larger than in every step that the model was fitted from."""

    def add(self, now: float, batch: Sequence[float]) -> float:
        """Add a step that begins at `now` (microseconds), by its `BATCH_FEATURES`. Returns how long it takes."""
        features = self._shapes.features(batch)
        duration = self.model.us(features)
        self.num_beyond += self.model.beyond(features)
        self._starts.append(now)
        self._ends.append(now + duration)
        return duration

    @property
    def starts_us(self) -> NDArray[np.float64]:
        """When each step began."""
        return np.frombuffer(bytes(self._starts), dtype=np.float64)

    @property
    def ends_us(self) -> NDArray[np.float64]:
        """When each step ended."""
        return np.frombuffer(bytes(self._ends), dtype=np.float64)


class TimedSteps(StepTimes):
    """As `StepTimes`, from the rows of each step, which it keeps."""

    def __init__(self, model: TimeModel, workload: Workload) -> None:
        super().__init__(model)
        self._numbers = {request.request_id: i for i, request in enumerate(workload.requests)}
        self._rows = array("q")

    def know(self, request_id: str) -> None:
        """Know a request that the workload did not have at first."""
        self._numbers[request_id] = len(self._numbers)

    def take(self, now: float, rows: Sequence[StepRow]) -> float:
        """Add a step that begins at `now` (microseconds). Returns how long it takes."""
        step = len(self._starts)
        for row in rows:
            number, prefill = self._numbers[row.request_id], row.kind == "prefill"
            figures = (row.num_tokens, row.num_computed_tokens, row.num_accepted_tokens)
            self._rows.extend((step, number, prefill, *figures))
        return self.add(now, batch_features_of(rows))

    @property
    def rows(self) -> BatchRowColumns:
        """The requests of every step."""
        table = np.frombuffer(bytes(self._rows), dtype=np.int64).reshape(-1, _FIELDS)
        step, request, prefill, tokens, computed, accepted = (table[:, i] for i in range(_FIELDS))
        return BatchRowColumns(step, request, prefill.astype(bool), tokens, computed, accepted)
