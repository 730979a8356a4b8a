"""Files of samples: every form that tools write, and what is none."""

from __future__ import annotations

import gzip
import io
import json
import math
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from otelperf.errors import OtelperfError
from otelperf.savings import samples
from otelperf.savings.recording import Recording
from tests.savings.files import recorded


def read_all(tmp_path: Path, text: str | bytes) -> dict[str, list[tuple[int, float]]]:
    _, series = recorded(tmp_path, text)
    return {each.name: list(zip(each.times, each.values, strict=True)) for each in series}


def complaint(tmp_path: Path, text: str | bytes) -> str:
    with pytest.raises(OtelperfError) as raised:
        recorded(tmp_path, text)
    assert len(str(raised.value).splitlines()) == 1
    return str(raised.value).removeprefix(str(tmp_path / "samples"))


def test_openmetrics_as_promtool_dumps_it(tmp_path: Path) -> None:
    text = 'up{instance="x:9",job="a"} 1 1700000000.123\nup{instance="x:9",job="a"} 0 1700000015.123\n# EOF\n'
    _, (series,) = recorded(tmp_path, text)
    assert (series.name, series.labels) == ("up", {"instance": "x:9", "job": "a"})
    assert (list(series.times), list(series.values)) == ([1_700_000_000_123, 1_700_000_015_123], [1, 0])


def test_a_plain_dump_of_promtool(tmp_path: Path) -> None:
    text = '{__name__="up", job="a"} 1.5e+06 1700000000123\n{__name__="up", job="a"} NaN 1700000015123\n'
    _, (series,) = recorded(tmp_path, text)
    assert (series.name, series.labels, list(series.times)) == (
        "up",
        {"job": "a"},
        [1_700_000_000_123, 1_700_000_015_123],
    )
    assert series.values[0] == 1.5e6
    assert math.isnan(series.values[1])


def test_text_format_with_types_blanks_escapes_and_exemplars(tmp_path: Path) -> None:
    text = (
        "# HELP a_total what it is\n# TYPE a_total counter\n\n"
        '  a_total { path = "C:\\\\x \\"}\\" \\n" , } 3  1700000000 # {trace_id="9"} 1 1700000000.5\n'
        "a_total +Inf 1700000001\r\n"
    )
    recording, series = recorded(tmp_path, text)
    assert recording.types == {"a_total": "counter"}
    assert [each.labels for each in series] == [{"path": 'C:\\x "}" \n'}, {}]
    assert [list(each.values) for each in series] == [[3.0], [math.inf]]


def test_names_in_quotes(tmp_path: Path) -> None:
    text = '{"system.cpu.time","cpu.mode"="idle"} 1 1700000000\n{__name__="system.cpu.time", "cpu.mode"="idle"} 2 1700000001000\n'
    _, (series,) = recorded(tmp_path, text)
    assert (series.name, series.labels, list(series.values)) == ("system.cpu.time", {"cpu.mode": "idle"}, [1, 2])


def test_an_answer_of_prometheus(tmp_path: Path) -> None:
    result = [
        {"metric": {"__name__": "a", "metric": "values"}, "values": [[1700000000.123, "1"], [1700000001, "NaN"]]},
        {"metric": {"__name__": "h"}, "histograms": [[1700000000, {"count": "1", "sum": "2"}]]},
    ]
    answer = {"status": "success", "data": {"resultType": "matrix", "result": result}}
    recording, (series,) = recorded(tmp_path, json.dumps(answer, indent=1))
    assert (series.name, series.labels, series.times[0]) == ("a", {"metric": "values"}, 1_700_000_000_123)
    assert list(recording.notes) == ["series with native histograms, skipped (classic ones are replayed)"]


def test_native_histograms_of_a_dump_are_skipped_and_told(tmp_path: Path) -> None:
    text = '{__name__="h"} {count:5, sum:18.4, [-0.001,0.001]:2} 1700000000000\n{__name__="up"} 1 1700000000000\n'
    recording, (series,) = recorded(tmp_path, text)
    assert series.name == "up"
    assert recording.notes.total() == 1


