"""Opens the replay screen on the lab's case: what the tests run in a real terminal."""

from __future__ import annotations

import sys
import time

from tests.tui.screens import lab_app

if __name__ == "__main__":
    lab_app(ascii="--ascii" in sys.argv, clock=time.monotonic).run()
