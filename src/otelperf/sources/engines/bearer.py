"""A bearer token in a file that somebody else renews: a Secret, a projected service account token.

What is in it never gets into a message or a log.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress

_LONGEST = 8192  # bytes: no server takes a longer header
_TOKEN = re.compile(rb"[\x21-\x7e]+")  # RFC 6750 allows fewer characters, API keys do not keep to it


class Bearer:
    """The token in the file at *path*, read again when the file changes.

    A file that cannot be used is told in *trouble* for as long as it is so; the last token that could is used meanwhile.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._seen: tuple[int, ...] | None = None
        self._token = ""
        self.trouble = ""

    def headers(self) -> dict[str, str]:
        """Return the header to send, if there is a token."""
        try:
            status = os.stat(self._path)
            seen = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
            if seen != self._seen:
                self._read()
                self._seen = seen
        except OSError as error:
            self._seen = None
            self._complain(error.strerror or "it cannot be read")
        return {"authorization": f"Bearer {self._token}"} if self._token else {}

    def _read(self) -> None:
        # Without waiting: the path may be that of a pipe.
        descriptor = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            content = os.read(descriptor, _LONGEST + 1)
        finally:
            with suppress(OSError):
                os.close(descriptor)
        token = content.strip()
        if not token:
            self._complain("it is empty")
        elif len(content) > _LONGEST:
            self._complain(f"it is longer than {_LONGEST} bytes")
        elif not _TOKEN.fullmatch(token):
            self._complain("expected one token in one line: no spaces, no other lines, ASCII only")
        else:
            self._token, self.trouble = token.decode(), ""

    def _complain(self, why: str) -> None:
        then = "the last token is used" if self._token else "requests go without it"
        self.trouble = f"server.token_file {self._path}: {why}; {then}"
