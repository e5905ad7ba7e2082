"""Where records are kept: memory or SQLite, behind one protocol."""
