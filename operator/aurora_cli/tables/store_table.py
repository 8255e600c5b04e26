"""``kubectl aurora store``: objects, sizes and faults in tables. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

from rich.console import Group, RenderableType
from rich.text import Text

from aurora_cli.tables.plain_text import age, plain, size, table
from aurora_store.objects import ObjectInfo


def listing(objects: Sequence[ObjectInfo], now: datetime) -> RenderableType:
    """One line for each object."""
    if not objects:
        return plain("no objects")
    rows = [(one.key, size(one.size_bytes), age(one.modified, now)) for one in objects]
    return table("KEY", "SIZE", "AGE", rows=rows, last_wraps=False)


def usage(kinds: Sequence[tuple[str, int, int, datetime]], now: datetime) -> RenderableType:
    """One line for each kind of object (kind, objects, bytes, newest), and their sum."""
    rows = [(kind, count, size(size_bytes), age(newest, now)) for kind, count, size_bytes, newest in kinds]
    total = (sum(count for _, count, _, _ in kinds), sum(size_bytes for _, _, size_bytes, _ in kinds))
    rows.append(("all", total[0], size(total[1]), ""))
    return table("KIND", "OBJECTS", "SIZE", "NEWEST", rows=rows, last_wraps=False)


def verification(checked: Mapping[str, int], faults: Sequence[tuple[str, str]]) -> RenderableType:
    """What was checked, and each fault (key, message)."""
    counts = ", ".join(f"{number} {kind}" for kind, number in sorted(checked.items())) or "no objects"
    if not faults:
        return Text.assemble(plain("whole", "good"), ": ", plain(counts))
    heading = Text.assemble(plain(f"{len(faults)} faults", "bad"), " in ", plain(counts))
    return Group(heading, table("KEY", "FAULT", rows=list(faults)))
