"""The embedded broker and the program in front of it."""
