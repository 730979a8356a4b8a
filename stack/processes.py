"""Start the real programs on free loopback ports, stop them, and ask Prometheus what it stored."""

from __future__ import annotations

import atexit
import http
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from stack.parts import ROOT, part

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

HOST = "127.0.0.1"
COLLECTOR_CONFIGS = ROOT / "collector-config"
PROMETHEUS_CONFIGS = ROOT / "prometheus"
NATIVE_HISTOGRAMS = "convert_histograms_to_nhcb: true"  # stands in prometheus.yaml behind a "# "
READY_TIMEOUT_SECONDS = 60.0
VLLM_READY_SECONDS = 900.0  # two engines on two busy cores took eight minutes
TINY_TRITON = ROOT / "stack" / "tiny_triton.py"
STOP_TIMEOUT_SECONDS = 10.0
HTTP_TIMEOUT_SECONDS = 30.0
POLL_SECONDS = 0.05
LOG_TAIL_LINES = 20
# Below the range from which the system takes the local ports of outgoing connections (32768 on Linux, 49152 on
# macOS): so nothing takes the port of a process between its stop and its restart.
PORTS = range(20_000, 32_000)

_given_ports: set[int] = set()


class ProcessError(Exception):
    """Say that a process did not start, or that a condition did not come true."""


@dataclass
class Process:
    """One program: how it is started, where it listens and logs; ``with`` starts it and stops it.

    A restart uses the same command, and so the same ports and data. The process dies with the thread that started
    it (Linux), so start it from one that lives as long.
    """

    name: str
    command: Sequence[str | Path]
    url: str
    log_path: Path
    ready_url: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    ports: Mapping[str, int] = field(default_factory=dict)
    ready_timeout_seconds: float = READY_TIMEOUT_SECONDS
    _child: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def __enter__(self) -> Self:
        """Start the process and wait until it is ready."""
        return self.start()

    def __exit__(self, *_exception: object) -> None:
        """Stop the process."""
        self.stop()

    @property
    def running(self) -> bool:
        """Tell whether the process has been started and has not ended."""
        return self._child is not None and self._child.poll() is None

    @property
    def pid(self) -> int:
        """Return the process id of the running program."""
        if self._child is None:
            msg = f"{self.name} has no process id: it is not started"
            raise ProcessError(msg)
        return self._child.pid

    def start(self) -> Self:
        """Start the program and return once it answers."""
        if self.running:
            msg = f"{self.name} is already running with process id {self.pid}"
            raise ProcessError(msg)
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        with self.log_path.open("ab") as log:
            self._child = subprocess.Popen(
                [*_die_with_parent(), *map(str, self.command)],
                env={**os.environ, **self.environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # A group of its own: Ctrl-C reaches us alone, and we stop the processes in our order.
                process_group=0,
            )
        atexit.register(self.kill)
        self._wait_until_ready()
        return self

    def stop(self, timeout_seconds: float = STOP_TIMEOUT_SECONDS) -> None:
        """Ask the program to end, and kill it where it has not within *timeout_seconds*."""
        if self._child is not None and self.running:
            self._child.terminate()
            try:
                self._child.wait(timeout_seconds)
            except subprocess.TimeoutExpired:
                self._kill_group(self._child)
        self._forget()

    def kill(self) -> None:
        """End the program with SIGKILL, as a crash would."""
        if self._child is not None and self.running:
            self._kill_group(self._child)
        self._forget()

    def log_tail(self) -> str:
        """Return the last lines of the log."""
        return "\n".join(self.log_path.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:])

    def _kill_group(self, child: subprocess.Popen[bytes]) -> None:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()

    def _forget(self) -> None:
        atexit.unregister(self.kill)
        self._child = None

    def _wait_until_ready(self) -> None:
        try:
            wait_until(self._ready, self.ready_timeout_seconds, f"{self.name} did not become ready")
        except ProcessError as error:
            msg = f"{error}; the end of {self.log_path}:\n{self.log_tail()}"
            self.kill()
            raise ProcessError(msg) from None

    def _ready(self) -> bool:
        if self._child is not None and self._child.poll() is not None:
            msg = f"{self.name} ended at once with status {self._child.returncode}"
            raise ProcessError(msg)
        return self.ready_url is None or answers(self.ready_url)


def _die_with_parent() -> list[str]:
    """Return the command prefix that ends a child when we die without a chance to (Linux; else nothing)."""
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "KILL"] if setpriv else []


