"""What a recording says of a server: its sizes, how long its steps take, how many drafts it accepts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fdtrace.recorder.errors import UsageError
from fdtrace.request_traces.acceptances import Acceptances

ACCEPTED = """
SELECT num_accepted_tokens, count(*) FROM step_request
WHERE engine_id = $1 AND kind = 'decode' AND num_draft_tokens > 0 AND num_accepted_tokens BETWEEN 0 AND $2
GROUP BY 1
"""


class RecordingTemplate:
    """One engine of a recording, as a model for a case."""

    def __init__(self, path: Path, seed: int, *, timed: bool, accepting: bool) -> None:
        """Read it.

        Args:
            path: the trace.
            seed: for drawing acceptances.
            timed: whether the length of a step is wanted.
            accepting: whether acceptances are wanted.

        Raises:
            TraceError: it is no trace, or holds no step.
            UsageError: it cannot say what is wanted.
        """
        from fdtrace.recorded_rows import RecordedRows
        from fdtrace.recorder.trace.trace import open_trace, reading
        from fdtrace.replayer.config import SchedulerConfig
        from fdtrace.replayer.search.case_of_workload import sizes_of

        with open_trace(path) as trace:
            recording = trace.recording()
            engine = recording.engine
            config = SchedulerConfig.from_engine(engine)
            sizes = sizes_of(config)
            self.sizes: dict[str, Any] = {key: value for key, value in sizes.items() if key != "requests"}
            self.notes = [f"sizes as those of {path}: {engine.name} {engine.version or ''}".rstrip()]
            self.step_ms: float | None = None
            if timed:
                self.step_ms, note = _step_ms(recording, RecordedRows(trace, engine.engine_id))
                self.notes.append(note)
            self.acceptances: Acceptances | None = None
            if accepting and config.num_draft_tokens:
                with reading(path):
                    rows = trace.db.execute(ACCEPTED, [engine.engine_id, config.num_draft_tokens]).fetchall()
                self.acceptances = _acceptances(path, dict(rows), config.num_draft_tokens, seed)
                self.notes.append(f"drafts are accepted as in {path}, each forward for itself")


def _step_ms(recording: Any, rows: Any) -> tuple[float, str]:
    """The mean length of the steps that another step followed at once, and what its fit says."""
    from fdtrace.replayer.recorded.recorded_timing import RecordedTiming

    try:
        model = RecordedTiming(recording, lambda: rows.batch_rows(recording)).model
    except UsageError as error:
        raise UsageError(error.what, why=error.why, hint="--step-ms N gives the length of a step") from None
    return model.mean_us / 1000.0, model.text


def _acceptances(path: Path, counts: dict[int, int], num_drafts: int, seed: int) -> Acceptances:
    if not counts:
        raise UsageError(
            f"{path} does not say how many drafts were accepted",
            why="it has no decode with drafts",
            hint="--accept 0.7",
        )
    return Acceptances([counts.get(number, 0) for number in range(num_drafts + 1)], seed)
