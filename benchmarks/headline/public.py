"""Rules and boards as their authors publish them: what is read of each file, and where to get it (public.yaml)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

SOURCES = Path(__file__).resolve().parent / "public.yaml"
_SECONDS = {"s": 1, "m": 60, "h": 3600}
_THRESHOLD = re.compile(r"^(?P<left>.*[^<>=!\s])\s*(?P<than>[<>])\s*(?P<limit>[\d.]+)\s*$", re.DOTALL)
# What Grafana puts for its variables: $__rate_interval is four scrape intervals of the data source, of 15 s by default.
_VARIABLES = (("$__rate_interval", "1m"), ("$__interval", "15s"), ("$__range", "15m"))


class PublicError(Exception):
    """Say which file is absent or not what it should be, and what to do."""


@dataclass(frozen=True)
class Alert:
    """A rule; *seconds* is its ``for``."""

    name: str
    of: str
    expr: str
    seconds: int

    @property
    def threshold(self) -> tuple[str, str, float] | None:
        """What is compared, ``<`` or ``>``, and the number; None of a rule that compares two series."""
        found = _THRESHOLD.match(self.expr.strip())
        return None if found is None else (found["left"], found["than"], float(found["limit"]))


@dataclass(frozen=True)
class Board:
    """A board's queries, as Grafana sends them."""

    of: str
    queries: tuple[str, ...]


def alerts(folder: Path) -> list[Alert]:
    """Return all alerts; *folder* holds the files of public.yaml."""
    return [
        Alert(rule["alert"], source["of"], rule["expr"], seconds(rule.get("for", "0s")))
        for source in _sources("rules")
        for group in yaml.safe_load(_text(folder, source))["spec"]["groups"]
        for rule in group["rules"]
        if "alert" in rule
    ]


def boards(folder: Path, model: str) -> list[Board]:
    """Return all boards, with *model* chosen in their drop-downs."""
    return [
        Board(source["of"], tuple(_filled(expr, model) for expr in _exprs(json.loads(_text(folder, source)))))
        for source in _sources("boards")
    ]


def seconds(text: str) -> int:
    """Return a duration such as ``5m`` in seconds."""
    return int(text[:-1]) * _SECONDS[text[-1]]


def _sources(kind: str) -> list[dict[str, str]]:
    found: list[dict[str, str]] = yaml.safe_load(SOURCES.read_text())[kind]
    return found


def _text(folder: Path, source: dict[str, str]) -> str:
    try:
        return (folder / source["file"]).read_text()
    except OSError as error:
        where = f"{source['path']} of {source['repository']} at {source['commit']}"
        msg = f"{folder / source['file']} cannot be read ({error.strerror}): put {where} there, and name the folder with --public"
        raise PublicError(msg) from error


def _exprs(node: Any) -> Iterator[str]:
    """Yield the queries of a board, rows and collapsed rows alike."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key == "expr" and isinstance(value, str):
                yield value
            else:
                yield from _exprs(value)
    elif isinstance(node, list):
        for each in node:
            yield from _exprs(each)


def _filled(expr: str, model: str) -> str:
    for variable, value in _VARIABLES:
        expr = expr.replace(variable, value)
    return re.sub(r"\$\{?(model_name|Deployment_id)\}?", model, expr)
