"""The text format, against the parser of prometheus_client and against what a hostile page may hold."""

from __future__ import annotations

import math
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from otelperf.sources.engines.exposition import Page, Sample, parse

CAPTURES = Path(__file__).resolve().parent.parent / "captures"
PAGES = sorted(CAPTURES.glob("*/*.txt"))
WANTED = {"x", "ns:x_total"}


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