def test_samples_out_of_order_are_sorted_and_of_two_at_a_time_the_first_counts(tmp_path: Path) -> None:
    text = "a 3 1700000003\na 1 1700000001\na 2 1700000002\na 9 1700000002\na 3 1700000003\n"
    recording, (series,) = recorded(tmp_path, text)
    assert list(series.values) == [1, 2, 3]
    assert sorted(recording.notes.values()) == [1, 1]


def test_the_last_line_without_an_end_is_left_out(tmp_path: Path) -> None:
    recording, (series,) = recorded(tmp_path, "a 1 1700000001\na 2 17000")
    assert list(series.values) == [1]
    assert recording.notes.total() == 1


def test_a_last_line_that_only_says_eof_needs_no_end(tmp_path: Path) -> None:
    recording, _ = recorded(tmp_path, "a 1 1700000001\n# EOF")
    assert recording.notes.total() == 0


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("<!DOCTYPE html>\n<html>\n", ", line 1: '<!DOCTYPE html>' is no sample: expected name{labels} value time"),
        ("a 1 1700000000\na 1\n", ", line 2: 'a 1' is no sample: it has no time; expected name{labels} value time"),
        ("a one 1700000000\n", "could not convert string to float: 'one'"),
        ("a 1_0 1700000000\n", "expected name{labels} value time"),
        ("a 1 2 3\n", "expected name{labels} value time"),
        ("a 1 NaN\n", "NaN is no time"),
        ("a 1 1e300\n", "1e300 is no time"),
        ("a 1 253402300800000\n", "253402300800000 is no time: expected a time in the years 1970 to 9999"),
        ("a 1 -5\n", ", line 1: 'a 1 -5' is no sample: -5 is no time"),
        ('{"data":{"resultType":"matrix","result":[{"metric":{"a":"b"},"values":[[9e12,"1"]]}]}}', "000.0 is no time"),
        ('{"data":{"resultType":"matrix","result":[{"metric":{"a":"b"},"values":[[-1,"1"]]}]}}', ": -1 is no time"),
        ('{"data":{"resultType":"matrix","result":[{"metric":{"a":"b"},"values":[[NaN,"1"]]}]}}', ": nan is no time"),
        ('{"data":{"resultType":"matrix","result":[{"metric":{"a":"b"},"values":[["5","1"]]}]}}', "no answer"),
        ('a{b="c} 1 1700000000\n', "expected name{labels} value time"),
        ("a{b=c} 1 1700000000\n", "its labels cannot be read from 'b=c' on"),
        ('{b="c"} 1 1700000000\n', "it has no name"),
        (b"a 1 1700000000\n\xff\xfe 1 1\n", "line 2"),
        (gzip.compress(b"a 1 1700000000\n", mtime=0), " is compressed: give `zcat FILE | otelperf savings --file -`"),
        ('{"status":"success","data":{"resultType":"matrix","result":[{"metric":{"__na', "or not the whole of one"),
        ('{"status":"error","errorType":"bad_data"}', "no answer of Prometheus' HTTP API"),
        ('{"data":{"resultType":"vector","result":[]}}', "the result is of type vector, not a matrix: ask for a range"),
        ('{"data":{"resultType":"matrix","result":[{"metric":{"a":"b"},"values":[[1e999,"1"]]}]}}', ": inf is no time"),
        ('{"data":{"resultType":"matrix","result":[{"metric":{"a":"b"},"values":[["x"]]}]}}', "no answer"),
    ],
)
def test_what_is_no_file_of_samples_gets_one_clear_error(tmp_path: Path, text: str | bytes, told: str) -> None:
    assert told in complaint(tmp_path, text)


@pytest.mark.parametrize("text", ["a 1 1700000000\n", '{"data":{"resultType":"matrix","result":[]}}', "# EOF"])
def test_a_byte_order_mark_is_passed_over(tmp_path: Path, text: str) -> None:
    assert read_all(tmp_path, b"\xef\xbb\xbf" + text.encode()) == read_all(tmp_path, text)


