"""Command lines: click declarations only; what they do is in the modules above them."""
