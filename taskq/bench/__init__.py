"""``taskq bench``: how fast taskq is on this machine, measured with the public client and ordinary tasks."""
