"""The control socket: its server, the methods it serves, and the shape of `status`."""
