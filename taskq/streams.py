"""The three standard streams, where somebody has closed one of them: the program that started us, or a task's code."""

from __future__ import annotations

import os


def occupy() -> None:
    """Put /dev/null in the place of each of the descriptors 0, 1 and 2 that is closed.

    Else the next socket or file would get its number, and would then receive what is meant for stdout or stderr.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
