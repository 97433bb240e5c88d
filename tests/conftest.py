"""What holds for all tests: byte code is kept.

The suite starts hundreds of processes. Where PYTHONDONTWRITEBYTECODE is set, as in many containers, each of them would
compile what it imports of this project again: a third of what a short command costs.
"""

from __future__ import annotations

import os
import sys

os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
