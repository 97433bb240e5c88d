"""DuckDB draws no progress bar of its own over ours."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

INTERACTIVE = """
import sys
from pathlib import Path
import duckdb
from fdtrace.recorder.trace.trace import open_trace
asked = "SELECT current_setting('enable_progress_bar')"
with open_trace(Path(sys.argv[1])) as trace:
    print([db.execute(asked).fetchall()[0][0] for db in (duckdb.connect(), trace.db, trace.db.cursor())])
"""


def test_a_trace_is_read_without_duckdbs_bar(simulated: Path) -> None:
    """A program without a file counts as interactive: there DuckDB's own default is to draw one."""
    command = [sys.executable, "-c", INTERACTIVE, str(simulated)]
    assert (
        subprocess.run(command, capture_output=True, text=True, check=True).stdout == "[True, False, False]\n"
    )
