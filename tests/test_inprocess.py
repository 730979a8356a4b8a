"""``instrument()`` in this very process: what it takes, what it tells, and what arrives. Other processes: end_to_end/."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider

import otelperf
from otelperf import catalog, config, inprocess, telemetry
from otelperf.errors import ConfigError
from otelperf.guest import attributes_of, find_meter_provider, inside, private_provider
from otelperf.resource import process_resource
from tests.receiver import Receiver

CALLS = "gen_ai.client.operation.duration"
OF_SPANS = ("otelperf.gate.spans.seen", "otelperf.gate.spans.sent", "otelperf.gate.calls")


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    with Receiver() as found:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", found.url)
        yield found


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    yield
    handle = inprocess.current()
    if handle is not None:
        handle.shutdown()
        pytest.fail("the test left instrument() running")


def loaded_by(code: str, **environ: str) -> set[str]:
    """Return what a fresh Python has loaded after *code*, which may print words of its own."""
    script = f"import sys\n{code}\nprint(*sys.modules, sep='\\n')"
    environment = {**os.environ, **environ}
    done = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True, env=environment, timeout=60
    )
    return set(done.stdout.split())


def test_the_import_loads_nothing_heavy() -> None:
    loaded = loaded_by("import otelperf")
    assert {name for name in loaded if name.startswith(("opentelemetry", "otelperf."))} == set()


def test_recording_loads_no_sdk_before_it_is_used() -> None:
    loaded = loaded_by("import otelperf.telemetry, otelperf.inprocess, otelperf.libraries")
    assert {name for name in loaded if name.startswith("opentelemetry")} == set()


def test_disabled_there_is_no_thread_and_no_sdk_and_everything_can_be_called() -> None:
    code = """
