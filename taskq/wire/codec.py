"""Values to bytes and back. PURE.

Two codecs, both msgpack, that never meet. *Frames* (`pack`, `unpack`) carry requests and replies: plain msgpack without
extension types; arrays arrive as tuples. *Payloads* (`encode`, `decode`) carry the arguments and results of tasks: the
manager never looks into them, and they know two types more, big integers (extension 1) and datetimes (extension 2).

What comes in may be hostile: whatever the bytes are, `unpack` and `decode` either return or raise `Malformed`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, NoReturn

import msgpack  # type: ignore[import-untyped]  # it has no stubs

from taskq.errors import Malformed, NotEncodable

MAX_ARRAY = 10_000
"""Most elements of one array or map in a frame."""
MAX_ITEMS = 100_000
"""Most values in one frame."""
MAX_CONTAINERS = 30_000
"""Most arrays and maps in one frame: these are what takes much more memory than bytes."""
MAX_LEVELS = 32
"""Deepest nesting of containers in a frame that is counted."""
FEW_CONTAINERS = 8_000
"""A frame of up to `COUNTED` bytes that cannot hold more containers than this is decoded without being counted."""
FEW_LARGE = 64
"""The same for arrays that say how long they are: room for up to `MAX_ARRAY` elements is made before any has come."""
COUNTED = 256 * 1024
"""Bytes: longer frames are counted in any case; honest ones are one large blob among few values."""
MAX_DEPTH = 100
"""Deepest nesting of containers in a payload or result."""

BIG_INTEGER, DATETIME = 1, 2

_SCALARS = frozenset({type(None), bool, int, float, str, bytes, datetime})
_TEXT = frozenset({str})
_NONE = b"\xc0"
_PLAIN = "plain data is None, bool, int, float, str, bytes, list, tuple, dict with text keys, datetime"
_BAD_INPUT = (ValueError, TypeError, OverflowError, msgpack.UnpackException)


# -- frames ----------------------------------------------------------------------------------------------------------


def pack(value: object) -> bytes:
    """One request or reply as bytes. Lone surrogates in a text become escapes. Raises `NotEncodable`."""
    try:
        return _packb(value)
    except UnicodeEncodeError:
        return _packb(value, unicode_errors="backslashreplace")


def _packb(value: object, **options: Any) -> bytes:
    try:
        packed: bytes = msgpack.packb(value, **options)
    except UnicodeEncodeError:
        raise
    except (TypeError, ValueError, OverflowError) as error:
        raise NotEncodable(f"not plain data: {error}") from None
    return packed


def unpack(data: bytes) -> Any:
    """What `pack` made into ``data``, with tuples in place of lists. Raises `Malformed`.

    >>> unpack(pack((1, "hello", [b"x", None])))
    (1, 'hello', (b'x', None))
    """
    if len(data) > COUNTED or not _holds_little(data):
        _measure(data)
    try:
        return msgpack.unpackb(data, **_FRAME_OPTIONS)
    except _BAD_INPUT as error:
        raise Malformed(f"not a message: {_text(error)}") from None


def _holds_little(data: bytes) -> bool:
    """Whether a frame has no room for many containers, nor for many large ones."""
    openers = data.translate(None, _NO_OPENERS)
    if len(openers) > FEW_CONTAINERS:
        return False
    # The numbers of a batch are alike, and a byte that they share may be an opener: only then is the size looked at.
    return sum(map(openers.count, _LARGE)) <= FEW_LARGE or sum(1 for _ in _SIZED.finditer(data)) <= FEW_LARGE


def _refuse_extension(code: int, data: bytes) -> NoReturn:
    raise Malformed(f"not a message: extension type {code}")


_FRAME_OPTIONS: dict[str, Any] = {
    "use_list": False,
    "max_array_len": MAX_ARRAY,
    "max_map_len": MAX_ARRAY,
    "max_ext_len": 0,
    "ext_hook": _refuse_extension,  # for an extension of no length
}

# Width in bytes of what follows the first byte: (of the value itself) or (of the length of its content).
_FIXED_WIDTH = {0xCA: 4, 0xCB: 8, 0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8, 0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8}
_LENGTH_WIDTH = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4}
_CONTAINER_WIDTH = {0xDC: 2, 0xDD: 4, 0xDE: 2, 0xDF: 4}
# Every byte that may begin an array or map. Within texts, blobs and numbers the same bytes mean nothing, so that
# counting them says how many containers there are at most. It takes a nanosecond a byte.
_OPENERS = bytes(range(0x80, 0xA0)) + bytes(_CONTAINER_WIDTH)
_NO_OPENERS = bytes(set(range(256)) - set(_OPENERS))
_LARGE = (b"\xdc", b"\xdd")
_SIZED = re.compile(rb"\xdc[\x00-\x27]|\xdd\x00\x00[\x00-\x27]")
"""Large arrays whose size may be up to `MAX_ARRAY`: the decoder refuses any other at once."""


def request_id(data: bytes) -> int:
    """The id of the request that begins with these bytes, 0 if it does not begin as one.

    >>> request_id(pack((70_000, "submit", (b"x" * 99,)))[:32])
    70000
    """
    if len(data) > 2 and data[0] == 0x93:
        first = data[1]
        if first < 0x80:
            return first
        if 0xCC <= first <= 0xCF:
            return int.from_bytes(data[2 : 2 + _FIXED_WIDTH[first]], "big")
    return 0


def _measure(data: bytes) -> None:
    """Raise `Malformed` for a frame of more than `MAX_ITEMS` values, `MAX_CONTAINERS` or `MAX_LEVELS`, without building
    any of them.

    Why: 1 MiB of empty maps would become 80 MiB of dicts, and 3 KiB of nested arrays that promise 10,000 elements each
    just as much. A dishonest frame is given up at the limit. Bad bytes are left to the real decoder.
    """
    position, end, containers = 0, len(data), 0
    due = [1]  # how many values are still to come, by level
    for _ in range(MAX_ITEMS):
        while due and not due[-1]:
            due.pop()
        if not due or position >= end:
            return
        due[-1] -= 1
        first = data[position]
        position += 1
        if 0x80 <= first <= 0x9F or first in _CONTAINER_WIDTH:
            width = _CONTAINER_WIDTH.get(first, 0)
            size = int.from_bytes(data[position : position + width], "big") if width else first & 0x0F
            position += width
            due.append(size * 2 if first <= 0x8F or first >= 0xDE else size)
            containers += 1
            if len(due) > MAX_LEVELS + 1 or containers > MAX_CONTAINERS:
                break
        else:
            position = _behind(data, position, first)
    if len(due) > MAX_LEVELS + 1:
        raise Malformed(f"not a message: nested deeper than {MAX_LEVELS} levels")
    if containers > MAX_CONTAINERS:
        raise Malformed(f"not a message: more than {MAX_CONTAINERS:,} arrays and maps")
    if position < end:
        raise Malformed(f"not a message: more than {MAX_ITEMS:,} values")


def _behind(data: bytes, position: int, first: int) -> int:
    """Where a value that is no container ends, given where its first byte ends. Raises `Malformed`."""
    if 0xA0 <= first <= 0xBF:
        return position + (first & 0x1F)
    if first in _FIXED_WIDTH:
        return position + _FIXED_WIDTH[first]
    if first in _LENGTH_WIDTH:
        width = _LENGTH_WIDTH[first]
        return position + width + int.from_bytes(data[position : position + width], "big")
    if 0xC7 <= first <= 0xC9 or 0xD4 <= first <= 0xD8:
        _refuse_extension(first, b"")
    return position


# -- payloads and results --------------------------------------------------------------------------------------------


def encode(value: object, name: str = "value") -> bytes:
    """A payload or result as bytes. Raises `NotEncodable`; its message gives the path, which starts with ``name``.

    Only exact types are taken: a subclass would arrive as something else than what was sent. A datetime keeps its
    microseconds and its offset from UTC, not the name of its time zone.

    >>> decode(encode({"n": 2**70, "pair": (1, None)}))
    {'n': 1180591620717411303424, 'pair': [1, None]}
    """
    if value is None:  # what most tasks return
        return _NONE
    _refuse_unplain(value, name)
    return _pack_plain(value)


def decode(data: bytes) -> Any:
    """What `encode` made into ``data``; tuples arrive as lists. Raises `Malformed`.

    A standard timestamp (extension -1), which `encode` never makes, is read as a datetime in UTC.
    """
    try:
        return msgpack.unpackb(data, use_list=True, ext_hook=_from_extension, timestamp=3)
    except _BAD_INPUT as error:
        raise Malformed(f"not a payload: {_text(error)}") from None


def encode_arguments(args: Sequence[Any], kwargs: dict[str, Any]) -> bytes:
    """The arguments of a call as a payload. Raises `NotEncodable` with a path like ``args[0]["user"]``.

    >>> encode_arguments(({"user": object()},), {})
    Traceback (most recent call last):
    taskq.errors.NotEncodable: cannot send args[0]["user"]: an object of type object is not plain data
    """
    call = [list(args), kwargs]
    # Most calls hold scalars only. In these nothing can be wrong but a text, which msgpack itself refuses.
    if _are(_SCALARS, args) and (not kwargs or (_are(_SCALARS, kwargs.values()) and _are(_TEXT, kwargs))):
        try:
            return _pack_plain(call)
        except UnicodeEncodeError:
            pass  # what follows says where it is
    _refuse_unplain(tuple(args), "args")
    _refuse_unplain(kwargs, "kwargs")
    return _pack_plain(call)


def decode_arguments(data: bytes) -> tuple[list[Any], dict[str, Any]]:
    """The positional and the keyword arguments in a payload. Raises `Malformed`."""
    value = decode(data)
    if type(value) is list and len(value) == 2:
        args, kwargs = value
        if type(args) is list and type(kwargs) is dict and (not kwargs or _are(_TEXT, kwargs)):
            return args, kwargs
    raise Malformed("not a payload: it does not hold arguments")


def _are(kinds: frozenset[type], values: Iterable[object]) -> bool:
    """Whether all values are exactly of one of these types."""
    return kinds.issuperset(map(type, values))


def _refuse_unplain(value: object, name: str) -> None:
    problem = _problem(value, name, 0)
    if problem is not None:
        raise NotEncodable(f"cannot send {problem}", hint=_PLAIN)


def _pack_plain(value: object) -> bytes:
    packed: bytes = msgpack.Packer(default=_extension, strict_types=True).pack(value)
    return packed


def _problem(value: object, path: str, depth: int) -> str | None:
    """The first part of ``value`` that cannot be encoded, and why; None when all of it can.

    Long lists of numbers or texts, the usual large arguments, are checked by `map` and sets, not one by one.
    """
    kind = type(value)
    if kind in _SCALARS:
        return _text_problem(value, path) if kind is str else None
    if depth > MAX_DEPTH:
        return f"{path}: it is nested deeper than {MAX_DEPTH} levels"
    if kind is list or kind is tuple:
        items: Sequence[Any] = value  # type: ignore[assignment]  # kind is exactly list or tuple
        kinds = set(map(type, items))
        if not (kinds <= _SCALARS and str not in kinds):
            for index, item in enumerate(items):
                problem = _problem(item, f"{path}[{index}]", depth + 1)
                if problem is not None:
                    return problem
        return None
    if kind is dict:
        return _dict_problem(value, path, depth)  # type: ignore[arg-type]  # kind is exactly dict
    return f"{path}: an object of type {kind.__qualname__} is not plain data"


def _dict_problem(value: dict[Any, Any], path: str, depth: int) -> str | None:
    for key, item in value.items():
        if type(key) is not str:
            return f"{path}: its key {key!r:.50} is no text"
        problem = _text_problem(key, path) or _problem(item, f'{path}["{key}"]', depth + 1)
        if problem is not None:
            return problem
    return None


def _text_problem(text: Any, path: str) -> str | None:
    if text.isascii():
        return None
    try:
        text.encode()
    except UnicodeEncodeError:
        return f"{path}: a text with half a character (a lone surrogate)"
    return None


def _extension(value: Any) -> Any:
    """What msgpack itself cannot pack, among the types that `_problem` lets through."""
    if type(value) is tuple:
        return list(value)
    if type(value) is datetime:
        return msgpack.ExtType(DATETIME, value.isoformat().encode("ascii"))
    number: int = value
    return msgpack.ExtType(BIG_INTEGER, number.to_bytes(number.bit_length() // 8 + 1, "big", signed=True))


def _from_extension(code: int, data: bytes) -> Any:
    if code == BIG_INTEGER:
        return int.from_bytes(data, "big", signed=True)
    if code == DATETIME:
        return datetime.fromisoformat(data.decode("ascii"))
    raise Malformed(f"not a payload: extension type {code}")


def _text(error: Exception) -> str:
    return str(error) or type(error).__name__
