"""Worker processes: the pool that keeps them alive, and what runs inside each."""
