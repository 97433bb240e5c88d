"""What is to be scheduled: from a case, or from a recording."""
