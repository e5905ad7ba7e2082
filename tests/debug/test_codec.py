"""Values to bytes and back: what goes in comes out, what cannot go in says where, and no bytes do any harm."""

from __future__ import annotations

import contextlib
import math
import tracemalloc
from collections import OrderedDict
from datetime import datetime, timedelta, timezone
from typing import Any, NamedTuple

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taskq.errors import Malformed, NotEncodable, TaskqError
from taskq.wire import codec
from taskq.wire.codec import decode, decode_arguments, encode, encode_arguments, pack, unpack

TEXT = st.text(st.characters(exclude_categories=("Cs",)))
# Whole seconds: an offset of microseconds, which no zone has, is lost by `datetime.fromisoformat` of some Pythons.
ZONES = st.integers(-23 * 3600, 23 * 3600).map(lambda seconds: timezone(timedelta(seconds=seconds)))
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(2**200), 2**200),
    st.floats(allow_nan=False),
    TEXT,
    st.binary(),
    st.datetimes(timezones=st.none() | ZONES).map(lambda moment: moment.replace(fold=0)),
)
PAYLOADS = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner), max_leaves=30)
FRAME_SCALARS = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | TEXT | st.binary()
)
FRAMES = st.recursive(
    FRAME_SCALARS, lambda inner: st.lists(inner).map(tuple) | st.dictionaries(TEXT, inner), max_leaves=30
)


class Point(NamedTuple):
    x: int
    y: int


class Name(str):
    pass


# -- payloads


@settings(max_examples=40)
@given(PAYLOADS)
def test_a_payload_comes_back_as_it_went(value: Any) -> None:
    back = decode(encode(value))
    assert back == value
    assert repr(back) == repr(value)  # -0.0, True and 1, the offset of a datetime


@pytest.mark.parametrize("exponent", [31, 32, 63, 64, 65, 127, 128, 1000])
def test_integers_of_any_size_are_exact(exponent: int) -> None:
    numbers = [sign * 2**exponent + step for sign in (1, -1) for step in (-1, 0, 1)]
    assert decode(encode(numbers)) == numbers


def test_the_largest_factorial_of_the_built_in_type_is_exact() -> None:
    number = math.factorial(20_000)
    assert decode(encode({"result": number})) == {"result": number}


def test_nan_and_tuples() -> None:
    assert math.isnan(decode(encode(math.nan)))
    assert decode(encode((1, (2, [()]), {"t": (3,)}))) == [1, [2, [[]]], {"t": [3]}]


def test_datetimes_keep_microseconds_and_offset() -> None:
    moment = datetime(2024, 2, 29, 23, 59, 59, 999_999, timezone(timedelta(hours=5, minutes=45)))
    assert decode(encode(moment)) == moment
    assert decode(encode(moment)).utcoffset() == timedelta(hours=5, minutes=45)
    assert decode(encode(datetime.min)) == datetime.min
    assert decode(msgpack.packb(msgpack.Timestamp(1, 0))) == datetime(1970, 1, 1, 0, 0, 1, tzinfo=timezone.utc)


def test_arguments_come_back() -> None:
    args, kwargs = decode_arguments(encode_arguments((1, (2, 3)), {"a": 2**99}))
    assert (args, kwargs) == ([1, [2, 3]], {"a": 2**99})
    assert decode_arguments(encode_arguments((), {})) == ([], {})


def _nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def _endless() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


@pytest.mark.parametrize(
    ("args", "kwargs", "path"),
    [
        ((object(),), {}, "args[0]: an object of type object"),
        ((1, {"user": object()}), {}, 'args[1]["user"]: an object of type object'),
        (([1, 2, {3}],), {}, "args[0][2]: an object of type set"),
        ((), {"x": 1j}, 'kwargs["x"]: an object of type complex'),
        ((), {"x": {"a b": [b"", ("", Point(1, 2))]}}, 'kwargs["x"]["a b"][1][1]: an object of type Point'),
        (({1: 2},), {}, "args[0]: its key 1 is no text"),
        (({b"k": 2},), {}, "args[0]: its key b'k' is no text"),
        ((OrderedDict(a=1),), {}, "args[0]: an object of type OrderedDict"),
        ((Name("n"),), {}, "args[0]: an object of type Name"),
        (("a", "\ud800"), {}, "args[1]: a text with half a character"),
        (({"\udfff": 1},), {}, "args[0]: a text with half a character"),
        ((1,), {"x": "\udfff"}, 'kwargs["x"]: a text with half a character'),
        ((1,), {1: 2}, "kwargs: its key 1 is no text"),
        ((1, bytearray()), {}, "args[1]: an object of type bytearray"),
        ((_nested(codec.MAX_DEPTH + 1),), {}, "nested deeper than 100 levels"),
        ((_endless(),), {}, "nested deeper than 100 levels"),
    ],
)
def test_what_cannot_be_sent_is_named_by_its_path(args: tuple[Any, ...], kwargs: dict[str, Any], path: str) -> None:
    with pytest.raises(NotEncodable) as caught:
        encode_arguments(args, kwargs)
    assert path in caught.value.message
    assert caught.value.message.startswith("cannot send ")
    assert "plain data is None" in caught.value.hint


