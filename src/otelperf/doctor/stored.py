"""Checks of what was stored: whether all of it came, under the right names and labels, and ended when it should."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from otelperf.doctor.asking import Offset, without_password
from otelperf.doctor.backend import OTLP_FLAG, Backend, Series
from otelperf.doctor.clocks import REFUSED_BEYOND
from otelperf.doctor.finding import Finding
from otelperf.doctor.probe import COUNTER, COUNTER_UNIT, OLDER
from otelperf.export import Verdict
from otelperf.prometheus_text import label_name, metric_name

if TYPE_CHECKING:
    from opentelemetry.sdk.resources import Resource

    from otelperf.config import Settings

STRATEGY = "UnderscoreEscapingWithSuffixes"
PROMOTED = (  # as in prometheus/prometheus.yaml: rules and boards group by these
    "deployment.environment.name",
    "host.name",
    "k8s.cluster.name",
    "k8s.namespace.name",
    "k8s.node.name",
    "k8s.pod.name",
    "k8s.container.name",
)

_NAMES = {
    metric_name(COUNTER, COUNTER_UNIT, "counter"): STRATEGY,
    "otelperf_doctor_counter": "UnderscoreEscapingWithoutSuffixes",
    "otelperf.doctor.counter_bytes_total": "NoUTF8EscapingWithSuffixes",
    COUNTER: "NoTranslation",
}
_KINDS = ("gauge", "counter", "histogram")
_BOTH = {1.0, 2.0}


@dataclass(frozen=True, slots=True)
class Stored:
    """What came back: all test *series*, *waited* seconds for the first, and messages of requests *refused* on the way."""

    series: tuple[Series, ...]
    waited: float = 0.0
    refused: Sequence[str] = field(default=())

    def of(self, name: str) -> tuple[Series, ...]:
        """Return the series of one test metric, whatever its name became."""
        return tuple(each for each in self.series if re.search(rf"doctor.{name}", each.name))

    def values(self, name: str) -> set[float]:
        """Return the values stored of one test metric."""
        return {value for each in self.of(name) for _, value in each.samples}

    def came(self) -> bool:
        """Say whether there is something of each kind that was sent first."""
        return all(map(self.of, _KINDS))

    def previous_came(self) -> bool:
        """Say whether the older points are there as the newer ones are, sent alone and together."""
        return self.values("late") == _BOTH == self.values("pair")


def check_arrival(stored: Stored, backend: Backend, offsets: Mapping[str, Offset]) -> Finding:
    """Check that what the endpoint took is in Prometheus, and say where it may be stuck."""
    if stored.came():
        return Finding("arrival", "ok", f"in Prometheus after {stored.waited:.1f} s")
    missing = [name for name in _KINDS if not stored.of(name)]
    what = "nothing" if len(missing) == 3 else f"no {' and no '.join(missing)}"
    seen = f"the endpoint accepted the points, and after {stored.waited:.0f} s {what} of them is in Prometheus"
    flags = backend.flags or {}
    if flags.get("web.enable-otlp-receiver") == "false":
        other = "on" if flags.get("web.enable-remote-write-receiver") == "true" else "off too"
        return Finding(
            "arrival", "failed", f"{seen}; its OTLP receiver is off (that for remote write is {other})", OTLP_FLAG
        )
    if any(abs(each.sure) > REFUSED_BEYOND for each in offsets.values()):
        cure = "synchronise the clocks, see the finding clock"
        return Finding("arrival", "failed", f"{seen}; the clocks differ by more than Prometheus allows", cure)
    cure = (
        "see the Collector's log for failed exports (otelcol_exporter_send_failed_metric_points): its exporter must send to "
        f"{backend.prometheus.url}/api/v1/otlp, and doctor.prometheus_url must be the Prometheus that it sends to"
    )
    return Finding("arrival", "failed", seen, cure)


def check_names(stored: Stored, backend: Backend) -> Finding:
    """Check that a metric has got the name that our rules and boards use."""
    names = sorted({each.name for each in stored.of("counter")})
    expected = next(iter(_NAMES))
    if names == [expected]:
        return Finding("names", "ok", f"{COUNTER} arrived as {expected} ({STRATEGY})")
    strategy = _NAMES.get(names[0], "of no strategy that we know")
    seen = f"{COUNTER} arrived as {', '.join(names)} ({strategy}), our rules and boards expect {expected}"
    if backend.setting("otlp", "translation_strategy") == STRATEGY:
        cure = (
            f"Prometheus has {STRATEGY} already, so the name was made before it: correct the Collector's exporter "
            "(add_metric_suffixes, translation_strategy, namespace), or send to Prometheus' OTLP endpoint"
        )
    else:
        now = backend.now("otlp", "translation_strategy")
        cure = f"set otlp.translation_strategy: {STRATEGY} in Prometheus' configuration{now}"
    return Finding("names", "warning", seen, cure)


def check_promoted(stored: Stored, backend: Backend, resource: Resource) -> Finding:
    """Check that the resource attributes that rules and boards group by are labels."""
    carried = [key for key in PROMOTED if key in resource.attributes]
    untested = [key for key in PROMOTED if key not in carried]
    note = f" (not tested, as this agent's resource lacks them: {', '.join(untested)})" if untested else ""
    missing = [key for key in carried if not _labelled(stored, key, str(resource.attributes[key]))]
    if not missing:
        return Finding("promoted_attributes", "ok", f"labels: {', '.join(carried)}{note}")
    path = ("otlp", "promote_resource_attributes")
    if set(missing) <= set(backend.setting(*path) or ()):
        cure = (
            "Prometheus promotes them from OTLP only, so the points seem to come another way: send to its OTLP endpoint, "
            "or set resource_to_telemetry_conversion in the Collector's remote-write exporter"
        )
    else:
        cure = f"set otlp.promote_resource_attributes in Prometheus' configuration to {', '.join(PROMOTED)}{backend.now(*path)}"
    return Finding("promoted_attributes", "warning", f"no labels: {', '.join(missing)}{note}", cure)


def _labelled(stored: Stored, key: str, value: str) -> bool:
    names = {key, label_name(key)}
    return all(any(each.labels.get(name) == value for name in names) for each in stored.of("counter"))


def check_identity(stored: Stored, resource: Resource) -> Finding:
    """Check that job and instance come from service.name and service.instance.id."""
    attributes = resource.attributes
    name, space = str(attributes.get("service.name", "")), attributes.get("service.namespace")
    wanted = {"job": f"{space}/{name}" if space else name, "instance": str(attributes.get("service.instance.id", ""))}
    labels = stored.of("counter")[0].labels
    wrong = [
        f"{key} is {labels.get(key, 'absent')}, not {value}"
        for key, value in wanted.items()
        if labels.get(key) != value
    ]
    if not wrong:
        return Finding("job_and_instance", "ok", f"job is {wanted['job']}, instance {wanted['instance']}")
    cure = (
        "something between replaces them: check the Collector's resource processors and service.* attributes, and relabelling "
        "in Prometheus; do not have it scrape what comes by OTLP"
    )
    return Finding("job_and_instance", "warning", "; ".join(wrong), cure)


def check_order(stored: Stored, sent: int, previous: Finding) -> Finding:
    """Check that of *sent* numbered requests each was stored."""
    lost = sent - len(stored.values("burst"))
    if not lost:
        return Finding("order", "ok", f"{sent} numbered requests sent one after the other, all stored")
    seen = f"of {sent} numbered requests sent one after the other {lost} were not stored{_told(stored)}"
    cure = (
        "requests seem to overtake one another: set sending_queue.num_consumers: 1 in the Collector's exporter and "
        "remove its batch processor"
    )
    if previous.status == "failed":
        cure += "; with the window of previous_points they are stored all the same"
    return Finding("order", "failed", seen, cure)


def check_previous(stored: Stored, backend: Backend) -> Finding:
    """Check that Prometheus takes points older than the newest one."""
    alone, pair = stored.values("late"), stored.values("pair")
    window = backend.setting("storage", "tsdb", "out_of_order_time_window")
    if stored.previous_came():
        told = f" (window {window})" if window else ""
        return Finding("previous_points", "ok", f"points {OLDER:g} s older than the newest are stored{told}")
    wrong = [] if 1.0 in alone else [f"a point {OLDER:g} s older than its predecessor was not stored"]
    if not pair:
        wrong.append("a request with a previous and a new point was lost whole, as each such request of the agent is")
    elif pair != _BOTH:
        wrong.append("of a request with a previous and a new point only one was stored")
    if 2.0 not in alone:
        wrong.append("a new point was not stored")
    now = backend.now("storage", "tsdb", "out_of_order_time_window")
    cure = f"set storage.tsdb.out_of_order_time_window: 2h in Prometheus' configuration{now}"
    return Finding("previous_points", "failed", "; ".join(wrong) + _told(stored), cure)


def _told(stored: Stored) -> str:
    return f"; the endpoint said: {stored.refused[-1]}" if stored.refused else ""


def check_marks(settings: Settings, verdict: Verdict, alive: Sequence[str], waited: float) -> Finding:
    """Check that no series is visible any more; *alive* are the names of those that are, *verdict* that on the marks."""
    if verdict.outcome != "delivered" or verdict.rejected:
        seen = f"marks were refused: {without_password(settings, verdict.message)}"
        return Finding("stale_marks", "failed", seen, "see the Collector's log")
    if not alive:
        return Finding("stale_marks", "ok", f"gauge, counter and histogram ended {waited:.1f} s after their marks")
    cure = (
        "something on the way, or the backend, ignores OTLP's flag `no recorded value`: ended series stay visible for the "
        "lookback (5 min), for alerts too. Send to Prometheus 3's OTLP endpoint with nothing between that rewrites points"
    )
    return Finding("stale_marks", "failed", f"still visible {waited:.0f} s after their marks: {', '.join(alive)}", cure)
