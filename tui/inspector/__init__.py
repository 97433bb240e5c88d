"""Why a step was as it was, and a request's story."""
