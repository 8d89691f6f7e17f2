"""The other side of the fork: processes that run user code and the engine, and may block."""
