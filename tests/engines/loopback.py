"""A server on loopback that answers bytes as they are: well-formed or hostile."""

from __future__ import annotations

import random
import socket
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from itertools import takewhile
from types import TracebackType
from typing import Self

Answer = Callable[["Loopback", socket.socket, str], bool]


def message(body: bytes | str, status: str = "200 OK", **headers: str) -> bytes:
    """Return a whole HTTP answer."""
    body = body.encode() if isinstance(body, str) else body
    fields = {"Content-Length": str(len(body)), **{name.replace("_", "-"): value for name, value in headers.items()}}
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"HTTP/1.1 {status}\r\n{head}\r\n".encode() + body


def saying(answers: Mapping[str, bytes | str]) -> Answer:
    """Answer each path with its message (bytes) or, with 200, its body (str); others with 404. Changes are followed."""

    def answer(_: Loopback, client: socket.socket, path: str) -> bool:
        found = answers.get(path, message("not here", "404 Not Found"))
        client.sendall(message(found) if isinstance(found, str) else found)
        return True

    return answer


def free_ports(count: int) -> range:
    """Return ports in a row that nobody has, below those that the system gives to clients: they stay free."""
    while True:
        ports = range(first := random.randrange(15_000, 32_000), first + count)
        with suppress(OSError):
            for port in ports:
                socket.create_server(("127.0.0.1", port)).close()
            return ports


class Loopback:
    """Listen while entered. *answer* writes to the client's socket, and says whether to keep the connection."""

    def __init__(self, answer: Answer, port: int = 0) -> None:
        self.answer = answer
        self.paths: list[str] = []
        self.headers: list[bytes] = []
        self.connections = 0
        self.most_at_once = 0
        self.closing = threading.Event()
        self._at_once = 0
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", port))
        self.port: int = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._clients: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.closing.set()
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
            pass  # wakes the accepting thread
        self._threads[0].join(10)
        self._listener.close()
        self.drop_clients()
        for thread in self._threads:
            thread.join(10)
        assert not any(thread.is_alive() for thread in self._threads)

    def drop_clients(self) -> None:
        """Close every connection from this side."""
        for client in self._clients:
            with suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            client, _ = self._listener.accept()
            if self.closing.is_set():
                client.close()
                return
            self.connections += 1
            self._clients.append(client)
            thread = threading.Thread(target=self._serve, args=(client,))
            self._threads.append(thread)
            thread.start()

    def _serve(self, client: socket.socket) -> None:
        with client, client.makefile("rb") as lines, suppress(OSError):
            while line := lines.readline():
                self.headers.append(line + b"".join(takewhile(lambda read: read not in {b"", b"\r\n"}, lines)))
                with self._lock:
                    self._at_once += 1
                    self.most_at_once = max(self.most_at_once, self._at_once)
                path = b"".join(line.split()[1:2]).decode("latin-1")
                self.paths.append(path)
                try:
                    kept = self.answer(self, client, path)
                finally:
                    with self._lock:
                        self._at_once -= 1
                if not kept:
                    return
