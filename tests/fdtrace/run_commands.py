"""Runs commands on many traces in one process: their arguments, a JSON list, a line on stdin; two JSON objects a run on
stdout, before and after it.

A process of its own, for a damaged file might end it; whoever starts it sees at which file.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys

from fdtrace.cli import main

if __name__ == "__main__":
    out = sys.stdout
    for line in sys.stdin:
        arguments = json.loads(line)
        print(json.dumps({"begun": arguments}), file=out, flush=True)
        printed, complained = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(complained):
            code = main(arguments)
        run = {"code": code, "out": printed.getvalue(), "err": complained.getvalue()}
        print(json.dumps(run), file=out, flush=True)
