"""The token processor of a deployment: takes in what forwards made, one forward after the other.

FastDeploy: `TokenProcessor._process_batch_output` (output/token_processor.py), a thread of the engine process.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping

from fdtrace.replayer.recorded.pipeline_times import PipelineTimes


class TokenProcessor:
    """A queue: outputs of a forward wait until those of the one before are taken in; then they are, row by row."""

    def __init__(self, times: PipelineTimes) -> None:
        self.times = times
        self._rows: deque[tuple[float, str, int]] = deque()
        self._done = -math.inf

    def __len__(self) -> int:
        """Rows that no call has counted."""
        return len(self._rows)

    def add(self, at: float, name: str, num_tokens: int) -> None:
        """Tokens of a request that are taken in at that time, in no forward of this replay."""
        self._rows.append((at, name, num_tokens))

    def forwarded(
        self, out: float, step: int, emitted: Mapping[str, int], answers: Iterable[str]
    ) -> dict[str, float]:
        """The outputs of a forward that ended at `out`, and the requests that the worker has let go of since the one
        before. Gives when each row is taken in.
        """
        times = self.times
        at = max(out, self._done) + max(0.0, times.first_output + times.output_wait.at(step))
        taken: dict[str, float] = {}
        for name in answers:
            taken[name] = at
            at += times.output_row
        for name, count in emitted.items():
            taken[name] = at
            self._rows.append((at, name, count))
            at += times.output_row
        self._done = at
        return taken

    def taken_in(self, now: float) -> dict[str, int]:
        """Tokens by request that have been taken in by now, since it was asked last."""
        found: dict[str, int] = {}
        while self._rows and self._rows[0][0] <= now:
            _, name, count = self._rows.popleft()
            found[name] = found.get(name, 0) + count
        return found
