"""Replays through an engine's real scheduler: beside the agent's adapters, the only place that knows engines' names.

`fastdeploy_driver.py`, `vllm_driver.py` and `transformers_driver.py` run in a process of their own, under a Python that
can import the engine. Of fdtrace they import only what lies beside them. `child.py` starts them and talks to them;
`driven_scheduler.py`, `row_scheduler.py` and the engines' `…_scheduler.py` give them the interface of the replayer's
model. A recorded deployment leads FastDeploy's scheduler through its own events: `fastdeploy_events.py` in that
process, `fastdeploy_in_order.py` here.
"""
