"""Which engine a worker belongs to, by how both describe themselves.

The process tree does not tell it: one launcher may start several deployments, or both instances of one that has roles.
A worker may also run, without tasks, long before its engine schedules for the first time.
"""

from __future__ import annotations

from typing import Any

SHARED = ("host", "dp_rank", "role", "message_queue")
"""What an engine and its workers describe alike. `message_queue` is FastDeploy's INFERENCE_MSG_QUEUE_ID: an engine sets
it to the port of its worker queue (engine/common_engine.py), and so do its workers (worker/*_model_runner.py). The
sampled tokens come back by it. So no two engines of a host have the same one at a time.
"""


def may_be(engine: dict[str, Any], worker: dict[str, Any]) -> bool:
    """Whether nothing that both descriptions hold contradicts that the worker is of this engine."""
    return all(engine.get(key) is None or worker.get(key) in (None, engine[key]) for key in SHARED)


def share_queue(engine: dict[str, Any], worker: dict[str, Any]) -> bool:
    """Whether both descriptions name the same message queue."""
    return engine.get("message_queue") is not None and engine["message_queue"] == worker.get("message_queue")
