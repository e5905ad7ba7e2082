"""Settings: where things live, what addresses and keys are, how durations and sizes are written.

Read once, when asked, never at import. Precedence (flag, environment, join file, default) is applied by the command
line; this module holds the values and the files behind them.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from taskq.errors import AuthenticationFailed, ConfigError

VERSION = "0.1.0"
DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 8275
KEY_BYTES = 32
ADMIN = "admin"
ROLES = (ADMIN, "submit", "work", "monitor")
"""What keys are for, see `taskq.roles`; the position is the role's number on the wire."""

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_LONGEST_DURATION = 100
_SIZES = {"": 1, "b": 1, "k": 2**10, "kib": 2**10, "m": 2**20, "mib": 2**20, "g": 2**30, "gib": 2**30}


def parse_duration(text: str) -> float:
    """Seconds of ``10``, ``10s``, ``1.5m``, ``1h30m``, ``2d``, ``200ms``. Raises `ConfigError`.

    >>> parse_duration("1h30m"), parse_duration("250ms"), parse_duration("7")
    (5400.0, 0.25, 7.0)
    """
    text = text.strip().lower()
    if len(text) > _LONGEST_DURATION:  # reading it would take the square of its length
        raise ConfigError(f'"{text[:20]}…" is not a duration', hint="write 10s, 1.5m, 1h30m or 2d")
    try:
        seconds = float(text)
    except ValueError:
        parts = re.findall(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)", text)
        if not parts or "".join(number + unit for number, unit in parts) != text:
            raise ConfigError(f'"{text}" is not a duration', hint="write 10s, 1.5m, 1h30m or 2d") from None
        seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
    if not 0 <= seconds < float("inf"):
        raise ConfigError(f'"{text}" is not a duration', hint="it must not be negative")
    return seconds


def parse_time(text: str) -> float | datetime:
    """A time with its zone, from ``2030-01-31T08:00+01:00``; of ``+90m``, the seconds from now. Raises `ConfigError`.

    >>> parse_time("+90m"), parse_time("2030-01-31T08:00Z").isoformat()
    (5400.0, '2030-01-31T08:00:00+00:00')
    """
    text = text.strip()
    if text.startswith("+"):
        return parse_duration(text[1:])
    hint = "write 2030-01-31T08:00+01:00, 2030-01-31T08:00Z, or +90m for a time from now"
    try:
        found = datetime.fromisoformat(f"{text[:-1]}+00:00" if text[-1:] in ("Z", "z") else text)
    except ValueError:
        raise ConfigError(f'"{text}" is not a time', hint=hint) from None
    if found.utcoffset() is None:
        raise ConfigError(f'"{text}" has no time zone', hint=hint)
    return found


def parse_limit(text: str) -> float | datetime:
    """Until when: a time as `parse_time` reads it, or a duration. Raises `ConfigError`."""
    try:
        return parse_duration(text)
    except ConfigError:
        return parse_time(text)


def parse_size(text: str) -> int:
    """Bytes of ``1000``, ``64k``, ``1MiB``, ``2g``. Raises `ConfigError`.

    >>> parse_size("64k"), parse_size("1 MiB")
    (65536, 1048576)
    """
    found = re.fullmatch(r"(\d{1,18})\s*([a-z]*)", text.strip().lower())
    if found is None or found[2] not in _SIZES:
        raise ConfigError(f'"{text}" is not a size', hint="write 1000, 64k or 1MiB")
    return int(found[1]) * _SIZES[found[2]]


