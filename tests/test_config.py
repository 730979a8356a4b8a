"""Settings: values, places, precedence, faults, schema and docs. Run as a program it rewrites the table in the docs."""

import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import quote

import jsonschema
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from otelperf import config, config_values
from otelperf.config import BY_KEY, SETTINGS, Setting, load
from otelperf.config_values import AMOUNT, DURATION, SIZE, show_duration, show_size
from otelperf.errors import ConfigError
from otelperf.gate.policy import Override, Policy, Threshold

DOC = Path(__file__).parent.parent / "docs" / "configuration.md"
TEXTS = st.text() | st.text(alphabet="0123456789.eE+-msuhdkKMGTiB=,%:/[]@?# {}'\"\n")


def faults(*arguments: Any) -> list[str]:
    with pytest.raises(ConfigError) as raised:
        load(*arguments)
    return str(raised.value).splitlines()


def table() -> str:
    heads = ("key", "type", "default", "OTEL_* and other names", "profiles and backends", "meaning")
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row(each)) + " |" for each in SETTINGS]
    return "\n".join(lines)


def row(setting: Setting) -> tuple[str, ...]:
    usual = setting.usual or (f"`{shown}`" if (shown := setting.show(setting.default)) else "")
    others = {**setting.profiles, **setting.backends}
    profiles = ", ".join(f"{name} `{setting.show(value)}`" for name, value in others.items())
    names = ", ".join(f"`{name}`" for name in setting.variables[1:])
    meaning = f"{setting.doc} Only in the file." if setting.file_only else setting.doc
    return f"`{setting.key}`", setting.kind.name, usual, names, profiles, meaning


def with_table(doc: str) -> str:
    return re.sub("(?s)<!-- settings -->.*<!-- end -->", lambda _: f"<!-- settings -->\n{table()}\n<!-- end -->", doc)


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], str]:
    def write(text: str) -> str:
        path = tmp_path / "otelperf.yaml"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


# Docs and schema


def test_the_table_in_the_docs_is_the_table_in_the_code() -> None:
    doc = DOC.read_text(encoding="utf-8")
    assert with_table(doc) == doc, "run python tests/test_config.py"


def example() -> str:
    (text,) = re.findall(r"(?s)```yaml\n(.*?)```", DOC.read_text(encoding="utf-8"))
    return str(text)


def test_the_example_in_the_docs_loads(write: Callable[[str], str]) -> None:
    settings = load({}, {}, write(example()))
    assert settings.export.queue_size == 16 * 2**20
    assert settings.endpoint.host == "0.0.0.0"
    assert settings.resource.attributes == {"deployment.environment.name": "staging"}
    assert settings.gate.rules[0].metric == "system.cpu.*"


def test_the_example_in_the_docs_fits_the_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(config.schema())
    jsonschema.Draft202012Validator(config.schema()).validate(yaml.safe_load(example()))


@pytest.mark.parametrize(
    "text",
    [
        "gat: {heartbeat: 5s}",
        "gate: {hartbeat: 5s}",
        "gate: {heartbeat: soon}",
        "gate.rules: [{metric: a}]",
        "mode: pod",
    ],
)
def test_the_schema_refuses_what_the_loader_refuses(text: str, write: Callable[[str], str]) -> None:
    assert not jsonschema.Draft202012Validator(config.schema()).is_valid(yaml.safe_load(text))
    assert faults({}, {}, write(text))


@pytest.mark.parametrize(
    "text",
    [
        "gate: {heartbeat: 50}",
        "gate.heartbeat: 50s",
        "server: {url: 'http://127.0.0.1:1,http://localhost'}",
        "gate:",
        "host: {enabled: off}",
        "",
    ],
)
def test_the_schema_accepts_what_the_loader_accepts(text: str, write: Callable[[str], str]) -> None:
    jsonschema.Draft202012Validator(config.schema()).validate(yaml.safe_load(text))
    load({}, {}, write(text))


def test_each_default_and_profile_value_reads_back_as_itself() -> None:
    for setting in SETTINGS:
        for value in (setting.default, *setting.profiles.values(), *setting.backends.values()):
            if value not in (None, ()):
                assert setting.kind.parse(setting.show(value)) == value


