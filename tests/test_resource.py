"""Who values belong to, and that it stays the same."""

from __future__ import annotations

import platform
import socket
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from otelperf import config
from otelperf.resource import resources
from otelperf.sources.engines import ENGINES
from otelperf.sources.engines.server import Server

POD = {
    "KUBERNETES_SERVICE_HOST": "10.0.0.1",
    "HOSTNAME": "llm-0",
    "POD_NAME": "llm-0",
    "POD_UID": "5f0d6a2e",
    "POD_NAMESPACE": "prod",
    "NODE_NAME": "node-a",
    "CONTAINER_NAME": "otelperf",
}
SERVER = "http://localhost:8080"


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "hostname").write_text("box\n")
    (tmp_path / "etc" / "machine-id").write_text("0123456789abcdef\n")
    return tmp_path


def made(
    root: Path | str, environ: Mapping[str, str] | None = None, *urls: str, **values: str
) -> dict[str, Mapping[str, Any]]:
    """Return the attributes of each entity."""
    environ = environ or {}
    keys = {key.replace("__", "."): value for key, value in values.items()}
    settings = config.load({"host.root_path": str(root), **keys}, environ, None)
    servers = tuple(Server(url, ENGINES[0]) for url in urls)
    found = resources(settings, "1.2.3", servers, environ)
    for server in servers:
        server.close()
    return {entity: dict(resource.attributes) for entity, resource in found.items()}


def instance(attributes: Mapping[str, Any]) -> str:
    text = str(attributes["service.instance.id"])
    assert uuid.UUID(text).version == 5
    return text


def test_a_plain_machine_golden(machine: Path) -> None:
    found = made(machine, {}, SERVER)
    for attributes in found.values():
        instance(attributes)
    host = {
        "host.name": "box",
        "host.id": "0123456789abcdef",
        "host.arch": {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine()),
        "os.type": platform.system().lower(),
    }
    without = {entity: {k: v for k, v in each.items() if k != "service.instance.id"} for entity, each in found.items()}
    assert without == {
        "host": {**host, "service.name": "host"},
        "agent": {**host, "service.name": "otelperf", "service.version": "1.2.3"},
        f"llama.cpp {SERVER}": {**host, "service.name": "llama.cpp"},
    }


def test_instances_are_stable_and_their_own(machine: Path) -> None:
    first, again = made(machine, {}, SERVER, "http://b:1"), made(machine, {}, SERVER, "http://b:1")
    assert first == again
    assert len({instance(attributes) for attributes in first.values()}) == 4


def test_instances_differ_between_machines_pods_and_containers(machine: Path) -> None:
    hosts = [made(machine)]
    (machine / "etc" / "machine-id").write_text("fedcba\n")
    hosts.append(made(machine))
    agents = [instance(each["agent"]) for each in hosts]
    agents += [
        instance(made(machine, {**POD, **change})["agent"])
        for change in ({}, {"POD_UID": "2"}, {"CONTAINER_NAME": "b"})
    ]
    assert len(set(agents)) == 5
    assert len({instance(each["host"]) for each in hosts}) == 2


def test_the_host_is_the_same_whichever_pod_looks_at_it(machine: Path) -> None:
    one, other = (made(machine, {**POD, "POD_UID": uid, "POD_NAME": f"agent-{uid}"}) for uid in "12")
    assert instance(one["host"]) == instance(other["host"])
    assert instance(one["agent"]) != instance(other["agent"])


def test_a_servers_instance_does_not_depend_on_the_agents_container(machine: Path) -> None:
    entity = f"llama.cpp {SERVER}"
    ours, other = (made(machine, {**POD, "CONTAINER_NAME": name}, SERVER) for name in ("otelperf", "sidecar"))
    assert instance(ours[entity]) == instance(other[entity])
    named = made(machine, POD, SERVER, server__container="llm", server__name="chat")[entity]
    assert (named["service.name"], named["k8s.container.name"]) == ("chat", "llm")


