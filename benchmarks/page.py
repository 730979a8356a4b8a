"""What a benchmark puts into a page of the documentation: where it ran, its tables, between two markers."""

from __future__ import annotations

import datetime as dt
import os
import platform
from pathlib import Path

Table = list[tuple[str, ...]]  # its head first
DOCS = Path(__file__).resolve().parent.parent / "docs"


def machine() -> str:
    """Return when and on what this runs."""
    today = dt.datetime.now(tz=dt.UTC).date()
    python = f"{platform.python_implementation()} {platform.python_version()}"
    linux = ".".join(platform.release().split(".")[:2])
    return f"{today}, {python}, Linux {linux}, {os.cpu_count()} cores"


def markdown(table: Table) -> list[str]:
    """Return a table as lines of Markdown, the columns aligned."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    rows = (table[0], tuple("-" * width for width in widths), *table[1:])
    return [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]


def write(document: Path, begin: str, end: str, text: str) -> None:
    """Put *text* between the markers of the document."""
    before, _, rest = document.read_text().partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise ValueError(f"{document} lacks {begin} or {end}: put both back, the tables go between them")
    document.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}")