def test_settings_without_arguments_are_the_production_defaults_of_a_plain_machine() -> None:
    assert config.Settings() == load({}, {})


def test_every_profile_loads() -> None:
    assert {name: load({"profile": name}).gate.heartbeat for name in config.PROFILES} == {
        "production": 50.0,
        "development": 10.0,
        "testing": 5.0,
    }
    assert load({"profile": "testing", "server.url": "http://[::1]"}).server.interval == 1.0


def test_no_two_settings_share_a_flag_or_a_variable() -> None:
    flags = [setting.flag for setting in SETTINGS]
    names = [name for setting in SETTINGS for name in (setting.variable, *setting.otel, *setting.also)]
    assert len(set(flags)) == len(flags)
    twice = {name for name in names if names.count(name) > 1}
    assert twice == {name for name in names if re.fullmatch("OTEL_EXPORTER_OTLP_(?!METRICS|TRACES).*", name)}


# Precedence and origin


def test_flag_wins_over_environment_over_file_over_profile_over_default(write: Callable[[str], str]) -> None:
    file = write("profile: testing\ngate:\n  heartbeat: 20s\n")
    environ = {"OTELPERF_GATE_HEARTBEAT": "30s"}
    seen = [
        load({"gate.heartbeat": "40s"}, environ, file),
        load({}, environ, file),
        load({}, {}, file),
        load({"profile": "testing"}),
        load(),
    ]
    assert [(each.gate.heartbeat, each.origin("gate.heartbeat")) for each in seen] == [
        (40.0, "--gate-heartbeat"),
        (30.0, "OTELPERF_GATE_HEARTBEAT"),
        (20.0, f"{file}:3"),
        (5.0, "profile testing"),
        (50.0, "default"),
    ]


def test_the_file_can_be_named_by_the_environment(write: Callable[[str], str]) -> None:
    assert load({}, {"OTELPERF_CONFIG": write("mode: sidecar")}).mode == "sidecar"


def test_a_null_in_the_file_is_unset(write: Callable[[str], str]) -> None:
    assert load({}, {}, write("gate: {heartbeat: ~}\nhost:\n")).gate.heartbeat == 50.0


def test_the_file_is_read_as_written_not_as_yaml_understands_it(write: Callable[[str], str]) -> None:
    settings = load({}, {}, write("k8s: {pod_name: 0123, namespace: off}\nresource: {attributes: {v: 1.10}}"))
    assert (settings.k8s.pod_name, settings.k8s.namespace, settings.resource.attributes) == (
        "0123",
        "off",
        {"v": "1.10"},
    )


def test_an_empty_variable_is_unset() -> None:
    assert load({}, {"OTEL_METRICS_EXPORTER": "", "OTELPERF_MODE": " "}) == load()


def test_a_pod_is_a_sidecar_without_host_metrics() -> None:
    settings = load({}, {"KUBERNETES_SERVICE_HOST": "10.0.0.1"})
    assert (settings.mode, settings.host.enabled) == ("sidecar", False)
    assert load({"mode": "node"}, {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}).host.enabled


def test_downward_names_are_obeyed_after_ours() -> None:
    environ = {"POD_NAME": "a", "OTELPERF_K8S_POD_NAME": "b", "NODE_NAME": "n"}
    settings = load({}, environ)
    assert (settings.k8s.pod_name, settings.k8s.node_name, settings.origin("k8s.node_name")) == ("b", "n", "NODE_NAME")


# OpenTelemetry's variables


@pytest.mark.parametrize(
    ("environ", "endpoint"),
    [
        ({}, "http://localhost:4318/v1/metrics"),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "http://localhost:4317"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318/"}, "http://c:4318/v1/metrics"),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4317", "OTEL_EXPORTER_OTLP_METRICS_PROTOCOL": "grpc"},
            "http://c:4317",
        ),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c", "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://m/x"},
            "http://m/x",
        ),
        ({"OTELPERF_EXPORT_ENDPOINT": "https://c/a"}, "https://c/a"),
    ],
)
def test_the_endpoint_follows_the_specification(environ: dict[str, str], endpoint: str) -> None:
    settings = load({}, environ)
    assert settings.export.endpoint == endpoint
    assert settings.export.insecure == endpoint.startswith("http:")


