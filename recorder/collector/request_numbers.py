"""The trace's numbers of requests. Each process of an engine has its own numbers for them."""

from __future__ import annotations

from typing import Any

from fdtrace.recorder.collector.ledger import Ledger, OpenRequest


class RequestNumbers:
    """The numbers of live requests by request id. Those in `finishing` have ended, at a step that is not known yet."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.next_number = 0
        self.by_id: dict[str, int] = {}
        self.finishing: set[int] = set()

    def number_of(self, request: OpenRequest, *, arrived: bool = False) -> int:
        """The request's number. It is new if the id is not live, or if the id arrives again just after it ended."""
        number = self.by_id.get(request.request_id)
        if number is None or (arrived and number in self.finishing):
            number = self.by_id[request.request_id] = self.next_number
            self.next_number += 1
            self.ledger.live[number] = request
        return number

    def end(self, number: int) -> None:
        """The step of a request's end is known now. From now on its id may be used again."""
        request_id = self.ledger.live[number].request_id
        if self.by_id.get(request_id) == number:
            del self.by_id[request_id]
        self.finishing.discard(number)

    def state(self) -> dict[str, Any]:
        """The state as JSON."""
        return {
            "next_number": self.next_number,
            "by_id": self.by_id,
            "finishing": sorted(self.finishing),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a saved `state`."""
        self.next_number, self.by_id = state["next_number"], state["by_id"]
        self.finishing = set(state["finishing"])
