"""The model of FastDeploy's V1 scheduler: events in, decisions out.

Theory of operation
===================
A `Scheduler` is the only one that changes anything here, and `Scheduler.apply` is its only door. One turn of an
engine is five events:

1. `Arrived`, `Aborted`: what clients did. In the prefill and decode roles also `Preallocate`, `Joined`, `Discarded`:
   what the other instance of the deployment did.
2. `Schedule`: one call. Its answer is a `Decision`: chunks of prompts, blocks for decodes, who is preempted, and why.
3. The forward. A replay, which knows the acceptances beforehand, sends `Forwarded`; a running engine sends `Emitted`.
4. `Finished`: a request made its last token.
5. `Rescheduled`, `Recycled`: the worker let go of a request that was preempted, or aborted.

Rooms, from the bottom up: `request` (one request and its states), `block_pool` and `prefix_cache` (KV blocks),
`decoding` (what the worker decodes, and when a decode next needs blocks), `state` (queues and every change of them),
`block_reserve` (blocks that an admission must leave free), `scheduling_call` (the rules of one call), `roles` (what
happens outside the call in a deployment in roles), `scheduler` (the door), `queries` (what can be asked, changing
nothing), `invariants` (what always holds; tests look).

A call visits the running requests first, in order of admission, then the waiting ones, while budget is left. A budget
formula says how much there is and what a running decode is charged (`formulas`); a `Policy` says which version's other
rules hold (`config`). Decodes that need nothing are not visited: a call costs what changes in it, not what runs.

A request's states, and those that may follow each (drawn from `request.TRANSITIONS`; a test holds them equal):

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
          v                   +------ requeued          (the worker let go of it; front of the queue)
    preallocated --> prefill or decode                  (prefill and decode roles)

`leaving` is between the two halves of a finish, where a recording keeps them apart: out of the queue, with its blocks.
`aborting` is `preempted` for a request that a client gave up: it is then forgotten. In the decode role a request that
is preempted is finished: the prefill instance would have to send it again.
"""
