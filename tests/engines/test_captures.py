"""Real pages, replayed: every folder of captures of a server whose map we have."""

from __future__ import annotations

import gzip
import json
import os
from itertools import pairwise
from math import inf
from pathlib import Path
from typing import Any

import pytest

from otelperf import catalog
from otelperf.errors import SourceError
from otelperf.readings import Buckets, Reading
from otelperf.sources.engines import ENGINES
from otelperf.sources.engines.engine import Engine, Moment, grown
from otelperf.sources.engines.exposition import Lines, Place
from otelperf.sources.engines.llamacpp import LLAMACPP
from otelperf.sources.engines.mapping import Mapper
from otelperf.sources.engines.server import Server
from tests.engines.loopback import Loopback, saying

CAPTURES = Path(__file__).resolve().parent.parent / "captures"
SECOND = 1_000_000_000
START = 1_700_000_000 * SECOND
EXPECTED = [
    pytest.param(engine, path, id=f"{path.parent.name}/{path.name}")
    for engine in ENGINES
    for path in sorted(CAPTURES.glob(f"{engine.name}-*/*.readings.json"))
]


def as_json(readings: list[Reading]) -> list[dict[str, Any]]:
    return [{"name": r.name, "attributes": dict(r.attributes), "value": as_plain(r.value)} for r in readings]


def as_plain(value: float | Buckets) -> Any:
    """Write a histogram in a line: what a person looks through must not be four hundred."""
    if not isinstance(value, Buckets):
        return value
    counts = [f"{n} up to {bound:g}" for bound, n in zip((*value.bounds, inf), value.counts, strict=True) if n]
    return {"count": value.count, "sum": value.sum, "bounds": len(value.bounds), "of which": ", ".join(counts)}


def as_text(readings: list[dict[str, Any]]) -> str:
    """Write a reading a line."""
    return "[\n" + ",\n".join(json.dumps(reading) for reading in readings) + "\n]\n"


def json_name(path: str) -> str:
    """Return the file of a JSON page: /v1/models is v1-models.json."""
    return path[1:].replace("/", "-") + ".json"


def read(server: Server, now: int) -> list[Reading]:
    """Read, whether or not something is missing."""
    try:
        return server.read(now)
    except SourceError as error:
        return list(error.readings)


@pytest.mark.parametrize(("engine", "path"), EXPECTED)
def test_a_captured_server_gives_the_recorded_readings(engine: Engine, path: Path) -> None:
    folder, pages = path.parent, path.name.removesuffix(".readings.json").split("+")
    answers: dict[str, bytes | str] = {
        path: (folder / json_name(path)).read_text()
        for path in (engine.facts_path, *(page.path for page in engine.pages))
        if (folder / json_name(path)).exists()
    }
    with Loopback(saying(answers)) as loopback:
        server = Server(loopback.url, engine)
        for second, page in enumerate(pages):
            if (folder / f"{page}.txt").exists():  # a server whose metrics are off has JSON pages only
                answers[engine.metrics_path] = (folder / f"{page}.txt").read_text()
            readings = as_json(read(server, START + second * SECOND))
        server.close()
    if os.environ.get("OTELPERF_RECORD"):
        path.write_text(as_text(readings))
    assert json.loads(path.read_text()) == readings


def test_every_engine_has_captures() -> None:
    assert {engine.name for engine in ENGINES} == {param.values[0].name for param in EXPECTED}  # type: ignore[union-attr] # engines, as made above


def test_every_row_of_the_catalogue_has_a_captured_reading_and_no_reading_lacks_a_row() -> None:
    read = {r["name"] for param in EXPECTED for r in json.loads(param.values[1].read_text())}  # type: ignore[union-attr] # paths, as made above
    assert {row.name for row in catalog.SERVER} == read


def test_a_map_names_only_rows_of_the_catalogue() -> None:
    taken = {metric for engine in ENGINES for metric in engine.metrics()}
    assert taken - {row.name for row in catalog.SERVER} == set()


def recorded() -> list[Moment]:
    with gzip.open(CAPTURES / "llama.cpp-11434" / "series-1s.jsonl.gz", "rt") as lines:
        rows = [json.loads(line) for line in lines]
    return [Moment(round(row.pop("t") * 1e9), row) for row in rows]


def derived(before: Moment, now: Moment) -> dict[tuple[str, str], Any]:
    facts, mapper = LLAMACPP.facts({"total_slots": 4}), Mapper(LLAMACPP)
    for moment in (before, now):
        lines = Lines({name: [(Place(name, {}), value)] for name, value in moment.values.items()})
        mapped = mapper.readings(moment.time, lines, None, [])
    readings = [*mapped, *LLAMACPP.derive(before, now, facts)]
    return {(r.name, str(r.attributes.get("gen_ai.token.type", ""))): r.value for r in readings}


@pytest.mark.parametrize(
    ("series", "kind"), [("llamacpp:prompt_tokens_total", "input"), ("llamacpp:tokens_predicted_total", "output")]
)
def test_tokens_a_second_are_the_differences_of_the_recording(series: str, kind: str) -> None:
    moments = recorded()
    spans = [((now.time - before.time) / 1e9, before, now) for before, now in pairwise(moments)]
    throughput = [derived(before, now)["otelperf.server.token.throughput", kind] for _, before, now in spans]
    expected = [(now.values[series] - before.values[series]) / seconds for seconds, before, now in spans]
    assert expected == throughput
    tokens = sum(rate * seconds for rate, (seconds, _, _) in zip(throughput, spans, strict=True))
    assert tokens == pytest.approx(moments[-1].values[series] - moments[0].values[series])


def test_throughput_is_zero_in_the_idle_seconds_of_the_recording() -> None:
    moments = recorded()
    idle = [
        derived(before, now)["otelperf.server.token.throughput", "output"]
        for before, now in pairwise(moments)
        if grown(before, now, "llamacpp:tokens_predicted_total") == 0
    ]
    assert len(idle) > 50
    assert set(idle) == {0.0}


def test_batch_size_is_there_in_exactly_the_seconds_with_decodes() -> None:
    moments = recorded()
    for before, now in pairwise(moments):
        found = derived(before, now).get(("otelperf.server.batch.size", ""))
        decodes = grown(before, now, "llamacpp:n_decode_total")
        assert decodes is not None
        blur = now.values["llamacpp:n_decode_total"] * now.values["llamacpp:n_busy_slots_per_decode"] * 1e-5
        assert (found is not None) == (decodes > blur)
        assert found is None or 1 <= found <= 4.5


def test_batch_sizes_weighted_by_decodes_are_the_mean_over_the_servers_life() -> None:
    moments = recorded()
    busy = sum(
        derived(before, now).get(("otelperf.server.batch.size", ""), 0)
        * (now.values["llamacpp:n_decode_total"] - before.values["llamacpp:n_decode_total"])
        for before, now in pairwise(moments)
    )
    first, last = (
        m.values["llamacpp:n_decode_total"] * m.values["llamacpp:n_busy_slots_per_decode"]
        for m in (moments[0], moments[-1])
    )
    assert busy == pytest.approx(last - first, rel=0.01)
