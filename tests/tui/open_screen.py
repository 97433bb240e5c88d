"""Opens the replay screen on the lab's case: what the tests run in a real terminal."""

from __future__ import annotations

import sys
import time

from fdtrace.tui.terminal import Terminal
from tests.tui.screens import lab_app

if __name__ == "__main__":
    lab_app(terminal=Terminal(ascii="--ascii" in sys.argv), clock=time.monotonic).run()
