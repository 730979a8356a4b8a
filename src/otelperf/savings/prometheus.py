"""An existing Prometheus, or what speaks its HTTP API: it is only read, in pages that neither side finds too large."""

from __future__ import annotations

import json
import ssl
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import urlencode, urlsplit

from otelperf.connection import Answer, Connection, HttpError, Timeout, TooLarge, without_login
from otelperf.doctor.asking import answered
from otelperf.errors import OtelperfError
from otelperf.savings.recording import NoTimeError, Recording, UnfitError

_PAGE = 200_000  # samples that a page should have: some 6 MB of JSON
_PAGE_LIMIT = 64 * 2**20  # bytes
_FIRST_PAGE = 60_000  # ms; how dense the samples are is seen from it
_LEAST_PAGE = 1000  # ms
_LONGEST_PAGE = 86_400_000  # ms
_TOLD = 1000  # characters of what a server says
_FASTEST = 4  # a page is at most so much longer or shorter than the one before

Advance = Callable[[int], None]


class Prometheus:
    """The HTTP API at *url*; user and password in it are sent as basic authentication. *timeout* (s) is for each request."""

    def __init__(self, url: str, headers: Mapping[str, str], tls: ssl.SSLContext | None, timeout: float) -> None:
        bare, login = without_login(url)
        self.url = bare.partition("?")[0].rstrip("/")
        self._headers = {**login, **headers, "content-type": "application/x-www-form-urlencoded"}
        self._connection = Connection(self.url, tls)
        self._prefix = urlsplit(self.url).path
        self._timeout = timeout

    def series(self, selectors: Sequence[str], start: int, end: int, most: int) -> int:
        """Return how many series there are in the time; more than *most* are refused."""
        asked = [*(("match[]", each) for each in selectors), *_seconds(start, end), ("limit", str(most + 1))]
        too_many = (
            f"{self.url}: more than {most} series match: choose fewer (narrower --selector), or raise --max-series"
        )
        try:
            found = self._data("series", asked)
        except TooLarge as error:  # from a server that knows no limit
            raise OtelperfError(too_many) from error
        if not isinstance(found, list):
            raise self._odd("series", "no list of series")
        if len(found) > most:
            raise OtelperfError(too_many)
        return len(found)

    def types(self) -> dict[str, str]:
        """Return the types of metric families, those left out of which scraped targets say different things.

        Empty where the server does not tell: then names must do.
        """
        try:
            found = self._data("metadata", [])
        except HttpError:
            return {}
        if not isinstance(found, dict):
            return {}
        said = {
            name: {str(each.get("type")) for each in entries if isinstance(each, dict)}
            for name, entries in found.items()
            if isinstance(entries, list)
        }
        return {name: types.pop() for name, types in said.items() if len(types) == 1}

    def read(self, selectors: Sequence[str], start: int, end: int, recording: Recording, advance: Advance) -> None:
        """Add the raw samples of (start, end], Unix ms; *advance* is told the ms read, of each selector."""
        for selector in selectors:
            self._read(selector, start, end, recording, advance)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def _read(self, selector: str, start: int, end: int, recording: Recording, advance: Advance) -> None:
        """Read page by page, each about as large as the last one's density promises; a page refused as too large is cut."""
        begin, length = start, _FIRST_PAGE
        while begin < end:
            until = min(begin + length, end)
            try:
                count = self._page(selector, begin, until, recording)
            except (TooLarge, Timeout):
                if length <= _LEAST_PAGE:
                    raise
                length = max(_LEAST_PAGE, (until - begin) // _FASTEST)
                continue
            advance(until - begin)
            begin = until
            wanted = length * _PAGE // count if count else length * _FASTEST
            length = min(max(wanted, length // _FASTEST, _LEAST_PAGE), length * _FASTEST, _LONGEST_PAGE)

    def _page(self, selector: str, begin: int, until: int, recording: Recording) -> int:
        """Add the samples of (begin, until]. A range selector alone answers with the stored samples themselves.

        (Before Prometheus 3 also those at *begin*, which are then read twice and counted once.)
        """
        parameters = [("query", f"{selector}[{until - begin}ms]"), ("time", f"{until / 1000:.3f}")]
        answer = self._ask("query", parameters)
        try:
            count, rest = recording.take_matrix(answer.body)
        except NoTimeError as error:
            raise self._odd("query", str(error)) from error
        except UnfitError as error:
            raise self._odd("query", answered(answer)) from error
        warnings = rest.get("warnings")  # such as Thanos' when a store does not answer
        for told in warnings if isinstance(warnings, list) else ():
            if isinstance(told, str):
                recording.notes[f"answers with the warning {told[:_TOLD]!r}"] += 1
        return count

    def _data(self, path: str, parameters: Sequence[tuple[str, str]]) -> Any:
        answer = self._ask(path, parameters)
        try:
            return json.loads(answer.body)["data"]
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            raise self._odd(path, answered(answer)) from error

    def _ask(self, path: str, parameters: Sequence[tuple[str, str]]) -> Answer:
        target = f"{self._prefix}/api/v1/{path}"
        method, body = "POST", urlencode(parameters).encode()
        if path == "metadata":  # takes no POST
            method, body = "GET", b""
        answer = self._connection.request(method, target, body, self._headers, timeout=self._timeout, limit=_PAGE_LIMIT)
        if answer.status != 200:
            raise self._refused(path, answer)
        return answer

    def _refused(self, path: str, answer: Answer) -> HttpError:
        try:
            found = json.loads(answer.body)
            kind, told = str(found["errorType"]), str(found["error"])[:_TOLD]
        except (ValueError, LookupError, TypeError, RecursionError):
            kind, told = "", answered(answer).partition(" ")[2].partition(" ")[2]
        message = f"{self.url}: /api/v1/{path} answers HTTP {answer.status}: {told or 'nothing more'}"
        if answer.status == 422 and "too many samples" in told:
            return TooLarge(message)
        if kind == "timeout":
            return Timeout(message)
        if answer.status in {401, 403}:
            message += " (see --bearer-token-file, --basic-auth-file, --header)"
        if 300 <= answer.status < 400:
            location = answer.headers.get("location", "nowhere")[:_TOLD]
            message += f"; it points to {location}, and redirects are not followed"
        return HttpError(message)

    def _odd(self, path: str, told: str) -> HttpError:
        return HttpError(f"{self.url}: /api/v1/{path} answers otherwise than Prometheus does: {told}")


def _seconds(start: int, end: int) -> list[tuple[str, str]]:
    return [("start", f"{start / 1000:.3f}"), ("end", f"{end / 1000:.3f}")]
