"""TLS with certificates made here: the right CA, the wrong one, client certificates, and files that cannot be used."""

from __future__ import annotations

import shutil
import socketserver
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import grpc
import pytest

from otelperf import config, tls
from otelperf.agent import make_servers, make_transport
from otelperf.connection import Connection
from otelperf.errors import ConfigError, SourceError
from otelperf.export import TRACES, Verdict
from otelperf.sources.engines.server import Server

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl: apt-get install openssl")

GRPC_METHOD = "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export"


def openssl(folder: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True, timeout=60)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make ca.pem, another-ca.pem, and what ca.pem has signed: server, client, elsewhere (for another name)."""
    folder = tmp_path_factory.mktemp("certificates")
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    for ca in ("ca", "another-ca"):
        usage = ["-addext", "keyUsage=critical,keyCertSign"]
        openssl(
            folder,
            "req",
            "-x509",
            *key,
            "-subj",
            f"/CN={ca}",
            "-days",
            "1",
            *usage,
            "-keyout",
            f"{ca}.key",
            "-out",
            f"{ca}.pem",
        )
    for name, subject in (
        ("server", "IP:127.0.0.1,DNS:localhost"),
        ("client", "DNS:agent"),
        ("elsewhere", "DNS:elsewhere"),
    ):
        openssl(folder, "req", "-new", *key, "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.csr")
        (folder / f"{name}.ext").write_text(f"subjectAltName={subject}\n")
        signer = ["-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", f"{name}.ext"]
        openssl(folder, "x509", "-req", "-days", "1", "-in", f"{name}.csr", *signer, "-out", f"{name}.pem")
    openssl(folder, "ec", "-in", "client.key", "-aes256", "-passout", "pass:secret", "-out", "encrypted.key")
    (folder / "noise.pem").write_text("no certificate\n")
    return folder


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_GET(self) -> None:
        body = b"vllm:num_requests_running 3\n" if self.path == "/base/metrics" else b"{}"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # the base class's name
        pass


class Https(socketserver.ThreadingMixIn, HTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        pass


Serve = Callable[..., str]


@pytest.fixture
def serve(certificates: Path) -> Iterator[Serve]:
    """Start an HTTPS server; *name* is its certificate's, *ask* that of the CA of the client certificates it asks for."""
    servers: list[Https] = []

    def start(name: str = "server", ask: str | None = None) -> str:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificates / f"{name}.pem", certificates / f"{name}.key")
        if ask is not None:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(certificates / f"{ask}.pem")
        server = Https(("127.0.0.1", 0), Handler)
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        servers.append(server)
        return f"https://127.0.0.1:{server.server_port}/v1/metrics"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def send(url: str, folder: Path, **files: str) -> Verdict:
    paths = {f"export.{key}": str(folder / name) for key, name in files.items()}
    protocol = "http/protobuf" if "/v1/" in url else "grpc"
    settings = config.load({"export.endpoint": url, "export.protocol": protocol, **paths}, {}, None)
    transport = make_transport(settings)
    try:
        return transport.send(b"body", 10)
    finally:
        transport.close()


def test_a_certificate_of_the_given_ca_is_trusted(serve: Serve, certificates: Path) -> None:
    assert send(serve(), certificates, certificate="ca.pem") == Verdict("delivered")


def test_a_certificate_of_another_ca_is_not_and_the_message_says_why(serve: Serve, certificates: Path) -> None:
    for files in ({"certificate": "another-ca.pem"}, {}):
        verdict = send(serve(), certificates, **files)
        assert (verdict.outcome, verdict.unreachable) == ("retry", False)
        assert "certificate verify failed" in verdict.message


def test_a_certificate_for_another_name_is_not_trusted(serve: Serve, certificates: Path) -> None:
    verdict = send(serve("elsewhere"), certificates, certificate="ca.pem")
    assert "IP address mismatch, certificate is not valid for '127.0.0.1'" in verdict.message


def test_a_client_certificate_is_shown_when_asked_for(serve: Serve, certificates: Path) -> None:
    client = {"client_certificate": "client.pem", "client_key": "client.key"}
    url = serve(ask="ca")
    assert send(url, certificates, certificate="ca.pem", **client) == Verdict("delivered")
    assert send(url, certificates, certificate="ca.pem").outcome == "retry"


