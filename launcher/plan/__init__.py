"""What a run will need and take, from its configuration alone: parameters, memory, steps, time, cost and jobs."""
