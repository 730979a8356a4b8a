"""What the items of a map make of series with labels, on pages made for it and on a real one of vLLM."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from otelperf.readings import Buckets, Reading
from otelperf.sources.engines.engine import (
    Engine,
    Item,
    Of,
    Print,
    Rate,
    Ratio,
    States,
    Sum,
    Take,
)
from otelperf.sources.engines.exposition import Reader
from otelperf.sources.engines.mapping import Mapper
from otelperf.sources.engines.server import Server
from otelperf.sources.engines.vllm import VLLM
from tests.engines.loopback import Loopback, saying

PAGE = (Path(__file__).resolve().parent.parent / "captures" / "vllm-0.32.0" / "busy.txt").read_text()
SECOND = 1_000_000_000
START = 1_800_000_000 * SECOND
TTFT = "vllm:time_to_first_token_seconds"
Told = dict[tuple[str, ...], float | Buckets]


class Pages:
    """A server with the map *items*, whose labels ``engine`` and ``model`` are known, read page by page, each a second later."""

    def __init__(self, *items: Item) -> None:
        engine = Engine(
            name="made up",
            metrics_path="/metrics",
            items=items,
            prints=(Print("/metrics", re.compile(rb"x")),),
            labels={"engine": "engine", "model": "model"},
        )
        self._reader, self._mapper, self._now = Reader(engine.wanted()), Mapper(engine), START
        self.troubles: list[str] = []

    def read(self, *lines: str) -> Told:
        """Return the values by the attributes' values."""
        self._now += SECOND
        return {tuple(map(str, r.attributes.values())): r.value for r in self.readings("\n".join(lines))}

    def readings(self, page: str) -> list[Reading]:
        found = self._reader.read(page.encode())
        return self._mapper.readings(self._now, found.lines, None, self.troubles)


# -- takes


def test_labels_without_a_name_are_added_up_over() -> None:
    pages = Pages(Take("x", "m", combine="sum"))
    assert {("0",): 3, ("1",): 4} == pages.read(
        'x{engine="0",path="/a"} 1', 'x{engine="0",path="/b"} 2', 'x{engine="1",path="/a"} 4'
    )


def test_the_largest_is_taken_where_the_item_says_so() -> None:
    pages = Pages(Take("x", "m", combine="max"))
    assert {("0",): 0.75} == pages.read(
        'x{engine="0",pid="7"} 0.5', 'x{engine="0",pid="8"} 0.75', 'x{engine="0",pid="9"} 0'
    )


def test_the_first_name_that_the_page_has_is_read_and_the_others_are_not() -> None:
    pages = Pages(Take(("new", "old", "older"), "m"))
    assert {(): 1} == pages.read("older 3", "old 1")
    assert {(): 2} == pages.read("old 1", "new 2")
    assert {} == pages.read("other 1")


def test_only_the_samples_that_fit_are_taken_and_an_absent_label_is_empty() -> None:
    pages = Pages(
        Take("x", "m", only={"priority": ("",)}), Take("x", "n", {"p": "high"}, only={"priority": ("1", "2")})
    )
    assert {(): 5, ("high",): 2} == pages.read("x 5", 'x{priority="1"} 2')


def test_an_error_that_was_never_seen_is_zero_only_where_its_series_is() -> None:
    pages = Pages(Take("x", "m", {"error.type": "5xx"}, only={"status": ("5xx",)}, combine="sum", zero=True))
    assert {("5xx",): 0} == pages.read('x{status="2xx"} 9')
    assert {} == pages.read("y 1")


def test_values_are_scaled_to_the_metrics_unit() -> None:
    assert {(): 1.5} == Pages(Take("x", "m", scale=1e-6)).read("x 1500000")


def test_a_number_in_a_label_is_a_value() -> None:
    pages = Pages(Take("x", "m", number="size"))
    assert {(): 4096} == pages.read('x{size="4096"} 1')
    assert {} == pages.read('x{size="None"} 1')
    assert {} == pages.read('x{size="inf"} 1')


def test_an_empty_label_makes_no_attribute_and_a_long_one_is_cut() -> None:
    assert {(): 1, ("m" * 200,): 2} == Pages(Take("x", "m")).read('x{model=""} 1', f'x{{model="{"m" * 999}"}} 2')


def test_a_label_with_values_without_end_is_256_series_and_told() -> None:
    pages = Pages(Take("x", "m", combine="sum"))
    assert len(pages.read(*(f'x{{model="{n}"}} 1' for n in range(1000)))) == 256
    assert pages.troubles == ["1000 series of m, 256 at most are taken"]


