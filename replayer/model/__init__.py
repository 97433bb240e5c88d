"""The model of FastDeploy's V1 scheduler: events in, decisions out.

Theory of operation
===================
Only a `Scheduler` changes state here, and only through `Scheduler.apply`. One step of an engine is five kinds of
events:

1. `Arrived`, `Aborted`: what clients did. In the prefill and decode roles also `Preallocate`, `Joined`, `Discarded`:
   what the other instance of the deployment did.
2. `Schedule`: one call. Its answer is a `Decision`: chunks of prompts, blocks for decodes, preemptions, and reasons.
3. The forward. A replay knows the acceptances beforehand and sends `Forwarded`; a running engine sends `Emitted`.
4. `Finished`: a request emitted its last token.
5. `Rescheduled`, `Recycled`: the worker released a request that was preempted, or aborted.

Modules, from the bottom up: `found_events` (what a recording found), `request` (one request and its
states), `block_pool` and `prefix_cache` (KV blocks), `decoding` (what the worker decodes, and when a decode next needs
blocks), `state` (queues and every change of them), `block_reserve` (blocks that an admission must leave free),
`scheduling_call` (the rules of one call), `roles` (what happens outside the call in a deployment in roles), `scheduler`
(`apply`), `scheduler_queries` (questions that change nothing), `invariants` (what is always true; tests check it).

A call visits the running requests first, in order of admission, then the waiting ones, while budget is left. A budget
formula gives the budget of the call and the charge of each running decode (`formulas`). A `Policy` chooses the version
whose other rules apply (`config`). Decodes that need nothing are not visited: the cost of a call depends on how many
requests change in it, not on how many run.

A request's states, and the states that may follow each (as in `request.TRANSITIONS`; a test compares the two):

    asking        -> preallocated
    preallocated  -> decode, finished, prefill
    waiting       -> prefill
    prefill       -> aborting, decode, finished, leaving, preempted
    decode        -> aborting, finished, leaving, preempted
    preempted     -> finished, requeued
    requeued      -> prefill
    aborting      -> finished
    leaving       -> finished
    finished      -> (none)

    waiting ---------------> prefill ------> decode ------> finished
                              ^  |             |
       asking                 |  +--> preempted <--+    (its blocks are freed)
          |                   |          |
          v                   +------ requeued          (the worker released it; front of the queue)
    preallocated --> prefill or decode                  (prefill and decode roles)

`leaving` is the state between the two halves of a finish, for recordings that have both: out of the queue, but with its
blocks. `aborting` is like `preempted`, for a request that a client aborted: it is removed afterwards. In the decode
role a preempted request is finished: the prefill instance would have to send it again.
"""