import otelperf, threading
from otelperf import telemetry
handle = otelperf.instrument("chat")
telemetry.record("gen_ai.client.operation.duration", 1.0)
print("enabled", handle.enabled, telemetry.enabled(), "threads", threading.active_count(), handle.shutdown())
"""
    loaded = loaded_by(code, OTEL_SDK_DISABLED="true")
    assert {"enabled", "False", "threads", "1", "True"} <= loaded
    assert {name for name in loaded if name.startswith("opentelemetry")} == set()


def test_what_is_recorded_arrives_and_ends(receiver: Receiver) -> None:
    with otelperf.instrument("chat", libraries="none") as handle:
        assert (handle.enabled, handle.meter_provider) == (True, private_provider())
        telemetry.record(CALLS, 0.5, {"gen_ai.operation.name": "chat"})
        telemetry.record(CALLS, 3.0, {"gen_ai.operation.name": "chat"})
        telemetry.add("http.server.active_requests", 2)
    counted, ended = receiver.points(CALLS)
    assert (counted.value, counted.attributes, counted.gone) == (2.0, {"gen_ai.operation.name": "chat"}, False)
    assert tuple(counted.point.explicit_bounds) == catalog.BY_NAME[CALLS].bounds
    assert ended.gone
    assert [point.value for point in receiver.points("http.server.active_requests") if not point.gone] == [2]
    assert receiver.points("process.memory.usage")
    assert receiver.points("cpython.gc.collections")
    assert receiver.points("system.memory.usage") == []
    assert counted.resource["service.name"] == "chat"
    assert counted.resource["process.pid"] == os.getpid()


def test_spans_pass_the_gate_and_their_counts_rebuild(receiver: Receiver) -> None:
    with otelperf.instrument("chat", libraries="none"):
        for _ in range(50):
            with telemetry.tracer().start_as_current_span("chat m"):
                pass
    spans = receiver.spans()
    assert sum(span.attributes["otelperf.gate.represented"] for span in spans) == 50
    assert len(spans) < 25
    assert {span.resource["service.name"] for span in spans} == {"chat"}
    # A tick may have fallen into the middle: the last value counts.
    told = [[point.value for point in receiver.points(name) if not point.gone][-1] for name in OF_SPANS]
    assert told == [50, len(spans), 50]


def test_nothing_is_recorded_after_the_end_and_it_can_begin_anew(receiver: Receiver) -> None:
    for round_ in (1, 2):
        with otelperf.instrument("chat", libraries="none"):
            telemetry.record(CALLS, 0.5, {"gen_ai.operation.name": f"round {round_}"})
        telemetry.record(CALLS, 0.5, {"gen_ai.operation.name": "between"})
    names = [point.attributes["gen_ai.operation.name"] for point in receiver.points(CALLS)]
    assert sorted(set(names)) == ["round 1", "round 2"]


def test_tracers_taken_before_the_end_stay_good(receiver: Receiver) -> None:
    with otelperf.instrument("one", libraries="none"):
        tracer = telemetry.tracer()
    with tracer.start_as_current_span("between"):
        pass
    with otelperf.instrument("two", libraries="none"), tracer.start_as_current_span("after"):
        pass
    assert [(span.name, span.resource["service.name"]) for span in receiver.spans()] == [("after", "two")]


def test_a_second_call_returns_the_same_handle_and_tells_what_it_cannot_do(
    receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    with otelperf.instrument("chat", libraries="none") as handle:
        assert otelperf.instrument() is handle
        assert otelperf.instrument("chat", libraries="none") is handle
        assert not caplog.records
        assert otelperf.instrument("other") is handle
        assert otelperf.instrument("other") is handle
    assert [str(record.msg).partition(":")[0] for record in caplog.records] == [
        "instrument() has been called before, with other settings"
    ]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"gate_heartbeat": "often"}, "gate.heartbeat is 'often' (gate_heartbeat= of instrument())"),
        ({"settings": {"gate.heartbeat": "often"}}, "gate.heartbeat is 'often' (gate_heartbeat= of instrument())"),
        ({"gate_hartbeat": 5}, "gate_hartbeat is not a setting, did you mean gate_heartbeat?"),
        ({"settings": {"gate.hartbeat": 5}}, "gate.hartbeat is not a setting, did you mean gate.heartbeat?"),
        ({"endpoint": "http://a"}, "endpoint is not a setting, did you mean export_endpoint or traces_endpoint?"),
        ({"exporter": "none"}, "exporter is not a setting, did you mean metrics_exporter or traces_exporter?"),
        ({"libary": "all"}, "libary is not a setting, did you mean libraries?"),
        ({"tracer_providr": 7}, "tracer_providr is not a setting, did you mean tracer_provider?"),
        ({"gate_rules": []}, "gate.rules can only be set in the settings file"),
        ({"libraries": ["nix"]}, "instrument.libraries is 'nix' (libraries= of instrument()): expected all, none"),
        ({"config": "/nowhere/otelperf.yaml"}, "/nowhere/otelperf.yaml cannot be read"),
        ({"settings": [1]}, "settings is list: expected a mapping"),
        ({"settings": {3: 4}}, "settings is dict: expected a mapping"),
        ({"meter_provider": 7}, "meter_provider is a int, expected a MeterProvider"),
        ({"tracer_provider": 7}, "tracer_provider is a int, expected a TracerProvider"),
    ],
)
def test_a_wrong_setting_is_told_and_raised_only_if_asked(
    given: dict[str, object], expected: str, caplog: pytest.LogCaptureFixture
) -> None:
    threads = threading.active_count()
    handle = otelperf.instrument("chat", **given)  # type: ignore[arg-type] # wrong on purpose
    assert (handle.enabled, handle.meter_provider, handle.tracer_provider, handle.shutdown()) == (
        False,
        None,
        None,
        True,
    )
    (record,) = caplog.records
    assert (record.levelno, expected in str(record.msg)) == (logging.ERROR, True), record.msg
    with pytest.raises(ConfigError, match=re.escape(expected)):
        otelperf.instrument("chat", strict=True, **given)  # type: ignore[arg-type] # as above
    assert threading.active_count() == threads


def test_a_provider_with_a_sampler_of_its_own_is_no_mistake(
    receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    provider = TracerProvider(shutdown_on_exit=False)
    with otelperf.instrument("chat", libraries="none", tracer_provider=provider):
        provider.get_tracer("t").start_span("call").end()
    assert [span.name for span in receiver.spans()] == ["call"]
    assert not caplog.records


def test_a_service_name_that_is_no_text_is_told(caplog: pytest.LogCaptureFixture) -> None:
    assert not otelperf.instrument(5).enabled  # type: ignore[arg-type] # wrong on purpose
    assert [str(record.msg) for record in caplog.records] == [
        """not started problem="service_name is int: expected text, such as instrument('chat')\""""
    ]
    with pytest.raises(ConfigError, match="service_name is int: expected text"):
        otelperf.instrument(5, strict=True)  # type: ignore[arg-type] # as above


