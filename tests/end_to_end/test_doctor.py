"""The doctor with a real Collector and a real Prometheus: nothing to complain of, and each misconfiguration named."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from stack import processes
from stack.processes import Process, query, wait_until

pytestmark = pytest.mark.end_to_end

Edit = Callable[[str], str]


def doctor(*arguments: str) -> tuple[int, dict[str, dict[str, Any]]]:
    """Run the command; return its exit code and the findings by name."""
    command = [sys.executable, "-m", "otelperf", "doctor", "--json", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    assert done.stderr == ""
    return done.returncode, {each["name"]: each for each in json.loads(done.stdout)["findings"]}


def ask(endpoint: str, prometheus: Process, *more: str) -> tuple[int, dict[str, dict[str, Any]]]:
    return doctor("--export-endpoint", endpoint, "--doctor-prometheus-url", prometheus.url, *more)


def wrong(findings: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Return the cures of what does not fit, by finding."""
    return {name: each["cure"] for name, each in findings.items() if each["status"] in {"warning", "failed"}}


@contextmanager
def stack_with(folder: Path, edit: Edit = str, without: Sequence[str] = ()) -> Iterator[tuple[Process, Process]]:
    """Start a Prometheus whose configuration is changed by *edit*, and flags left out, and a Collector before it."""
    prometheus = processes.prometheus(folder / "prometheus")
    file = folder / "prometheus" / "prometheus.yaml"
    shipped = file.read_text()
    file.write_text(edit(shipped))
    prometheus.command = [part for part in prometheus.command if part not in without]
    with prometheus, processes.collector(prometheus.url, folder / "collector") as collector:
        yield prometheus, collector


def replaced(old: str, new: str) -> Edit:
    def edit(text: str) -> str:
        assert old in text
        return text.replace(old, new)

    return edit


def without_window(text: str) -> str:
    return replaced("    out_of_order_time_window: 2h", "    {}")(text)


def test_the_shipped_configurations_fit(prometheus: Process, collector: Process) -> None:
    code, findings = ask(f"{collector.url}/v1/metrics", prometheus)
    unusual = {name: each["status"] for name, each in findings.items() if each["status"] != "ok"}
    assert (code, unusual) == (0, {"servers": "skipped"}), findings
    assert "window 2h" in findings["previous_points"]["seen"]
    assert query(prometheus.url, '{otelperf_doctor_run!=""}') == []


def test_grpc_fits_too(prometheus: Process, collector: Process) -> None:
    endpoint = f"http://127.0.0.1:{collector.ports['grpc']}"
    code, findings = ask(endpoint, prometheus, "--export-protocol", "grpc", "--export-compression", "gzip")
    assert (code, wrong(findings)) == (0, {}), findings
    assert findings["endpoint"]["seen"] == f"{endpoint} answers OTLP over gRPC"


def test_prometheus_alone_fits_too(prometheus: Process) -> None:
    code, findings = ask(f"{prometheus.url}/api/v1/otlp/v1/metrics", prometheus)
    assert (code, wrong(findings)) == (0, {}), findings


def test_remote_write_lacks_only_the_promoted_attributes(prometheus: Process, tmp_path: Path) -> None:
    configs = ("gateway.yaml", "remote-write.yaml")
    with processes.collector(prometheus.url, tmp_path / "collector", configs=configs) as collector:
        code, findings = ask(f"{collector.url}/v1/metrics", prometheus)
    assert (code, set(wrong(findings))) == (1, {"promoted_attributes"}), findings
    assert "resource_to_telemetry_conversion" in findings["promoted_attributes"]["cure"]


def test_a_prometheus_without_an_out_of_order_window(tmp_path: Path) -> None:
    with stack_with(tmp_path, without_window) as (prometheus, collector):
        code, findings = ask(f"{collector.url}/v1/metrics", prometheus)
    cure = "set storage.tsdb.out_of_order_time_window: 2h in Prometheus' configuration (now: not set)"
    assert (code, wrong(findings)) == (1, {"previous_points": cure}), findings
    assert "lost whole" in findings["previous_points"]["seen"]