def test_a_result_has_its_own_root() -> None:
    with pytest.raises(NotEncodable, match=r'^cannot send result\["a"\]: an object of type object is not plain data$'):
        encode({"a": object()}, "result")


def test_depth_up_to_the_limit_is_fine() -> None:
    value = _nested(codec.MAX_DEPTH - 1)
    assert decode(encode(value)) == value


@pytest.mark.parametrize(
    "value", [None, [], [[]], [[], []], [[], {}, {}], [{}, {}], [[], {"a": 1, b"b": 2}], {"args": [], "kwargs": {}}]
)
def test_other_payloads_are_no_arguments(value: Any) -> None:
    with pytest.raises(Malformed):
        decode_arguments(msgpack.packb(value))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        b"\x01\x02",
        b"\xa1\xff",
        b"\x81\x01\x02",
        b"\xdd\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        msgpack.packb(msgpack.ExtType(3, b"x")),
        msgpack.packb(msgpack.ExtType(codec.DATETIME, b"yesterday")),
        msgpack.packb(msgpack.ExtType(codec.DATETIME, b"\xff")),
        msgpack.packb(msgpack.Timestamp(2**62, 0)),
        b"\x91" * 2000 + b"\xc0",
    ],
)
def test_bad_payloads_are_malformed(data: bytes) -> None:
    with pytest.raises(Malformed):
        decode(data)


# -- frames


@settings(max_examples=40)
@given(FRAMES)
def test_a_frame_comes_back_with_tuples(value: Any) -> None:
    assert repr(unpack(pack(value))) == repr(value)


def test_named_tuples_and_lists_travel_as_arrays() -> None:
    assert unpack(pack((1, [Point(1, 2)], {"a": [3]}))) == (1, ((1, 2),), {"a": (3,)})


def test_a_lone_surrogate_becomes_an_escape() -> None:
    assert unpack(pack(("é", "bad \udc80"))) == ("é", "bad \\udc80")


@pytest.mark.parametrize("value", [object(), {1, 2}, 2**64, datetime(2024, 1, 1), _endless()])
def test_frames_hold_plain_data_only(value: Any) -> None:
    with pytest.raises(NotEncodable):
        pack((1, "verb", (value,)))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        b"\x01\x02",
        b"\xa1\xff",
        b"\x81\x01\x02",
        b"\xdc\x27\x11" + b"\xc0" * 10_001,
        b"\xde\x27\x11" + b"".join(pack(str(number)) + b"\xc0" for number in range(10_001)),
        msgpack.packb(msgpack.ExtType(1, b"x")),
        msgpack.packb(msgpack.ExtType(1, b"")),
        msgpack.packb(msgpack.Timestamp(1, 2)),
        b"\x91" * 2000 + b"\xc0",
    ],
)
def test_bad_frames_are_malformed(data: bytes) -> None:
    with pytest.raises(Malformed):
        unpack(data)


@settings(max_examples=200)
@given(st.binary(max_size=400))
def test_any_bytes_give_a_value_or_malformed(data: bytes) -> None:
    for read in (unpack, decode, decode_arguments):
        try:
            read(data)
        except Malformed:
            continue


@settings(max_examples=40)
@given(PAYLOADS, st.data())
def test_damaged_bytes_give_a_value_or_malformed(value: Any, data: st.DataObject) -> None:
    good = encode(value)
    place = data.draw(st.integers(0, len(good) - 1))
    bad = good[:place] + data.draw(st.binary(max_size=3)) + good[place + data.draw(st.integers(0, 3)) :]
    for read in (unpack, decode):
        try:
            read(bad)
        except TaskqError as error:
            assert type(error) is Malformed


