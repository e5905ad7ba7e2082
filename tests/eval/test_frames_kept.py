"""What went over the wire in former versions, kept as it was: a client or manager of that version must still be met in
the same way by this one.

``fixtures/frames-N.txt`` holds one conversation of protocol N, a frame a line: who speaks, what it is, the bytes in
hexadecimal. Those of the protocol that is spoken now must come out of this code byte for byte; of all others the
handshake must still be understood, so that both sides can say which version the other has. After a change of the
protocol: raise `taskq.service.PROTOCOL` and run ``python tests/eval/test_frames_kept.py``, which writes the file of the
new version and leaves the others alone. A verb that is added goes to the end of `CALLS`: then those lines stay as they
are, and one is added.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from taskq.config import ADMIN
from taskq.queue.lots import lots, tasks
from taskq.queue.terms import new_task
from taskq.roles import accepted, key_of
from taskq.service import MAX_BATCH, PROTOCOL, VERBS
from taskq.wire.codec import pack, unpack
from taskq.wire.handshake import NONCE_BYTES, ClientHandshake, ServerHandshake
from taskq.wire.seal import Seal

FIXTURES = Path(__file__).parent / "fixtures"
KEY = bytes(range(32))
RELEASE = "0.1.0"
POOL = {"id": "p1", "name": "node", "host": "node.lan", "pid": 4, "local": None}
WORKER = {"incarnation": "i1", "pool": POOL, "name": "node/0", "host": "node.lan", "pid": 5, "threads": 4}
WORKER |= {"queues": ("mail",), "queue_order": "", "types": ()}
ITEMS = [
    new_task("compute", b"\x92\x90\x80"),
    new_task("mail", b"\x92\x91\x01\x80", queue="mail", priority=-3, delay=1.5, key="k1", expires=60.0),
]
CALLS: dict[str, tuple[Any, ...]] = {
    "hello": (),
    "types": (),
    "snapshot": (),
    "submit": (2**62, 1, tuple(lots(ITEMS))),
    "finished": (2**62, 0, 20.0),
    "wait": ((1, 2), 0.0),
    "result": (1,),
    "get": ((1, 2),),
    "list_tasks": (None, "compute", None, 50),
    "find": ("type=mail age>1h", ("failed",), 0),
    "cancel": ((1,),),
    "history": (1,),
    "requeue": ((1,),),
    "drop": ((1,),),
    "purge": (("completed",), 60.0),
    "pause_queue": ("mail", "ann@mgr"),
    "resume_queue": ("mail",),
    "limit_queue": ("mail", 3),
    "purge_queue": ("mail", 0),
    "explain": (1,),
    "beat": (POOL, ()),
    "child_died": ("p1", "i1", "signal 9 (SIGKILL)", ((1, 2**40 + 1),), True, {"stderr": "…"}, ()),
    "to_cancel": ("p1",),
    "leave": ("p1",),
    "attach": (WORKER, ((1, 2**40 + 1),)),
    "reserve": ("i1", 7, 4, 256, ("compute",), 20.0),
    "report": ("i1", 7, ((0, 1, 2**40 + 1, b"\x01", 0.25), (1, 2, 2**40 + 2, ("error", "E", "no", "…"), None, 0.5))),
    "drain": ("i1", 7),
    "detach": ("i1", 7),
    "backup": ("/var/backups/tasks.sqlite", 2**62),
}
REPLIES: tuple[tuple[Any, ...], ...] = (
    (1, 0, ((1, 2), (0,))),
    (2, 0, (3, False, ((1, "completed", b"\x04", None, 0, 0, "node/0"),))),
    (3, 1, ("task_not_found", "no task 42", {})),
    (4, 0, (((1, 2**40 + 1, "compute", b"\x92\x90\x80", "default", 1, 3600.0, "c1", 1.7e9, None),), False)),
    (5, 1, ("permission_denied", "no", {"role": "submit", "verb": "purge", "hint": "…"})),
)


class Frame(NamedTuple):
    """A line of a file. ``side``: client or server; ``what``: for people; ``data``: the body, with its seal before it
    after the handshake."""

    side: str
    what: str
    data: bytes


def conversation(role: str = ADMIN) -> list[Frame]:
    """What is said now: a handshake, every verb once, replies of each kind."""
    server = ServerHandshake(accepted(KEY), PROTOCOL, RELEASE, b"S" * NONCE_BYTES)
    client = ClientHandshake(key_of(role, KEY), PROTOCOL, RELEASE, b"C" * NONCE_BYTES, role)
    answer = client.answer(server.greeting)
    frames = [Frame("server", "greeting", server.greeting), Frame("client", "answer", answer)]
    frames.append(Frame("server", "proof", server.finish(answer)))
    seals = Seal(server.session.of_client), Seal(server.session.of_server)
    for number, (verb, args) in enumerate(CALLS.items(), 1):
        body = pack((number, verb, args))
        frames.append(Frame("client", verb, seals[0].next(body) + body))
    for reply in REPLIES:
        body = pack(reply)
        frames.append(Frame("server", "reply", seals[1].next(body) + body))
    return frames


def to_text(frames: Sequence[Frame]) -> str:
    """The text of a file."""
    return "".join(f"{frame.side} {frame.what} {frame.data.hex()}\n" for frame in frames)


def kept(protocol: int) -> list[Frame]:
    """The conversation that was kept of this version."""
    lines = (FIXTURES / f"frames-{protocol}.txt").read_text(encoding="ascii").splitlines()
    return [Frame(side, what, bytes.fromhex(data)) for side, what, data in (line.split() for line in lines)]


VERSIONS = sorted(int(path.stem.removeprefix("frames-")) for path in FIXTURES.glob("frames-*.txt"))


def test_the_version_that_is_spoken_now_is_kept() -> None:
    assert VERSIONS[-1] == PROTOCOL and set(CALLS) == set(VERBS)


def test_what_is_said_now_is_what_was_kept() -> None:
    assert conversation() == kept(PROTOCOL)


def test_what_was_kept_is_understood() -> None:
    """Read from the bytes alone, as the other side does."""
    greeting, answer, proof, *rest = kept(PROTOCOL)
    server = ServerHandshake(accepted(KEY), PROTOCOL, RELEASE, greeting.data[-NONCE_BYTES:])
    assert server.finish(answer.data) == proof.data
    seals = {"client": Seal(server.session.of_client), "server": Seal(server.session.of_server)}
    said = {}
    for frame in rest:
        seal, body = frame.data[:16], frame.data[16:]
        assert seals[frame.side].next(body) == seal
        number, first, second = unpack(body)
        said[frame.side, number] = first, second
    for number, (verb, args) in enumerate(CALLS.items(), 1):
        assert said["client", number] == (verb, args)
    assert tasks(said["client", 4][1][2], MAX_BATCH) == ITEMS
    for reply in REPLIES:
        assert said["server", reply[0]] == reply[1:]


@pytest.mark.parametrize("protocol", VERSIONS)
def test_the_handshake_of_every_version_is_understood(protocol: int) -> None:
    greeting, answer, proof = kept(protocol)[:3]
    server = ServerHandshake(accepted(KEY), protocol, RELEASE, greeting.data[-NONCE_BYTES:])
    assert server.greeting == greeting.data
    assert server.finish(answer.data) == proof.data
    assert (server.protocol, server.release, server.proven.role) == (protocol, RELEASE, ADMIN)
    now = ClientHandshake(KEY, PROTOCOL, RELEASE, b"C" * NONCE_BYTES)
    now.answer(greeting.data)
    assert now.protocol == protocol  # so that it can say which version the manager has
    then = ClientHandshake(KEY, protocol, RELEASE, b"C" * NONCE_BYTES)
    assert then.answer(greeting.data) == answer.data
    then.finish(proof.data)


if __name__ == "__main__":
    path = FIXTURES / f"frames-{PROTOCOL}.txt"
    path.write_text(to_text(conversation()), encoding="ascii")
    sys.stdout.write(f"wrote {path}\n")
