"""OTLP over gRPC. Imported only when asked for: grpcio adds some 15 MiB of resident memory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from otelperf.connection import without_login
from otelperf.errors import ConfigError
from otelperf.export import LONGEST_RETRY_AFTER, METRICS, UNSERVED_PAUSE, Signal, Verdict

try:
    import grpc
except ImportError as error:
    msg = "OTLP over gRPC needs grpcio: pip install 'otelperf[grpc]', or use OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf"
    raise ConfigError(msg) from error

if TYPE_CHECKING:
    from otelperf.config import Export, Traces

_RETRYABLE = {  # the OTLP specification's list
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.OUT_OF_RANGE,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DATA_LOSS,
}


class GrpcTransport:
    """OTLP over gRPC; requests come encoded and travel as they are."""

    def __init__(
        self,
        endpoint: str,
        target: str,
        headers: Mapping[str, str],
        *,
        compress: bool = False,
        credentials: grpc.ChannelCredentials | None = None,
        signal: Signal = METRICS,
    ) -> None:
        self._signal = signal
        self.endpoint = endpoint
        # gRPC's own reconnection pause grows to two minutes; ours is shorter and rules.
        options = [("grpc.max_reconnect_backoff_ms", 2000), ("grpc.initial_reconnect_backoff_ms", 500)]
        if credentials is None:
            self._channel = grpc.insecure_channel(target, options=options)
        else:
            self._channel = grpc.secure_channel(target, credentials, options=options)
        self._call = self._channel.unary_unary(
            signal.method, request_serializer=lambda body: body, response_deserializer=signal.rejected
        )
        self._metadata = tuple((name.lower(), value) for name, value in headers.items())
        self._compression = grpc.Compression.Gzip if compress else grpc.Compression.NoCompression

    def send(self, body: bytes, timeout: float) -> Verdict:
        try:
            rejected, message = self._call(
                body, timeout=timeout, metadata=self._metadata, compression=self._compression
            )
        except grpc.RpcError as error:
            code, delay = error.code(), _retry_delay(error)
            message = f"gRPC {code.name} {error.details() or ''}".strip()
            if code is grpc.StatusCode.UNIMPLEMENTED and self._signal.optional:
                message += f": is there a {self._signal.name} pipeline?"
                return Verdict("retry", message, retry_after=UNSERVED_PAUSE, unserved=True)
            # Exhausted and no word of when it will be over means: never, for example a request that is too large.
            if code in _RETRYABLE or (code is grpc.StatusCode.RESOURCE_EXHAUSTED and delay is not None):
                unreachable = code is grpc.StatusCode.UNAVAILABLE and delay is None
                return Verdict("retry", message, unreachable=unreachable, retry_after=delay)
            return Verdict("refused", message)
        return Verdict("delivered", message, rejected=rejected)

    def close(self) -> None:
        self._channel.close()


def _retry_delay(error: grpc.RpcError) -> float | None:
    """Return the seconds of the RetryInfo that the server has sent along, if any."""
    metadata: dict[str, str | bytes] = {item.key: item.value for item in error.trailing_metadata() or ()}
    details = metadata.get("grpc-status-details-bin")
    if not isinstance(details, bytes):
        return None
    from google.rpc.error_details_pb2 import RetryInfo  # type: ignore[import-untyped] # generated code
    from google.rpc.status_pb2 import Status  # type: ignore[import-untyped] # generated code

    try:
        for detail in Status.FromString(details).details:
            info = RetryInfo()
            if detail.Unpack(info):
                seconds: float = info.retry_delay.seconds + info.retry_delay.nanos / 1e9
                return min(max(0.0, seconds), LONGEST_RETRY_AFTER)
    except Exception:  # noqa: BLE001 # what the server says beside the status is only a hint
        return None
    return None


def from_settings(export: Export | Traces, signal: Signal = METRICS) -> GrpcTransport:
    """Return the transport that the settings describe; the endpoint's host and port are the target."""
    endpoint, login = without_login(export.endpoint)
    parts = urlsplit(endpoint)
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    target = f"{host}:{parts.port or 4317}"
    credentials = None if export.insecure else _credentials(export)
    headers = {**login, **export.headers}
    compress = export.compression == "gzip"
    return GrpcTransport(endpoint, target, headers, compress=compress, credentials=credentials, signal=signal)


def _credentials(export: Export | Traces) -> grpc.ChannelCredentials:
    try:
        return grpc.ssl_channel_credentials(
            _content(export.certificate), _content(export.client_key), _content(export.client_certificate)
        )
    except OSError as error:
        msg = f"cannot read {error.filename}: {error.strerror}; check {export.tls_keys}"
        raise ConfigError(msg) from error


def _content(path: str | None) -> bytes | None:
    return Path(path).read_bytes() if path else None