@dataclass(frozen=True)
class Address:
    """A host and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @classmethod
    def parse(cls, text: str) -> Address:
        """``host:port``, ``[v6]:port`` or ``host`` alone (default port). Raises `ConfigError`.

        >>> str(Address.parse("[::1]:99")), str(Address.parse("mgr.lan"))
        ('[::1]:99', 'mgr.lan:8275')
        """
        found = re.fullmatch(r"(?:\[([^\[\]\s]+)\]|([^:\[\]\s]+))(?::(\d{1,5}))?", text.strip())
        if found is None or not 0 < int(found[3] or DEFAULT_PORT) < 65536:
            raise ConfigError(f'"{text}" is not an address', hint="write host:port")
        return cls(found[1] or found[2], int(found[3] or DEFAULT_PORT))


@dataclass(frozen=True)
class Join:
    """What a client needs to reach a manager: its addresses, in the order to try them, and the key."""

    addresses: tuple[Address, ...]
    key: bytes = field(repr=False)
    name: str = "default"
    source: str = field(default="", compare=False)
    """Where the key is from, for messages."""
    role: str = ADMIN
    """What the key is for: one of `ROLES`."""

    def to_json(self) -> str:
        """The text of a join file."""
        addresses = [str(address) for address in self.addresses]
        data = {"taskq": 1, "name": self.name, "addresses": addresses, "role": self.role, "key": self.key.hex()}
        return json.dumps(data)

    @classmethod
    def from_json(cls, text: str, source: str) -> Join:
        """The join file that ``text`` is; ``source`` names it in errors. Raises `ConfigError`."""
        try:
            data = json.loads(text)
            if data["taskq"] != 1:
                raise ConfigError(f"{source} was made for another version of taskq")
            addresses = tuple(Address.parse(item) for item in data["addresses"])
            key = bytes.fromhex(data["key"])
            name, role = str(data.get("name", "default")), data.get("role", ADMIN)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise ConfigError(
                f"{source} is not a join file", hint='get one with "taskq-manager --print-join"'
            ) from None
        if not addresses or len(key) < KEY_BYTES:
            raise ConfigError(f"{source} has no address or no key", hint="fetch it again")
        if role not in ROLES:
            raise ConfigError(f"{source} has a key for a role that this version of taskq does not know")
        return cls(addresses, key, name, source, role)


FROM_STDIN = "what came from standard input"
"""The `Join.source` of a join file that came through a pipe, and so cannot be read a second time."""


@dataclass(frozen=True)
class StateDir:
    """The folder of one instance: key, join file, store, logs."""

    path: Path

    @property
    def key(self) -> Path:
        """The key's file (mode 0600)."""
        return self.path / "key"

    @property
    def join(self) -> Path:
        """The join file, written anew at each start of the manager."""
        return self.path / "join.json"

    @property
    def store(self) -> Path:
        """The default SQLite file."""
        return self.path / "store.sqlite"

    @property
    def log(self) -> Path:
        """The manager's log file."""
        return self.path / "log" / "manager.log"

    def make(self) -> None:
        """Create the folder, for this user only. Raises `ConfigError`."""
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            probe = self.path / f".probe-{os.getpid()}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise ConfigError(
                f"cannot write to {self.path}: {(error.strerror or 'error').lower()}",
                hint="choose another folder with --state-dir (TASKQ_STATE_DIR)",
            ) from None


def state_dir(name: str = "default", path: str | None = None) -> StateDir:
    """The folder of the instance ``name``: ``path``, else systemd's, else the user's own state folder.

    Raises `ConfigError` for a name that could lead out of the folder of all instances.
    """
    if re.fullmatch(r"[^\W_][\w.-]{0,99}", name) is None:
        raise ConfigError(
            f"an instance cannot have the name {json.dumps(name, ensure_ascii=False)}",
            hint="a name has letters, digits, _ . - and begins with a letter or digit",
        )
    if path:
        return StateDir(Path(path).expanduser().absolute())
    if os.environ.get("STATE_DIRECTORY"):
        return StateDir(Path(os.environ["STATE_DIRECTORY"].split(":")[0]))
    if os.environ.get("XDG_STATE_HOME"):
        return StateDir(Path(os.environ["XDG_STATE_HOME"]) / "taskq" / name)
    import platformdirs  # its import costs more than the rest of a small command

    try:
        found = platformdirs.user_state_path("taskq", appauthor=False)
    except RuntimeError:  # nobody knows where home is
        found = Path("~")
    if not found.is_absolute():  # older versions leave the "~" in
        text = "this user has no home folder to keep the state in"
        raise ConfigError(text, hint="choose a folder with --state-dir (TASKQ_STATE_DIR)")
    return StateDir(found / name)


