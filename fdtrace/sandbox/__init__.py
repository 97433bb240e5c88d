"""An LLM engine of our own on Paddle: paged KV cache, chunked prefill, n-gram speculation, FastDeploy's
scheduling.

It is small enough for two CPU cores, and a real engine: the model really runs the tokens of a step, really accepts
the drafts, and really allocates the memory that a recording shows.
"""
