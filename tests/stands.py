"""A place for recordings of a stand-in: its surface is an engine's, and the real command records it."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fdtrace.commands.record import environment
from fdtrace.recorder.agent_delivery import AGENT
from fdtrace.recorder.collector import __main__ as collecting
from fdtrace.recorder.collector.process import Collector
from fdtrace.recorder.session import Session
from fdtrace.recorder.trace.trace import Trace

if TYPE_CHECKING:
    from typing_extensions import Self

ROOT = Path(__file__).parents[1]


def armed_for(session: Session, own: Mapping[str, str]) -> dict[str, str]:
    """The environment `own`, which has a PYTHONPATH, of a process that records itself into a session."""
    armed = environment(session)
    return {
        **own,
        **{name: armed[name] for name in ("FDTRACE", "FDTRACE_SESSION")},
        "PYTHONPATH": os.pathsep.join([str(AGENT / "site"), own["PYTHONPATH"]]),
    }


@dataclass
class Stand:
    """Recordings of the stand-in that `script` runs, in processes of their own; and its environment."""

    script: Path
    directory: Path
    environment: dict[str, str]
    shared: Path | None = None
    """Where all workers of this run of the tests find each other's recordings."""

    @classmethod
    def at(cls, script: Path, directory: Path) -> Self:
        """One in an empty directory, with no variable of ours or of a stand-in but what it needs."""
        boxes = directory / "boxes"
        boxes.mkdir(mode=0o700, exist_ok=True)
        kept = {
            name: value for name, value in os.environ.items() if not name.startswith(("FDTRACE", "STANDIN"))
        }
        kept.update(FDTRACE_DIR=str(boxes), PYTHONPATH=os.pathsep.join([str(script.parent), str(ROOT)]))
        return cls(script, directory, kept)

    @property
    def trace(self) -> Path:
        return self.directory / "t.duckdb"

    @property
    def log(self) -> Path:
        return self.directory / "log"

    def command(self, *options: str) -> list[str]:
        """The stand-in's command line."""
        return [sys.executable, str(self.script), "--log", str(self.log), *options]

    def fdtrace(self, *arguments: object, timeout: float = 900) -> subprocess.CompletedProcess[str]:
        """Run the command `fdtrace`."""
        command = [sys.executable, "-m", "fdtrace", *map(str, arguments)]
        return subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=timeout, check=False
        )

    def record(self, *options: str) -> subprocess.CompletedProcess[str]:
        """Record the stand-in from its start to its end."""
        return self.fdtrace("record", "-o", self.trace, "--", *self.command(*options))

    def recorded(self, *options: str) -> tuple[Self, subprocess.CompletedProcess[str]]:
        """A recording of the stand-in with these options, to be read only: made once for all tests that ask for it.

        Its collector runs in the process of the tests: it is the loop of the real one, without the imports of another.
        """
        assert self.shared is not None
        place = self.shared / "_".join((self.script.stem, *options))
        place.mkdir(mode=0o700, exist_ok=True)
        stand, result = type(self).at(self.script, place), place / "result.json"
        with (place / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not result.exists():
                stand.trace.unlink(missing_ok=True)
                done = stand.collect(*options)
                result.write_text(json.dumps([done.returncode, done.stdout, done.stderr]))
        return stand, subprocess.CompletedProcess(stand.command(*options), *json.loads(result.read_text()))

    def collect(self, *options: str) -> subprocess.CompletedProcess[str]:
        """Record the stand-in from its start to its end, with the collector's loop in this process."""
        session = Session.create(self.trace)
        armed = armed_for(session, self.environment)
        with (self.directory / "out").open("w+") as out, (self.directory / "err").open("w+") as err:
            process = subprocess.Popen(self.command(*options), env=armed, stdout=out, stderr=err, text=True)
            collector = Collector(session)
            collector.publish()
            collecting.finish(collector, collecting.run(collector, UntilExit(process)))
            said = [(file.seek(0), file.read())[1] for file in (out, err)]
        return subprocess.CompletedProcess(process.args, process.returncode, *said)

    def lines(self) -> list[dict[str, Any]]:
        """What it wrote itself, a line a forward."""
        return logged(self.log)


class UntilExit(collecting.StdinOrders):
    """The order to end comes when a process has ended, as `fdtrace record` gives it."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        super().__init__()
        self.process = process

    def next(self, timeout: float) -> dict[str, Any] | None:
        """That order, once the process has ended; None after `timeout` seconds."""
        try:
            return {"end": f"exit {self.process.wait(timeout)}"}
        except subprocess.TimeoutExpired:
            return None


def logged(path: Path) -> list[dict[str, Any]]:
    """The lines of a stand-in's log."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def rows_of(trace: Trace, engine_id: int = 0) -> list[list[Any]]:
    """For each step its rows, sorted: [request, kind, tokens, computed before, drafts accepted]."""
    where = f"WHERE engine_id = {engine_id}"
    steps: dict[int, list[Any]] = {row["step"]: [] for row in trace.rows(f"FROM step {where} ORDER BY step")}
    for row in trace.rows(f"FROM step_request JOIN request USING (engine_id, request) {where}"):
        columns = ("request_id", "kind", "num_tokens", "num_computed_tokens", "num_accepted_tokens")
        steps[row["step"]].append([row[name] for name in columns])
    return [sorted(rows) for rows in steps.values()]


def calls_of(trace: Trace, engine_id: int = 0) -> list[dict[str, Any]]:
    """Every scheduling call of an engine, those of a run of equal ones one by one, with the id of the queue's head."""
    rows = trace.rows(
        "SELECT c.* REPLACE (r.request_id AS head) FROM call c "
        "LEFT JOIN request r ON r.engine_id = c.engine_id AND r.request = c.head "
        f"WHERE c.engine_id = {engine_id} ORDER BY c.call"
    )
    return [row for row in rows for _ in range(row["num_calls"])]


def differing_calls(found: list[dict[str, Any]], lines: list[dict[str, Any]]) -> list[str]:
    """What a trace and a stand-in's own lines say differently of each call.

    The last of a run of equal idle calls may be missing where the engine ended within it.
    """
    known = list(lines)
    while len(known) > len(found) and known[-1]["idle"] and known[-1] == known[-2]:
        known = known[:-1]
    told = [] if len(found) == len(known) else [f"{len(lines)} calls, {len(found)} in the trace"]
    for number, (row, line) in enumerate(zip(found, lines, strict=False)):
        told += [
            f"call {number}: {name} {value!r}, in the trace {row[name]!r}"
            for name, value in line.items()
            if row[name] != value
        ]
    return told[:20]
