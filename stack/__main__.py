"""Run the whole stack on this machine: ``python -m stack [--remote-write] [--folder FOLDER]``.

Prometheus, Alertmanager, the Collector, a llama.cpp server with a tiny model under light load, and the agent beside
it. Parts that are absent are built first, which takes up to an hour the first time on two cores.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import sys
import tempfile
import threading
import time
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import NoReturn

from stack import parts, processes

STARTED = ("collector", "prometheus", "alertmanager", "llama-server", "tiny-model")
LOAD_PAUSE_SECONDS = (0.2, 1.5)
LOAD_PROMPT_BYTES = (8, 600)
LOAD_ANSWER_TOKENS = (8, 256)
LOAD_TIMEOUT_SECONDS = 30.0
WATCH_SECONDS = 1.0


def main() -> int:
    """Build what is absent, start everything, wait for Ctrl-C or SIGTERM, stop everything."""
    options = _options()
    if parts.main(STARTED) != 0:
        return 1
    done = threading.Event()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # SIGTERM as Ctrl-C
    with tempfile.TemporaryDirectory(prefix="otelperf-stack-") as scratch, ExitStack() as started:
        try:
            running = _start(started, options.folder or Path(scratch), remote_write=options.remote_write, done=done)
            _print_table(running)
            _watch(running)
        except processes.ProcessError as error:
            print(error, file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("stopping…", flush=True)
            done.set()
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m stack", description="Run the whole stack on this machine.")
    parser.add_argument("--remote-write", action="store_true", help="send metrics by remote write instead of OTLP")
    parser.add_argument("--folder", type=Path, help="keep data and logs here (default: a temporary folder)")
    return parser.parse_args()


def _start(started: ExitStack, folder: Path, *, remote_write: bool, done: threading.Event) -> list[processes.Process]:
    """Start each program after those it sends to; *started* stops them in reverse order."""
    configs = ("gateway.yaml", "remote-write.yaml") if remote_write else ("gateway.yaml",)
    alertmanager = started.enter_context(processes.alertmanager(folder / "alertmanager"))
    telemetry_port = processes.free_port()
    prometheus = started.enter_context(
        processes.prometheus(
            folder / "prometheus", alertmanager_url=alertmanager.url, collector_telemetry_port=telemetry_port
        )
    )
    telemetry = {"OTELPERF_COLLECTOR_TELEMETRY_PORT": str(telemetry_port)}
    collector = started.enter_context(
        processes.collector(prometheus.url, folder / "collector", configs=configs, environment=telemetry)
    )
    llama = started.enter_context(processes.llama_server(folder / "llama-server"))
    agent = started.enter_context(_agent(collector, llama, folder / "agent"))
    threading.Thread(target=_load, args=(llama.url, done), daemon=True).start()
    return [prometheus, alertmanager, collector, llama, agent]


def _agent(collector: processes.Process, server: processes.Process, folder: Path) -> processes.Process:
    """Return the agent that watches *server* and sends to *collector*."""
    port = processes.free_port()
    url = f"http://{processes.HOST}:{port}"
    environment = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
        "OTELPERF_SERVER_URL": server.url,
        "OTELPERF_ENDPOINT_PORT": str(port),
    }
    return processes.Process(
        name="agent",
        command=[sys.executable, "-m", "otelperf", "agent"],
        url=url,
        log_path=folder / "agent.log",
        ready_url=f"{url}/readyz",
        environment=environment,
    )


def _load(server_url: str, done: threading.Event) -> None:
    """Post random prompts one after another, with pauses, until *done*."""
    randomness = random.Random()
    while not done.wait(randomness.uniform(*LOAD_PAUSE_SECONDS)):
        prompt = "".join(randomness.choices("abcdefgh ", k=randomness.randint(*LOAD_PROMPT_BYTES)))
        body = {"prompt": prompt, "n_predict": randomness.randint(*LOAD_ANSWER_TOKENS)}
        request = urllib.request.Request(
            f"{server_url}/completion", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=LOAD_TIMEOUT_SECONDS) as response:
                response.read()
        except OSError as error:  # the server may be down on purpose: keep knocking
            print(f"load: {server_url} did not answer: {error}", file=sys.stderr)


def _print_table(running: list[processes.Process]) -> None:
    for process in running:
        print(f"{process.name:<13} {process.url:<24} pid {process.pid:<8} log {process.log_path}")
    urls = {process.name: process.url for process in running}
    print("Look: " + urls["prometheus"] + "/query?g0.expr=otelperf_server_token_throughput_per_second")
    print(
        f"Ask:  OTEL_EXPORTER_OTLP_ENDPOINT={urls['collector']} otelperf doctor --doctor-prometheus-url {urls['prometheus']}"
    )
    print("Ctrl-C stops all.", flush=True)


def _watch(running: list[processes.Process]) -> NoReturn:
    """Name each program that ends by itself, once, until Ctrl-C."""
    alive = {process.name: process for process in running}
    while True:
        time.sleep(WATCH_SECONDS)
        for name in [name for name, process in alive.items() if not process.running]:
            print(f"{name} has ended; the end of its log:\n{alive.pop(name).log_tail()}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
