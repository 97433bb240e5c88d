"""The token processor of a deployment: takes in the outputs of forwards, one forward after the other.

FastDeploy: `TokenProcessor._process_batch_output` (output/token_processor.py), a thread of the engine process.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping

from fdtrace.recorder.trace.column_values import MISSING
from fdtrace.replayer.recorded.pipeline_times import PipelineTimes


class TokenProcessor:
    """A queue. The outputs of a forward wait until those of the forward before are taken in; then they are taken in row
    by row.
    """

    def __init__(self, times: PipelineTimes) -> None:
        self.times = times
        self._rows: deque[tuple[float, str, int, int]] = deque()
        self.seen_step = MISSING
        """The last step of which outputs were taken in."""
        self._done = -math.inf

    def __len__(self) -> int:
        """Rows that no call has counted."""
        return len(self._rows)

    def add(self, at: float, name: str, num_tokens: int) -> None:
        """Add tokens of a request that are taken in at this time and come from no forward of this replay."""
        self._rows.append((at, name, num_tokens, MISSING))

    def forwarded(
        self, end: float, step: int, emitted: Mapping[str, int], answers: Iterable[str]
    ) -> dict[str, float]:
        """Add the outputs of a forward that ended at `end`, and the requests that the worker dropped since the forward
        before. Returns when each row is taken in.
        """
        times = self.times
        time = max(end, self._done) + max(0.0, times.first_output + times.output_wait.at(step))
        taken_in_at: dict[str, float] = {}
        for name in answers:
            taken_in_at[name] = time
            time += times.output_row
        for name, count in emitted.items():
            taken_in_at[name] = time
            self._rows.append((time, name, count, step))
            time += times.output_row
        self._done = time
        return taken_in_at

    def taken_in(self, now: float) -> dict[str, int]:
        """Tokens by request that were taken in since the last call of this method, up to now."""
        num_tokens: dict[str, int] = {}
        while self._rows and self._rows[0][0] <= now:
            _, name, count, step = self._rows.popleft()
            self.seen_step = max(self.seen_step, step)
            num_tokens[name] = num_tokens.get(name, 0) + count
        return num_tokens
