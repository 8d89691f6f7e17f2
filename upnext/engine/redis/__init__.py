"""Connections to Redis: requests, reconnecting, subscriptions, scripts, replies."""
