"""The command line as its users meet it, and what importing the package costs."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import otelperf
from otelperf import cli, config
from otelperf.errors import OtelperfError

SOURCE = Path(__file__).parent.parent / "src"


@pytest.fixture(autouse=True)
def _empty_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("OTEL_", "OTELPERF_", "KUBERNETES_")):
            monkeypatch.delenv(name)


@pytest.fixture
def agent(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Stand in for the agent and keep the settings that it is run with."""
    seen: list[Any] = []
    module = ModuleType("otelperf.agent")
    module.run = lambda settings: seen.append(settings) or 0  # type: ignore[attr-defined, func-returns-value]
    stand_in(monkeypatch, "agent", module)
    monkeypatch.setattr("otelperf.logs.configure", lambda *_: None)
    return seen


def stand_in(monkeypatch: pytest.MonkeyPatch, name: str, module: ModuleType) -> None:
    monkeypatch.setitem(sys.modules, f"otelperf.{name}", module)
    monkeypatch.setattr(otelperf, name, module, raising=False)


def fail_with(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def run(settings: Any) -> int:
        raise error

    module = ModuleType("otelperf.agent")
    module.run = run  # type: ignore[attr-defined]
    stand_in(monkeypatch, "agent", module)
    monkeypatch.setattr("otelperf.logs.configure", lambda *_: None)


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "PYTHONPATH": str(SOURCE)}
    return subprocess.run(
        [sys.executable, *arguments], env=environ, capture_output=True, text=True, timeout=60, check=False
    )


def test_without_a_command_help_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    shown = capsys.readouterr().out
    assert all(command.name in shown and command.help.split()[0] in shown for command in cli.COMMANDS)


