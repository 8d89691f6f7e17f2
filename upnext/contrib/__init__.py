"""UpNext inside of frameworks: each module needs its framework, and is imported by those who use it."""
