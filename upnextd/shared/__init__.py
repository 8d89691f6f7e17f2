"""What several processes of the daemon use: the line between them, shared pages, Linux processes, logs."""
