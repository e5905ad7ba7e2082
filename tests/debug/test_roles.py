"""Which role may call what: one table, complete, the same on the wire and on paper."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest
from wire_service import KEY, Answers, authenticated, join_of, serving

from taskq.config import ADMIN, ROLES, Address, Join
from taskq.errors import AuthenticationFailed, ConfigError, PermissionDenied
from taskq.roles import MATRIX, accepted, allows, denied, key_of
from taskq.service import VERBS, QueueService
from taskq.wire import handshake
from taskq.wire.client import RemoteQueue
from taskq.wire.codec import pack, unpack


class Counting(Answers):
    """Fails a call that reached it, so that nothing can be taken for a refusal that is none."""

    def __getattribute__(self, name: str) -> Any:
        return _reached(name) if name in VERBS else super().__getattribute__(name)


def _reached(verb: str) -> Any:
    def method(*args: Any) -> Any:
        raise ConfigError(f"{verb} was reached")

    return method


def test_every_verb_stands_in_the_table() -> None:
    assert set(MATRIX) == set(VERBS)
    assert {role for roles in MATRIX.values() for role in roles.split()} | {ADMIN} == set(ROLES)


def test_a_verb_that_stands_nowhere_is_the_admins() -> None:
    assert [role for role in ROLES if allows(role, "new_verb")] == [ADMIN]


def test_the_protocol_has_the_same_table() -> None:
    text = (Path(handshake.__file__).parent / "PROTOCOL.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| (submit|work|monitor) \| (.*) \|$", text, re.MULTILINE))
    listed = {role: set(re.findall(r"`(\w+)`", row)) for role, row in rows.items()}
    listed["work"] |= listed["submit"]
    assert listed == {role: {verb for verb in VERBS if allows(role, verb)} for role in ROLES if role != ADMIN}


@pytest.mark.parametrize("role", ROLES)
def test_each_role_reaches_its_verbs_and_no_other(role: str) -> None:
    """Wrong arguments for all: the role is asked first, so that a verb which is refused says nothing of them."""
    with serving(Counting()) as server, authenticated(server.address, key_of(role, KEY), role) as channel:
        for number, verb in enumerate(VERBS, 1):
            arity = len(inspect.signature(getattr(QueueService, verb)).parameters) - 1
            for args in ((), (None,) * arity, (b"x",) * (arity + 1)):
                channel.send(pack((number, verb, args)))
                _, status, (code, message, details) = unpack(channel.receive(5.0))
                assert status == 1
                if not allows(role, verb):
                    assert (code, details["role"], details["verb"]) == ("permission_denied", role, verb)
                elif len(args) != arity:
                    assert code == "malformed"
                elif verb != "submit":
                    assert code == "bad_arguments" or message == f"{verb} was reached"


def test_a_refusal_says_what_to_do() -> None:
    with serving(Answers()) as server:
        join = Join((server.address,), key_of("submit", KEY), role="submit")
        queue = RemoteQueue(join)
        assert queue.cancel([1]) == ("cancelled",)
        with pytest.raises(PermissionDenied) as caught:
            queue.purge(["failed"], 0.0)
        assert caught.value.message == "the key of the role submit does not allow purge"
        assert caught.value.hint.endswith("taskq-manager --print-join --role admin")
        with pytest.raises(PermissionDenied) as caught:
            queue.snapshot()
        assert "--role monitor" in caught.value.hint
        assert queue.hello()["name"] == "tests"  # the connection goes on
        queue.close()
    assert denied("monitor", "submit").hint.startswith("it takes that of submit or work or admin")


def test_a_refusal_is_logged_once_for_each_address(caplog: pytest.LogCaptureFixture) -> None:
    with serving(Answers()) as server, authenticated(server.address, key_of("monitor", KEY), "monitor") as channel:
        for number in range(1, 100):
            channel.send(pack((number, "purge", (["failed"], 0.0))))
            assert unpack(channel.receive(5.0))[1] == 1
    said = [line for line in caplog.text.splitlines() if "request refused" in line]
    assert len(said) == 1 and "the key of the role monitor does not allow purge (from 127.0.0.1)" in said[0]


def test_the_key_of_another_role_is_a_wrong_key() -> None:
    with serving(Answers()) as server:
        for role in ROLES:
            for claimed in ROLES:
                queue = RemoteQueue(Join((server.address,), key_of(role, KEY), role=claimed))
                if role == claimed:
                    queue.hello()
                else:
                    with pytest.raises(AuthenticationFailed, match="rejected the"):
                        queue.hello()
                queue.close()


def test_connections_of_a_key_that_is_accepted_no_more_end() -> None:
    second, third = bytes([2]) * 32, bytes([3]) * 32
    with serving(Answers()) as server:
        old = RemoteQueue(join_of(server.address))
        old.hello()
        server.accept_keys(second, KEY)
        assert old.hello()["name"] == "tests"
        newer = RemoteQueue(join_of(server.address, second))
        newer.hello()
        server.accept_keys(third, second)
        with pytest.raises(Exception, match=r"lost the manager|rejected"):
            old.hello()
        with pytest.raises(AuthenticationFailed):
            old.hello()
        assert newer.hello()["name"] == "tests"
        old.close()
        newer.close()


def test_keys_of_roles_tell_nothing_of_each_other() -> None:
    keys = {key_of(role, KEY) for role in ROLES}
    assert len(keys) == len(ROLES) and {len(key) for key in keys} == {32}
    assert key_of("work", key_of("submit", KEY)) not in keys
    assert len(accepted(KEY, bytes(32))) == 2 * len(ROLES)


def test_a_join_file_says_what_its_key_is_for() -> None:
    join = Join((Address("mgr.lan", 99),), key_of("work", KEY), "night", role="work")
    assert Join.from_json(join.to_json(), "x") == join
    without = f'{{"taskq": 1, "name": "default", "addresses": ["mgr.lan:99"], "key": "{KEY.hex()}"}}'
    assert Join.from_json(without, "x").role == ADMIN
    with pytest.raises(ConfigError, match="does not know"):
        Join.from_json(join.to_json().replace('"work"', '"root"'), "x")