def test_in_kubernetes_pod_and_container_are_told(machine: Path) -> None:
    found = made(machine, POD, SERVER)
    pod = {"k8s.pod.name": "llm-0", "k8s.pod.uid": "5f0d6a2e", "k8s.namespace.name": "prod"}
    assert pod.items() <= found["agent"].items()
    assert pod.items() <= found[f"llama.cpp {SERVER}"].items()
    assert pod.keys().isdisjoint(found["host"])
    assert {attributes["k8s.node.name"] for attributes in found.values()} == {"node-a"}
    assert found["agent"]["k8s.container.name"] == "otelperf"
    assert "k8s.container.name" not in found[f"llama.cpp {SERVER}"]


def test_without_the_downward_api_the_hostname_is_the_pods_name(machine: Path) -> None:
    environ = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "HOSTNAME": "llm-7"}
    assert made(machine, environ)["agent"]["k8s.pod.name"] == "llm-7"


def test_pods_of_one_image_are_told_apart_without_a_pod_uid(machine: Path) -> None:
    """An image brings its machine-id along: the same in each pod."""
    pods = [{"KUBERNETES_SERVICE_HOST": "10.0.0.1", "HOSTNAME": name} for name in ("llm-0", "llm-1")]
    instances = {instance(attributes) for pod in pods for attributes in (made(machine, pod)["agent"],)}
    assert len(instances) == 2


def test_container_name_means_something_else_outside_kubernetes(machine: Path) -> None:
    plain, odd = made(machine), made(machine, {"CONTAINER_NAME": "tmux"})
    assert plain == odd
    assert "k8s.container.name" not in odd["agent"]


def test_resource_attributes_are_everyones_except_those_of_one_process(machine: Path) -> None:
    mine = (
        "deployment.environment.name=staging,host.name=renamed,service.namespace=ml,"
        "service.name=mine,service.instance.id=me,service.version=9,k8s.container.name=c"
    )
    found = made(machine, {"OTEL_RESOURCE_ATTRIBUTES": mine}, SERVER)
    for attributes in found.values():
        assert attributes["deployment.environment.name"] == "staging"
        assert attributes["host.name"] == "renamed"
        assert attributes["service.namespace"] == "ml"
    names = {entity: attributes["service.name"] for entity, attributes in found.items()}
    assert names == {"host": "host", "agent": "mine", f"llama.cpp {SERVER}": "llama.cpp"}
    assert found["agent"]["service.instance.id"] == "me"
    assert found["agent"]["service.version"] == "1.2.3"
    for entity in ("host", f"llama.cpp {SERVER}"):
        instance(found[entity])
        assert {"service.version", "k8s.container.name"}.isdisjoint(found[entity])


def test_a_service_name_of_its_own_wins(machine: Path) -> None:
    environ = {"OTEL_SERVICE_NAME": "watcher", "OTEL_RESOURCE_ATTRIBUTES": "service.name=mine"}
    assert made(machine, environ)["agent"]["service.name"] == "watcher"


def test_a_mounted_root_is_the_machine_and_not_our_container(machine: Path) -> None:
    assert made(machine)["host"]["host.name"] == "box"
    assert made("/")["host"]["host.name"] == socket.gethostname()


@pytest.mark.parametrize("content", [None, b"", b"\n", b"uninitialized\n", b"\xff\xfe"])
def test_a_machine_id_that_is_none_is_left_out(machine: Path, content: bytes | None) -> None:
    path = machine / "etc" / "machine-id"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    found = made(machine)
    assert "host.id" not in found["host"]
    assert instance(found["host"]) != instance(found["agent"])


def test_dbus_keeps_the_machine_id_where_etc_has_none(machine: Path) -> None:
    (machine / "etc" / "machine-id").unlink()
    (machine / "var/lib/dbus").mkdir(parents=True)
    (machine / "var/lib/dbus/machine-id").write_text("from-dbus\n")
    assert made(machine)["host"]["host.id"] == "from-dbus"


def test_an_empty_root_falls_back_to_our_own_name(tmp_path: Path) -> None:
    assert made(tmp_path)["host"]["host.name"] == socket.gethostname()
