"""Which tests run, and in which order: shuffled; what measures speed last; the long ones (`full`) when asked for."""

from __future__ import annotations

import random

import pytest


def shuffled(items: list[pytest.Item], seed: int) -> list[pytest.Item]:
    """The modules in an order that the seed gives, and so the tests within each; a module's tests stay together.

    The same seed keeps the order of those that remain when fewer tests are chosen.
    """

    def key(item: pytest.Item) -> tuple[float, str, float]:
        module = str(item.path)
        name = item.nodeid.split("::", 1)[0]  # without the folder that the checkout lies in
        return random.Random(f"{seed} {name}").random(), module, random.Random(f"{seed} {item.nodeid}").random()

    return sorted(items, key=key)


def speed_last(items: list[pytest.Item]) -> list[pytest.Item]:
    """What measures speed comes when all others are over."""
    return sorted(items, key=lambda item: item.get_closest_marker("speed") is not None)


def without_full(items: list[pytest.Item], expression: str) -> tuple[list[pytest.Item], list[pytest.Item]]:
    """What to run and what to leave out: tests marked ``full``, unless the expression of ``-m`` names them."""
    if "full" in expression:
        return items, []
    out = [item for item in items if item.get_closest_marker("full")]
    return [item for item in items if not item.get_closest_marker("full")], out
