"""Settings: durations, sizes, addresses, join files, keys, and where an instance lives."""

from __future__ import annotations

import json
import os
import pwd
from pathlib import Path

import pytest

from taskq import addresses, config
from taskq.config import Address, Join, StateDir
from taskq.errors import AuthenticationFailed, ConfigError, TaskqError

KEY = bytes(range(32))
AS_ROOT = os.geteuid() == 0


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("10", 10), ("2.5", 2.5), ("10s", 10), ("1.5m", 90), ("1h30m", 5400), ("2d", 172_800), ("200ms", 0.2), ("0", 0)],
)
def test_durations(text: str, seconds: float) -> None:
    assert config.parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "x", "-1", "-1s", "1y", "1s2", "inf", "nan", "1e400", "s"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is not a duration"):
        config.parse_duration(text)


@pytest.mark.parametrize(
    ("text", "size"), [("1000", 1000), ("64k", 65_536), ("1MiB", 2**20), ("1 MiB", 2**20), ("2g", 2**31)]
)
def test_sizes(text: str, size: int) -> None:
    assert config.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "k", "-1", "1.5k", "1tb"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is not a size"):
        config.parse_size(text)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("mgr.lan", Address("mgr.lan", 8275)),
        ("mgr.lan:99", Address("mgr.lan", 99)),
        ("[::1]:99", Address("::1", 99)),
        ("[::1]", Address("::1", 8275)),
        ("10.0.0.5:1", Address("10.0.0.5", 1)),
    ],
)
def test_addresses(text: str, address: Address) -> None:
    assert Address.parse(text) == address
    assert Address.parse(str(address)) == address


@pytest.mark.parametrize("text", ["", ":1", "a:b", "a:0", "a:65536", "a:1:2", "[::1"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is not an address"):
        Address.parse(text)


def test_a_join_file_comes_back_as_it_was() -> None:
    join = Join((Address("mgr.lan", 8275), Address("::1", 99)), KEY, "night")
    assert Join.from_json(join.to_json(), "it") == join
    assert json.loads(join.to_json())["addresses"] == ["mgr.lan:8275", "[::1]:99"]


def test_a_key_is_never_shown() -> None:
    assert KEY.hex() not in repr(Join((), KEY)) and repr(KEY) not in repr(Join((), KEY))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        "null",
        '{"taskq": 2, "addresses": ["a"], "key": "00"}',
        '{"taskq": 1, "addresses": [], "key": "' + KEY.hex() + '"}',
        '{"taskq": 1, "addresses": ["a"], "key": "00"}',
        '{"taskq": 1, "addresses": ["a"], "key": "no hex"}',
        '{"taskq": 1, "addresses": [7], "key": "' + KEY.hex() + '"}',
    ],
)
def test_what_is_no_join_file_is_refused_by_name(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^it "):
        Join.from_json(text, "it")


# -- keys


def test_a_key_is_made_once_and_for_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "key"
    key = config.read_or_make_key(path)
    assert len(key) == 32
    assert path.stat().st_mode & 0o777 == 0o600
    assert config.read_or_make_key(path) == key
    assert [entry.name for entry in tmp_path.iterdir()] == ["key"]


def test_two_keys_differ(tmp_path: Path) -> None:
    assert config.read_or_make_key(tmp_path / "one") != config.read_or_make_key(tmp_path / "two")


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660])
def test_a_key_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "key"
    config.read_or_make_key(path)
    path.chmod(mode)
    with pytest.raises(AuthenticationFailed) as caught:
        config.read_or_make_key(path)
    assert caught.value.message == f"key file {path} has mode {mode:04o}; run: chmod 600 {path}"


@pytest.mark.parametrize("text", ["", "00", "zz" * 32, "00" * 31])
def test_a_key_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "key"
    config.write_private(path, text)
    with pytest.raises(AuthenticationFailed, match="does not hold a key of 32 bytes"):
        config.read_key(path)


def test_a_join_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "join.json"
    config.write_private(path, Join((Address("a", 1),), KEY).to_json())
    path.chmod(0o644)
    with pytest.raises(AuthenticationFailed, match=f"chmod 600 {path}"):
        config.read_join(path)


# -- how the manager is found


@pytest.fixture
def state(tmp_path: Path) -> StateDir:
    """A state folder with a key and a join file."""
    made = StateDir(tmp_path / "state")
    made.make()
    key = config.read_or_make_key(made.key)
    config.write_private(made.join, Join((Address("one", 1), Address("two", 2)), key, "night").to_json())
    return made


def test_the_join_file_in_the_state_folder_says_where(state: StateDir) -> None:
    found = config.find_join(state=state)
    assert found.addresses == (Address("one", 1), Address("two", 2))
    assert found.name == "night"


def test_host_and_port_take_precedence_and_the_key_stays(state: StateDir) -> None:
    key = config.read_key(state.key)
    assert config.find_join(host="three", state=state) == Join((Address("three", 1),), key, "night")
    assert config.find_join(port=9, state=state).addresses == (Address("one", 9),)