def collector(
    prometheus_url: str,
    folder: Path,
    *,
    configs: Sequence[str] = ("gateway.yaml",),
    environment: Mapping[str, str] | None = None,
    traces_url: str | None = None,
    gateway_url: str | None = None,
) -> Process:
    """Return our Collector between agents and the Prometheus at *prometheus_url*; its queue lies in *folder*."""
    ports = {name: free_port() for name in ("http", "grpc", "health", "telemetry")}
    settings = {f"OTELPERF_COLLECTOR_{name.upper()}_PORT": str(port) for name, port in ports.items()}
    settings |= {
        "OTELPERF_COLLECTOR_STORAGE": str(folder / "storage"),
        "OTELPERF_COLLECTOR_PROMETHEUS_ENDPOINT": f"{prometheus_url}/api/v1/otlp",
        "OTELPERF_COLLECTOR_REMOTE_WRITE_ENDPOINT": f"{prometheus_url}/api/v1/write",
    }
    if traces_url is not None:
        settings["OTELPERF_COLLECTOR_TRACES_EXPORTER"] = "otlp_http/tempo"
        settings["OTELPERF_COLLECTOR_TEMPO_ENDPOINT"] = traces_url
    if gateway_url is not None:
        settings["OTELPERF_COLLECTOR_GATEWAY_ENDPOINT"] = gateway_url
    config_flags = [flag for name in configs for flag in ("--config", str(COLLECTOR_CONFIGS / name))]
    return Process(
        name="collector",
        command=[part("collector"), *config_flags],
        url=f"http://{HOST}:{ports['http']}",
        ready_url=f"http://{HOST}:{ports['health']}/",
        log_path=folder / "collector.log",
        environment=settings | dict(environment or {}),
        ports=ports,
    )


def prometheus(
    folder: Path,
    *,
    flags: Sequence[str] = (),
    alertmanager_url: str | None = None,
    collector_telemetry_port: int | None = None,
    native_histograms: bool = False,
) -> Process:
    """Return a Prometheus with the shipped configuration; its data lies in *folder*.

    *native_histograms* takes the "# " away from the configuration's ``convert_histograms_to_nhcb``.
    """
    port = free_port()
    config = folder / "prometheus.yaml"
    folder.mkdir(parents=True, exist_ok=True)
    text = _prometheus_config(port, alertmanager_url, collector_telemetry_port)
    if native_histograms:
        text = text.replace(f"# {NATIVE_HISTOGRAMS}", NATIVE_HISTOGRAMS)
    config.write_text(text)
    command: list[str | Path] = [
        part("prometheus"),
        f"--config.file={config}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={HOST}:{port}",
        "--web.enable-otlp-receiver",
        "--web.enable-remote-write-receiver",
        "--web.enable-lifecycle",
        "--enable-feature=exemplar-storage",
        *flags,
    ]
    url = f"http://{HOST}:{port}"
    return Process("prometheus", command, url, folder / "prometheus.log", f"{url}/-/ready")


def _prometheus_config(port: int, alertmanager_url: str | None, collector_telemetry_port: int | None) -> str:
    """Return the shipped configuration with the addresses of this run."""
    text = (PROMETHEUS_CONFIGS / "prometheus.yaml").read_text()
    addresses = {
        "127.0.0.1:9090": f"{HOST}:{port}",
        "127.0.0.1:9093": urllib.parse.urlsplit(alertmanager_url or "").netloc,
        "127.0.0.1:8888": f"{HOST}:{collector_telemetry_port}" if collector_telemetry_port else "",
        "rules/*.yaml": str(PROMETHEUS_CONFIGS / "rules" / "*.yaml"),
    }
    for shipped, ours in addresses.items():
        text = text.replace(shipped, ours)
    return text


def alertmanager(folder: Path, *, config: Path = PROMETHEUS_CONFIGS / "alertmanager.yaml") -> Process:
    """Return an Alertmanager with the shipped configuration, alone (no cluster)."""
    port = free_port()
    command: list[str | Path] = [
        part("alertmanager"),
        f"--config.file={config}",
        f"--storage.path={folder / 'data'}",
        f"--web.listen-address={HOST}:{port}",
        "--cluster.listen-address=",
    ]
    url = f"http://{HOST}:{port}"
    return Process("alertmanager", command, url, folder / "alertmanager.log", f"{url}/-/ready")