def test_the_same_attributes_are_the_same_object_on_each_page() -> None:
    pages = Pages(Take("x", "m", combine="sum"), Rate("r", Of("x")))
    pages.read('x{engine="0"} 1')
    first, second = (
        {(r.name, *r.attributes.items()): id(r.attributes) for r in pages.readings('x{engine="0"} 2')} for _ in range(2)
    )
    assert first.items() <= second.items()


# -- sums, rates, ratios, states


def test_a_sum_is_absent_where_a_part_is() -> None:
    pages = Pages(Sum("m", (Of("x"), Of("y"))))
    assert {("0",): 3} == pages.read('x{engine="0"} 1', 'y{engine="0"} 2', 'x{engine="1"} 5')


def test_a_rate_is_absent_at_first_then_per_second_and_zero_when_idle() -> None:
    pages = Pages(Rate("m", Of("x")))
    assert {} == pages.read("x 10")
    assert {(): 5.0} == pages.read("x 15")
    assert {(): 0.0} == pages.read("x 15")


def test_a_rate_after_a_restart_counts_from_it() -> None:
    pages = Pages(Rate("m", Of("x")))
    pages.read("x 1000")
    assert {(): 7.0} == pages.read("x 7")


def test_an_engine_that_joins_has_a_rate_from_its_second_page_on() -> None:
    pages = Pages(Rate("m", Of("x")))
    pages.read('x{engine="0"} 1')
    assert {("0",): 1.0} == pages.read('x{engine="0"} 2', 'x{engine="1"} 100')
    assert {("0",): 0.0, ("1",): 3.0} == pages.read('x{engine="0"} 2', 'x{engine="1"} 103')


def test_a_ratio_is_of_what_grew_for_each_engine_and_absent_without_traffic() -> None:
    pages = Pages(Ratio("m", (Of("hits"),), (Of("queries"),)))
    pages.read('hits{engine="0"} 90', 'queries{engine="0"} 100', 'hits{engine="1"} 0', 'queries{engine="1"} 0')
    page = ('hits{engine="0"} 91', 'queries{engine="0"} 104', 'hits{engine="1"} 0', 'queries{engine="1"} 0')
    assert {("0",): 0.25} == pages.read(*page)
    assert {} == pages.read(*page)


def test_a_ratio_after_a_restart_is_of_what_came_since() -> None:
    pages = Pages(Ratio("m", (Of("hits"),), (Of("queries"),)))
    pages.read("hits 90", "queries 100")
    assert {(): 0.5} == pages.read("hits 1", "queries 2")


def test_both_sides_of_a_ratio_may_be_several_series_or_some_of_ones_samples() -> None:
    pages = Pages(Ratio("m", (Of("x", {"mode": ("a", "b")}),), (Of("x"), Of("y"))))
    pages.read('x{mode="a"} 0', 'x{mode="b"} 0', 'x{mode="c"} 0', "y 0")
    assert {(): 0.3} == pages.read('x{mode="a"} 1', 'x{mode="b"} 2', 'x{mode="c"} 3', "y 4")


def test_a_ratio_of_values_as_they_stand_is_there_at_once() -> None:
    pages = Pages(Ratio("m", (Of("used"),), (Of("limit"),), growth=False))
    assert {(): 0.25} == pages.read("used 1", "limit 4")
    assert {} == pages.read("used 1", "limit 0")


@pytest.mark.parametrize("odd", ["NaN", "+Inf", "-Inf"])
def test_what_is_no_number_makes_no_rate_and_no_ratio(odd: str) -> None:
    pages = Pages(Rate("m", Of("x")), Ratio("n", (Of("x"),), (Of("y"),)))
    pages.read("x 1", "y 1")
    assert {} == pages.read(f"x {odd}", "y 2")


def test_engines_are_active_idle_or_sleeping() -> None:
    pages = Pages(States(Of("running"), Of("sleep", {"level": ("1", "2")}), worker="engine"))
    told = pages.read(
        *(f'running{{engine="{n}"}} {n}' for n in range(3)),
        *(f'sleep{{engine="{n}",level="2"}} {int(n == 0)}' for n in range(3)),
        *(f'sleep{{engine="{n}",level="awake"}} 1' for n in range(3)),
    )
    assert {("0", "sleeping"), ("1", "active"), ("2", "active")} == {state for state, value in told.items() if value}
    assert len(told) == 9