def test_a_client_certificate_that_the_server_does_not_know_is_no_success(serve: Serve, certificates: Path) -> None:
    client = {"client_certificate": "client.pem", "client_key": "client.key"}
    verdict = send(serve(ask="another-ca"), certificates, certificate="ca.pem", **client)
    assert verdict.outcome == "retry"
    assert verdict.message != ""


def test_a_server_without_tls_is_told(certificates: Path) -> None:
    with Https(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        verdict = send(f"https://127.0.0.1:{server.server_port}/v1/metrics", certificates, certificate="ca.pem")
        server.shutdown()
    assert verdict.outcome == "retry"
    assert "SSL" in verdict.message


@pytest.mark.parametrize(
    ("certificate", "client_certificate", "client_key"),
    [
        ("absent.pem", None, None),
        ("noise.pem", None, None),
        ("ca.pem", "absent.pem", "client.key"),
        ("ca.pem", "client.pem", "absent.key"),
        ("ca.pem", "client.pem", "server.key"),
        ("ca.pem", "noise.pem", "client.key"),
        (None, "client.pem", "encrypted.key"),
    ],
)
def test_files_that_cannot_be_used_are_named(
    certificates: Path, certificate: str | None, client_certificate: str | None, client_key: str | None
) -> None:
    names = (certificate, client_certificate, client_key)
    paths: list[Any] = [str(certificates / name) if name else None for name in names]
    with pytest.raises(ConfigError) as raised:
        tls.context(*paths)
    message = str(raised.value)
    assert all(path in message for path in paths if path)
    assert "check export.certificate" in message
    assert "\n" not in message
    with pytest.raises(ConfigError, match=r"check server\.certificate, server\.client_certificate, server\.client_key"):
        tls.context(paths[0], paths[1], paths[2], "server")


def test_the_key_of_a_client_is_not_asked_for_at_the_terminal(certificates: Path) -> None:
    code = (
        "import pathlib, sys; from otelperf import tls; from otelperf.errors import ConfigError\n"
        "try: tls.context(None, *sys.argv[1:])\n"
        "except ConfigError: print('refused')"
    )
    paths = [str(certificates / name) for name in ("client.pem", "encrypted.key")]
    done = subprocess.run(
        [sys.executable, "-c", code, *paths],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert (done.stdout, done.stderr) == ("refused\n", "")


# Traces


def test_traces_go_by_files_of_their_own(serve: Serve, certificates: Path) -> None:
    url = serve().replace("/v1/metrics", "/v1/traces")
    settings = config.load({"traces.endpoint": url, "traces.certificate": str(certificates / "ca.pem")})
    transport = make_transport(settings, TRACES)
    assert transport.send(b"body", 10) == Verdict("delivered")
    transport.close()


def test_a_file_for_traces_that_cannot_be_used_is_named(certificates: Path) -> None:
    values = {"traces.endpoint": "https://c/v1/traces", "traces.certificate": str(certificates / "nowhere.pem")}
    with pytest.raises(ConfigError, match=r"nowhere\.pem.*check traces\.certificate"):
        make_transport(config.load(values), TRACES)


# Servers that are read


def server_at(url: str, folder: Path, **files: str) -> Server:
    paths = {f"server.{key}": str(folder / name) for key, name in files.items()}
    base = url.replace("/v1/metrics", "/base")
    (server,) = make_servers(config.load({"server.url": base, "server.engine": "vllm", **paths}, {}, None))
    return server


def told(server: Server) -> tuple[float, str]:
    """Return whether it is up, and what is said to be wrong."""
    with closing(server):
        try:
            readings, said = server.read(1_800_000_000_000_000_000), ""
        except SourceError as error:
            readings, said = list(error.readings), str(error)
    (up,) = (reading.value for reading in readings if reading.name == "otelperf.server.up")
    assert isinstance(up, int)
    return up, said


def test_a_server_is_read_by_https_and_trusted_by_its_ca_alone(serve: Serve, certificates: Path) -> None:
    up, said = told(server_at(serve(), certificates, certificate="ca.pem"))
    assert (up, "certificate" in said) == (1, False)
    for files in ({"certificate": "another-ca.pem"}, {}):
        up, said = told(server_at(serve(), certificates, **files))
        assert (up, "certificate verify failed" in said) == (0, True)


def test_a_servers_certificate_may_be_for_a_name_that_is_told(serve: Serve, certificates: Path) -> None:
    url = serve("elsewhere")

    def asked(name: str | None = None) -> tuple[float, str]:
        files = {"server.certificate": str(certificates / "ca.pem"), "server.engine": "vllm"}
        given = {"server.url": url.replace("/v1/metrics", "/base"), **files}
        given |= {"server.tls_server_name": name} if name else {}
        (server,) = make_servers(config.load(given, {}, None))
        return told(server)

    assert asked("elsewhere")[0] == 1
    for name in (None, "another"):
        up, said = asked(name)
        assert (up, "not valid for" in said) == (0, True)


def test_a_server_is_shown_the_client_certificate(serve: Serve, certificates: Path) -> None:
    url = serve(ask="ca")
    client = {"client_certificate": "client.pem", "client_key": "client.key"}
    assert told(server_at(url, certificates, certificate="ca.pem", **client))[0] == 1
    assert told(server_at(url, certificates, certificate="ca.pem"))[0] == 0


def test_files_for_servers_that_cannot_be_used_are_told_at_the_start(serve: Serve, certificates: Path) -> None:
    with pytest.raises(ConfigError, match=r"check server\.certificate, server\.client_certificate, server\.client_key"):
        server_at(serve(), certificates, certificate="noise.pem")


def test_a_kept_connection_by_https_is_used_again(serve: Serve, certificates: Path) -> None:
    context = tls.context(str(certificates / "ca.pem"), None, None)
    with closing(Connection(serve(), context)) as connection:
        for _ in range(3):
            assert connection.request("GET", "/base/metrics", timeout=10, limit=1000).status == 200


def test_a_server_that_only_an_annotation_puts_behind_https_is_found_where_openssl_was_left_out(
    serve: Serve, certificates: Path, tmp_path: Path
) -> None:
    url = serve("elsewhere")
    port = urlsplit(url).port
    annotations = tmp_path / "annotations"
    annotations.write_text(f'otelperf/server.url="https://127.0.0.1:{port}/base"\n')
    code = (
        "import sys, otelperf.cli as cli; cli._leave_openssl_out()\n"
        "from otelperf import config; from otelperf.agent import make_finder\n"
        "import http.client; assert not hasattr(http.client, 'HTTPSConnection')\n"
        "finder = make_finder(config.load(dict(each.split('=', 1) for each in sys.argv[1:]), {}, None))\n"
        "assert 'ssl' not in sys.modules\n"
        "finder.read(0); (server,) = finder.found\n"
        "print(server.url, server.engine.name)\n"
    )
    files = [f"server.annotations={annotations}", f"server.certificate={certificates / 'ca.pem'}"]
    given = [*files, "server.tls_server_name=elsewhere", "server.ports=1"]
    done = subprocess.run([sys.executable, "-c", code, *given], capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr) == (f"https://127.0.0.1:{port}/base vllm\n", "")


# gRPC


@pytest.fixture
def grpc_url(certificates: Path) -> Iterator[str]:
    """Start a gRPC server that asks for a certificate of ca.pem."""

    class Everything(grpc.GenericRpcHandler):
        def service(self, handler_call_details: object) -> grpc.RpcMethodHandler[bytes, bytes]:
            return grpc.unary_unary_rpc_method_handler(lambda _body, _context: b"")

    key, certificate, ca = ((certificates / name).read_bytes() for name in ("server.key", "server.pem", "ca.pem"))
    server = grpc.server(ThreadPoolExecutor(1), handlers=[Everything()])
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(key, certificate)], ca, True))
    server.start()
    yield f"https://127.0.0.1:{port}"
    server.stop(0).wait(10)


def test_grpc_uses_the_same_files(grpc_url: str, certificates: Path) -> None:
    client = {"client_certificate": "client.pem", "client_key": "client.key"}
    assert send(grpc_url, certificates, certificate="ca.pem", **client) == Verdict("delivered")


def test_grpc_does_not_trust_another_ca_and_says_why(grpc_url: str, certificates: Path) -> None:
    verdict = send(grpc_url, certificates, certificate="another-ca.pem")
    assert verdict.outcome == "retry"
    assert "CERTIFICATE_VERIFY_FAILED" in verdict.message