@pytest.mark.parametrize("command", [["agent"], ["doctor"], ["config", "show"]])
def test_help_lists_every_flag(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        cli.main([*command, "--help"])
    shown = capsys.readouterr().out
    assert raised.value.code == 0
    assert [each.flag for each in config.SETTINGS if not each.file_only and f"{each.flag} " not in shown] == []
    assert config.FILE_FLAG in shown


def test_every_default_is_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["agent", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "at most 110s. Default: 50s." in shown


def test_flags_reach_the_agent_as_settings(agent: list[Any]) -> None:
    flags = [
        "--gate-heartbeat",
        "20s",
        "--server-url",
        "http://localhost:1",
        "--server-url=http://localhost:2",
        "--host-enabled",
        "--mode",
        "sidecar",
    ]
    assert cli.main(["agent", *flags]) == 0
    (settings,) = agent
    assert (settings.gate.heartbeat, settings.server.url) == (20.0, ("http://localhost:1", "http://localhost:2"))
    assert settings.host.enabled
    assert settings.origin("server.url") == "--server-url"


def test_the_environment_and_a_file_reach_the_agent(
    agent: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "otelperf.yaml"
    file.write_text("gate: {linger: 1s}")
    monkeypatch.setenv("OTELPERF_GATE_HEARTBEAT", "30s")
    assert cli.main(["agent", "--config", str(file)]) == 0
    assert (agent[0].gate.heartbeat, agent[0].gate.linger) == (30.0, 1.0)


def test_the_doctor_is_told_whether_to_speak_json(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    module = ModuleType("otelperf.doctor")
    module.run = lambda _, json: seen.append(json) or 3  # type: ignore[attr-defined, func-returns-value]
    stand_in(monkeypatch, "doctor", module)
    assert (cli.main(["doctor", "--json"]), cli.main(["doctor"]), seen) == (3, 3, [True, False])


def test_all_wrong_settings_are_told_and_exit_with_2(capsys: pytest.CaptureFixture[str], agent: list[Any]) -> None:
    assert cli.main(["agent", "--gate-hartbeat", "5s", "--gate-linger=x"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "otelperf: --gate-hartbeat is not a setting, did you mean --gate-heartbeat?",
        "otelperf: gate.linger is 'x' (--gate-linger): expected a duration such as 50s, 500ms or 2m",
    ]
    assert agent == []


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["agnet"], "invalid choice: 'agnet'"),
        (["agent", "now"], "unexpected argument now"),
        (["--fast"], "unknown flag --fast"),
        (["config", "schema", "--fast"], "unknown flag --fast"),
        (["agent", "--mode"], "argument --mode: expected one argument (see otelperf agent --help)"),
        (["agent", "--gate-heart", "5s"], "--gate-heart is not a setting, did you mean --gate-heartbeat?"),
        (["agent", "--gate-rules", "5s"], "--gate-rules is not a setting"),
        (["agent", "--endpoint", "a"], "is not a setting, did you mean --export-endpoint or --traces-endpoint?"),
        (["agent", "--gate.heartbeat", "5s"], "--gate.heartbeat is not a setting, did you mean --gate-heartbeat?"),
    ],
)
def test_wrong_usage_is_one_line_and_exits_with_2(
    argv: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line


def test_other_trouble_exits_with_1(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    fail_with(monkeypatch, OtelperfError("port 9464 is taken"))
    assert cli.main(["agent"]) == 1
    assert capsys.readouterr().err == "otelperf: port 9464 is taken\n"


def test_an_interrupt_exits_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    fail_with(monkeypatch, KeyboardInterrupt())
    assert cli.main(["agent"]) == 130


def test_a_reader_that_goes_away_is_no_trouble() -> None:
    script = f"{sys.executable} -m otelperf config schema | head -c 1"
    environ = {**os.environ, "PYTHONPATH": str(SOURCE)}
    done = subprocess.run(["bash", "-c", script], env=environ, capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr) == ("{", "")


def test_config_show_aligns_value_and_origin(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["config", "show", "--gate-heartbeat", "20s", "--export-headers", "a=s3cret"]) == 0
    shown = capsys.readouterr().out
    lines = shown.splitlines()
    assert len(lines) == len(config.SETTINGS) + 1
    column = lines[0].index("ORIGIN")
    assert all(line[column - 1] == " " and line[column] != " " for line in lines[1:])
    assert "s3cret" not in shown


def test_config_show_speaks_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["config", "show", "--json", "--gate-heartbeat", "20s"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["gate.heartbeat"] == {"value": "20s", "origin": "--gate-heartbeat"}
    assert shown["host.enabled"]["value"] is True


def test_config_schema_prints_the_schema(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["config", "schema"]) == 0
    assert json.loads(capsys.readouterr().out) == config.schema()


def test_the_version_is_printed() -> None:
    done = python("-m", "otelperf", "--version")
    assert (done.returncode, done.stdout) == (0, f"otelperf {otelperf.__version__}\n")


def test_a_closed_standard_error_does_not_change_the_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = io.StringIO()
    gone.close()
    monkeypatch.setattr(sys, "stderr", gone)
    assert cli.main(["agent", "--mode", "x"]) == 2


# Imports


def test_importing_the_package_and_the_settings_loads_nothing_heavy() -> None:
    script = "import sys, otelperf.config, otelperf.cli, otelperf.logs; otelperf.config.load(); print(*sys.modules)"
    loaded = {name.partition(".")[0] for name in python("-c", script).stdout.split()}
    assert "otelperf" in loaded
    assert not loaded & {
        "opentelemetry",
        "yaml",
        "difflib",
        "psutil",
        "requests",
        "grpc",
        "rich",
        "msgspec",
        "pydantic",
    }


def test_importing_the_package_alone_loads_none_of_its_modules() -> None:
    script = "import sys, otelperf; print(*(name for name in sys.modules if name.startswith('otelperf')))"
    assert python("-c", script).stdout.split() == ["otelperf"]


def test_every_public_name_can_be_had() -> None:
    assert {name for name in otelperf.__all__ if getattr(otelperf, name, None) is None} == set()
    assert set(otelperf.__all__) <= set(dir(otelperf))


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'otelperf' has no attribute 'Nonsense'"):
        _ = otelperf.Nonsense  # type: ignore[attr-defined]


@pytest.mark.parametrize("command", [["config", "show"], ["config", "schema"], ["--help"]])
@pytest.mark.parametrize("output", [">&-", ">/dev/full"])
def test_a_standard_output_that_takes_nothing_gives_no_traceback(command: list[str], output: str) -> None:
    line = f"{sys.executable} -m otelperf {' '.join(command)} {output}"
    done = subprocess.run(["/bin/sh", "-c", line], check=False, capture_output=True, text=True)
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


def test_the_console_agent_ends_when_nobody_reads_any_more() -> None:
    line = f"OTELPERF_ENDPOINT_PORT=0 OTEL_METRICS_EXPORTER=console {sys.executable} -m otelperf agent | head -3"
    done = subprocess.run(["/bin/sh", "-c", line], check=False, capture_output=True, text=True, timeout=60)
    assert len(done.stdout.splitlines()) == 3
    assert "Traceback" not in done.stderr
