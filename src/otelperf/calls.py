"""A call of a model, measured by hand: ``with otelperf.inference(model=...) as call``. The automatic instrumentations use it, too.

Names and units are those of the semantic conventions for generative AI:
https://github.com/open-telemetry/semantic-conventions-genai. What was asked and answered is never recorded.
"""

from __future__ import annotations

import functools
import inspect
import operator
import os
import time
from asyncio import CancelledError
from collections.abc import Callable, Mapping
from contextlib import suppress
from contextvars import ContextVar
from types import TracebackType
from typing import Any, ParamSpec, TypeVar

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.trace import Span, SpanKind, Status, StatusCode

from otelperf import telemetry
from otelperf.logs import Log
from otelperf.sources.calls import kind
from otelperf.sources.generators import measured, measured_async
from otelperf.sources.registry import text

P = ParamSpec("P")
R = TypeVar("R")

_log = Log("otelperf.calls")
_CANCELLED = "cancelled"
_MOST_TOKENS = 2**53  # beyond, a float is no longer exact
_LAST_PORT = 65535
_current: ContextVar[Call | None] = ContextVar("otelperf_call", default=None)
_process = object()  # another one in a forked child


def _forked() -> None:
    global _process  # noqa: PLW0603 # what it is for
    _process = object()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


def inference(
    model: str | None = None,
    *,
    operation: str = "chat",
    provider: str | None = None,
    server_address: str | None = None,
    server_port: int | None = None,
    attributes: Mapping[str, str | bool | int | float] | None = None,
) -> Inference:
    """Measure calls of *model*: as a context, sync or async, of one call each time it is entered, or as a decorator.

    *operation* is a gen_ai.operation.name: chat, text_completion, embeddings, generate_content. *provider* is a
    gen_ai.provider.name (openai, anthropic, vllm). With *server_address* the call leaves this process, and its span is a
    client's. *attributes* are added to the span only, and so may be of any cardinality.
    A decorated generator, sync or async, is a stream: each item that it yields is a chunk. A ``with`` inside a plain generator that
    a web framework streams should have an ``inference(...)`` of its own each time: its steps share no context to tell calls by.
    Raises TypeError where it stands bare above a function.
    """
    # Not whatever is callable: somebody's model may be, and a call must not fail for it.
    if inspect.isroutine(model) or hasattr(model, "__wrapped__"):
        msg = f"otelperf.inference: model is {model!r}, a function: write @otelperf.inference(model=...) above it"
        raise TypeError(msg)
    return Inference(model, operation, provider, server_address, server_port, attributes)


def current_call() -> Call | None:
    """Return the call in whose context this is run, None outside."""
    return _current.get()


class Inference:
    """What calls have in common; see ``inference``."""

    def __init__(
        self,
        model: str | None,
        operation: str,
        provider: str | None,
        server_address: str | None,
        server_port: int | None,
        attributes: Mapping[str, str | bool | int | float] | None,
    ) -> None:
        self.kind = kind(operation, provider, model)
        told = self.kind.attributes
        self.name = " ".join(
            str(told[name]) for name in ("gen_ai.operation.name", "gen_ai.request.model") if name in told
        )
        host = text(server_address) or None
        address = {"server.address": host, "server.port": _port(server_port) if host else None}
        self.attributes = {
            **self.kind.attributes,
            **{key: value for key, value in address.items() if value is not None},
        }
        self.span_attributes = {**self.attributes, **(attributes if isinstance(attributes, Mapping) else {})}
        self.span_kind = SpanKind.CLIENT if host else SpanKind.INTERNAL
        self._entered: dict[Call, None] = {}  # in their order

    def start(self, *, attach: bool = False) -> Call:
        """Begin a call that its ``end`` ends. With *attach* it is the current one, until then or ``leave``, in this context."""
        return Call(self, attach=attach)

    def __enter__(self) -> Call:
        call = self.start(attach=True)
        self._entered[call] = None
        return call

    def __exit__(
        self, kind_: type[BaseException] | None, error: BaseException | None, trace_: TracebackType | None
    ) -> None:
        call = _current.get()
        while call is not None and call not in self._entered:  # one begun later and not yet ended: a generator's, say
            call = call.outer
        if (
            call is None
        ):  # ended by hand, or in another context: Starlette runs each step of a plain generator in a copy
            entered = list(self._entered)
            call = next((each for each in entered if each.ended), entered[-1] if entered else None)
        if call is not None:
            self._entered.pop(call, None)
            call.end(error)

    async def __aenter__(self) -> Call:
        return self.__enter__()

    async def __aexit__(
        self, kind_: type[BaseException] | None, error: BaseException | None, trace_: TracebackType | None
    ) -> None:
        self.__exit__(kind_, error, trace_)

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        """Decorate *function*."""
        return _decorated(self, function)


