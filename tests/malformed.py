"""Malformed frames by the million, in process: what a peer may send goes the way that a request goes in the manager.

`run` makes inputs of three kinds from one seed: *mutations* of honest requests (bytes flipped, cut, doubled, spliced),
*grammar* (well-formed msgpack of random shapes, with lengths that lie now and then) and *noise*. Each goes through the
real decoder, and what that lets through on to the checks of what comes in: lots, tasks, reports, conditions. Nothing
but the errors that peers are told of may come out. The same seed gives the same inputs.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Callable
from typing import Any

from taskq.errors import BadArguments, Malformed, PayloadTooLarge
from taskq.queue.limits import check_reports, checked
from taskq.queue.lots import lots
from taskq.queue.terms import new_task
from taskq.shapes import ACK, GIVE_BACK, NACK, PROGRESS, SNOOZE
from taskq.where import parse
from taskq.wire import arguments
from taskq.wire.codec import decode, pack, unpack
from taskq.wire.server import _parse, _tasks

MAX_PAYLOAD = 1024 * 1024
EXPECTED = (Malformed, BadArguments, PayloadTooLarge)
"""All that may come of bytes that a peer sends."""

_ERROR = ("error", "ValueError", "no", "Traceback")
HONEST = tuple(
    pack((number, verb, args))
    for number, (verb, args) in enumerate(
        [
            ("hello", ()),
            ("submit", (7, 1, lots([new_task("t", b"\x92\x90\x80", key=f"k{i}") for i in range(3)]))),
            ("submit", (7, 2, lots([new_task("t", b"p", factor=3.0, retry_on=("E",), delay=1.5)]))),
            ("report", ("w", 1, [(ACK, 5, 9, b"\xc0", 0.1), (NACK, 6, 9, _ERROR, None, 0.1)])),
            ("report", ("w", 1, [(GIVE_BACK, 5, 9), (SNOOZE, 6, 9, 2.0), (PROGRESS, 7, 9, 0.5, "half")])),
            ("find", ('type=mail.send error~="^Time" age>1h id<7', ("failed",), 0)),
            ("reserve", ("w", 1, 4, 16, ("noop",), 20.0)),
            ("wait", ([1, 2, 300, 70_000, 2**40], 5.0)),
        ],
        start=1,
    )
)
_LONG = {"text": b"\xdb", "blob": b"\xc6", "array": b"\xdd", "map": b"\xdf"}
_SCALARS: tuple[Callable[[random.Random], bytes], ...] = (
    lambda rng: bytes([rng.randrange(128)]),
    lambda rng: bytes([rng.randrange(0xC0, 0xC4)]),
    lambda rng: pack(rng.choice((0.0, -1.5, float("nan"), float("inf"), 2**63, -(2**63), 2**64 - 1, "submit", ""))),
    lambda rng: pack(rng.randbytes(rng.randrange(40))),
    lambda rng: bytes([0xA0 + rng.randrange(32)]) + rng.randbytes(rng.randrange(32)),
    lambda rng: rng.choice(list(_LONG.values())) + rng.choice((b"\xff" * 4, b"\0\0\x27\x10", b"\0\0\0\1")),
    lambda rng: bytes([rng.choice((0xC7, 0xC8, 0xC9, 0xD4, 0xD8))]) + rng.randbytes(rng.randrange(6)),
)


def run(seed: int, seconds: float, count: int | None = None) -> dict[str, int]:
    """Make inputs for so many seconds, or exactly ``count``. Gives figures: ``inputs``, ``decoded`` (the decoder let
    them through), ``requests``. Raises `AssertionError`, which tells the input and how to make it again.
    """
    rng = random.Random(seed)
    figures = {"inputs": 0, "decoded": 0, "requests": 0}
    give_up = time.monotonic() + seconds
    while figures["inputs"] != count and (count is not None or figures["inputs"] % 500 or time.monotonic() < give_up):
        figures["inputs"] += 1
        data = _input(rng)
        try:
            through(data, figures)
        except EXPECTED:
            continue
        except BaseException as error:
            replay = f"run({seed}, 0, count={figures['inputs']})"
            raise AssertionError(
                f"{type(error).__name__}: {error}, of {data!r}; again: tests.malformed.{replay}"
            ) from error
    return figures


def through(data: bytes, figures: dict[str, int]) -> None:
    """What the manager does with a frame, up to where something would change."""
    value = unpack(data)
    figures["decoded"] += 1
    if type(value) is bytes:
        decode(value)
    _, verb, args = _parse(data)
    figures["requests"] += 1
    _looked_at(verb, args)


def _looked_at(verb: str, args: tuple[Any, ...]) -> None:
    arguments.check(verb, args)
    if verb == "submit" and len(args) == 3:
        checked(_tasks(args[2]), MAX_PAYLOAD)
    elif verb == "report" and len(args) == 3 and type(args[2]) is tuple:
        check_reports(args[2])
    elif verb == "find" and len(args) == 3 and type(args[0]) is str:
        parse(args[0])


def _input(rng: random.Random) -> bytes:
    kind = rng.random()
    if kind < 0.8:
        return mutated(rng, rng.choice(HONEST))
    return _grown(rng, 0) if kind < 0.95 else rng.randbytes(rng.randrange(60))


def mutated(rng: random.Random, data: bytes) -> bytes:
    """An honest request, broken in one place or two."""
    body = bytearray(data)
    for _ in range(1 + (rng.random() < 0.3)):
        place = rng.randrange(len(body) + 1)
        way = rng.randrange(6)
        if way < 3 and place < len(body):
            body[place] = rng.randrange(256) if way else body[place] ^ 1 << rng.randrange(8)
        elif way == 3:
            del body[place : place + 1 + rng.randrange(4)]
        elif way == 4:
            body[place:place] = _SCALARS[rng.randrange(len(_SCALARS))](rng)
        else:
            other = rng.choice(HONEST)
            body[place:] = other[rng.randrange(len(other)) :]
    return bytes(body)


def _grown(rng: random.Random, depth: int) -> bytes:
    """A value of random shape; every tenth container says that it is longer or shorter than it is."""
    if depth > rng.randrange(1, 50) or rng.random() < 0.4:
        return _SCALARS[rng.randrange(len(_SCALARS))](rng)
    size, of_map = rng.randrange(4), rng.random() < 0.3
    said = size if rng.random() < 0.9 else rng.randrange(16)
    parts = [_grown(rng, depth + 1) for _ in range(size * (1 + of_map))]
    return bytes([(0x80 if of_map else 0x90) + said]) + b"".join(parts)


if __name__ == "__main__":
    print(json.dumps(run(int(sys.argv[1]), float(sys.argv[2]))))
