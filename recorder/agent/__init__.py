"""What runs inside somebody's engine: pure standard library, Python 3.9 and later, never in the engine's way.

It is loaded by path or from memory under the private name `_fdtrace_agent` (see `load.py`), so it collides with no
module of the engine and needs no fdtrace in its environment. Its own side (`recorder`) imports it as
`fdtrace.recorder.agent` for the formats in `wire`, `ring` and `mailbox`.
"""
