"""Requests that an application answers: WSGI by the standard library's validator, Flask, Starlette and FastAPI as they are."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from functools import partial
from typing import Any
from wsgiref.util import FileWrapper, setup_testing_defaults
from wsgiref.validate import validator

import pytest
from opentelemetry import propagate
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from opentelemetry.propagators.textmap import TextMapPropagator
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import get_current_span

from otelperf.instrumentations import asgi, fastapi, flask, starlette, wsgi
from tests.seen import Seen

flask_package = pytest.importorskip("flask")
starlette_package = pytest.importorskip("starlette.applications")
fastapi_package = pytest.importorskip("fastapi")

Environ = dict[str, Any]
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def durations(seen: Seen) -> list[dict[str, Any]]:
    """The attributes of the durations, one each request."""
    points = seen.points("http.server.request.duration")
    return [dict(point.attributes or {}) for point in points for _ in range(point.count)]


def under_way(seen: Seen) -> int:
    return int(sum(point.value for point in seen.numbers("http.server.active_requests")))


def span_of(seen: Seen) -> ReadableSpan:
    [span] = seen.spans
    return span


# ── WSGI ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def ask(
    app: Callable[..., Iterable[bytes]], path: str = "/", method: str = "GET", *, validate: bool = True, **more: Any
) -> tuple[list[str], bytes]:
    """Ask as a server does, and return the statuses that the application has said, and the body."""
    environ: Environ = {
        "SCRIPT_NAME": "",
        "PATH_INFO": path,
        "REQUEST_METHOD": method,
        "QUERY_STRING": "secret=1",
        **more,
    }
    setup_testing_defaults(environ)
    said: list[str] = []
    written = io.BytesIO()

    def start_response(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Callable[[bytes], object]:
        said.append(status)
        return written.write

    body = (validator(app) if validate else app)(environ, start_response)
    try:
        for each in body:
            written.write(each)
    finally:
        close = getattr(body, "close", None)
        if close:
            close()
    return said, written.getvalue()


def hello(environ: Environ, start_response: Any) -> Iterable[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"hello"]


GET = {"http.request.method": "GET", "url.scheme": "http"}


def test_a_wsgi_request_is_a_duration_and_a_span_by_the_conventions(seen: Seen) -> None:
    assert ask(wsgi.Middleware(validator(hello)), "/hello") == (["200 OK"], b"hello")
    assert durations(seen) == [{**GET, "network.protocol.version": "1.0", "http.response.status_code": 200}]
    span = span_of(seen)
    assert (span.name, span.kind.name, span.status.is_ok) == ("GET", "SERVER", True)
    assert dict(span.attributes or {}) == {
        **durations(seen)[0],
        "url.path": "/hello",
        "server.address": "127.0.0.1",
        "server.port": 80,
    }
    assert under_way(seen) == 0


def test_the_caller_is_the_parent(seen: Seen) -> None:
    ask(wsgi.Middleware(hello), HTTP_TRACEPARENT=PARENT)
    parent = span_of(seen).parent
    assert parent is not None
    assert (f"{parent.trace_id:032x}", f"{parent.span_id:016x}") == (PARENT[3:35], PARENT[36:52])


class Broken(TextMapPropagator):
    fields: set[str] = set()  # noqa: RUF012 # the abstract class wants it so

    def extract(self, *_: Any, **__: Any) -> Any:
        raise ValueError

    def inject(self, *_: Any, **__: Any) -> None:
        pass


def test_a_broken_propagator_does_not_reach_the_application(seen: Seen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(propagate, "propagator", Broken())
    assert ask(wsgi.Middleware(hello)) == (["200 OK"], b"hello")
    assert span_of(seen).parent is None


def test_a_request_lasts_until_its_body_is_read(seen: Seen) -> None:
    current = []

    def streaming(environ: Environ, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        for each in (b"a", b"b"):
            assert durations(seen) == []
            assert under_way(seen) == 1
            current.append(get_current_span().get_span_context().span_id)
            yield each

    assert ask(wsgi.Middleware(streaming), validate=False) == (["200 OK"], b"ab")
    assert len(durations(seen)) == 1
    context = span_of(seen).context
    assert context is not None
    assert current == [context.span_id] * 2
    assert not get_current_span().get_span_context().is_valid


def test_a_client_that_goes_away_is_no_error(seen: Seen) -> None:
    closed = []

    def streaming(environ: Environ, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        try:
            yield b"a"
            yield b"b"
        finally:
            closed.append(True)

    environ: Environ = {}
    setup_testing_defaults(environ)
    body: Any = wsgi.Middleware(streaming)(environ, lambda *_: None)
    assert next(body) == b"a"
    body.close()
    body.close()
    assert closed == [True]
    assert [each.get("error.type") for each in durations(seen)] == [None]


@pytest.mark.parametrize("where", ["call", "body", "close"])
def test_an_exception_passes_through_and_its_class_is_the_error_type(where: str, seen: Seen) -> None:
    class Body:
        def __iter__(self) -> Iterator[bytes]:
            if where == "body":
                raise KeyError("secret")
            return iter([])

        def close(self) -> None:
            if where == "close":
                raise KeyError("secret")

    def failing(environ: Environ, start_response: Any) -> Iterable[bytes]:
        if where == "call":
            raise KeyError("secret")
        start_response("200 OK", [])
        return Body()

    environ: Environ = {}
    setup_testing_defaults(environ)
    with pytest.raises(KeyError):  # noqa: PT012 # what a server does
        body: Any = wsgi.Middleware(failing)(environ, lambda *_: None)
        if where == "body":
            next(body)
        body.close()
    assert [each["error.type"] for each in durations(seen)] == ["KeyError"]
    assert "secret" not in span_of(seen).to_json()
    assert under_way(seen) == 0


def test_the_last_status_counts_where_an_application_begins_anew(seen: Seen) -> None:
    def restarting(environ: Environ, start_response: Any) -> Iterable[bytes]:
        start_response("503 Busy", [])
        error = ValueError()
        start_response("404 Not Found", [], (type(error), error, error.__traceback__))
        return []

    assert ask(wsgi.Middleware(restarting), validate=False) == (["503 Busy", "404 Not Found"], b"")
    assert durations(seen)[0]["http.response.status_code"] == 404
    assert "error.type" not in durations(seen)[0]


def test_a_servers_error_is_one_and_a_clients_is_not(seen: Seen) -> None:
    def answering(environ: Environ, start_response: Any) -> Iterable[bytes]:
        start_response(environ["PATH_INFO"], [])
        return []

    for status in ("400 Bad Request", "503 Busy"):
        ask(wsgi.Middleware(answering), status, validate=False)
    assert [each.get("error.type") for each in durations(seen)] == [None, "503"]
    assert [span.status.status_code.name for span in seen.spans] == ["UNSET", "ERROR"]


def test_write_goes_to_the_server(seen: Seen) -> None:
    def writing(environ: Environ, start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [])(b"written ")
        return [b"returned"]

    assert ask(wsgi.Middleware(writing), validate=False) == (["200 OK"], b"written returned")


def test_servers_still_see_the_length_of_a_list_and_their_own_file_wrapper(seen: Seen) -> None:
    environ: Environ = {"wsgi.file_wrapper": FileWrapper}
    setup_testing_defaults(environ)
    body: Any = wsgi.Middleware(hello)(dict(environ), lambda *_: None)
    assert len(body) == 1
    file: Any = wsgi.Middleware(lambda *_: FileWrapper(io.BytesIO(b"file")))(dict(environ), lambda *_: None)
    assert type(file) is FileWrapper
    assert len(durations(seen)) == 1  # that of the file; the other's body is not read


def test_an_unknown_method_is_other(seen: Seen) -> None:
    ask(wsgi.Middleware(hello), method="SECRET", validate=False)
    assert (durations(seen)[0]["http.request.method"], span_of(seen).name) == ("_OTHER", "HTTP")


def test_an_application_in_an_application_is_measured_once(seen: Seen) -> None:
    ask(wsgi.Middleware(wsgi.Middleware(hello)))
    assert len(durations(seen)) == len(seen.spans) == 1


def str_of_item(item: str | int) -> str:
    return str(item)


@pytest.fixture
def flask_app() -> Iterator[Any]:
    app = flask_package.Flask(__name__)  # before

    def error() -> str:
        raise RuntimeError("secret")

    app.get("/items/<int:item>")(str_of_item)
    app.get("/error")(error)
    app.get("/stream")(lambda: iter([b"a", b"b"]))
    flask.instrument()
    yield app
    flask.uninstrument()


@pytest.mark.parametrize(
    ("path", "status", "route"),
    [
        ("/items/7", 200, "/items/<int:item>"),
        ("/stream", 200, "/stream"),
        ("/error", 500, "/error"),
        ("/none", 404, None),
    ],
)
def test_flask_tells_the_rule_as_route(path: str, status: int, route: str | None, flask_app: Any, seen: Seen) -> None:
    ask(flask_app, path)
    [attributes] = durations(seen)
    assert (attributes["http.response.status_code"], attributes.get("http.route")) == (status, route)
    assert span_of(seen).name == (f"GET {route}" if route else "GET")
    assert "secret" not in span_of(seen).to_json()


def test_flask_is_as_it_was_after_that(flask_app: Any, seen: Seen) -> None:
    flask.uninstrument()
    ask(flask_app, "/items/7")
    assert durations(seen) == []


# ── ASGI ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def send_request(app: Any, path: str = "/", method: str = "GET", *, leave: bool = False, **more: Any) -> list[Any]:
    """Ask as a server does, and return the messages. With *leave* the client goes away after the first chunk."""
    messages: list[Any] = []

    async def run() -> None:
        gone = asyncio.Event()
        asked = iter([{"type": "http.request", "body": b""}])

        async def receive() -> Any:
            for message in asked:
                return message
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            messages.append(message)
            if leave and message["type"] == "http.response.body":
                gone.set()
                await asyncio.sleep(0.01)

        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"secret=1",
            "headers": [],
            "server": ("127.0.0.1", 8000),
            "client": ("127.0.0.1", 1),
            "state": {},
            **more,
        }
        await app(scope, receive, send)

    asyncio.run(run())
    return messages


async def streaming(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for more in (True, True, False):
        await send({"type": "http.response.body", "body": b"x", "more_body": more})


def test_an_asgi_request_is_a_duration_and_a_span_by_the_conventions(seen: Seen) -> None:
    assert len(send_request(asgi.Middleware(streaming), "/x", headers=[(b"traceparent", PARENT.encode())])) == 4
    assert durations(seen) == [{**GET, "network.protocol.version": "1.1", "http.response.status_code": 200}]
    span = span_of(seen)
    assert (span.name, span.kind.name, len(span.events)) == ("GET", "SERVER", 0)
    assert dict(span.attributes or {}) == {
        **durations(seen)[0],
        "url.path": "/x",
        "server.address": "127.0.0.1",
        "server.port": 8000,
    }
    assert span.parent is not None
    assert f"{span.parent.trace_id:032x}" == PARENT[3:35]
    assert under_way(seen) == 0


def test_an_asgi_request_lasts_until_its_body_is_sent_and_no_longer(seen: Seen) -> None:
    counts = []

    async def watched(scope: Any, receive: Any, send: Any) -> None:
        async def watch(message: Any) -> None:
            await send(message)
            counts.append((message["type"], len(durations(seen))))

        await streaming(scope, receive, watch)
        counts.append(("background", len(durations(seen))))

    send_request(asgi.Middleware(watched))
    assert [count for _, count in counts] == [0, 0, 0, 1, 1]


def test_what_is_no_request_passes_and_is_not_measured(seen: Seen) -> None:
    passed = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        passed.append(scope["type"])

    for kind in ("lifespan", "websocket"):
        send_request(asgi.Middleware(app), type=kind)
    assert passed == ["lifespan", "websocket"]
    assert durations(seen) == []


def test_an_asgi_exception_passes_through(seen: Seen) -> None:
    async def failing(scope: Any, receive: Any, send: Any) -> None:
        raise KeyError("secret")

    with pytest.raises(KeyError):
        send_request(asgi.Middleware(failing))
    assert [each["error.type"] for each in durations(seen)] == ["KeyError"]
    assert "secret" not in span_of(seen).to_json()


def test_a_cancelled_request_ends(seen: Seen) -> None:
    async def slow(scope: Any, receive: Any, send: Any) -> None:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        send_request(asgi.Middleware(slow))
    assert [each.get("error.type") for each in durations(seen)] == [None]
    assert under_way(seen) == 0


def web_app(kind: str) -> Any:
    """An application of *kind*, which was there before the instrumentation."""
    from starlette.responses import PlainTextResponse, StreamingResponse
    from starlette.routing import Mount, Route

    async def item(request: Any) -> Any:
        return PlainTextResponse(str(request.path_params))

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b"x"
            await asyncio.sleep(0)

    async def stream(*_: Any) -> StreamingResponse:
        return StreamingResponse(chunks())

    async def error(*_: Any) -> StreamingResponse:
        raise RuntimeError("secret")

    inner: Any = starlette_package.Starlette(routes=[Route("/deep/{leaf}", item)])
    if kind == "starlette":
        return starlette_package.Starlette(
            routes=[
                Route("/v1/items/{item}", item),
                Route("/stream", stream),
                Route("/error", error),
                Route("/plain", item),
                Mount("/tenants/{tenant}", inner),
            ]
        )
    app = fastapi_package.FastAPI()
    router = fastapi_package.APIRouter()

    async def answer_in_chunks() -> StreamingResponse:
        return await stream()

    async def fail() -> None:
        raise KeyError("secret")

    router.get("/items/{item}")(str_of_item)
    app.get("/stream")(answer_in_chunks)
    app.get("/error")(fail)
    app.include_router(router, prefix="/v1")
    app.add_route("/plain", item)
    app.mount("/tenants/{tenant}", inner)
    return app


@pytest.fixture
def instrumented() -> Iterator[None]:
    starlette.instrument()
    fastapi.instrument()
    yield
    fastapi.uninstrument()
    starlette.uninstrument()


@pytest.mark.parametrize("kind", ["starlette", "fastapi"])
@pytest.mark.parametrize(
    ("path", "status", "route"),
    [
        ("/v1/items/7", 200, "/v1/items/{item}"),
        ("/stream", 200, "/stream"),
        ("/tenants/me/deep/7", 200, "/tenants/{tenant}/deep/{leaf}"),
        ("/plain", 200, "/plain"),
        ("/none", 404, None),
    ],
)
def test_starlette_and_fastapi_tell_the_route(
    kind: str, path: str, status: int, route: str | None, instrumented: None, seen: Seen
) -> None:
    assert send_request(web_app(kind), path)[0]["status"] == status
    [attributes] = durations(seen)
    assert (attributes["http.response.status_code"], attributes.get("http.route")) == (status, route)
    assert span_of(seen).name == (f"GET {route}" if route else "GET")


@pytest.mark.parametrize("kind", ["starlette", "fastapi"])
def test_an_error_of_the_application_is_a_500(kind: str, instrumented: None, seen: Seen) -> None:
    with pytest.raises((RuntimeError, KeyError), match="secret"):
        send_request(web_app(kind), "/error")
    assert (durations(seen)[0]["http.response.status_code"], durations(seen)[0]["error.type"]) == (500, "500")
    assert "secret" not in span_of(seen).to_json()


@pytest.mark.parametrize("kind", ["starlette", "fastapi"])
def test_a_stream_whose_reader_leaves_ends_once(kind: str, instrumented: None, seen: Seen) -> None:
    assert len(send_request(web_app(kind), "/stream", leave=True)) < 50
    assert [each.get("error.type") for each in durations(seen)] == [None]
    assert under_way(seen) == 0


@pytest.mark.parametrize("kind", ["starlette", "fastapi"])
def test_an_application_goes_on_unmeasured_and_is_measured_again(kind: str, instrumented: None, seen: Seen) -> None:
    app = web_app(kind)
    for measured in (True, False, True):
        before = len(durations(seen))
        if measured:
            starlette.instrument()
            fastapi.instrument()
        else:
            fastapi.uninstrument()
            starlette.uninstrument()
        send_request(app, "/v1/items/7")
        assert len(durations(seen)) - before == int(measured)


def test_what_opentelemetry_measures_already_is_left_to_it(instrumented: None, seen: Seen) -> None:
    app = web_app("starlette")
    app.add_middleware(
        OpenTelemetryMiddleware, tracer_provider=seen.tracer_provider, meter_provider=seen.meter_provider
    )
    send_request(app, "/v1/items/7")
    assert [span.instrumentation_scope.name for span in seen.spans if span.instrumentation_scope] == [
        "opentelemetry.instrumentation.asgi"
    ] * len(seen.spans)


@pytest.mark.parametrize("metered", [True, False])
def test_fastapis_own_telemetry_is_completed_and_not_doubled(
    metered: bool, instrumented: None, seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = fastapi_package.FastAPI(telemetry={"tracer_provider": seen.tracer_provider, "operation_spans": False})
    if metered:
        monkeypatch.setattr("opentelemetry.metrics.get_meter_provider", lambda: seen.meter_provider)
    app.get("/items/{item}")(str_of_item)
    send_request(app, "/items/7")
    assert [each["http.route"] for each in durations(seen)] == ["/items/{item}"]
    assert [span.name for span in seen.spans] == ["GET /items/{item}"]


def test_a_path_is_told_as_text_and_an_unknown_method_as_http(seen: Seen) -> None:
    for method, route in (("GET", None), ("BREW", "/i/{x}")):
        environ: dict[str, Any] = {"REQUEST_METHOD": method, "PATH_INFO": "/i/é".encode().decode("latin-1")}
        setup_testing_defaults(environ)
        measured = wsgi.Middleware(
            lambda _, start: [start("200 OK", []), b""][1:], partial(str, route) if route else lambda: None
        )
        list(measured(environ, lambda *_: None))
    plain, brewed = seen.spans
    assert (plain.attributes or {})["url.path"] == "/i/é"
    assert brewed.name == "HTTP /i/{x}"
