"""Who the values belong to: one resource for the host, one for the agent, one for each server.

``service.instance.id`` is a UUIDv5 of pod (or host), container and source, so that an agent that is restarted goes on with
the same series instead of doubling them for five minutes.
"""

from __future__ import annotations

import os
import platform
import socket
import sys
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opentelemetry.sdk.resources import Resource

if TYPE_CHECKING:
    from otelperf.config import Settings
    from otelperf.sources.engines.server import Server

_NAMESPACE = uuid.UUID("8f1f7f0e-6a55-5c0e-9a4b-3f7f3d0a9b51")  # ours, made once
_ONE_PROCESS = ("service.name", "service.instance.id", "service.version", "k8s.container.name")
_UNKNOWN = "unknown_service"  # the name that OpenTelemetry gives to what has none
_POD_NAMESPACE = "var/run/secrets/kubernetes.io/serviceaccount/namespace"


def _uuid5(name: str) -> str:
    """Return uuid.uuid5 by CPython's own SHA-1: hashlib would load OpenSSL, 3 MiB for one hash (``random`` does the same)."""
    try:
        from _sha1 import sha1  # type: ignore[import-not-found] # CPython has it, the type stubs do not
    except ImportError:
        return str(uuid.uuid5(_NAMESPACE, name))
    return str(uuid.UUID(bytes=sha1(_NAMESPACE.bytes + name.encode()).digest()[:16], version=5))


def resources(
    settings: Settings, version: str, servers: tuple[Server, ...], environ: Mapping[str, str]
) -> dict[str, Resource]:
    """Return the resource of each entity: ``host``, ``agent``, and each server by its name."""
    place = _Place(settings, environ)
    user = dict(settings.resource.attributes)
    # CONTAINER_NAME means something else outside Kubernetes.
    container = (settings.k8s.container_name if place.pod else None) or user.get("k8s.container.name") or ""
    agent = {
        **place.here,
        **({"k8s.container.name": container} if container else {}),
        "service.name": settings.service.name,
        "service.version": version,
        **place.instance(container, "agent"),
        **({"service.instance.id": user["service.instance.id"]} if "service.instance.id" in user else {}),
    }
    machine = {"service.name": "host", "service.instance.id": _uuid5(f"{_machine(place.host)}//host")}
    return {
        # The host is the same whichever pod looks at it.
        "host": Resource({**place.host, **machine}),
        "agent": Resource(agent),
        **{server.entity: _server(settings, server, place) for server in servers},
    }


def server_resource(settings: Settings, server: Server, environ: Mapping[str, str]) -> Resource:
    """Return the resource of a server that was found, or recognised, later."""
    return _server(settings, server, _Place(settings, environ))


def _server(settings: Settings, server: Server, place: _Place) -> Resource:
    """The instance does not depend on what the server is found to be; until that is known, it is a service by no name."""
    name = settings.server.container
    return Resource(
        {
            **place.here,
            "service.name": settings.server.name or (server.engine.name if server.engine else _UNKNOWN),
            **({"k8s.container.name": name} if name else {}),
            **place.instance(name or "", server.url),
        }
    )


def process_resource(
    settings: Settings,
    environ: Mapping[str, str],
    application: Mapping[str, Any],
    *,
    named: bool = False,
    forked: bool = False,
) -> Resource:
    """Return the resource of the program that we run in.

    What the *application* says of itself in its own providers goes before the environment, but not before a name that was
    given in a call (*named*). The instance is told apart by its process id, and where the container has no name of its own also
    by the namespace of process ids: so no two processes that live at once have one, and process 1 of a pod's container keeps its
    own through restarts. A process that was *forked* cannot have its parent's, whoever gave it.
    """
    place = _Place(settings, environ)
    user = {key: value for key, value in settings.resource.attributes.items() if key in _ONE_PROCESS}
    container = settings.k8s.container_name if place.pod else None
    theirs = {key: value for key, value in application.items() if not (key == "service.name" and _nameless(value))}
    own = f"{_UNKNOWN}:python" if settings.origin("service.name") == "default" else settings.service.name
    name = own if named else str(theirs.get("service.name", own))
    pid = os.getpid()
    where = container or f"{place.host['host.name']}/{_pid_namespace()}"
    instance = place.instance(where, f"{name}/{pid}")
    return Resource(
        {
            **place.here,
            **({"k8s.container.name": container} if container else {}),
            "telemetry.sdk.language": "python",
            "telemetry.sdk.name": "opentelemetry",
            **instance,
            **user,
            **theirs,
            "service.name": name,
            **(instance if forked else {}),
            "process.pid": pid,
            "process.runtime.name": sys.implementation.name,
            "process.runtime.version": platform.python_version(),
        }
    )


def _nameless(name: Any) -> bool:
    return str(name).startswith(_UNKNOWN)


def _pid_namespace() -> str:
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:  # no /proc
        return ""


class _Place:
    """Where the agent runs: attributes of the host, of the pod, and of *here* (both), and what tells this place from others."""

    def __init__(self, settings: Settings, environ: Mapping[str, str]) -> None:
        user = dict(settings.resource.attributes)
        shared = {key: value for key, value in user.items() if key not in _ONE_PROCESS}
        self.host = {**_host(settings.host.root_path), **_node(settings), **shared}
        self.pod = _pod(settings, environ)
        self.here = {**self.host, **self.pod}
        self._where = settings.k8s.pod_uid or _where(self.host, self.pod)

    def instance(self, whose: str, source: str) -> dict[str, str]:
        return {"service.instance.id": _uuid5(f"{self._where}/{whose}/{source}")}


def _where(host: Mapping[str, Any], pod: Mapping[str, str]) -> str:
    """What tells this pod or machine from others. The machine-id in a pod is its image's, and so the same in many."""
    if "k8s.pod.name" in pod:
        return f"{pod.get('k8s.namespace.name', '')}/{pod['k8s.pod.name']}"
    return _machine(host)


def _machine(host: Mapping[str, Any]) -> str:
    return str(host.get("host.id", host["host.name"]))


def _host(root: str) -> dict[str, Any]:
    """host.* and os.type; host.id is the machine-id, as the conventions say for Linux."""
    machine = platform.machine()
    arch = {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine)
    name = socket.gethostname() if root == "/" else _read(root, "etc/hostname") or socket.gethostname()
    found = {"host.name": name, "host.arch": arch, "os.type": platform.system().lower()}
    machine_id = _read(root, "etc/machine-id") or _read(root, "var/lib/dbus/machine-id")
    # systemd writes "uninitialized" into images, to be replaced at the first boot.
    return {**found, "host.id": machine_id} if machine_id and machine_id != "uninitialized" else found


def _node(settings: Settings) -> dict[str, str]:
    return {"k8s.node.name": settings.k8s.node_name} if settings.k8s.node_name else {}


def _pod(settings: Settings, environ: Mapping[str, str]) -> dict[str, str]:
    """k8s.* of the pod, from the downward API; name and namespace also from what every pod is given."""
    if not (environ.get("KUBERNETES_SERVICE_HOST") or settings.k8s.pod_name):
        return {}
    found = {
        "k8s.pod.name": settings.k8s.pod_name or environ.get("HOSTNAME"),
        "k8s.pod.uid": settings.k8s.pod_uid,
        "k8s.namespace.name": settings.k8s.namespace or _read("/", _POD_NAMESPACE),
    }
    return {key: value for key, value in found.items() if value}


def _read(root: str, path: str) -> str | None:
    try:
        return Path(root, path).read_text(encoding="utf-8").strip() or None
    except (OSError, ValueError):  # absent, or no text
        return None
