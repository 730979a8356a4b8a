"""Which libraries are instrumented by themselves, and when: as soon as the program has imported one, and never before.

A hook in front of ``sys.meta_path`` waits for the module; nothing is imported for its sake. Where OpenTelemetry has an
instrumentation of a library, it is taken rather than written anew.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from otelperf.errors import ConfigError, OtelperfError
from otelperf.logs import Log

if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec
    from types import ModuleType

    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import TracerProvider

    from otelperf.config import Settings

_log = Log("otelperf.libraries")

_STABLE = "OTEL_SEMCONV_STABILITY_OPT_IN"
_CONTENT = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"  # looked at in each call
_LEAVE_OUT = "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS"  # the OpenTelemetry agents' own variable: names, or * for all


class Instrumentor(Protocol):
    """What OpenTelemetry's instrumentation packages have, and so ours."""

    def instrument(self, *, tracer_provider: TracerProvider | None, meter_provider: MeterProvider | None) -> None: ...
    def uninstrument(self) -> None: ...


class Library(NamedTuple):
    """A library: *load* is called, for what instruments it, once *module* has been imported. *what* is for the docs."""

    name: str
    module: str
    load: Callable[[], Instrumentor]
    what: str


class LibraryMissing(OtelperfError):
    """A package that instruments the library is not installed."""


def from_package(name: str, package: str) -> Callable[[], Instrumentor]:
    """Take what *package* registers as *name* among OpenTelemetry's instrumentations."""

    def load() -> Instrumentor:
        from importlib.metadata import entry_points

        for entry in entry_points(group="opentelemetry_instrumentor", name=name):
            instrumentor: Instrumentor = entry.load()()
            return instrumentor
        raise LibraryMissing(f"pip install {package}")

    return load


def own(name: str) -> Callable[[], Instrumentor]:
    """Take our own module of that name in ``otelperf.instrumentations``, with its functions as methods."""

    def load() -> Instrumentor:
        from importlib import import_module

        module: Any = import_module(f"otelperf.instrumentations.{name}")
        return module  # type: ignore[no-any-return] # its functions are the protocol's

    return load


_HTTPX = "opentelemetry-instrumentation-httpx"
_REQUESTS = "opentelemetry-instrumentation-requests"
_OPENAI = "opentelemetry-instrumentation-genai-openai"
_ANTHROPIC = "opentelemetry-instrumentation-genai-anthropic"
_CLIENT = "`http.client.request.duration` and spans, by"
_SERVER = "`http.server.*` and spans of the requests that are answered"
_MODEL = "`gen_ai.client.*` and spans"

LIBRARIES: tuple[Library, ...] = (
    Library(
        "openai",
        "openai",
        from_package("openai", _OPENAI),
        f"{_MODEL} of chats, responses and embeddings, also of other servers with OpenAI's API, by `{_OPENAI}`",
    ),
    Library(
        "anthropic", "anthropic", from_package("anthropic", _ANTHROPIC), f"{_MODEL} of messages, by `{_ANTHROPIC}`"
    ),
    Library("vllm", "vllm.entrypoints.llm", own("vllm"), f"{_MODEL} of `LLM.generate` and `LLM.chat`"),
    Library(
        "vllm-engine",
        "vllm.v1.engine.async_llm",
        own("vllm_engine"),
        f"{_MODEL} of `AsyncLLM.generate`, so of vLLM's own server, too",
    ),
    Library("transformers", "transformers.generation.utils", own("transformers"), f"{_MODEL} of `model.generate`"),
    Library(
        "llama-cpp-python",
        "llama_cpp.llama",
        own("llama_cpp"),
        f"{_MODEL} of `Llama.create_completion` and `.create_chat_completion`",
    ),
    Library("fastapi", "fastapi.applications", own("fastapi"), _SERVER),
    Library("starlette", "starlette.applications", own("starlette"), _SERVER),
    Library("flask", "flask.app", own("flask"), _SERVER),
    Library("httpx", "httpx", from_package("httpx", _HTTPX), f"{_CLIENT} `{_HTTPX}`"),
    Library("httpx2", "httpx2", from_package("httpx2", _HTTPX), f"{_CLIENT} `{_HTTPX}`"),
    Library("requests", "requests", from_package("requests", _REQUESTS), f"{_CLIENT} `{_REQUESTS}`"),
)


def chosen(settings: Settings, environ: Mapping[str, str] = os.environ) -> list[Library]:
    """Return the libraries that the settings name; ``all`` and ``none`` are names too. Raises ConfigError."""
    names = settings.instrument.libraries
    known = {library.name: library for library in LIBRARIES}
    unknown = [name for name in names if name not in known and name not in {"all", "none"}]
    if unknown:
        told = f"instrument.libraries is {','.join(names)!r} ({settings.origin('instrument.libraries')})"
        raise ConfigError(f"{told}: expected all, none, or some of {', '.join(known)}")
    out = {name.strip() for name in environ.get(_LEAVE_OUT, "").split(",")}
    wanted = known if "all" in names else {name for name in names if name in known}
    return [library for name, library in known.items() if name in wanted and not out & {name, "*"}]


