"""A trace: what is in its file, and what is read of it into memory."""
