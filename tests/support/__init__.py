"""What the suites share: real servers, real daemons, and waiting with a deadline."""