class Call:
    """One call under way. Nothing that it is told raises; what is told after its end is not counted."""

    __slots__ = (
        "_began",
        "_first",
        "_input",
        "_last",
        "_output",
        "_process",
        "before",
        "ended",
        "outer",
        "span",
        "what",
    )

    def __init__(self, what: Inference, *, attach: bool) -> None:
        self.what = what
        self._process = _process
        self.outer: Call | None = None
        self.ended = False
        self._first: float | None = None
        self._last = 0.0
        self._input: int | None = None
        self._output: int | None = None
        try:
            self.span: Span = telemetry.tracer().start_span(
                what.name, kind=what.span_kind, attributes=what.span_attributes
            )
        except Exception as error:  # noqa: BLE001 # a span processor of the application's; the call goes on
            _log.trouble("span not started", problem=f"{type(error).__name__}: {error}")
            self.span = trace.INVALID_SPAN
        if attach:
            self.outer = _current.get()
            self.before = otel_context.get_current()
            otel_context.attach(trace.set_span_in_context(self.span))
            _current.set(self)
        what.kind.begin()
        self._began = time.perf_counter()

    def __del__(self) -> None:
        """Nobody can end it any more: it is not under way. No more is done here: this very thread may hold the SDK's locks."""
        with suppress(Exception):  # the interpreter may be ending
            if not self.ended and self._process is _process:
                self.what.kind.end()

    def first_token(self, after: float | None = None) -> None:
        """The first token, or chunk, is there, or was *after* seconds. Later ones change nothing."""
        if self._first is None and not self.ended:
            self._last = time.perf_counter()
            self._first = self._last - self._began if after is None else _seconds(after)

    def chunk(self) -> None:
        """A chunk of a stream is there; the first one is the first token, too."""
        if self._first is None:
            self.first_token()
        elif not self.ended:
            now = time.perf_counter()
            self.what.kind.gap(now - self._last)
            self._last = now

    def tokens(self, *, input: int | None = None, output: int | None = None) -> None:  # noqa: A002 # the conventions' word
        """Say how many tokens the prompt has and how many were generated, in all: said again, the last counts."""
        self._input = _count("input", input, self._input)
        self._output = _count("output", output, self._output)

    def response(
        self,
        *,
        model: str | None = None,
        id: str | None = None,  # noqa: A002 # the conventions' word
        finish_reasons: tuple[str, ...] | None = None,
    ) -> None:
        """Say what answered, and why it ended (stop, length); on the span only."""
        if self.ended:
            return
        reasons = (finish_reasons,) if isinstance(finish_reasons, str) else finish_reasons
        try:
            told = {
                "gen_ai.response.model": text(model),
                "gen_ai.response.id": text(id),
                "gen_ai.response.finish_reasons": reasons and tuple(text(each) or "" for each in reasons),
            }
            self.span.set_attributes({key: value for key, value in told.items() if value is not None})
        except Exception as error:  # noqa: BLE001 # as at the start
            _log.trouble("response not told", problem=f"{type(error).__name__}: {error}")

    def end(self, error: BaseException | str | None = None) -> None:
        """The call is over; *error* is what it failed with, or that in a word. A second end changes nothing.

        A stream that is closed early, or a call that is cancelled, has the error.type ``cancelled``, and its span is in no error.
        In a forked child a call that began before is the parent's to count.
        """
        if self.ended:
            return
        self.ended = True
        if self._process is not _process:
            self.leave()
            return
        seconds = time.perf_counter() - self._began
        self.what.kind.end()
        self.leave()
        failed = _error_type(error)
        attributes = self.what.attributes if failed is None else {**self.what.attributes, "error.type": failed}
        span, inside = self.span, trace.set_span_in_context(self.span)  # for exemplars
        telemetry.record("gen_ai.client.operation.duration", seconds, attributes, inside)
        told: dict[str, Any] = {} if failed is None else {"error.type": failed}
        if self._first is not None:
            telemetry.record("gen_ai.client.operation.time_to_first_chunk", self._first, self.what.attributes, inside)
            told["gen_ai.response.time_to_first_chunk"] = self._first
        for count, kind_ in ((self._input, "input"), (self._output, "output")):
            if count is not None:
                usage = {**self.what.attributes, "gen_ai.token.type": kind_}
                telemetry.record("gen_ai.client.token.usage", count, usage, inside)
                told[f"gen_ai.usage.{kind_}_tokens"] = count
        if told:
            span.set_attributes(told)
        if failed not in {None, _CANCELLED}:
            span.set_status(Status(StatusCode.ERROR))  # no description: an error's text may quote the prompt
        try:
            span.end()
        except Exception as problem:  # noqa: BLE001 # as at the start
            _log.trouble("span not ended", problem=f"{type(problem).__name__}: {problem}")

    def leave(self) -> None:
        """Make current again what was before; not where the call is ended in another context than it began in."""
        inner, each = None, _current.get()
        while each is not None and each is not self:
            inner, each = each, each.outer
        if each is None:
            return
        if inner is None:
            _current.set(self.outer)
            otel_context.attach(self.before)
        else:  # a generator's call that ends before the one that its reader began meanwhile
            inner.outer, inner.before = self.outer, self.before
        self.outer = None


