"""An LLM engine of our own on Paddle: paged KV cache, chunked prefill, n-gram speculation, FastDeploy's
scheduling.

Small enough to run on two CPU cores, real enough to be recorded: the tokens of a step, the drafts that are
accepted and the allocator's figures are what the model really ran, accepted and allocated.
"""
