"""A real llama-server that is killed, stopped and restarted, as Prometheus comes to know it."""

from __future__ import annotations

import os
import signal

import pytest

from stack.processes import Process, query, wait_until
from tests.end_to_end.conftest import StartAgent

pytestmark = pytest.mark.end_to_end

QUICK = {
    "OTELPERF_GATE_HEARTBEAT": "5s",
    "OTELPERF_GATE_LINGER": "0s",
    "OTELPERF_SERVER_INTERVAL": "1s",
    "OTELPERF_SERVER_TIMEOUT": "500ms",
    "OTELPERF_SERVER_SHARE": "1",  # a server that hangs is asked as often as one that does not
    "OTELPERF_HOST_ENABLED": "false",
}


def states(prometheus: Process) -> set[str]:
    return {s["metric"]["otelperf_server_state"] for s in query(prometheus.url, "otelperf_server_state == 1")}


def wait_for_state(prometheus: Process, state: str) -> None:
    wait_until(lambda: states(prometheus) == {state}, 60, f"the state is not {state} but {states(prometheus)}")


def counts(prometheus: Process, metric: str, attribute: str) -> dict[str, float]:
    return {s["metric"][attribute]: float(s["value"][1]) for s in query(prometheus.url, metric)}


def restarts(prometheus: Process) -> dict[str, float]:
    return counts(prometheus, "otelperf_server_restarts_total", "otelperf_server_restart_changed")


def exits(prometheus: Process) -> dict[str, float]:
    return counts(prometheus, "otelperf_server_exits_total", "otelperf_server_exit_reason")


def test_a_killed_server_is_down_its_last_words_are_told_and_its_successor_has_another_model(
    prometheus: Process, llama: Process, start_agent: StartAgent
) -> None:
    agent = start_agent(**QUICK, OTELPERF_SERVER_URL=llama.url)
    wait_for_state(prometheus, "ready")
    wait_until(lambda: restarts(prometheus) == {"model": 0, "arguments": 0, "none": 0}, 60, "no restarts were told of")
    llama.kill()
    wait_for_state(prometheus, "down")
    wait_until(lambda: exits(prometheus) == {"signal:SIGKILL": 1}, 60, f"exits are {exits(prometheus)}")
    llama.command = [*llama.command, "--alias", "another"]
    llama.start()
    wait_for_state(prometheus, "ready")
    wait_until(lambda: restarts(prometheus)["model"] == 1, 60, f"restarts are {restarts(prometheus)}")
    started = counts(prometheus, "otelperf_server_startup_duration_seconds", "otelperf_server_startup_phase")
    assert 0 < started["process_to_ready"] < 60
    log = agent.log_path.read_text()
    assert "model=another model_before=tiny" in log

    llama.stop()
    wait_until(lambda: exits(prometheus).get("exit:0") == 1, 60, f"exits are {exits(prometheus)}")
    llama.command = [*llama.command, "--threads", "2"]
    llama.start()
    wait_until(lambda: restarts(prometheus)["arguments"] == 1, 60, f"restarts are {restarts(prometheus)}")
    assert restarts(prometheus) == {"model": 1, "arguments": 1, "none": 0}
    assert "--threads" not in agent.log_path.read_text()


def test_a_stopped_server_is_unresponsive_and_ready_when_it_goes_on(
    prometheus: Process, llama: Process, start_agent: StartAgent
) -> None:
    start_agent(**QUICK, OTELPERF_SERVER_URL=llama.url)
    wait_for_state(prometheus, "ready")
    os.kill(llama.pid, signal.SIGSTOP)
    try:
        wait_for_state(prometheus, "unresponsive")
    finally:
        os.kill(llama.pid, signal.SIGCONT)
    wait_for_state(prometheus, "ready")
    assert exits(prometheus) == {}
    assert sum(restarts(prometheus).values()) == 0
