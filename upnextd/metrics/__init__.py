"""The process that serves `--metrics`, and the supervisor's side of it."""