def test_a_line_without_an_end_is_not_read_whole() -> None:
    with pytest.raises(OtelperfError, match="/dev/zero, line 1: it has more than 1048576 bytes: no sample is so long"):
        samples.read("/dev/zero", Recording(1), lambda _: None)


def test_a_line_may_be_as_long_as_the_limit(tmp_path: Path) -> None:
    end = '"} 1 1700000000\n'
    line = 'a{b="'.ljust(2**20 - len(end), "x") + end
    _, (series,) = recorded(tmp_path, line)
    assert len(series.labels["b"]) == 2**20 - len('a{b="' + end)
    assert ", line 2: it has more than 1048576 bytes" in complaint(tmp_path, "#\n " + line)


def test_json_that_is_too_large_is_not_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "_JSON_LIMIT", 100)
    text = '{"data":{"resultType":"matrix","result":[]}}'
    recorded(tmp_path, text.ljust(100))
    assert ": more than 100 bytes of JSON: ask for a shorter time" in complaint(tmp_path, text.ljust(101))


def test_a_missing_file_and_a_folder_are_told(tmp_path: Path) -> None:
    for name, told in ((str(tmp_path / "none"), "No such file or directory"), (str(tmp_path), "Is a directory")):
        with pytest.raises(OtelperfError, match=told):
            samples.read(name, Recording(1), lambda _: None)


def test_standard_input_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    recording = Recording(10)
    stdin = io.TextIOWrapper(io.BufferedReader(io.BytesIO(b"a 1 1700000000\n")))
    monkeypatch.setattr(sys, "stdin", stdin)
    samples.read("-", recording, lambda _: None)
    assert recording.samples == 1


def test_more_samples_than_allowed_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OtelperfError, match=r"more than 2 samples: .* --max-samples"):
        recorded(tmp_path, "a 1 1\na 1 2\na 1 3\n", most=2)


@given(st.text() | st.binary())
def test_whatever_the_file_is_it_is_read_or_refused_with_one_error(text: str | bytes) -> None:
    with TemporaryDirectory() as folder:
        told = ""
        try:
            recorded(Path(folder), text)
        except OtelperfError as error:
            told = str(error)
    assert len(told.splitlines()) <= 1


pieces = st.sampled_from(
    ['a{b="', "c", '"', "}", "{", " ", "1", "1700000000", "\n", "\\", "#", ",", "=", "__name__", "NaN"]
)


@given(st.lists(pieces, max_size=25))
def test_whatever_is_put_together_from_pieces_of_lines_is_read_or_refused(parts: list[str]) -> None:
    with TemporaryDirectory() as folder:
        told = "line"
        try:
            recorded(Path(folder), "".join(parts))
        except OtelperfError as error:
            told = str(error)
    assert "line" in told


names = st.from_regex(r"[a-zA-Z_:][a-zA-Z0-9_:]{0,8}", fullmatch=True)
label_names = st.from_regex(r"[a-zA-Z_][a-zA-Z0-9_]{0,8}", fullmatch=True).filter(
    lambda name: not name.startswith("__")
)
label_values = st.text(st.characters(codec="utf-8", exclude_characters="\r"), max_size=12)
numbers = st.floats(allow_nan=False)


@given(names, st.dictionaries(label_names, label_values, max_size=4), numbers, st.integers(0, 4_000_000_000_000))
def test_what_is_written_is_read_as_prometheus_client_reads_it(
    name: str, labels: dict[str, str], value: float, time: int
) -> None:
    def quoted(text: str) -> str:
        return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")

    inside = ",".join(f'{key}="{quoted(each)}"' for key, each in labels.items())
    line = f"{name}{{{inside}}} {value!r} {time / 1000:.3f}\n"
    ((family,),) = [tuple(text_string_to_metric_families(f"# TYPE {name} unknown\n{line}# EOF\n"))]  # type: ignore[no-untyped-call]
    (peer,) = family.samples
    with TemporaryDirectory() as folder:
        _, (series,) = recorded(Path(folder), line)
    assert (series.name, series.labels, list(series.values)) == (peer.name, peer.labels, [peer.value])
    assert list(series.times) == [time]