def test_a_server_without_sleep_or_engines_is_one_worker_of_two_states() -> None:
    pages = Pages(States(Of("running"), Of("sleep")))
    assert {("active",): 0, ("idle",): 1} == pages.read("running 0")


# -- histograms

H = ('h_bucket{le="1"} 1', 'h_bucket{le="2"} 3', 'h_bucket{le="+Inf"} 4', "h_sum 9")


def test_a_histogram_passes_with_its_bounds_and_is_scaled() -> None:
    assert {(): Buckets(4, 9.0, (1.0, 2.0), (1, 2, 1))} == Pages(Take("h", "m", histogram=True)).read(*H)
    milliseconds = Pages(Take("h", "m", histogram=True, scale=0.5)).read(*H)
    assert {(): Buckets(4, 4.5, (0.5, 1.0), (1, 2, 1))} == milliseconds


def as_streaming(streaming: str, lines: tuple[str, ...]) -> list[str]:
    return [
        line.replace("{", f'{{s="{streaming}",') if "{" in line else line.replace(" ", f'{{s="{streaming}"}} ')
        for line in lines
    ]


def test_histograms_that_differ_in_a_label_without_a_name_are_added_up() -> None:
    pages = Pages(Take("h", "m", histogram=True, combine="sum"))
    assert {(): Buckets(8, 18.0, (1.0, 2.0), (2, 4, 2))} == pages.read(*as_streaming("yes", H), *as_streaming("no", H))


def test_histograms_of_other_bounds_are_not_added_up() -> None:
    pages = Pages(Take("h", "m", histogram=True, combine="sum"))
    other = ('h_bucket{le="5"} 1', 'h_bucket{le="+Inf"} 1', "h_sum 3")
    told = pages.read(*as_streaming("yes", H), *as_streaming("no", other))
    assert {(): Buckets(4, 9.0, (1.0, 2.0), (1, 2, 1))} == told


@pytest.mark.parametrize(
    "lines",
    [
        ('h_bucket{le="1"} 1', 'h_bucket{le="2"} 2', "h_sum 3"),  # no +Inf
        ('h_bucket{le="1"} 2', 'h_bucket{le="+Inf"} 1', "h_sum 3"),  # falls
        ('h_bucket{le="1"} 1', 'h_bucket{le="+Inf"} 1'),  # no sum
        ('h_bucket{le="one"} 1', "h_sum 3"),
        ('h_bucket{le="+Inf"} NaN', "h_sum 3"),
        ('h_bucket{le="NaN"} 1', "h_sum 3"),
        ('h_bucket{le="+Inf"} 1e30', "h_sum 3"),  # more than OTLP can carry
        ("h_bucket 1", "h_sum 3"),
        ("h_sum 3",),
    ],
)
def test_a_histogram_that_does_not_add_up_is_left_out(lines: tuple[str, ...]) -> None:
    assert {} == Pages(Take("h", "m", histogram=True)).read(*lines)


# -- a real page, through the source


def told(name: str) -> float:
    """Return what the page says of the one series that begins with *name*."""
    (line,) = [line for line in PAGE.splitlines() if line.startswith(name)]
    return float(line.split()[-1])


@pytest.fixture
def readings() -> list[Reading]:
    with Loopback(saying({"/metrics": PAGE})) as loopback:
        server = Server(loopback.url, VLLM)
        server.read(START)
        found = server.read(START + 5 * SECOND)
        server.close()
    return found


def test_a_real_histogram_passes_whole(readings: list[Reading]) -> None:
    (reading,) = [reading for reading in readings if reading.name == "gen_ai.server.time_to_first_token"]
    assert isinstance(reading.value, Buckets)
    assert reading.value.count == told(f"{TTFT}_count") == sum(reading.value.counts)
    assert reading.value.sum == told(f"{TTFT}_sum")
    assert reading.value.bounds[:4] == (0.001, 0.005, 0.01, 0.02)
    assert len(reading.value.counts) == len(reading.value.bounds) + 1
    assert dict(reading.attributes) == {"gen_ai.request.model": "tiny", "otelperf.server.engine.index": "0"}


def test_the_process_start_is_the_counters_start(readings: list[Reading]) -> None:
    starts = {reading.start for reading in readings if reading.name == "otelperf.server.tokens"}
    assert starts == {int(told("process_start_time_seconds ") * 1e9)}


def test_models_that_need_a_key_are_no_trouble_and_their_limit_is_absent(readings: list[Reading]) -> None:
    assert "otelperf.server.context.limit" not in {reading.name for reading in readings}
