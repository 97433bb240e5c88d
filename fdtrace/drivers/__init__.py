"""Replays through an engine's real scheduler: beside the agent's adapters, the only place that knows engines' names.

`fastdeploy.py` runs in a process of its own, under a Python that can import the engine; `child.py` starts it and talks
to it; `scheduler.py` gives it the interface of the replayer's own model.
"""
