"""Replays through an engine's real scheduler: beside the agent's adapters, the only place that knows engines' names.

`fastdeploy_driver.py` and `vllm_driver.py` run in a process of their own, under a Python that can import the engine, with
`serving.py` and `vllm_build.py` from beside them and nothing else of fdtrace; `child.py` starts them and talks to them;
`driven_scheduler.py` and `vllm_scheduler.py` give them the interface of the replayer's own model.
"""
