"""Producers and waiters, on asyncio and blocking."""
