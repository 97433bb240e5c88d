"""Running a workload through a scheduler: step by step, what is kept of the steps, when it hangs."""