def test_settings_are_taken_as_python_has_them(receiver: Receiver) -> None:
    attributes = {"resource_attributes": {"team": "red, or blue"}, "gate_previous": False, "gate_max_streams": 3}
    with otelperf.instrument("chat", libraries="none", **attributes):  # type: ignore[arg-type] # any setting
        pass
    points = receiver.points()
    assert {point.resource["team"] for point in points} == {"red, or blue"}
    assert len({(point.name, str(point.attributes)) for point in points}) == 3


def test_a_call_goes_before_the_environment_and_that_before_the_file(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "otelperf.yaml"
    file.write_text("service: {name: file}\nresource: {attributes: {team: file}}\n")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "team=environment")
    with otelperf.instrument("call", libraries="none", config=file):
        pass
    resource = receiver.points()[0].resource
    assert (resource["service.name"], resource["team"]) == ("call", "environment")


def test_what_an_application_records_with_a_given_provider_passes_the_same_gate(receiver: Receiver) -> None:
    provider = MeterProvider(resource=Resource({"service.name": "theirs", "region": "x"}), shutdown_on_exit=False)
    counter = provider.get_meter("shop").create_counter("orders")
    with otelperf.instrument(libraries="none", meter_provider=provider) as handle:
        assert handle.meter_provider is provider
        counter.add(3)
        telemetry.record(CALLS, 1.0)
    orders, _ = receiver.points("orders")
    assert (orders.value, orders.scope) == (3, "shop")
    assert (orders.resource["service.name"], orders.resource["region"]) == ("theirs", "x")
    assert receiver.points(CALLS)[0].resource == orders.resource
    counter.add(1)  # the reader is gone
    provider.shutdown()


def test_spans_of_a_given_provider_pass_the_gate(receiver: Receiver) -> None:
    provider = TracerProvider(resource=Resource({"service.name": "theirs"}), shutdown_on_exit=False)
    tracer = provider.get_tracer("shop")
    for _ in range(2):  # it is added only once
        with otelperf.instrument(libraries="none", tracer_provider=provider), tracer.start_as_current_span("order"):
            pass
    assert [(span.name, span.resource["service.name"]) for span in receiver.spans()] == [("order", "theirs")] * 2


def test_a_provider_that_is_read_already_is_left_to_the_application() -> None:
    read = MeterProvider(metric_readers=[InMemoryMetricReader()], shutdown_on_exit=False)
    assert find_meter_provider(read) is read  # asked for
    assert find_meter_provider(None) is private_provider()  # the API's stand-in
    read.shutdown()


def test_what_providers_say_of_themselves_is_the_first_ones() -> None:
    one = TracerProvider(resource=Resource({"a": 1}), shutdown_on_exit=False)
    two = MeterProvider(resource=Resource({"a": 2, "b": 2}), shutdown_on_exit=False)
    found = attributes_of(one, None, object(), two)
    assert (found["a"], found["b"]) == (1, 2)


