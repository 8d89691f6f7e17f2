"""The supervisor process: its loop and the actors that each do one thing for it. No user code, no Redis, no threads."""
