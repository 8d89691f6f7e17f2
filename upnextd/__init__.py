"""The supervisor daemon: one template that imports the service, N worker processes, one scheduler."""