class Instrumented:
    """The *libraries* that are instrumented, now or when they are imported; ``stop`` undoes it.

    With *content* OpenTelemetry's own instrumentations write prompts and answers on spans.
    """

    def __init__(
        self,
        libraries: Sequence[Library],
        tracer_provider: TracerProvider | None,
        meter_provider: MeterProvider | None,
        *,
        content: bool = False,
    ) -> None:
        self._content = content
        self._here = threading.local()
        self._tracer_provider = tracer_provider
        self._meter_provider = meter_provider
        self._waiting = {library.module: library for library in libraries}
        self._done: list[tuple[Library, Instrumentor]] = []
        self._stopped = False
        self._finder = _Finder(set(self._waiting), self._imported)

    def start(self) -> None:
        """Instrument what is imported already, and wait for the others."""
        if self._content:
            os.environ.setdefault(_CONTENT, "span_only")
        sys.meta_path.insert(0, self._finder)
        for module in list(self._waiting):
            if _is_imported(module):
                self._imported(module)

    def stop(self) -> None:
        """Undo it."""
        self._stopped = True
        if self._finder in sys.meta_path:
            sys.meta_path.remove(self._finder)
        while self._done:
            library, instrumentor = self._done.pop()
            try:
                instrumentor.uninstrument()
            except Exception as error:  # noqa: BLE001 # the application goes on with what is left
                _log.warning("not undone", library=library.name, problem=f"{type(error).__name__}: {error}")

    def _imported(self, module: str) -> None:
        library = self._waiting.pop(module, None)
        if library is None or self._stopped:
            return
        later: list[Library] | None = getattr(self._here, "later", None)
        if later is not None:  # loading one instrumentation has imported another's library, and is not through
            later.append(library)
            return
        later = self._here.later = [library]
        try:
            while later:
                self._instrument(later.pop(0))
        finally:
            self._here.later = None

    def _instrument(self, library: Library) -> None:
        try:
            with _stable_names():
                instrumentor = library.load()
                if getattr(instrumentor, "is_instrumented_by_opentelemetry", False):
                    _log.info("library is left as the program has instrumented it", library=library.name)
                    return
                instrumentor.instrument(tracer_provider=self._tracer_provider, meter_provider=self._meter_provider)
        except LibraryMissing as missing:
            _log.info("library is not instrumented", library=library.name, cure=str(missing))
        except Exception as error:  # noqa: BLE001 # the application's import must not fail for us
            _log.warning(
                "library is not instrumented", library=library.name, problem=f"{type(error).__name__}: {error}"
            )
        else:
            self._done.append((library, instrumentor))
            _log.debug("library is instrumented", library=library.name)


def when_imported(module: str, then: Callable[[], None]) -> None:
    """Call *then* once *module* has been imported, at once if it already is. It cannot be taken back."""
    if _is_imported(module):
        then()
    else:
        sys.meta_path.insert(0, _Finder({module}, lambda _: then()))


def _is_imported(name: str) -> bool:
    module = sys.modules.get(name)
    spec = getattr(module, "__spec__", None)
    return module is not None and not getattr(spec, "_initializing", False)


@contextmanager
def _stable_names() -> Iterator[None]:
    """Have instrumentations use the stable names of ``http.*``, unless the user has chosen: they look while they are loaded."""
    if _STABLE in os.environ:
        yield
        return
    os.environ[_STABLE] = "http"
    try:
        yield
    finally:
        os.environ.pop(_STABLE, None)


class _Finder:
    """Stands before the other finders, lets them find, and has *then* called when one of *modules* has been executed."""

    def __init__(self, modules: set[str], then: Callable[[str], None]) -> None:
        self._modules = modules
        self._then = then
        self._here = threading.local()

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name not in self._modules or getattr(self._here, "busy", False):
            return None
        self._here.busy = True
        try:
            spec = find_spec(name)
        finally:
            self._here.busy = False
        if spec is not None and hasattr(spec.loader, "exec_module"):
            spec.loader = _Loader(spec.loader, lambda: self._then(name))  # type: ignore[assignment] # it is one by __getattr__
        return spec


class _Loader:
    """A loader that says when it is done; in everything else it is the one it stands for."""

    def __init__(self, loader: Any, then: Callable[[], None]) -> None:
        self._loader = loader
        self._then = then

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        module: ModuleType | None = self._loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Execute the module as ever, with its own loader back in place."""
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        self._then()
