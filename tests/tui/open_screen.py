"""Opens the replay screen on the lab's case: what the tests run in a real terminal."""

from __future__ import annotations

import sys
import time

from tests.tui.screens import lab_app
from tui.terminal import Terminal

if __name__ == "__main__":
    lab_app(terminal=Terminal(ascii="--ascii" in sys.argv), clock=time.monotonic).run()
