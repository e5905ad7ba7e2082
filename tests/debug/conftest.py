"""What the basic tests share: `here`, a whole queue inside the test's own process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from here import Here as Here


@pytest.fixture
def here(_nothing_left: None) -> Iterator[Here]:
    """A queue in this process, without workers."""
    made = Here()
    try:
        yield made
    finally:
        made.close()