def _count(which: str, value: int | None, before: int | None) -> int | None:
    if value is None:
        return before
    try:
        count = operator.index(value)  # numpy's, too
    except Exception:  # noqa: BLE001 # whatever it is
        count = -1
    if 0 <= count <= _MOST_TOKENS:
        return count
    _log.trouble("not a number of tokens", by=("which",), which=which, value=(text(value) or "")[:40])
    return before


def _seconds(value: float) -> float | None:
    try:
        seconds = float(value)
    except Exception:  # noqa: BLE001 # whatever it is
        seconds = -1.0
    if 0 <= seconds < float("inf"):
        return seconds
    _log.trouble("not a time in seconds", by=("which",), which="first_token", value=(text(value) or "")[:40])
    return None


def _port(value: object) -> int | None:
    if value is None or (isinstance(value, int) and 0 < value <= _LAST_PORT):
        return value
    _log.trouble("not a port", by=("which",), which="server_port", value=(text(value) or "")[:40])
    return None


def _error_type(error: BaseException | str | None) -> str | None:
    if error is None or isinstance(error, str):
        return text(error)
    if isinstance(error, CancelledError | GeneratorExit):
        return _CANCELLED
    return type(error).__qualname__


def _decorated(what: Inference, function: Callable[P, R]) -> Callable[P, R]:
    called: Any = function
    wrapped: Any
    if inspect.iscoroutinefunction(function):

        async def wrapped(*args: P.args, **kwargs: P.kwargs) -> Any:
            with what:
                return await called(*args, **kwargs)

    # The code between two chunks is the caller's: the call is not current there.
    elif inspect.isasyncgenfunction(function):
        wrapped = measured_async(called, lambda: _Streaming(what), Call.chunk)

    elif inspect.isgeneratorfunction(function):
        wrapped = measured(called, lambda: _Streaming(what), Call.chunk)

    else:

        def wrapped(*args: P.args, **kwargs: P.kwargs) -> Any:
            with what:
                return called(*args, **kwargs)

    return functools.wraps(function)(wrapped)


class _Streaming:
    """A call that is not made the current one."""

    def __init__(self, what: Inference) -> None:
        self._call = what.start()

    def __enter__(self) -> Call:
        return self._call

    def __exit__(
        self, kind_: type[BaseException] | None, error: BaseException | None, trace_: TracebackType | None
    ) -> None:
        self._call.end(error)
