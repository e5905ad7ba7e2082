"""The task types that workers announced, with every signature that may be meant. PURE."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import cast

from taskq.queue.leases import Worker
from taskq.shapes import TypeInfo
from taskq.stores.base import TypeRow


class Announced:
    """Types by name, and for each the descriptions that were ever announced, in the order of their last announcement.

    While a new version of the code is rolled out there are several; a description that no live worker offers does not
    count unless there is no other, and then the newest one does.
    """

    def __init__(self, rows: Iterable[TypeRow] = ()) -> None:
        self._texts: dict[str, dict[str, None]] = {}
        for row in rows:
            self._note(row)

    def add(self, types: Sequence[TypeInfo]) -> list[TypeRow]:
        """A worker offers these; gives their rows for the store."""
        rows = [TypeRow(info["name"], json.dumps({**info, "workers": 0}, sort_keys=True)) for info in types]
        for row in rows:
            self._note(row)
        return rows

    def _note(self, row: TypeRow) -> None:
        texts = self._texts.setdefault(row.name, {})
        texts.pop(row.info, None)
        texts[row.info] = None

    def names(self) -> list[str]:
        """All types that were ever announced."""
        return list(self._texts)

    def types(self, workers: Iterable[Worker]) -> list[TypeInfo]:
        """What may be submitted now, and by how many of these workers each description is offered."""
        offered = Counter(row for worker in workers for row in worker.announced)
        found = []
        for name, texts in self._texts.items():
            live = [text for text in texts if offered[name, text]] or list(texts)[-1:]
            for text in live:
                info = cast(TypeInfo, json.loads(text))
                info["workers"] = offered[name, text]
                found.append(info)
        return found
