"""What a check found, and how it is shown to a person and to a program."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from json import dumps
from textwrap import wrap
from typing import Literal

Status = Literal["ok", "warning", "failed", "skipped"]

_WIDTH = 110


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found. *cure* is what to do, where there is something to do."""

    name: str
    status: Status
    seen: str
    cure: str = ""


def as_lines(findings: Sequence[Finding]) -> list[str]:
    """Render for a person: a line or more for each finding, its cure below it, and the sum."""
    indent = " " * 30
    lines: list[str] = []
    for each in findings:
        head = f"{each.status:<8} {each.name:<20} "
        lines += wrap(
            head + each.seen, _WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
        )
        if each.cure:
            lines += wrap(
                f"cure: {each.cure}", _WIDTH, initial_indent=indent, subsequent_indent=indent + " " * 6,
                break_long_words=False, break_on_hyphens=False,
            )  # fmt: skip
    counts = [
        (sum(each.status == status for each in findings), status) for status in ("ok", "warning", "failed", "skipped")
    ]
    return [*lines, "", ", ".join(f"{count} {status}" for count, status in counts if count)]


def as_json(findings: Sequence[Finding]) -> str:
    """Render for a program."""
    return dumps({"ok": well(findings), "findings": [asdict(each) for each in findings]}, indent=2)


def well(findings: Iterable[Finding]) -> bool:
    """Say whether nothing was found that does not fit."""
    return all(each.status in {"ok", "skipped"} for each in findings)
