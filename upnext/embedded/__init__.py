"""The embedded broker: a Valkey or Redis server that a process of ours starts for itself where no Redis is configured."""
