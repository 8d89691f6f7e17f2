"""The supervisor in a simulated kernel, many lives of it."""
