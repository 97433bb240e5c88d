"""Replays through an engine's real scheduler: besides the agent's adapters, the only code that knows engines' names.

`fastdeploy_driver.py`, `vllm_driver.py` and `transformers_driver.py` run in a process of their own, under a Python that
can import the engine. Of fdtrace they import only modules in their own directory. `child.py` starts them and talks to
them; `driven_scheduler.py`, `row_scheduler.py` and the engines' `…_scheduler.py` give them the interface of the
replayer's model. The events of a recorded deployment can drive FastDeploy's scheduler in their order:
`fastdeploy_events.py` in that process, `fastdeploy_in_order.py` here.
"""