@pytest.mark.parametrize(
    ("values", "environ", "endpoint", "origin"),
    [
        ({}, {}, "http://localhost:4318/v1/traces", "as export.endpoint"),
        ({}, {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "http://localhost:4317", "as export.endpoint"),
        ({}, {"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "grpc"}, "http://localhost:4317", "default of grpc"),
        ({}, {"OTEL_EXPORTER_OTLP_METRICS_PROTOCOL": "grpc"}, "http://localhost:4317", "as export.endpoint"),
        (
            {"traces.protocol": "http/protobuf", "export.protocol": "grpc"},
            {},
            "http://localhost:4318/v1/traces",
            "default",
        ),
        (
            {},
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318/"},
            "http://c:4318/v1/traces",
            "OTEL_EXPORTER_OTLP_ENDPOINT",
        ),
        (
            {},
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://t/x"},
            "http://t/x",
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
        ),
        (
            {},
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c", "OTELPERF_TRACES_ENDPOINT": "http://t/x"},
            "http://t/x",
            "OTELPERF_TRACES_ENDPOINT",
        ),
        ({"export.endpoint": "https://c/otlp/v1/metrics/"}, {}, "https://c/otlp/v1/traces", "as export.endpoint"),
        ({"export.endpoint": "https://c:1/push?tenant=a"}, {}, "https://c:1/v1/traces", "as export.endpoint"),
        ({"export.endpoint": "https://u:p@c/v1/metrics"}, {}, "https://u:p@c/v1/traces", "as export.endpoint"),
    ],
)
def test_the_endpoint_for_traces_follows_the_specification_and_else_that_for_metrics(
    values: dict[str, str], environ: dict[str, str], endpoint: str, origin: str
) -> None:
    settings = load(values, environ)
    assert (settings.traces.endpoint, settings.origin("traces.endpoint")) == (endpoint, origin)
    assert settings.traces.insecure == endpoint.startswith("http:")


def test_a_contradiction_about_traces_is_told() -> None:
    environ = {"OTELPERF_TRACES_TIMEOUT": "1s", "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT": "2000"}
    (fault,) = faults({}, environ)
    assert fault.endswith("both set traces.timeout and they differ, unset one")


def test_what_metrics_are_sent_with_goes_with_traces_to_the_same_host_only() -> None:
    secret = {"export.headers": "key=s", "export.certificate": "ca.pem", "export.endpoint": "https://c:4318/v1/metrics"}
    here = load({**secret, "traces.endpoint": "https://c:4319/v1/traces"}).traces
    assert (here.headers, here.certificate) == ({"key": "s"}, "ca.pem")
    for elsewhere in ("https://d/v1/traces", "http://c:4318/v1/traces"):
        there = load({**secret, "traces.endpoint": elsewhere}).traces
        assert (there.headers, there.certificate) == ({}, None)
    general = {"OTEL_EXPORTER_OTLP_HEADERS": "key=g", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://d/v1/traces"}
    assert load({}, general).traces.headers == {"key": "g"}


def test_a_key_without_its_certificate_is_told_once() -> None:
    assert len(faults({"export.client_key": "k.pem"})) == 1
    (fault,) = faults({"traces.client_key": "k.pem"})
    assert fault.startswith("traces.client_key is k.pem")


def test_traces_go_where_metrics_go_unless_told() -> None:
    assert load({}).traces.exporter == "otlp"
    assert load({"metrics.exporter": "none"}).traces.exporter == "none"
    assert load({"profile": "development"}).traces.exporter == "console"
    assert load({"metrics.exporter": "none"}, {"OTEL_TRACES_EXPORTER": "zipkin,otlp"}).traces.exporter == "otlp"


@pytest.mark.parametrize(("exporter", "needed"), [("otlp", True), ("none", False)])
def test_https_for_traces_needs_tls(exporter: str, needed: bool) -> None:
    settings = load({"traces.endpoint": "https://t/v1/traces", "traces.exporter": exporter})
    assert settings.needs_tls == needed


def test_a_bare_number_is_milliseconds_only_in_an_otel_variable() -> None:
    assert load({}, {"OTEL_EXPORTER_OTLP_TIMEOUT": "2500"}).export.timeout == 2.5
    assert load({}, {"OTEL_EXPORTER_OTLP_TIMEOUT": "3s"}).export.timeout == 3.0
    assert load({}, {"OTELPERF_EXPORT_TIMEOUT": "3"}).export.timeout == 3.0


def test_otel_booleans_are_true_and_false_only() -> None:
    assert load({}, {"OTEL_SDK_DISABLED": "True"}).sdk.disabled
    assert "expected true or false" in faults({}, {"OTEL_SDK_DISABLED": "1"})[0]


def test_two_spellings_may_agree_but_not_differ() -> None:
    both = {"OTEL_EXPORTER_OTLP_TIMEOUT": "3000", "OTELPERF_EXPORT_TIMEOUT": "3s"}
    assert load({}, both).export.timeout == 3.0
    (fault,) = faults({}, {**both, "OTELPERF_EXPORT_TIMEOUT": "4s"})
    assert fault == (
        "export.timeout is '4s' (OTELPERF_EXPORT_TIMEOUT) and export.timeout is '3000' (OTEL_EXPORTER_OTLP_TIMEOUT): "
        "both set export.timeout and they differ, unset one"
    )
    assert load({"export.timeout": "5s"}, {**both, "OTELPERF_EXPORT_TIMEOUT": "4s"}).export.timeout == 5.0


def test_the_service_name_may_stand_among_the_resource_attributes() -> None:
    environ = {"OTEL_RESOURCE_ATTRIBUTES": "service.name=a,x=b%2Cc"}
    settings = load({}, environ)
    assert (settings.service.name, settings.origin("service.name")) == ("a", "OTEL_RESOURCE_ATTRIBUTES")
    assert settings.resource.attributes["x"] == "b,c"
    assert load({}, {**environ, "OTEL_SERVICE_NAME": "z"}).service.name == "z"


# Faults


def test_all_that_is_wrong_is_told_at_once(write: Callable[[str], str]) -> None:
    file = write("gate:\n  hartbeat: 5s\nlog: {level: loud}\n")
    told = faults({"gate.linger": "x"}, {"OTELPERF_HOST_INTERVALL": "1s", "OTEL_METRICS_EXPORTER": "prometheus"}, file)
    assert told == [
        "OTELPERF_HOST_INTERVALL is not a setting, did you mean OTELPERF_HOST_INTERVAL?",
        f"gate.hartbeat ({file}:2) is not a setting, did you mean gate.heartbeat?",
        "metrics.exporter is 'prometheus' (OTEL_METRICS_EXPORTER): expected one of otlp, console, none",
        "gate.linger is 'x' (--gate-linger): expected a duration such as 50s, 500ms or 2m",
        f"log.level is 'loud' ({file}:3): expected one of debug, info, warning, error",
    ]


def test_a_value_that_a_stronger_place_hides_must_still_be_right() -> None:
    assert len(faults({"gate.heartbeat": "20s"}, {"OTELPERF_GATE_HEARTBEAT": "soon"})) == 1


@pytest.mark.parametrize(
    ("argv", "part"),
    [
        ({"gate.heartbeat": "111s"}, "gate.heartbeat is 111s (--gate-heartbeat): expected at most 110s"),
        ({"gate.heartbeat": "5s"}, "gate.linger is 5s (default) and gate.heartbeat is 5s (--gate-heartbeat)"),
        ({"host.interval": "50s"}, "host.interval is 50s (--host-interval) and gate.heartbeat is 50s (default)"),
        ({"server.interval": "50s", "server.url": "http://localhost"}, "server.interval is 50s"),
        ({"gate.spacing": "51s"}, "gate.spacing is 51s (--gate-spacing) and gate.heartbeat is 50s (default)"),
        (
            {"export.backend": "google", "gate.heartbeat": "4s"},
            "gate.spacing is 5s (default of backend google) and gate.heartbeat is 4s (--gate-heartbeat)",
        ),
        ({"gate.stream_budget": "1"}, "heartbeats alone are 1.2 a minute, expected a larger budget"),
        ({"gate.budget": "100", "gate.enabled": "false"}, "expected no budget, or the gate to be on"),
        ({"gate.budget": "0"}, "gate.budget is '0' (--gate-budget): expected a number above 0"),
        ({"gate.stream_budget": "-3"}, "gate.stream_budget is '-3' (--gate-stream-budget): expected a number above 0"),
        ({"gate.integrals": "otelperf.server.*,system.cpu.*"}, "system.cpu.* fits no metric that has an integral"),
        ({"export.client_key": "/k"}, "expected both or neither"),
        ({"server.url": "http://localhost,http://localhost/"}, "expected each server once"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(argv: dict[str, str], part: str) -> None:
    (fault,) = faults(argv)
    assert part in fault


def test_an_interval_that_is_not_used_may_be_long() -> None:
    assert load({"server.interval": "10m"}).server.interval == 600.0


def test_kubernetes_service_links_are_no_settings() -> None:
    links = {
        "OTELPERF_SERVICE_HOST": "10.0.0.9",
        "OTELPERF_SERVICE_PORT": "9464",
        "OTELPERF_SERVICE_PORT_HTTP": "9464",
        "OTELPERF_PORT": "tcp://10.0.0.9:9464",
        "OTELPERF_PORT_9464_TCP_ADDR": "10.0.0.9",
        "OTELPERF_ENDPOINT_PORT": "tcp://10.0.0.9:9464",
        "OTELPERF_NODE_AGENT_SERVICE_HOST": "10.0.0.8",
    }
    assert load({}, links) == load()


def test_rules_in_the_environment_are_pointed_to_the_file() -> None:
    assert faults({}, {"OTELPERF_GATE_RULES": "x"}) == [
        "OTELPERF_GATE_RULES is not a setting: gate.rules can only be set in the settings file"
    ]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("gate:\n  heartbeat: [", "{file}:2: not YAML: "),
        ("- a", "{file}:1: expected settings as a mapping"),
        ("gate: 5", "gate ({file}:1): expected a mapping of its settings"),
        ("gate: {heartbeat: 5s}\ngate.heartbeat: 6s", "gate.heartbeat ({file}:2) is set twice, first at {file}:1"),
        ("mode: [node]", "mode is ['node'] ({file}:1): expected one of node, sidecar"),
        ("&a [*a]", "{file} is nested too deeply"),
        ("export: {headers: {A B: c}}", "export.headers is **** ({file}:1): expected k=v,k=v"),
    ],
)
def test_a_wrong_file_is_told_with_its_line(text: str, line: str, write: Callable[[str], str]) -> None:
    file = write(text)
    assert faults({}, {}, file)[0].startswith(line.format(file=file))


def test_a_missing_file_is_told() -> None:
    assert faults({}, {}, "/nowhere.yaml") == ["/nowhere.yaml cannot be read: No such file or directory"]


# Budgets and integrals


@pytest.mark.parametrize(("text", "number"), [("300", 300.0), ("1.5", 1.5), ("2e3", 2000.0)])
def test_a_budget_is_a_number(text: str, number: float) -> None:
    settings = load({"gate.budget": text})
    assert settings.gate.budget == number
    assert AMOUNT.parse(BY_KEY["gate.budget"].show(number)) == number


def test_no_budget_and_no_integral_unless_asked() -> None:
    gate = load().gate
    assert (gate.budget, gate.stream_budget, gate.integrals) == (None, None, ())


def test_integrals_are_globs(write: Callable[[str], str]) -> None:
    assert load({"gate.integrals": "otelperf.*, system.memory.*"}).gate.integrals == ("otelperf.*", "system.memory.*")
    assert load({}, {}, write("gate: {integrals: [otelperf.server.up]}")).gate.integrals == ("otelperf.server.up",)


# Rules


def test_rules_become_overrides(write: Callable[[str], str]) -> None:
    overrides = load({}, {}, write(example())).gate.rules
    assert overrides[0] == Override(
        "system.cpu.*", MappingProxyType({"delta": 0.2}), MappingProxyType({"cpu.mode": "idle"})
    )
    assert overrides[2].changes == {"thresholds": (Threshold(0.8, "above", 0.02),)}
    assert overrides[3].changes == {"kind": "off"}
    assert Policy({}, overrides).rule("otelperf.server.active_requests", "sum", {}).kind == "off"


def test_rules_are_shown_as_they_can_be_written(write: Callable[[str], str]) -> None:
    rules = load({}, {}, write(example())).gate.rules
    shown = BY_KEY["gate.rules"].plain(rules)
    assert BY_KEY["gate.rules"].show(rules) == "4 rules"
    assert load({}, {}, write(yaml.safe_dump({"gate": {"rules": shown}}))).gate.rules == rules


@pytest.mark.parametrize(
    ("rule", "told"),
    [
        ("metric: a", "in rule 1 expected something to change: delta, relative, share, heartbeat, thresholds, gate"),
        ("delta: 1", "in rule 1 expected metric"),
        ("{metric: a, delat: 1}", "in rule 1 delat is unknown, did you mean delta?"),
        ("{metric: a, delta: -1}", "in rule 1 delta is '-1': expected a number, 0 or more"),
        ("{metric: a, delta: 1e999}", "in rule 1 delta is '1e999': expected a finite number"),
        ("{metric: a, heartbeat: 3m}", "in rule 1 heartbeat is '3m': expected a duration above 0, at most 110s"),
        ("{metric: a, gate: off, delta: 1}", "in rule 1 gate: off passes everything, so leave out delta"),
        ("{metric: a, gate: on}", "in rule 1 gate is 'on': expected off"),
        ("{metric: a, share: 0.1}", "in rule 1 share has no meaning for a"),
        ("{metric: a, thresholds: [{value: 1, worse: [up]}]}", "in rule 1 worse is ['up']: expected above or below"),
        ("{metric: a, thresholds: 1}", "in rule 1 thresholds: expected a list of value, worse, margin"),
        ("{metric: a, delta: 1, attributes: x}", "in rule 1 attributes: expected a mapping"),
        ("just text", "in rule 1 expected a mapping"),
    ],
)
def test_a_wrong_rule_is_told_at_its_place(rule: str, told: str, write: Callable[[str], str]) -> None:
    file = write(f"gate:\n  rules:\n  - {rule}\n")
    (fault,) = faults({}, {}, file)
    assert fault.startswith(f"gate.rules ({file}:2): {told}")


# Values


@given(st.floats(min_value=0, max_value=86400 * 366))
def test_a_duration_shown_reads_back_as_itself(seconds: float) -> None:
    assert DURATION.parse(show_duration(seconds)) == seconds


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("50s", 50.0), ("500ms", 0.5), ("2m", 120.0), ("1.5h", 5400.0), ("7", 7.0), ("250us", 0.00025)],
)
def test_durations_have_units(text: str, seconds: float) -> None:
    assert config_values.DURATION.parse(text) == pytest.approx(seconds)


@given(st.floats(min_value=5e-324, max_value=1e12))
def test_an_amount_shown_reads_back_as_itself(number: float) -> None:
    assert AMOUNT.parse(BY_KEY["gate.budget"].show(number)) == number


@given(st.integers(min_value=1, max_value=2**50))
def test_a_size_shown_reads_back_as_itself(size: int) -> None:
    assert SIZE.parse(show_size(size)) == size


@pytest.mark.parametrize(
    ("text", "size"),
    [("8MiB", 2**23), ("8Mi", 2**23), ("64kB", 64000), ("64k", 64000), ("10", 10), ("5B", 5), ("0.5 KiB", 512)],
)
def test_sizes_have_units(text: str, size: int) -> None:
    assert config_values.SIZE.parse(text) == size


@pytest.mark.parametrize("text", ["8K", "8KB", "-1", "0", "1.5", "8 mib", "1e99"])
def test_sizes_that_could_be_misread_are_refused(text: str) -> None:
    with pytest.raises(config_values.UnfitError):
        config_values.SIZE.parse(text)


PAIRS = st.dictionaries(st.text(min_size=1), st.text(min_size=1))


@given(PAIRS)
def test_a_mapping_shown_reads_back_as_itself(pairs: dict[str, str]) -> None:
    assert config_values.MAPPING.parse(BY_KEY["resource.attributes"].show(pairs)) == pairs


TOKENS = st.text(alphabet="abcdefghijklmnopqrstuvwxyz0123456789-_", min_size=1)
VISIBLE = st.text(alphabet=st.characters(min_codepoint=32, max_codepoint=126))


@given(st.dictionaries(TOKENS, VISIBLE))
def test_headers_are_percent_decoded(pairs: dict[str, str]) -> None:
    text = ",".join(f"{key}={quote(value, safe='')}" for key, value in pairs.items())
    assert config_values.HEADERS.parse(text) == pairs


@pytest.mark.parametrize("text", ["a=b%0D%0AX: y", "a b=c", "a", "a=%FF", "=b"])
def test_headers_that_would_break_a_request_are_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 # each fails in its own way
        config_values.HEADERS.parse(text)


@given(st.sampled_from(SETTINGS), TEXTS, st.booleans())
def test_no_text_raises_anything_but_a_config_error(setting: Setting, text: str, as_variable: bool) -> None:
    for name in setting.variables if as_variable else ():
        load_or_refuse({}, {name: text})
    load_or_refuse({setting.key: text}, {})


def load_or_refuse(argv: dict[str, str], environ: dict[str, str], file: str | None = None) -> None:
    with suppress(ConfigError):
        load(argv, environ, file)


LEAVES = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5) | st.sampled_from(["metric", "value", "50s"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["metric", "delta", "thresholds", "value", "worse", "gate", "attributes"]), inner
        )
    ),
    max_leaves=8,
)


