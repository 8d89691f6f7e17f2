"""A seeded model of the queue: the real scripts on a real server, all around it small state machines whose commands wait in line.

`kernel`: connections, time, actors. `workers`, `daemons`, `outside` (producers, waiters, operators): the machines. `plan`, `mishaps`: what
goes wrong, and how. `truth`: what the server holds, and what must hold. `play`: a seed, its replay, and the shrinker.
"""
