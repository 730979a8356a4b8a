"""Ask a /metrics page as Prometheus does: on one kept connection, gzip accepted, at a fixed pace."""

from __future__ import annotations

import gzip
import http.client
import threading
import time

from stack.processes import HOST

_TIMEOUT_SECONDS = 5.0
_HEADERS = {
    "User-Agent": "Prometheus/3.0",
    "Accept": "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.2,*/*;q=0.1",
    "Accept-Encoding": "gzip",
}


class Scraper:
    """A thread that scrapes *port* each *interval* seconds until told to stop, and counts."""

    def __init__(self, port: int, interval: float) -> None:
        self.interval = interval
        self.scrapes = 0
        self._connection = http.client.HTTPConnection(HOST, port, timeout=_TIMEOUT_SECONDS)
        self._page = b""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Begin; the first scrape is at once."""
        self._thread.start()

    def stop(self) -> None:
        """End after the scrape under way."""
        self._stop.set()
        self._thread.join()
        self._connection.close()

    @property
    def series(self) -> int:
        """Series on the last page."""
        return sum(1 for line in self._page.splitlines() if line and not line.startswith(b"#"))

    def _run(self) -> None:
        due = time.monotonic()
        while not self._stop.wait(max(0.0, due - time.monotonic())):
            self._page = self._scrape()
            self.scrapes += 1
            due += self.interval

    def _scrape(self) -> bytes:
        self._connection.request("GET", "/metrics", headers=_HEADERS)
        answer = self._connection.getresponse()
        page = answer.read()
        return gzip.decompress(page) if answer.getheader("Content-Encoding") == "gzip" else page


def page_value(page: str, name: str) -> float:
    """Return the sum of a family's values on a text page."""
    lines = (line for line in page.splitlines() if line.startswith((f"{name} ", f"{name}{{")))
    return sum(float(line.rpartition("} ")[2].split()[-1]) for line in lines)
