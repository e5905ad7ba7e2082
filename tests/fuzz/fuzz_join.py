"""Fuzz target: a join file, or else an address, duration, time or size as people write them."""

from __future__ import annotations

import contextlib

import fuzzing

with fuzzing.watched():
    from taskq.config import Address, Join, parse_duration, parse_limit, parse_size, parse_time
    from taskq.errors import ConfigError


def one_input(data: bytes) -> None:
    """What is read reads the same when it is written; the rest is a `ConfigError`."""
    text = data.decode("utf-8", "surrogateescape")
    if text.lstrip().startswith(("{", "[")):
        try:
            join = Join.from_json(text, "join.json")
        except ConfigError:
            pass
        else:
            assert Join.from_json(join.to_json(), "") == join
    try:
        address = Address.parse(text)
    except ConfigError:
        pass
    else:
        assert Address.parse(str(address)) == address
    for read in (parse_duration, parse_limit, parse_size, parse_time):
        with contextlib.suppress(ConfigError):
            read(text)


if __name__ == "__main__":
    fuzzing.main(one_input)
