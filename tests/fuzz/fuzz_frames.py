"""Fuzz target: a frame from a peer, through the decoder and the checks of what comes in, and a payload."""

from __future__ import annotations

import contextlib

import fuzzing

with fuzzing.watched():
    import malformed

    from taskq.errors import Malformed
    from taskq.wire.codec import decode, decode_arguments


def one_input(data: bytes) -> None:
    """Nothing but the errors that peers are told of may come out."""
    with contextlib.suppress(malformed.EXPECTED):
        malformed.through(data, {"decoded": 0, "requests": 0})
    for read in (decode, decode_arguments):
        with contextlib.suppress(Malformed):
            read(data)


if __name__ == "__main__":
    fuzzing.main(one_input)