def test_what_prometheus_itself_says_of_an_older_point_is_told(tmp_path: Path) -> None:
    with stack_with(tmp_path, without_window) as (prometheus, _):
        _, findings = ask(f"{prometheus.url}/api/v1/otlp/v1/metrics", prometheus)
    assert "HTTP 400 out of order sample" in findings["previous_points"]["seen"]


def test_a_prometheus_that_does_not_promote(tmp_path: Path) -> None:
    with stack_with(tmp_path, replaced("    - host.name\n", "")) as (prometheus, collector):
        code, findings = ask(f"{collector.url}/v1/metrics", prometheus)
    assert (code, set(wrong(findings))) == (1, {"promoted_attributes"}), findings
    finding = findings["promoted_attributes"]
    assert finding["seen"].startswith("no labels: host.name")
    assert "otlp.promote_resource_attributes" in finding["cure"]
    assert "(now: deployment.environment.name, k8s.cluster.name" in finding["cure"]


@pytest.mark.parametrize(
    ("strategy", "name"),
    [
        ("UnderscoreEscapingWithoutSuffixes", "otelperf_doctor_counter"),
        ("NoUTF8EscapingWithSuffixes", "otelperf.doctor.counter_bytes_total"),
        ("NoTranslation", "otelperf.doctor.counter"),
    ],
)
def test_another_translation_strategy(strategy: str, name: str, tmp_path: Path) -> None:
    with stack_with(tmp_path, replaced("UnderscoreEscapingWithSuffixes", strategy)) as (prometheus, collector):
        code, findings = ask(f"{collector.url}/v1/metrics", prometheus)
    assert (code, set(wrong(findings))) == (1, {"names"}), findings
    assert f"arrived as {name} ({strategy})" in findings["names"]["seen"]
    assert (
        f"otlp.translation_strategy: UnderscoreEscapingWithSuffixes in Prometheus' configuration (now: {strategy})"
        in (findings["names"]["cure"])
    )


def test_a_collector_that_is_down(prometheus: Process, collector: Process) -> None:
    collector.stop()
    code, findings = ask(f"{collector.url}/v1/metrics", prometheus)
    assert (code, set(wrong(findings))) == (1, {"endpoint"})
    assert "refuses connections" in findings["endpoint"]["seen"]
    assert findings["arrival"]["status"] == "skipped"
    code, findings = ask(f"http://127.0.0.1:{collector.ports['grpc']}", prometheus, "--export-protocol", "grpc")
    assert "UNAVAILABLE" in findings["endpoint"]["seen"]


def test_a_wrong_path_and_a_wrong_port(prometheus: Process, collector: Process) -> None:
    _, findings = ask(f"{collector.url}/metrics", prometheus)
    assert "HTTP 404" in findings["endpoint"]["seen"]
    _, findings = ask(f"http://127.0.0.1:{collector.ports['grpc']}/v1/metrics", prometheus)
    assert "set export.protocol to grpc" in findings["endpoint"]["cure"]
    _, findings = ask(collector.url, prometheus, "--export-protocol", "grpc")
    assert findings["endpoint"]["status"] == "failed"


def test_a_prometheus_whose_otlp_receiver_is_off(tmp_path: Path) -> None:
    with stack_with(tmp_path, without=["--web.enable-otlp-receiver"]) as (prometheus, collector):
        code, findings = ask(f"{collector.url}/v1/metrics", prometheus)
        assert (code, wrong(findings)) == (1, {"arrival": "start Prometheus with --web.enable-otlp-receiver"})
        _, findings = ask(f"{prometheus.url}/api/v1/otlp/v1/metrics", prometheus)
        assert wrong(findings) == {"endpoint": "start Prometheus with --web.enable-otlp-receiver"}


def test_a_prometheus_that_is_another_one_than_the_collector_writes_to(
    prometheus: Process, collector: Process, tmp_path: Path
) -> None:
    with processes.prometheus(tmp_path / "other") as other:
        code, findings = ask(f"{collector.url}/v1/metrics", other)
        assert (code, set(wrong(findings))) == (1, {"arrival"})
        assert f"{other.url}/api/v1/otlp" in findings["arrival"]["cure"]
    # What arrived elsewhere was ended all the same.
    assert query(prometheus.url, "count_over_time(otelperf_doctor_gauge[5m])")
    wait_until(lambda: not query(prometheus.url, '{otelperf_doctor_run!=""}'), 60, "the test series did not end")