def llama_server(folder: Path, *, model: Path | None = None, slots: int = 4, flags: Sequence[str] = ()) -> Process:
    """Return llama.cpp's server with *slots* parallel slots, by default with the tiny model."""
    program = part("llama-server")
    model = model or part("tiny-model")
    port = free_port()
    command: list[str | Path] = [program, "--model", model, "--alias", model.stem, "--host", HOST, "--port", str(port)]
    command += ["--metrics", "--slots", "-np", str(slots), "--threads", "1", "--no-webui", *flags]
    return Process(
        name="llama-server",
        command=command,
        url=f"http://{HOST}:{port}",
        log_path=folder / "llama-server.log",
        ready_url=f"http://{HOST}:{port}/health",
        environment={"LD_LIBRARY_PATH": str(program.parent)},
    )


def vllm(folder: Path, *, flags: Sequence[str] = (), engines: int = 1) -> Process:
    """Return a vLLM on the CPU with the tiny model, which it calls ``model``; *engines* in parallel (2 GB of memory each)."""
    program = part("vllm")
    port = free_port()
    command: list[str | Path] = [program, "-m", "vllm.entrypoints.cli.main", "serve", program.parent.parent / "model"]
    command += ["--served-model-name", "model", "--host", HOST, "--port", str(port), "--enforce-eager"]
    command += ["--max-model-len", "1024", *flags]
    environment = {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    # One thread an engine: the usual one a core leaves none for whoever asks.
    environment |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
    if engines > 1:
        command += ["--data-parallel-size", str(engines)]
    url = f"http://{HOST}:{port}"
    return Process(
        "vllm",
        command,
        url,
        folder / "vllm.log",
        f"{url}/health",
        environment,
        ready_timeout_seconds=VLLM_READY_SECONDS,
    )


def triton(folder: Path, *, load_seconds: float = 0.0) -> Process:
    """Return a Triton with the model of tiny_triton.py, which loads for *load_seconds* after Triton answers.

    Its metrics are on the port ``metrics``.
    """
    ports = {"http": free_port(), "metrics": free_port()}
    command: list[str | Path] = [part("triton"), TINY_TRITON]
    command += [str(ports["http"]), str(ports["metrics"]), str(load_seconds)]
    url = f"http://{HOST}:{ports['http']}"
    return Process("triton", command, url, folder / "triton.log", f"{url}/v2/health/live", ports=ports)


def free_port() -> int:
    """Return a loopback TCP port that nobody listens on, another one each time."""
    for port in random.sample(PORTS, len(PORTS)):
        with socket.socket() as probe:
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
        if port not in _given_ports:
            _given_ports.add(port)
            return port
    msg = f"no free port on {HOST} from {PORTS.start} to {PORTS.stop - 1}: stop what listens there"
    raise ProcessError(msg)


def wait_until(condition: Callable[[], bool], timeout_seconds: float, message: str) -> None:
    """Return once *condition* is true; raise with *message* when it is not within *timeout_seconds*."""
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        if time.monotonic() > deadline:
            msg = f"{message} within {timeout_seconds:g} s"
            raise ProcessError(msg)
        time.sleep(POLL_SECONDS)


def answers(url: str) -> bool:
    """Tell whether *url* answers and is not merely starting up (5xx)."""
    try:
        with urllib.request.urlopen(url, timeout=HTTP_TIMEOUT_SECONDS):
            return True
    except urllib.error.HTTPError as error:
        return error.code < http.HTTPStatus.INTERNAL_SERVER_ERROR
    except OSError:
        return False


def query(prometheus_url: str, promql: str, time: float | None = None) -> list[dict[str, Any]]:
    """Return the series of an instant query, now or at *time* (Unix seconds)."""
    parameters = {"query": promql} | ({} if time is None else {"time": repr(time)})
    return _api(prometheus_url, "query", parameters)


def series_samples(
    prometheus_url: str, selector: str, time: float | None = None
) -> list[tuple[dict[str, str], list[tuple[float, float]]]]:
    """Return labels and stored (time, value) samples of each series of a range selector such as ``up[5m]``.

    Stale marks are not among them: Prometheus leaves them out of a range.
    """
    return [
        (series["metric"], [(when, float(value)) for when, value in series["values"]])
        for series in query(prometheus_url, selector, time)
    ]


def _api(prometheus_url: str, path: str, parameters: Mapping[str, str]) -> list[dict[str, Any]]:
    url = f"{prometheus_url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
    try:
        with urllib.request.urlopen(url, timeout=HTTP_TIMEOUT_SECONDS) as response:
            body = json.load(response)
    except urllib.error.HTTPError as error:
        msg = f"Prometheus refused {dict(parameters)}: {error.read().decode(errors='replace')}"
        raise ProcessError(msg) from error
    result: list[dict[str, Any]] = body["data"]["result"]
    return result