@given(st.sampled_from(SETTINGS), LEAVES)
def test_no_value_in_a_file_raises_anything_but_a_config_error(
    tmp_path_factory: pytest.TempPathFactory, setting: Setting, value: Any
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(yaml.safe_dump({setting.key: value}), encoding="utf-8")
    load_or_refuse({}, {}, str(path))


@given(st.binary() | TEXTS.map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_no_file_raises_anything_but_a_config_error(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(content)
    load_or_refuse({}, {}, str(path))


def test_secrets_are_masked_wherever_they_are_shown() -> None:
    settings = load({"export.headers": "authorization=s3cret", "server.url": "http://me:s3cret@localhost"})
    for key in ("export.headers", "server.url"):
        shown = BY_KEY[key].show(settings.value(key))
        assert "s3cret" not in shown
        assert config.MASK in shown


def test_the_secret_is_not_told_in_a_fault() -> None:
    assert not any(
        "s3cret" in fault for fault in faults({"export.headers": "s3cret", "server.url": "ftp://me:s3cret@a"})
    )


if __name__ == "__main__":
    DOC.write_text(with_table(DOC.read_text(encoding="utf-8")), encoding="utf-8")


@pytest.mark.parametrize(
    ("value", "level"), [("WARN", "warning"), ("trace", "debug"), ("off", "error"), ("info", "info")]
)
def test_the_specifications_log_levels_are_understood(value: str, level: str) -> None:
    assert load({}, {"OTEL_LOG_LEVEL": value}, None).log.level == level


@pytest.mark.parametrize(
    ("value", "exporter"), [("otlp,console", "otlp"), ("prometheus, console", "console"), ("none", "none")]
)
def test_of_a_list_of_exporters_the_first_known_one_is_taken(value: str, exporter: str) -> None:
    assert load({}, {"OTEL_METRICS_EXPORTER": value}, None).metrics.exporter == exporter
