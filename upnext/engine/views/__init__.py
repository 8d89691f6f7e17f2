"""What people ask of the queue: jobs, tasks, crons, dead letters."""
