"""The prefill and decode roles of a driven FastDeploy scheduler: what its engine asks of it outside `schedule()`.

`fastdeploy_driver.py`, which runs as a script, imports it from its own directory. The engine's part follows
FastDeploy's `engine/common_engine.py`: it asks for the slot and blocks of one request after another, in order of
arrival, and stops at the first request that is refused.
"""

from __future__ import annotations

from collections import deque
from typing import Any


class RoleRequests:
    """Requests of one instance that do not run yet."""

    def __init__(self, role: str, manager: Any, drafts: int) -> None:
        self.role, self.manager, self.drafts = role, manager, drafts
        self.asking: deque[Any] = deque()

    def add(self, request: Any) -> None:
        """A request arrives, and asks for a slot."""
        request.disaggregate_info = {"role": self.role}
        self.asking.append(request)

    def preallocate(self) -> list[str]:
        """Ask for slots and blocks. Returns the requests that got them."""
        manager, granted = self.manager, []
        ask = (
            manager.preallocate_resource_in_d if self.role == "decode" else manager.preallocate_resource_in_p
        )
        while self.asking and ask(self.asking[0]):
            granted.append(self.asking.popleft().request_id)
        return granted

    def join(self, request_id: str, output_token: int) -> None:
        """A request joins the running queue. In the decode role it has its first token and a draft."""
        manager = self.manager
        if self.role == "prefill":
            manager.add_request_in_p([manager.requests[request_id]])
            return
        from fastdeploy.engine.request import CompletionOutput, RequestMetrics, RequestOutput

        token = CompletionOutput(index=0, send_idx=0, token_ids=[output_token])
        token.draft_token_ids = [output_token] * (1 + min(1, self.drafts))
        manager.add_prefilled_request(
            RequestOutput(
                request_id=request_id,
                outputs=token,
                finished=False,
                metrics=RequestMetrics(),
                num_cached_tokens=0,
            )
        )

    def settle(self, discarded: list[str], sent: list[str]) -> None:
        """Requests give their blocks back: those that are discarded before they ran, and those whose cache is sent."""
        for request_id in discarded:
            self.manager.pre_recycle_resource(request_id)
        for request_id in sent:
            self.manager.finish_requests(request_id)
