"""The queue: a pure state machine, and one shell with lock, clock and store around it."""
