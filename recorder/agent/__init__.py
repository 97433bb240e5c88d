"""What runs inside somebody's engine: pure standard library, Python 3.9 and later. It must never disturb the engine.

It is loaded from files or from memory under the private name `_fdtrace_agent` (see `load.py`). So no module of the
engine has the same name, and the engine's environment needs no fdtrace. Outside the engine, `recorder` imports it as
`fdtrace.recorder.agent`, for the formats in `wire`, `ring` and `mailbox`.
"""
