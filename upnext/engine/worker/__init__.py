"""One worker's life in a process: fetch, execute, finish."""