def test_a_given_join_file_takes_precedence_over_the_state_folder(state: StateDir, tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    config.write_private(other, Join((Address("four", 4),), KEY).to_json())
    assert config.find_join(join=str(other), state=state) == Join((Address("four", 4),), KEY)


def test_a_given_key_file_takes_precedence(state: StateDir, tmp_path: Path) -> None:
    config.write_private(tmp_path / "key", KEY.hex())
    assert config.find_join(key_file=str(tmp_path / "key"), state=state).key == KEY


def test_without_a_join_file_it_is_the_default_address_with_the_key_of_the_state_folder(state: StateDir) -> None:
    state.join.unlink()
    assert config.find_join(state=state).addresses == (Address("127.0.0.1", 8275),)


def test_without_anything_the_error_says_where_a_key_comes_from(tmp_path: Path) -> None:
    with pytest.raises(AuthenticationFailed) as caught:
        config.find_join(state=StateDir(tmp_path / "nowhere"))
    assert str(tmp_path / "nowhere" / "key") in caught.value.message
    assert "taskq-manager" in caught.value.hint


# -- the state folder


def test_where_an_instance_lives(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "xdg"))
    assert config.state_dir("night").path == tmp_path / "xdg" / "taskq" / "night"
    monkeypatch.delenv("XDG_STATE_HOME")
    assert config.state_dir().path.is_relative_to(Path.home())
    assert config.state_dir().path.parts[-2:] == ("taskq", "default")
    monkeypatch.setenv("STATE_DIRECTORY", f"{tmp_path}/systemd:{tmp_path}/other")
    assert config.state_dir("night").path == tmp_path / "systemd"
    assert config.state_dir("night", str(tmp_path / "given")).path == tmp_path / "given"


def test_a_user_without_a_home_folder_is_told_to_choose_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(uid: int) -> None:
        raise KeyError(uid)

    for name in ("XDG_STATE_HOME", "STATE_DIRECTORY", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    with pytest.raises(ConfigError, match="no home folder") as caught:
        config.state_dir()
    assert "--state-dir" in caught.value.hint


@pytest.mark.parametrize("name", ["", ".", "..", "../other", "a/b", "/etc", "-x", "with space", "line\nend", "n" * 101])
def test_the_name_of_an_instance_cannot_lead_out_of_its_folder(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config.state_dir(name)
    assert "cannot have the name" in caught.value.message and "letters" in caught.value.hint


@pytest.mark.parametrize("name", ["default", "night-2", "a.b_c", "Zürich", "7"])
def test_ordinary_names_of_instances(name: str) -> None:
    assert config.state_dir(name).path.name == name


def test_a_state_folder_is_for_its_owner_only(tmp_path: Path) -> None:
    made = StateDir(tmp_path / "a" / "b")
    made.make()
    assert made.path.stat().st_mode & 0o777 == 0o700
    assert list(made.path.iterdir()) == []


def test_a_state_folder_that_cannot_be_made_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ConfigError, match="cannot write to") as caught:
        StateDir(tmp_path / "file" / "state").make()
    assert "--state-dir" in caught.value.hint


# -- addresses in the join file


def test_a_manager_on_loopback_is_reachable_there_only() -> None:
    assert addresses.reachable("127.0.0.1", 99, ()) == (Address("127.0.0.1", 99),)


def test_advertised_names_follow_the_own_address_and_may_bring_a_port() -> None:
    found = addresses.reachable("127.0.0.1", 99, ("mgr.lan", "out.example:7000", "[fe80::1]:3", "fe80::2"))
    assert [str(one) for one in found[1:]] == ["mgr.lan:99", "out.example:7000", "[fe80::1]:3", "[fe80::2]:99"]


def test_on_all_addresses_this_machine_finds_it_on_loopback_and_others_by_its_own() -> None:
    first, *others = addresses.reachable("0.0.0.0", 99, ("mgr.lan",))
    assert first == Address("127.0.0.1", 99)
    assert others[0] == Address("mgr.lan", 99)
    assert len(others) == 2 and not addresses.is_loopback(others[1].host)


def test_the_join_file_for_others_leaves_loopback_out(tmp_path: Path) -> None:
    made = StateDir(tmp_path)
    config.write_private(made.join, Join((Address("127.0.0.1", 9), Address("mgr.lan", 9)), KEY).to_json())
    assert addresses.join_for_others(made) == Join((Address("mgr.lan", 9),), KEY)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_a_manager_on_loopback_has_no_join_file_for_others(tmp_path: Path, host: str) -> None:
    made = StateDir(tmp_path)
    config.write_private(made.join, Join((Address(host, 9),), KEY).to_json())
    with pytest.raises(TaskqError, match=f"listens on {host} only") as caught:
        addresses.join_for_others(made)
    assert "--bind 0.0.0.0" in caught.value.hint


def test_a_manager_that_never_was_has_no_join_file_for_others(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no manager was ever started"):
        addresses.join_for_others(StateDir(tmp_path))
