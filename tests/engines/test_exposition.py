"""The text format, against the parser of prometheus_client and against what a hostile page may hold."""

from __future__ import annotations

import gc
import math
import time
import tracemalloc
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from otelperf.readings import Buckets
from otelperf.sources.engines.exposition import Found, Lines, Reader
from otelperf.sources.engines.native import Chosen

CAPTURES = Path(__file__).resolve().parent.parent / "captures"
PAGES = sorted(CAPTURES.glob("*/*.txt"))
WANTED = {"x", "ns:x_total"}


class Sample(NamedTuple):
    """One line."""

    name: str
    labels: Mapping[str, str]
    value: float


class Page(NamedTuple):
    """The wanted samples, how many wanted lines could not be read, and the first of those."""

    samples: list[Sample]
    malformed: int
    first_malformed: str


def parse(text: str, wanted: set[str]) -> Page:
    """Read one page alone."""
    found = Reader(wanted).read(text.encode("utf-8", "replace"))
    samples = [Sample(place.name, place.labels, value) for lines in found.lines.values() for place, value in lines]
    return Page(samples, found.malformed, found.first_malformed)


def told_by_prometheus_client(page: str) -> list[Sample]:
    """Without the comments: it adds _total to what is typed a counter, such as llamacpp:n_tokens_max."""
    page = "".join(line for line in page.splitlines(keepends=True) if not line.startswith("#"))
    return [
        Sample(sample.name, sample.labels, float(sample.value))
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    ]


def in_order(samples: list[Sample]) -> list[str]:
    return sorted(f"{name} {sorted(labels.items())} {value}" for name, labels, value in samples)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_real_page_is_read_as_prometheus_client_reads_it(path: Path) -> None:
    expected = told_by_prometheus_client(path.read_text())
    page = parse(path.read_text(), {sample.name for sample in expected})
    assert in_order(expected) == in_order(page.samples)
    assert page.malformed == 0


def test_only_wanted_series_are_read() -> None:
    page = (CAPTURES / "vllm-0.32.0" / "busy.txt").read_text()
    wanted = {"vllm:num_requests_running", "vllm:generation_tokens_total"}
    expected = [sample for sample in told_by_prometheus_client(page) if sample.name in wanted]
    assert len(expected) == 2
    assert in_order(expected) == in_order(parse(page, wanted).samples)


labels_of_any_text = st.dictionaries(
    st.from_regex(r"[a-zA-Z_][a-zA-Z0-9_]*", fullmatch=True), st.text(st.characters(exclude_categories=["Cs"]))
)


def escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


@given(labels_of_any_text, st.floats(), st.sampled_from(["", ","]), st.sampled_from([" ", "\t", " \t  "]))
def test_labels_of_any_text_come_back(labels: dict[str, str], value: float, trailing: str, blank: str) -> None:
    inside = ",".join(f'{name}="{escaped(text)}"' for name, text in labels.items()) + (trailing if labels else "")
    page = parse(f"# TYPE x gauge\nx{{{inside}}}{blank}{value!r}{blank}\ny 1\n", WANTED)
    assert page.malformed == 0
    [sample] = page.samples
    assert labels == sample.labels
    assert value == sample.value or (math.isnan(value) and math.isnan(sample.value))


@given(st.text())
def test_any_text_is_read_without_an_error(text: str) -> None:
    parse(text, WANTED)


@given(st.lists(st.text('x{}=",\\ \t\r#0159.eE+-NaInf_é٣', max_size=30)))
def test_any_text_after_a_wanted_name_is_a_sample_or_counted_or_another_name(rests: list[str]) -> None:
    lines = [f"x {rest}" for rest in rests]
    page = parse("\n".join(lines), WANTED)
    assert len(lines) == len(page.samples) + page.malformed


@given(st.binary())
def test_any_bytes_are_read_without_an_error(body: bytes) -> None:
    parse(body.decode("utf-8", "replace"), WANTED)


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("x 5", 5.0),
        ("x\t5", 5.0),
        ("  x   5  ", 5.0),
        ("x{} 5", 5.0),
        ("x 5 1395066363000", 5.0),
        ("x 5 -3982045", 5.0),
        ("x 5 1520879607.789", 5.0),
        ("x 1.5e3", 1500.0),
        ("x +Inf", math.inf),
        ("x -Inf", -math.inf),
        ("x .5", 0.5),
        ('x 5 # {trace_id="}"} 0.67', 5.0),
        ('x 5 1520879607.789 # {trace_id="a"} 0.67 1520879607.7', 5.0),
        ("x 5\r", 5.0),
    ],
)
def test_a_value_is_read(line: str, value: float) -> None:
    assert Page([Sample("x", {}, value)], 0, "") == parse(line, WANTED)


