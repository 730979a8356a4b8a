"""Where a pod's annotations say that its server listens, from the file that the downward API writes.

    otelperf/server.url: "http://127.0.0.1:9000"     our own; several with commas
    prometheus.io/port: "9000"                       what Prometheus is told; scheme and path as well

A line of the file is ``key="value"``, quoted as Go quotes (k8s.io/kubernetes pkg/fieldpath). Nothing that we look for needs an
escape. Who may annotate a pod need not be who may start it: only addresses in the pod are taken, whatever the settings allow.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple
from urllib.parse import urlsplit

_LARGEST = 2**20  # bytes; Kubernetes takes 256 KiB of annotations
_LINE = re.compile(r'([^\s="]+)="((?:[^"\\]|\\.)*)"')
_OURS = "otelperf/server.url"
_PORT, _SCHEME, _PATH = "prometheus.io/port", "prometheus.io/scheme", "prometheus.io/path"
_WORD = 60  # characters of what is shown


class Place(NamedTuple):
    """A port and the base URL to ask there."""

    port: int
    url: str


class Annotations:
    """The file at *path*, read again when it changes. *paths* are those of the engines' metrics pages, *is_here* knows the pod.

    What cannot be used is told in *trouble* for as long as it is there. A file that is absent is one only if it is *needed*.
    """

    def __init__(self, path: str, paths: Sequence[str], is_here: Callable[[str], bool], *, needed: bool) -> None:
        self._path = path
        self._pages = sorted(filter(None, paths), key=len, reverse=True)
        self._is_here = is_here
        self._needed = needed
        self._seen: tuple[int, ...] | None = None
        self._places: tuple[Place, ...] = ()
        self.trouble = ""

    def places(self) -> tuple[Place, ...]:
        """Return where to look, what is our own first."""
        try:
            status = os.stat(self._path)
            seen = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
            if seen != self._seen:
                self._read()
                self._seen = seen
        except OSError as error:
            absent = isinstance(error, FileNotFoundError | NotADirectoryError) and not self._needed
            self.trouble = "" if absent else f"server.annotations {self._path}: {error.strerror or error}"
            self._places, self._seen = (), None
        return self._places

    def _read(self) -> None:
        descriptor = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # the path may be that of a pipe
        with open(descriptor, "rb") as file:
            content = file.read(_LARGEST + 1) or b""
        troubles: list[str] = []
        if len(content) > _LARGEST:
            self._places, troubles = (), [f"it is longer than {_LARGEST} bytes"]
        else:
            self._places = self._places_in(_annotations(content.decode("utf-8", "replace"), troubles), troubles)
        self.trouble = f"server.annotations {self._path}: {'; '.join(troubles)}" if troubles else ""

    def _places_in(self, found: dict[str, str], troubles: list[str]) -> tuple[Place, ...]:
        places: dict[int, Place] = {}
        for url in filter(None, (part.strip() for part in found.get(_OURS, "").split(","))):
            place = _place(url)
            if place is None or not self._is_here(url):
                expected = "expected http(s)://127.0.0.1:PORT, or the pod's own address"
                troubles.append(f"{_OURS} is {url[:_WORD]!r}: {expected}")
            else:
                places.setdefault(place.port, place)
        if port := found.get(_PORT):
            scheme = found.get(_SCHEME, "http")
            place = _place(f"{scheme}://127.0.0.1:{port}{self._base(found.get(_PATH, ''))}")
            if place is None or not re.fullmatch("[0-9]{1,5}", port):
                troubles.append(
                    f"{_PORT} is {port[:_WORD]!r} and {_SCHEME} {scheme[:_WORD]!r}: expected a port, http or https"
                )
            else:
                places.setdefault(place.port, place)
        return tuple(places.values())

    def _base(self, path: str) -> str:
        """What comes before a page that we know; a path without one says nothing to us."""
        before = next((path.removesuffix(page) for page in self._pages if path.endswith(page)), "")
        return before if re.fullmatch(r"(?:/[\w.~-]+)*", before, re.ASCII) else ""


def _annotations(text: str, troubles: list[str]) -> dict[str, str]:
    """Return those that we look for, and tell what is not as the downward API writes it."""
    found: dict[str, str] = {}
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            troubles.append(f'line {number} is not key="value"')
            break  # it is another kind of file, or cut short
        if match[1] in {_OURS, _PORT, _SCHEME, _PATH}:
            found[match[1]] = match[2]
    return found


def _place(url: str) -> Place | None:
    """Read a base URL; None where it is none, or has more than scheme, host, port and path."""
    try:
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        return None
    plain = url.isascii() and url.isprintable() and not set(" ?#@\\") & set(url)
    if not plain or parts.scheme not in {"http", "https"} or not parts.hostname:
        return None
    return Place(port, url.rstrip("/"))
