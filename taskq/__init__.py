"""taskq: a distributed task queue for Python with no broker to install."""

from __future__ import annotations

__version__ = "0.1.0"