def test_nan_is_read() -> None:
    [sample] = parse("x NaN", WANTED).samples
    assert math.isnan(sample.value)


def test_an_exemplar_is_no_part_of_the_labels() -> None:
    assert [Sample("x", {"a": "}"}, 5.0)] == parse('x{a="}"} 5 # {b="c"} 1', WANTED).samples


@pytest.mark.parametrize(
    "line",
    [
        "x",
        "x ",
        "x{",
        'x{a="b" 5',
        'x{a="b} 5',
        "x{a=b} 5",
        'x{a="b" c="d"} 5',
        "x{,} 5",
        "x 1_000",
        "x 0x1p3",
        "x 0x10",
        "x ٣",
        "x five",
        "x 5 6 7",
        "x 5 today",
        "x # 5",
        "x{} ",
    ],
)
def test_a_malformed_line_is_counted_and_the_good_ones_count(line: str) -> None:
    expected = Page([Sample("ns:x_total", {}, 1.0), Sample("x", {}, 2.0)], 1, line.strip())
    assert expected == parse(f"ns:x_total 1\n{line}\nx 2", WANTED)


def test_the_first_malformed_line_is_told_in_part() -> None:
    page = parse("x " + "y" * 1000 + "\nx z", WANTED)
    assert (page.malformed, page.first_malformed) == (2, "x " + "y" * 118)


def test_lines_end_as_on_windows_or_not_at_all() -> None:
    assert [Sample("x", {}, 1.0), Sample("ns:x_total", {"a": "b"}, 2.0)] == parse(
        '# HELP x y\r\nx 1\r\nns:x_total{a="b"} 2', WANTED
    ).samples


def test_comments_and_longer_names_are_not_taken_for_the_series() -> None:
    assert Page([], 0, "") == parse("# x 5\n#x 5\nxx 5\nx_total 5\n\n \n", WANTED)


@pytest.mark.parametrize(
    "line",
    [
        "x" + " " * 10**6 + "\x0b \x0b",
        "x{" + "}" * 10**6 + " y z",
        'x{a="' + "b" * 10**6,
        "x{" + 'a="b"' * 10**5 + "} 1",
        "x{" + '\\"' * 10**6,
        "x 1" + " 1" * 10**6,
        "x{a" + " " * 10**6 + "} 1",
    ],
    ids=["blanks", "braces", "open string", "strings", "escapes", "numbers", "blanks in a label"],
)
def test_a_line_made_to_be_slow_is_not(line: str) -> None:
    began = time.process_time()
    assert parse(line, WANTED).malformed == 1
    assert time.process_time() - began < 2  # a parser that costs the square of the length takes hours


# -- one page after the other


def values(page: Found) -> dict[str, list[float]]:
    return {series: [value for _, value in lines] for series, lines in page.lines.items()}


def test_a_page_like_the_last_is_read_by_its_layout_and_lines_are_the_same_objects() -> None:
    reader = Reader(WANTED)
    first, second = (reader.read(f'y 1\nx{{a="b"}} {value}\n# x 7\nx{{a="c"}} 2\n'.encode()) for value in (5, 6))
    assert [{"x": [5.0, 2.0]}, {"x": [6.0, 2.0]}] == [values(first), values(second)]
    assert [place for place, _ in first.lines["x"]] == [place for place, _ in second.lines["x"]]


@pytest.mark.parametrize(
    ("page", "expected"),
    [
        ("x 2\ny 1\n", {"x": [2.0]}),  # moved
        ("y 1\nx two\n", {}),
        ("y 1\nx 2_0\n", {}),
        ("y 1\nx 2 1700000000\n", {"x": [2.0]}),
        ('y 1\nx 2 # {a="b"} 7\n', {"x": [2.0]}),
        ('y 1\nx{a="b"} 2\n', {"x": [2.0]}),
        ("y 1\nz 2\n", {}),
        ("y 1\nx 2", {"x": [2.0]}),
        ("y 1\nx 2\nx 3\n", {"x": [2.0, 3.0]}),
        ("", {}),
    ],
)
def test_a_page_unlike_the_last_is_read_anew(page: str, expected: dict[str, list[float]]) -> None:
    reader = Reader(WANTED)
    reader.read(b"y 1\nx 1\n")
    assert expected == values(reader.read(page.encode()))


