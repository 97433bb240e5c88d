"""Why a step was so, how far a replay can be trusted, what became of a request."""
