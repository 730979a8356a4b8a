"""Ask an OpenAI-compatible server as a production service was asked, and count what it answers.

The trace is AzureLLMInferenceTrace_code (2023) of the Azure Public Dataset, CC-BY 4.0 (Patel et al., "Splitwise", ISCA 2024):
when each request came, how many tokens it held and how many it was answered. A tiny model on a CPU is asked for less: the
context is divided and cut, the output cut, and time may run faster. Each byte of a prompt is a token of the tiny models.
"""

from __future__ import annotations

import csv
import http.client
import json
import random
import threading
import time
import urllib.parse
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

TRACE = Path(__file__).resolve().parent / "data" / "azure-llm-code.csv"
CONTEXT_DIVISOR = 8
LONGEST_CONTEXT = 900
LONGEST_OUTPUT = 60
_TIMEOUT = 300.0
_LETTERS = "abcdefghijklmnopqrstuvwxyz "
_EVENT = b"data: "
_SHARED = 256  # tokens that the prompts of one of a few programs begin with
_PROGRAMS = 4
_EOS = 1  # the tiny model's token that ends an answer


class Request(NamedTuple):
    """One request: when, in s since the beginning, and its tokens."""

    at: float
    prompt: int
    output: int


def trace(first: float, last: float, *, speed: float = 1.0) -> list[Request]:
    """Return what came between two seconds of the trace, cut for the tiny model, *speed* times as fast."""
    with TRACE.open() as lines:
        rows = [
            (datetime.fromisoformat(row["TIMESTAMP"][:26]), int(row["ContextTokens"]), int(row["GeneratedTokens"]))
            for row in csv.DictReader(lines)
        ]
    began = rows[0][0]
    return [
        Request(
            (second - first) / speed,
            max(1, min(context // CONTEXT_DIVISOR, LONGEST_CONTEXT)),
            max(1, min(output, LONGEST_OUTPUT)),
        )
        for when, context, output in rows
        if first <= (second := (when - began).total_seconds()) < last
    ]


@dataclass
class Counts:
    """What was answered. *first_tokens* and *durations* in s, of answers that were streamed."""

    requests: Counter[str] = field(default_factory=Counter)
    prompt_tokens: int = 0
    output_tokens: int = 0
    first_tokens: list[float] = field(default_factory=list)
    durations: list[float] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)

    @property
    def finished(self) -> int:
        """How many were answered to the end."""
        return sum(self.requests.values())


class Client:
    """Asks one server for completions and counts; may be used by many threads."""

    def __init__(self, url: str, model: str = "model", *, stream: bool = True) -> None:
        self._host = urllib.parse.urlsplit(url).netloc
        self._model = model
        self._stream = stream
        self._lock = threading.Lock()
        self._random = random.Random(1)
        self.counts = Counts()

    def complete(self, prompt: int, output: int, *, stop: bool = False) -> None:
        """Ask for *output* tokens after *prompt* tokens; with *stop* the model ends at once, of its own."""
        asked: dict[str, Any] = {
            "model": self._model,
            "prompt": self._text(prompt),
            "max_tokens": output,
            "ignore_eos": not stop,
            "stream": self._stream,
        }
        if stop:
            asked["allowed_token_ids"] = [_EOS]
        if self._stream:
            asked["stream_options"] = {"include_usage": True}
        try:
            self._ask(asked)
        except (OSError, http.client.HTTPException) as error:
            with self._lock:
                self.counts.errors[type(error).__name__] += 1

    def give_up(self, prompt: int, output: int) -> None:
        """Ask, and hang up after the first token."""
        asked = {"model": self._model, "prompt": self._text(prompt), "max_tokens": output, "ignore_eos": True}
        connection = http.client.HTTPConnection(self._host, timeout=_TIMEOUT)
        with self._posted(connection, asked | {"stream": True}) as answer:
            answer.readline()
        connection.close()

    def _text(self, tokens: int) -> str:
        with self._lock:
            program = random.Random(self._random.randrange(_PROGRAMS))
            rest = max(0, tokens - _SHARED)
            text = "".join(self._random.choices(_LETTERS, k=rest)) if rest else ""
        return "".join(program.choices(_LETTERS, k=min(tokens, _SHARED))) + text

    def _ask(self, asked: dict[str, Any]) -> None:
        connection = http.client.HTTPConnection(self._host, timeout=_TIMEOUT)
        began = time.monotonic()
        try:
            with self._posted(connection, asked) as answer:
                if answer.status != http.HTTPStatus.OK:
                    with self._lock:
                        self.counts.errors[str(answer.status)] += 1
                    return
                parts = list(_events(answer, began)) if self._stream else [(None, json.load(answer))]
        finally:
            connection.close()
        usage: dict[str, int] = next(part["usage"] for _, part in reversed(parts) if part.get("usage"))
        reasons = [choice["finish_reason"] for _, part in parts for choice in part["choices"]]
        first = next((when for when, part in parts if when is not None and part["choices"]), None)
        with self._lock:
            self.counts.requests[next(reason for reason in reasons if reason)] += 1
            self.counts.prompt_tokens += usage["prompt_tokens"]
            self.counts.output_tokens += usage["completion_tokens"]
            if first is not None:
                self.counts.first_tokens.append(first)
                self.counts.durations.append(time.monotonic() - began)

    def _posted(self, connection: http.client.HTTPConnection, asked: dict[str, Any]) -> http.client.HTTPResponse:
        connection.request("POST", "/v1/completions", json.dumps(asked), {"Content-Type": "application/json"})
        return connection.getresponse()


def _events(answer: http.client.HTTPResponse, began: float) -> Iterator[tuple[float, dict[str, Any]]]:
    """Yield the parts of a streamed answer, each with how long after the question it came."""
    for line in answer:
        if line.startswith(_EVENT) and not line.startswith(b"data: [DONE]"):
            yield time.monotonic() - began, json.loads(line.removeprefix(_EVENT))


def play(client: Client, requests: Sequence[Request], done: threading.Event | None = None) -> None:
    """Ask each request at its time, in threads of their own, and return when all are answered; *done* ends it early."""
    began = time.monotonic()
    done = done or threading.Event()
    asking: list[threading.Thread] = []
    for request in sorted(requests):
        if done.wait(max(0.0, began + request.at - time.monotonic())):
            break
        thread = threading.Thread(target=client.complete, args=(request.prompt, request.output), daemon=True)
        thread.start()
        asking.append(thread)
    for thread in asking:
        thread.join()
