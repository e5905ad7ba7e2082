"""A task that fails for good while its bank is closed."""

from __future__ import annotations

from pathlib import Path

from taskq import Permanent, task


@task(max_retries=0)
def pay(amount: int, bank: str) -> str:
    """Pay, if the bank is open: a file of its name stands for that."""
    if amount <= 0:
        raise Permanent("nothing to pay")
    if not Path(bank).exists():
        raise ConnectionError(f"{bank} is closed")
    return f"paid {amount}"
