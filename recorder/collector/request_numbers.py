"""The trace's numbers of requests that several processes know by their own."""

from __future__ import annotations

from typing import Any

from fdtrace.recorder.collector.ledger import Ledger, OpenRequest


class RequestNumbers:
    """Numbers of the requests that live, by id; `finishing` have ended and are live until that is dated."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.next_number = 0
        self.by_id: dict[str, int] = {}
        self.finishing: set[int] = set()

    def number_of(self, request: OpenRequest, *, arrived: bool = False) -> int:
        """The request's number; a new one for an id that is not live, and where one that has just ended came again."""
        number = self.by_id.get(request.request_id)
        if number is None or (arrived and number in self.finishing):
            number = self.by_id[request.request_id] = self.next_number
            self.next_number += 1
            self.ledger.live[number] = request
        return number

    def end(self, number: int) -> None:
        """A request's end is dated: its id may come again."""
        request_id = self.ledger.live[number].request_id
        if self.by_id.get(request_id) == number:
            del self.by_id[request_id]
        self.finishing.discard(number)

    def state(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "next_number": self.next_number,
            "by_id": self.by_id,
            "finishing": sorted(self.finishing),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self.next_number, self.by_id = state["next_number"], state["by_id"]
        self.finishing = set(state["finishing"])