def test_inside_a_program_neither_the_host_nor_servers_are_looked_for_unless_asked() -> None:
    for environ, expected in (
        ({}, (False, False, False)),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, (False, False, False)),
        ({"OTELPERF_MODE": "node"}, (True, False, False)),
        ({"OTELPERF_HOST_ENABLED": "true", "OTELPERF_SERVER_FIND": "true"}, (True, True, False)),
    ):
        settings = inside(config.load({}, environ))
        assert (settings.host.enabled, settings.server.find, settings.endpoint.enabled) == expected


def resource(
    environ: dict[str, str], application: dict[str, str] | None = None, *, named: bool = False, forked: bool = False
) -> dict[str, object]:
    settings = config.load({"service.name": "call"} if named else {}, environ)
    return dict(process_resource(settings, environ, application or {}, named=named, forked=forked).attributes)


def test_the_name_is_the_calls_or_the_applications_or_the_environments() -> None:
    theirs, environ = {"service.name": "theirs"}, {"OTEL_SERVICE_NAME": "environment"}
    assert resource(environ, theirs, named=True)["service.name"] == "call"
    assert resource(environ, theirs)["service.name"] == "theirs"
    assert resource(environ, {"service.name": "unknown_service"})["service.name"] == "environment"
    assert resource({})["service.name"] == "unknown_service:python"


def test_an_instance_is_the_same_again_and_another_in_a_forked_child() -> None:
    environ = {"OTEL_SERVICE_NAME": "a", "OTEL_RESOURCE_ATTRIBUTES": "service.instance.id=mine"}
    assert resource({"OTEL_SERVICE_NAME": "a"}) == resource({"OTEL_SERVICE_NAME": "a"})
    mine, child = resource(environ), resource(environ, forked=True)
    assert mine["service.instance.id"] == "mine"
    assert child["service.instance.id"] == resource({"OTEL_SERVICE_NAME": "a"})["service.instance.id"]


def test_a_container_keeps_its_instance_through_restarts() -> None:
    pod = {"KUBERNETES_SERVICE_HOST": "x", "POD_UID": "u", "POD_NAME": "p", "CONTAINER_NAME": "chat"}
    other = {**pod, "CONTAINER_NAME": "embed"}
    assert resource(pod)["service.instance.id"] != resource(other)["service.instance.id"]
    assert resource(pod)["k8s.container.name"] == "chat"


def test_a_name_that_is_no_metric_is_told_and_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    telemetry.record("no.such.metric", 1.0)
    assert "not recorded metric=no.such.metric" in str(caplog.records[0].msg)


def test_an_observable_instrument_that_fails_costs_only_itself(receiver: Receiver) -> None:
    provider = MeterProvider(shutdown_on_exit=False)

    def broken(_: object) -> list[object]:
        raise RuntimeError("theirs")

    provider.get_meter("shop").create_observable_gauge("broken", [broken])  # type: ignore[list-item] # it never returns
    with otelperf.instrument("chat", libraries="none", meter_provider=provider):
        telemetry.record(CALLS, 1.0)
    assert receiver.points(CALLS)[0].value == 1
    provider.shutdown()


def test_an_observable_instrument_that_would_exit_does_not_end_our_thread(receiver: Receiver) -> None:
    provider = MeterProvider(shutdown_on_exit=False)
    provider.get_meter("shop").create_observable_gauge("exits", [lambda _: sys.exit(3)])
    with otelperf.instrument("chat", libraries="none", meter_provider=provider):
        pass
    assert receiver.points("process.cpu.time") != []
    provider.shutdown()


def test_an_observable_instrument_that_hangs_does_not_hold_up_the_end(receiver: Receiver) -> None:
    provider, hangs, goes_on = MeterProvider(shutdown_on_exit=False), threading.Event(), threading.Event()

    def slow(_: object) -> list[object]:
        hangs.set()
        goes_on.wait(60)
        return []

    provider.get_meter("shop").create_observable_gauge("slow", [slow])  # type: ignore[list-item] # it observes nothing
    handle = otelperf.instrument("chat", libraries="none", meter_provider=provider)
    assert hangs.wait(10)
    assert handle.shutdown(0.1) is False
    assert not goes_on.is_set()
    goes_on.set()
    provider.shutdown()
