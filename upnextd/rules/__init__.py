"""Pure decisions of the supervisor: tables and functions of values; `now` and `rng` are arguments."""
