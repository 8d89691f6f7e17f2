"""The dashboard: server-rendered pages about hosts, workers, tasks, jobs, crons, events and dead letters, and what may be done to them."""
