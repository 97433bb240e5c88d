"""A request is added after the recording was begun and before the loop's next turn, in transformers' own environment.

`python -m tests.transformers_cb.taken_in` prints, as JSON, the ids of the requests that the agent wrote with no time of
arrival, with one, and as found.
"""

from __future__ import annotations

import json
import sys
import tempfile
from typing import Any

from benchmarks.transformers_adapter import ROOT, module, processor_of, run


def written(writer: Any) -> dict[str, list[str]]:
    """Filled with what the writer is asked to write from now on."""
    names: dict[str, list[str]] = {"there": [], "arrived": [], "found": []}
    request, event = writer.request, writer.event

    def of_request(request_id: str, ts: int, *more: Any) -> Any:
        names["there" if ts < 0 else "arrived"].append(request_id)
        return request(request_id, ts, *more)

    def of_event(kind: str, request_id: str | None = None, *more: Any, **named: Any) -> Any:
        if kind == "found" and request_id is not None:
            names["found"].append(request_id)
        return event(kind, request_id, *more, **named)

    writer.request, writer.event = of_request, of_event
    return names


class Manager:
    """In whose method, as the agent begins, it finds the processor."""

    def __init__(self, batch_processor: Any) -> None:
        self.batch_processor = batch_processor

    def begin(self, agent: Any, protocol: int, directory: str) -> None:
        """Begin to record, with a ring that nobody reads."""
        agent.start(
            {
                "protocol": protocol, "segments": 4, "segment_size": 1 << 20, "dir": directory, "id": "t",
                "mailboxes": directory,
            }
        )  # fmt: skip


def main() -> None:
    """Begin while two requests decode, add one at once and one after the next turn, and print what was written."""
    files = ROOT / "recorder" / "agent"
    load = module("load", files / "load.py")
    load.load(load.read_sources(str(files), ("transformers",)), "test")
    control, wire = sys.modules[f"{load.NAME}.control"], sys.modules[f"{load.NAME}.wire"]
    processor = processor_of(4)
    queue = processor.input_queue
    first, second, third, fourth = (queue.get() for _ in range(4))
    queue.put(first)
    queue.put(second)
    run(processor, 5)
    with tempfile.TemporaryDirectory() as directory:
        agent = control.Agent(keep_hooks=False)
        agent.install()
        Manager(processor).begin(agent, wire.PROTOCOL, directory)
        names = written(agent.writer)
        processor.scheduler.add_waiting_request(third)
        processor.prepare_next_batch()
        processor.scheduler.add_waiting_request(fourth)
        agent.stop("done")
        agent.leave()
    assert not agent.problem, agent.problem
    print(json.dumps(names))


if __name__ == "__main__":
    main()