def read_key(path: Path) -> bytes:
    """The key in a file. Raises `AuthenticationFailed` when it is missing, readable by others or too short."""
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & 0o077:
            raise AuthenticationFailed(f"key file {path} has mode {mode:04o}; run: chmod 600 {path}")
        text = path.read_text(encoding="ascii", errors="replace").strip()
    except OSError as error:
        raise AuthenticationFailed(
            f"cannot read the key file {path}: {(error.strerror or 'error').lower()}",
            hint='it is made by the first start of "taskq-manager"; or point elsewhere with --state-dir or --join',
        ) from None
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if len(key) < KEY_BYTES:
        raise AuthenticationFailed(f"{path} does not hold a key of {KEY_BYTES} bytes in hexadecimal")
    return key


def read_or_make_key(path: Path) -> bytes:
    """The key in a file, which is made with a fresh random key when it is not there."""
    if not path.exists():
        write_private(path, os.urandom(KEY_BYTES).hex() + "\n")
    return read_key(path)


def write_private(path: Path, text: str) -> None:
    """Write a file that only this user can read, at once or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def read_join(path: Path) -> Join:
    """The join file at ``path``. Raises `ConfigError`, or `AuthenticationFailed` when others can read it."""
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read the join file {path}: {(error.strerror or 'error').lower()}") from None
    if mode & 0o077:
        raise AuthenticationFailed(f"join file {path} has mode {mode:04o}; run: chmod 600 {path}")
    return Join.from_json(text, str(path))


def find_join(
    *,
    join: str | None = None,
    host: str | None = None,
    port: int | None = None,
    key_file: str | None = None,
    state: StateDir,
) -> Join:
    """How to reach the manager, from what the user gave: join file, host and port, key file, else the state folder.

    Without a join file in the state folder the default address and the key file there are used. Raises `ConfigError`,
    `AuthenticationFailed`.
    """
    found: Join | None = None
    if join is not None:
        found = read_join(Path(join))
    elif state.join.exists():
        found = read_join(state.join)
    if host is not None or port is not None:
        first = found.addresses[0] if found else Address(DEFAULT_HOST, DEFAULT_PORT)
        addresses: Sequence[Address] = (Address(host or first.host, port or first.port),)
    else:
        addresses = found.addresses if found else (Address(DEFAULT_HOST, DEFAULT_PORT),)
    name = found.name if found else "default"
    if key_file is None and found is not None:
        return Join(tuple(addresses), found.key, name, found.source, found.role)
    path = Path(key_file) if key_file is not None else state.key
    return Join(tuple(addresses), read_key(path), name, str(path))


own_manager: Callable[[], Join] | None = None
"""In a worker process: where its manager is. A `taskq.Client` that is not told where to go is one of that manager."""


@dataclass(frozen=True)
class QueueSettings:
    """Limits and times of the queue. Seconds and bytes. A timeout of 0 means none."""

    lease: float = 30.0
    timeout: float = 3600.0
    queue_timeouts: Mapping[str, float] = field(default_factory=dict)
    max_pending: int = 1_000_000
    max_payload: int = 1024 * 1024
    keep_completed: float = 86400.0
    keep_failed: float = 30 * 86400.0
    name: str = "default"

    @property
    def heartbeat(self) -> float:
        """Seconds between two heartbeats of a pool."""
        return self.lease / 3


@dataclass(frozen=True)
class PoolSettings:
    """What a pool of worker processes is to be. Seconds."""

    workers: int = 4
    threads: int = 4
    tasks: tuple[str, ...] = ()
    queues: tuple[str, ...] = ()
    queue_order: str = ""
    """``strict``: that of ``queues``; ``fair``: in turn; empty: by priority and age over all of them."""
    name: str = ""
    drain_timeout: float = 30.0
    connect_timeout: float = 5.0
    local: str | None = None
    """The id of the manager run that started this pool; None for a pool that was attached by hand."""
    log_level: str = "info"
    log_format: str = "text"


@dataclass(frozen=True)
class ManagerSettings:
    """What a manager is to be. Seconds and bytes."""

    state: StateDir
    key_file: str = ""
    """File with the key; empty: the one in the state folder."""
    queue: QueueSettings = field(default_factory=QueueSettings)
    pool: PoolSettings = field(default_factory=PoolSettings)
    bind: str = DEFAULT_HOST
    port: int = DEFAULT_PORT
    advertise: tuple[str, ...] = ()
    store: str = ""
    """``memory:``, ``sqlite:PATH`` or empty for SQLite in the state folder."""
    accept_lost_tail: bool = False
    """Start also when the newest commits of the store are lost."""
