"""Leases, crons, promotion of delayed jobs, reaping of dead consumers."""
