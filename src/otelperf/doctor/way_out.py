"""Checks of the way out: the settings, the endpoint, and whether it takes points."""

from __future__ import annotations

import ssl
import time
from json import loads
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from otelperf.agent import make_tls
from otelperf.config_values import show_duration
from otelperf.connection import Answer, Connection, HttpError, Timeout, TooLarge, Unreachable, without_login
from otelperf.doctor.asking import TIMEOUT, Offset, answered, date_offset, shown_endpoint, without_password
from otelperf.doctor.backend import OTLP_FLAG
from otelperf.doctor.finding import Finding
from otelperf.export import Transport, Verdict

if TYPE_CHECKING:
    from otelperf.config import Settings

_ANSWER_LIMIT = 64 * 1024
_HEADERS = "set export.headers (OTEL_EXPORTER_OTLP_HEADERS) to what the endpoint asks for"
_BUSY = "it is there and takes nothing now: see the Collector's log (memory limit, full queue) or the backend's limits"
_NOBODY = "a proxy answers and nobody behind it does: start the Collector, or correct the proxy's target"
_RECEIVER = (
    "set export.endpoint to an OTLP/HTTP receiver: a Collector's is http://HOST:4318/v1/metrics, Prometheus' own "
    "http://HOST:9090/api/v1/otlp/v1/metrics (only to OTEL_EXPORTER_OTLP_ENDPOINT is /v1/metrics appended)"
)
_CLIENT_CERTIFICATE = "it may ask for a client certificate: set export.client_certificate and export.client_key"
_NO_TLS = {"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG"}  # what OpenSSL makes of plain HTTP
_CURES = (  # status, what the body says, cure
    (404, b"otlp-receiver", OTLP_FLAG),
    (400, b"HTTPS server", "write https:// instead of http://"),
    (429, b"", _BUSY),
    (503, b"", _BUSY),
    (502, b"", _NOBODY),
    (504, b"", _NOBODY),
)
_GRPC_CURES = {
    "UNAVAILABLE": "start the Collector, or set export.endpoint to its gRPC port (4317), with https:// only where it has TLS",
    "DEADLINE": "a firewall may drop the packets, or this is no gRPC port (4317)",
    "UNAUTHENTICATED": _HEADERS,
    "PERMISSION_DENIED": _HEADERS,
    "UNIMPLEMENTED": "it takes no OTLP metrics: set export.endpoint to a receiver that does, or add a metrics pipeline to it",
    "RESOURCE_EXHAUSTED": _BUSY,
}


def check_settings(settings: Settings) -> Finding:
    """Check that the agent would send at all."""
    if settings.sdk.disabled:
        seen = f"sdk.disabled is true ({settings.origin('sdk.disabled')}): the agent sends nothing"
        return Finding("settings", "warning", seen, "unset OTEL_SDK_DISABLED")
    exporter = settings.metrics.exporter
    if exporter != "otlp":
        seen = f"metrics.exporter is {exporter} ({settings.origin('metrics.exporter')}): the agent sends nothing to the endpoint"
        return Finding("settings", "warning", seen, "set --metrics-exporter otlp (OTEL_METRICS_EXPORTER)")
    where = f"{shown_endpoint(settings)} ({settings.origin('export.endpoint')})"
    return Finding("settings", "ok", f"metrics go by {settings.export.protocol} to {where}")


def check_points(settings: Settings, verdict: Verdict) -> Finding:
    """Check that a gauge, a counter and a histogram were taken."""
    message = without_password(settings, verdict.message)
    if verdict.outcome != "delivered":
        cure = "see the Collector's log, and whether this is an OTLP receiver for metrics"
        cure += "; compression is gzip: try none" if settings.export.compression == "gzip" else ""
        return Finding("points", "failed", f"a gauge, a counter and a histogram were refused: {message}", cure)
    if verdict.rejected:
        cure = "see the Collector's log, and the backend's limits and rules for names and attributes"
        return Finding("points", "failed", f"{verdict.rejected} of 3 points were rejected: {message}", cure)
    if message:
        seen = f"all points were accepted, with a remark: {message}"
        return Finding("points", "warning", seen, "do what the remark says")
    return Finding("points", "ok", "a gauge, a counter and a histogram were accepted")


def check_endpoint(settings: Settings, transport: Transport) -> tuple[Finding, Offset | None]:
    """Send an empty request and judge the answer; over HTTP also read the other side's clock."""
    if settings.export.protocol == "grpc":
        return _judged_call(settings, transport.send(b"", _timeout(settings))), None
    url, login = without_login(settings.export.endpoint)
    connection = Connection(url, make_tls(settings))
    headers = {**login, **settings.export.headers, "content-type": "application/x-protobuf"}
    sent = time.time()
    try:
        answer = connection.request(
            "POST", connection.path, b"", headers, timeout=_timeout(settings), limit=_ANSWER_LIMIT
        )
    except HttpError as error:
        seen, cure = _silence(settings, error)
        return Finding("endpoint", "failed", seen, cure), None
    finally:
        connection.close()
    return _judged_answer(settings, answer), date_offset(answer.headers.get("date"), sent, time.time())


