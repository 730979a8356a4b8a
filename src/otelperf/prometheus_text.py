"""Points as Prometheus text, under the names that Prometheus 3 itself gives them when they come by OTLP.

Names follow its translation ``UnderscoreEscapingWithSuffixes`` (github.com/prometheus/otlptranslator): characters that are not
allowed become ``_``, the unit and ``_total`` are appended where the name does not already hold them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from opentelemetry.sdk.metrics.export import Gauge, HistogramDataPoint, Metric, MetricsData, NumberDataPoint, Sum

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_UNITS = {
    "d": "days", "h": "hours", "min": "minutes", "s": "seconds", "ms": "milliseconds", "us": "microseconds",
    "ns": "nanoseconds", "By": "bytes", "KiBy": "kibibytes", "MiBy": "mebibytes", "GiBy": "gibibytes",
    "TiBy": "tibibytes", "KBy": "kilobytes", "MBy": "megabytes", "GBy": "gigabytes", "TBy": "terabytes",
    "m": "meters", "V": "volts", "A": "amperes", "J": "joules", "W": "watts", "g": "grams", "Cel": "celsius",
    "Hz": "hertz", "1": "", "%": "percent",
}  # fmt: skip
_PER = {"s": "second", "m": "minute", "h": "hour", "d": "day", "w": "week", "mo": "month", "y": "year"}
_OTHER = re.compile(r"[^a-zA-Z0-9:]+")
_ESCAPES = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})


@lru_cache(maxsize=1024)
def metric_name(name: str, unit: str, kind: str) -> str:
    """Return the name in Prometheus; *kind* is ``gauge``, ``counter`` or another."""
    words = [word for word in _OTHER.split(name) if word]
    words += [suffix for suffix in _unit_words(unit) if suffix not in words]
    if kind == "counter":
        words = [*(word for word in words if word != "total"), "total"]
    if kind == "gauge" and unit == "1":
        words = [*(word for word in words if word != "ratio"), "ratio"]
    joined = "_".join(words)
    return f"_{joined}" if joined[:1].isdigit() else joined


def _unit_words(unit: str) -> Iterator[str]:
    """Yield the unit's and its divisor's suffix; what is in braces only says what is counted."""
    main, per = (part if not set(part) & {"{", "}"} else "" for part in map(str.strip, unit.partition("/")[::2]))
    main = _OTHER.sub("_", _UNITS.get(main, main)).removeprefix("_")
    per = _OTHER.sub("_", f"per_{_PER.get(per, per)}").removesuffix("_") if per else ""
    per = "" if per == "per" else per
    if main:
        yield main.removesuffix("_") if per else main
    if per:
        yield per


def label_name(name: str) -> str:
    """Return an attribute's name as a label."""
    label = re.sub(r"[^a-zA-Z0-9_]", "_", name)
    if label[:1].isdigit():
        return f"key_{label}"
    return f"key{label}" if label[:1] == "_" and label[:2] != "__" else label


def render(data: MetricsData) -> str:
    """Render as text format 0.0.4, one block a metric, whichever resource its points belong to."""
    blocks: dict[str, tuple[str, str, list[str]]] = {}
    for resource in data.resource_metrics:
        common = _identity(resource.resource.attributes)
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                kind = _kind(metric)
                name = metric_name(metric.name, metric.unit or "", kind)
                _, _, lines = blocks.setdefault(name, (metric.description or "", kind, []))
                lines.extend(_lines(name, metric, common))
    out: list[str] = []
    for name, (meaning, kind, lines) in sorted(blocks.items()):
        escaped = meaning.replace("\\", r"\\").replace("\n", r"\n")
        out += [f"# HELP {name} {escaped}", f"# TYPE {name} {'gauge' if kind == 'updown' else kind}", *lines]
    return "\n".join(out) + "\n"


def _identity(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """What Prometheus makes of a resource: job and instance."""
    name, space = attributes.get("service.name"), attributes.get("service.namespace")
    labels = {"job": f"{space}/{name}" if space else name, "instance": attributes.get("service.instance.id")}
    return {key: value for key, value in labels.items() if value}


def _kind(metric: Metric) -> str:
    if isinstance(metric.data, Sum):
        return "counter" if metric.data.is_monotonic else "updown"
    return "gauge" if isinstance(metric.data, Gauge) else "histogram"


def _lines(name: str, metric: Metric, common: Mapping[str, Any]) -> Iterator[str]:
    for point in metric.data.data_points:
        labels = {**_by_label(point.attributes or {}), **common}
        if isinstance(point, NumberDataPoint):
            yield f"{name}{_labels(labels)} {number(point.value)}"
        elif isinstance(point, HistogramDataPoint):
            yield from _histogram(name, labels, point)


def _by_label(attributes: Mapping[str, Any]) -> dict[str, str]:
    """Values by label; where two names become one label, it holds both values, as in Prometheus."""
    labels: dict[str, str] = {}
    for key in sorted(attributes):
        label, value = label_name(key), _text(attributes[key])
        if label.startswith("__"):
            continue  # reserved: whoever scrapes would refuse the whole page
        labels[label] = f"{labels[label]};{value}" if labels.get(label) else value
    return labels


def _histogram(name: str, labels: Mapping[str, Any], point: HistogramDataPoint) -> Iterator[str]:
    running = 0
    for bound, count in zip((*point.explicit_bounds, math.inf), point.bucket_counts, strict=True):
        running += count
        yield f"{name}_bucket{_labels({**labels, 'le': number(bound)})} {running}"
    yield f"{name}_sum{_labels(labels)} {number(point.sum)}"
    yield f"{name}_count{_labels(labels)} {point.count}"


def _labels(labels: Mapping[str, Any]) -> str:
    inside = ",".join(f'{label}="{_text(value).translate(_ESCAPES)}"' for label, value in labels.items())
    return f"{{{inside}}}" if inside else ""


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def number(value: float) -> str:
    """Write a number as Prometheus reads it."""
    if value != value:  # NaN is the one value that differs from itself
        return "NaN"
    if value in (math.inf, -math.inf):
        return "+Inf" if value > 0 else "-Inf"
    return repr(value)