def test_a_line_with_a_time_is_never_read_by_its_end() -> None:
    reader = Reader(WANTED)
    assert [{"x": [5.0]}] * 3 == [values(reader.read(f"x 5 {time}\n".encode())) for time in (170, 171, 172)]


def test_a_page_of_wanted_lines_without_end_is_not_remembered() -> None:
    page = "".join(f'x{{a="{number}"}} {number}\n' for number in range(30_000))
    reader = Reader(WANTED, most=30_000)
    gc.collect()
    tracemalloc.start()
    try:
        assert [len(reader.read(page.encode()).lines["x"]) for _ in range(2)] == [30_000] * 2
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 10 * 2**20


def test_no_more_wanted_lines_are_taken_than_allowed_and_that_is_said() -> None:
    reader = Reader(WANTED, most=2)
    pages = [b"x 1\ny 1\nx 2\n", b"x 1\nx 2\nx 3\nx 4\n", b"x 3\ny 1\nx 4\n"]
    found = [reader.read(page) for page in pages]
    assert [values(page) for page in found] == [{"x": [1.0, 2.0]}, {"x": [1.0, 2.0]}, {"x": [3.0, 4.0]}]
    assert [page.cut for page in found] == [False, True, False]


@pytest.mark.parametrize("padding", ["y é 1\n" * 30_000, "# " + "y" * 2**21 + "\n", "\n" * 30_000])
def test_a_large_page_is_read_piece_by_piece_as_a_small_one_is(padding: str) -> None:
    page = "".join(f'x{{a="é{number}"}} {number}\n' for number in range(1_000))
    texts = (page, padding + page, page + padding, page + padding + page)
    small, *large = (Reader(WANTED).read(text.encode()) for text in texts)
    once = values(small)["x"]
    assert [values(found)["x"] for found in large] == [once, once, once + once]
    labels = [place.labels for place, _ in small.lines["x"]]
    assert [[place.labels for place, _ in found.lines["x"]] for found in large] == [labels, labels, labels + labels]


@pytest.mark.parametrize("line", ["ab\n", "\n", "\N{GRINNING FACE}\n", "y 1\n"])
def test_a_page_of_short_lines_is_never_all_there_as_lines(line: str) -> None:
    body = (line * 2**20)[: 2**22 // len(line.encode())].encode()
    reader = Reader(WANTED)
    gc.collect()
    tracemalloc.start()
    try:
        assert reader.read(body) == Found(Lines())
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 6 * 2**20


def test_a_histogram_is_made_once_of_its_lines_and_its_place_is_the_same_on_each_page() -> None:
    page = b"""
h_bucket{a="1",le="0.5"} 1
h_bucket{a="1",le="+Inf"} 3
h_bucket{a="2",le="+Inf"} 4
h_bucket{a="3",le="+Inf"} 5
h_bucket{a="4",le="0.5"} 5
h_sum{a="1"} 2.5
h_sum{a="2"} 7
h_sum{a="4"} 7
"""
    reader = Reader({"h_bucket", "h_sum"})
    first, second = (reader.read(page).lines for _ in range(2))
    expected = [({"a": "1"}, Buckets(3, 2.5, (0.5,), (1, 2))), ({"a": "2"}, Buckets(4, 7.0, (), (4,)))]
    assert [(place.labels, buckets) for place, buckets in first.histograms("h")] == expected
    assert first.histograms("h") is first.histograms("h")
    assert first.histograms("h") == second.histograms("h")  # places are equal only if they are the same


def test_a_wanted_line_in_place_of_another_is_seen_within_a_dozen_pages() -> None:
    reader = Reader(WANTED)
    reader.read(b"x 1\ny 1\n")
    seen = ["ns:x_total" in reader.read(b"x 1\nns:x_total 1\n").lines for _ in range(12)]
    assert seen[-1]


@given(
    st.lists(st.lists(st.sampled_from(["x 1", "x 2", 'x{a="b"} 3', "y 4", "x 5 6", " x 7", "x 8 ", "x many", "# x"])))
)
def test_one_page_after_the_other_is_as_each_alone(pages: list[list[str]]) -> None:
    """Line counts are made to differ, so that no page is trusted for the last one's sake alone."""
    reader = Reader(WANTED)
    for number, lines in enumerate(pages):
        page = "\n".join([*lines, *[""] * (10 * number)])
        assert values(Reader(WANTED).read(page.encode())) == values(reader.read(page.encode()))


def test_an_empty_line_is_none_whatever_is_wanted() -> None:
    reader = Reader(Chosen(["*"]))
    found = reader.read(b"a 1\n\n  \n# HELP a\n")
    assert (list(found.lines), found.malformed) == (["a"], 0)
