"""The directions of docs/architecture.md: who may import whom. A new room is added here on purpose."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parent.parent / "src" / "otelperf"

# What a room may import of ours besides itself; None is anything.
ALLOWED: dict[str, set[str] | None] = {
    "errors": {"readings"},  # for annotations only
    "readings": set(),
    "logs": set(),
    "gate": set(),
    "catalog": {"gate"},
    "connection": {"errors"},
    "sources": {"errors", "logs", "readings", "connection"},  # logs: of what an application hands in
    "sampler": {"errors", "readings", "logs"},
    "integrals": {"catalog", "readings"},
    "points": {"catalog", "readings"},
    "native_rules": {"catalog", "gate", "sources"},
    "prometheus_text": set(),
    "backends": set(),
    "config": {"backends", "catalog", "config_maps", "config_rules", "config_values", "errors", "gate"},
    "config_maps": {"catalog", "config_values"},
    "config_rules": {"catalog", "config_values", "gate"},
    "config_values": set(),
    "tls": {"errors"},
    "export": {"gate", "connection", "logs"},
    "otlp_grpc": {"config", "connection", "errors", "export", "logs"},
    "resource": {"config", "sources"},
    "transitions": {"catalog", "gate", "logs", "readings"},
    "own": {"catalog", "readings", "export", "gate"},
    "console": {"gate", "logs", "transitions"},
    "endpoint": {"errors", "logs", "prometheus_text"},
    "calls": {"logs", "sources", "telemetry"},
    "instrumentations": {"calls", "logs", "telemetry"},
    "relief": {"logs", "telemetry"},
    "adapters": {"sources"},
    "agent": None,
    "telemetry": {"catalog", "logs"},
    "libraries": {"config", "errors", "logs"},
    "standard_variables": {"config"},
    "tracing": {"config", "errors", "gate", "logs", "sources", "telemetry"},
    "guest": {"agent", "config", "errors", "gate", "logs", "readings", "resource", "sources", "tracing"},
    "inprocess": {
        "config",
        "errors",
        "guest",
        "libraries",
        "lifecycle",
        "logs",
        "standard_variables",
        "telemetry",
        "tracing",
    },
    "lifecycle": {"libraries"},
    "run_command": {"config", "errors", "libraries"},
    "startup": {"inprocess"},
    "doctor": None,
    "savings": {"catalog", "config_values", "connection", "doctor", "errors", "gate", "prometheus_text", "tls"},
    "cli": None,
    "__init__": None,
    "__main__": None,
}


def room(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Return the rooms of ours that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        found |= {name.split(".")[1] for name in names if name.startswith("otelperf.")}
    return {name for name in found if (SOURCE / name).is_dir() or (SOURCE / f"{name}.py").is_file()}


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda p: str(p.relative_to(SOURCE)))
def test_a_file_imports_only_what_its_room_may(path: Path) -> None:
    here = room(path)
    assert here in ALLOWED, f"{here} is a new room: say in ALLOWED and in docs/architecture.md what it may import"
    allowed = ALLOWED[here]
    if allowed is not None:
        assert imported(path) - {here} <= allowed


def test_every_room_is_named_in_the_architecture_page() -> None:
    page = (SOURCE.parent.parent / "docs" / "architecture.md").read_text()
    rooms = {room(path) for path in SOURCE.rglob("*.py")} - {"__init__", "__main__"}
    assert {name for name in rooms if f"`{name}" not in page} == set()


def loaded_by(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    return set(done.stdout.split())


def test_the_resident_process_loads_nothing_heavy() -> None:
    loaded = loaded_by("import otelperf.cli, otelperf.agent")
    # psutil is no dependency on Linux; where it is installed all the same, the SDK itself imports it.
    heavy = {"grpc", "requests", "rich", "pynvml", "yaml", "asyncio", "pydantic", "numpy"}
    assert loaded & heavy == set()


def test_the_agent_command_leaves_openssl_out_unless_https_is_spoken() -> None:
    code = "import otelperf.cli as cli; cli._leave_openssl_out(); import otelperf.agent, http.server"
    assert {"ssl", "_ssl", "_hashlib"} & loaded_by(code) == set()


def test_the_gate_alone_loads_nothing_of_ours() -> None:
    loaded = loaded_by("import otelperf.gate.metrics")
    ours = {name for name in loaded if name.startswith("otelperf.") and not name.startswith("otelperf.gate")}
    assert ours == set()
