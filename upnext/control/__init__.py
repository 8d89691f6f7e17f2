"""Where the daemon and its clients meet: the control protocol (pure) and a client for its socket."""
