"""Builds replays of a trace for the screen, the report and the check."""

from __future__ import annotations

import argparse
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fdtrace.formulas import DEFAULT

if TYPE_CHECKING:
    import duckdb

    from fdtrace.reading import TraceReader
    from recorder.recording import Recording
    from recorder.trace import Trace
    from replayer.config import Policy
    from replayer.formulas import Formula
    from replayer.history import History, How, StepRow
    from tui.jobs import Cancelled, Progress, Replay
    from tui.sources import Sources


def add_replay_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that `replay` and `check` share."""
    parser.add_argument("trace", type=Path, metavar="TRACE")
    parser.add_argument(
        "-f",
        "--formula",
        action="append",
        metavar="FORMULA",
        help="a built-in name, 'name: EXPRESSION', or FILE.py:CLASS; repeatable (default: "
        + ", ".join(DEFAULT)
        + ")",
    )
    parser.add_argument(
        "--as-recorded", action="store_true", help="keep each step's recorded state: exact, needs no model"
    )
    parser.add_argument(
        "--policy", metavar="P", help="scheduler version of the rescheduled replays (default: as recorded)"
    )
    parser.add_argument(
        "--engine", type=int, metavar="N", help="which engine of a trace of several (default: the first)"
    )


class RecordedRows:
    """Reads the requests of a recorded step of a trace that is complete; each thread has a cursor of its own."""

    def __init__(self, trace: Trace, engine_id: int) -> None:
        self.trace, self.engine_id = trace, engine_id
        self._local = threading.local()

    def __call__(self, step: int) -> list[StepRow]:
        """The rows of a step, prefills first."""
        from fdtrace.reading import ROWS
        from replayer.history import StepRow

        cursor: duckdb.DuckDBPyConnection | None = getattr(self._local, "cursor", None)
        if cursor is None:
            cursor = self._local.cursor = self.trace.db.cursor()
        return [StepRow(*row) for row in cursor.execute(ROWS, [self.engine_id, step]).fetchall()]


def policy_of(text: str | None) -> Policy | None:
    """The policy that `--policy` names."""
    from replayer.config import parse_policy

    return parse_policy(text) if text else None


def replay_now(
    recording: Recording, formulas: Sequence[Formula], args: argparse.Namespace, rows: RecordedRows
) -> list[History]:
    """The recording and its replays, computed here with the progress on stderr."""
    from fdtrace.progress import Progress as Said
    from replayer.compare import replay

    said = Said()

    def progressed(done: int, expected: int) -> None:
        if said.terminal:
            said.update(f"replaying: {min(100, 100 * done // max(expected, 1))} %")

    histories = replay(
        recording,
        formulas,
        "as recorded" if args.as_recorded else "rescheduled",
        policy=policy_of(args.policy),
        rows=rows,
        progressed=progressed,
    )
    if said.dirty:
        sys.stderr.write("\r\x1b[2K")
    return histories


def replays_later(reader: TraceReader, formulas: Sequence[Formula], args: argparse.Namespace) -> list[Replay]:
    """The same as panes that fill while the screen is in use."""
    texts = args.formula or DEFAULT
    return [_replay(reader, one, args, text) for one, text in zip(formulas, texts, strict=True)]


def sources_of(reader: TraceReader, args: argparse.Namespace) -> Sources:
    """What the screen may ask the trace for."""
    from fdtrace.formulas import formula
    from tui.sources import Sources

    return Sources(
        rows=reader.rows,
        request_steps=reader.request_steps,
        events=reader.events,
        event_steps=reader.event_steps,
        sql=reader.sql,
        replay_of=lambda text: _replay(reader, formula(text), args, text),
        tail=reader.tail if reader.live else None,
        recording=reader.recording if reader.live else None,
    )


def _replay(reader: TraceReader, formula: Formula, args: argparse.Namespace, text: str) -> Replay:
    from tui.jobs import Replay

    how: How = "as recorded" if args.as_recorded else "rescheduled"
    computation = _computation(reader, formula, args)
    return Replay(formula.name, how, computation, formula, policy_of(args.policy), text)


class _computation:
    """Replays the recording; one in progress as far as it has come."""

    def __init__(self, reader: TraceReader, formula: Formula, args: argparse.Namespace) -> None:
        self.reader, self.formula, self.args = reader, formula, args
        self.whole = not reader.live

    def __call__(self, progress: Progress, cancelled: Cancelled) -> History:
        from replayer.compare import replay

        return replay(
            self.reader.first if self.whole else self.reader.recording(),
            [self.formula],
            "as recorded" if self.args.as_recorded else "rescheduled",
            policy=policy_of(self.args.policy),
            rows=self.reader.rows,
            progressed=lambda done, expected: progress(done / max(expected, 1)),
            cancelled=cancelled,
        )[1]