def _timeout(settings: Settings) -> float:
    return min(settings.export.timeout, TIMEOUT)


def _silence(settings: Settings, error: HttpError) -> tuple[str, str]:
    """Say why no answer came, and the cure."""
    cause, shown = error.__cause__, shown_endpoint(settings)
    if isinstance(error, Timeout):
        cure = "a firewall or network policy may drop the packets, or the receiver hangs: try curl from this machine"
        return f"{shown} does not answer within {show_duration(_timeout(settings))}", cure
    if isinstance(cause, ConnectionRefusedError):
        cure = "start the Collector, or set export.endpoint to where it is"
        return f"{shown} refuses connections: nobody listens there", cure
    if isinstance(error, Unreachable):
        return f"the name {urlsplit(shown).hostname} is unknown", "correct the host in export.endpoint"
    if isinstance(cause, ssl.SSLError):
        return _broken_tls(shown, cause)
    if isinstance(error, TooLarge):
        return f"{shown} answers, but not OTLP: more than {_ANSWER_LIMIT} bytes", _RECEIVER
    tls = _CLIENT_CERTIFICATE if shown.startswith("https:") else "or it expects TLS: write https://"
    cure = f"this may be a gRPC port (4317): set export.protocol to grpc, or the port to that for HTTP (4318); {tls}"
    return f"{shown} gives no HTTP answer: {str(error).removeprefix(f'{shown}: ')}", cure


def _broken_tls(shown: str, cause: ssl.SSLError) -> tuple[str, str]:
    if isinstance(cause, ssl.SSLCertVerificationError):
        cure = (
            "set export.certificate (OTEL_EXPORTER_OTLP_CERTIFICATE) to the file of the CA, and use a host name that is in "
            "the certificate"
        )
        return f"{shown}: the certificate is not trusted: {cause.verify_message}", cure
    reason = getattr(cause, "reason", None)  # not every SSLError has one
    if reason in _NO_TLS:
        return f"{shown} speaks no TLS: {reason}", "write http:// instead of https://"
    return f"{shown} breaks off TLS: {reason or 'the connection was closed'}", _CLIENT_CERTIFICATE


def _judged_answer(settings: Settings, answer: Answer) -> Finding:
    shown, told = shown_endpoint(settings), answered(answer)
    if answer.status // 100 == 2 and _is_otlp(answer):
        return Finding("endpoint", "ok", f"{shown} answers OTLP")
    if answer.status == 400 and b"HTTPS server" not in answer.body:
        # Some receivers refuse an empty request; whether a full one is taken comes next.
        return Finding("endpoint", "ok", f"{shown} answers (an empty request with HTTP 400)")
    if answer.status // 100 == 2:
        seen = f"{shown} answers, but not OTLP: HTTP {answer.status} with {answer.headers.get('content-type', 'no content type')}"
    else:
        seen = f"{shown} answers {told}"
    return Finding("endpoint", "failed", seen, _cure_of(settings, answer))


def _is_otlp(answer: Answer) -> bool:
    """Say whether a success looks like one of an OTLP receiver: empty, protobuf, or JSON with nothing foreign in it."""
    kind = answer.headers.get("content-type", "").split(";")[0].strip()
    if not answer.body or kind == "application/x-protobuf":
        return True
    try:
        found = loads(answer.body) if kind == "application/json" else None
    except ValueError:
        return False
    return isinstance(found, dict) and set(found) <= {"partialSuccess"}


def _cure_of(settings: Settings, answer: Answer) -> str:
    if answer.status in {401, 403}:
        names = ", ".join(settings.export.headers) or "none"
        return f"{_HEADERS}; headers sent now: {names}"
    if answer.status // 100 == 3:
        return f"redirects are not followed: set export.endpoint to {answer.headers.get('location')}"
    found = (cure for status, text, cure in _CURES if answer.status == status and text in answer.body)
    return next(found, _RECEIVER)


def _judged_call(settings: Settings, verdict: Verdict) -> Finding:
    """Judge a call over gRPC by its status."""
    if verdict.outcome == "delivered":
        return Finding("endpoint", "ok", f"{shown_endpoint(settings)} answers OTLP over gRPC")
    if "INVALID_ARGUMENT" in verdict.message:
        return Finding("endpoint", "ok", f"{shown_endpoint(settings)} answers (an empty request with INVALID_ARGUMENT)")
    cure = next((cure for code, cure in _GRPC_CURES.items() if code in verdict.message), "see the Collector's log")
    return Finding(
        "endpoint", "failed", f"{shown_endpoint(settings)} answers {without_password(settings, verdict.message)}", cure
    )