@pytest.mark.parametrize(
    "data",
    [
        pack([[{}] * 1000] * 1048),
        pack([[[]] * 10_000] * 104),
        pack([[-32] * 10_000] * 104),
        pack([["x"] * 5_000] * 104),
        pack([[{"": None}] * 3_000] * 116),
        b"\xdc\x27\x10" * 349_525,
    ],
    ids=["maps", "arrays", "numbers", "texts", "full maps", "claims"],
)
def test_a_frame_of_countless_values_is_refused_before_they_are_made(data: bytes) -> None:
    assert len(data) > 500_000
    tracemalloc.start()
    try:
        with pytest.raises(Malformed):
            unpack(data)
        assert tracemalloc.get_traced_memory()[1] < 16 * 2**20
    finally:
        tracemalloc.stop()


BIG = b"\xdc\x27\x0f"  # begins an array of 9,999


def _filled(with_: bytes, size: int) -> bytes:
    """A frame of about this size that holds nothing but these bytes, over and over."""
    inner = BIG + with_ * 9_999
    times = size // len(inner)
    return b"\xdc" + times.to_bytes(2, "big") + inner * times if times else BIG + with_ * 9_999


@pytest.mark.parametrize("size", [codec.COUNTED, 2**20])
@pytest.mark.parametrize(
    "with_",
    [b"\x80", b"\x90", b"\x81\xa0\xc0", b"\x91\xc0", b"\xa2ab", b"\xcd\1\2", b"\x91" * 20 + b"\xc0"],
    ids=["maps", "arrays", "maps of one", "arrays of one", "texts", "numbers", "nests"],
)
def test_a_hostile_frame_takes_at_most_16_mib(with_: bytes, size: int) -> None:
    assert _peak(_filled(with_, size)) < 16 * 2**20


@pytest.mark.parametrize("before", [b"", BIG + b"\1" * 9_000])
def test_room_is_not_made_for_what_was_only_promised(before: bytes) -> None:
    """A thousand arrays, one in the other, of 9,999 elements each that never come: 3 KiB would take 80 MiB."""
    assert _peak(before + BIG * 1_000) < 16 * 2**20


def _peak(data: bytes) -> int:
    """The most memory that this frame takes, whether it is refused or not."""
    tracemalloc.start()
    try:
        with contextlib.suppress(Malformed):
            unpack(data)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_counted_frame_is_not_deep() -> None:
    blob = b"\xc6" + codec.COUNTED.to_bytes(4, "big") + bytes(codec.COUNTED)
    assert unpack(b"\x91" * codec.MAX_LEVELS + blob)
    with pytest.raises(Malformed, match="deeper than 32"):
        unpack(b"\x91" * (codec.MAX_LEVELS + 1) + blob)


@pytest.mark.parametrize("byte", [0xDC, 0xDD])
def test_numbers_that_look_like_large_arrays_do_not_have_a_frame_counted(byte: int) -> None:
    """The ids of a batch share their higher bytes; to count a frame takes longer than all that is done with it."""
    assert codec._holds_little(pack([(0, (byte << 8) + low, 2**40 + low, b"", 0.5) for low in range(250)]))
    assert not codec._holds_little(bytes((byte, *bytes(2 * (byte - 0xDC)), 0x27, 0x10)) * 65)


def test_a_long_honest_frame_passes() -> None:
    request = (1, "submit", (1, 2, [["t", b"x" * 900, "q", 0, 3, 1.0, 0.0, None, None, "c"]] * 1000 + [[b"y" * 2**20]]))
    assert unpack(pack(request))[2][2][1000] == (b"y" * 2**20,)


def _values(value: Any) -> int:
    if isinstance(value, tuple):
        return 1 + sum(map(_values, value))
    if isinstance(value, dict):
        return 1 + sum(1 + _values(item) for item in value.values())
    return 1


@settings(max_examples=40)
@given(FRAMES)
def test_the_count_of_values_is_exact(value: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codec, "COUNTED", 0)
        patch.setattr(codec, "MAX_ITEMS", _values(value))
        assert repr(unpack(pack(value))) == repr(value)
        patch.setattr(codec, "MAX_ITEMS", _values(value) - 1)
        with pytest.raises(Malformed, match="more than"):
            unpack(pack(value))
