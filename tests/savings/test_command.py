"""The command as its users meet it: tables, JSON, flags, and one line for each fault."""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otelperf import cli
from tests.savings.files import lines


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """Ten minutes of a machine, each second."""
    counted, total = [], 0.0
    for second in range(600):
        total += 5 if second % 97 else 400
        counted.append(total)
    noise = random.Random(4)
    gauge = [100 + 20 * math.sin(second / 60) + noise.gauss(0, 0.1) for second in range(600)]
    text = lines("requests_total", counted) + lines("queue_length", gauge) + lines("version", [3.0] * 600)
    text += lines("h_bucket", [value // 2 for value in counted], labels='le="1"') + lines(
        "h_bucket", counted, labels='le="+Inf"'
    )
    file = tmp_path / "host.om"
    file.write_text(text)
    return file


def savings(capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    assert cli.main(["savings", *flags]) == 0
    return capsys.readouterr().out


def found(capsys: pytest.CaptureFixture[str], *flags: str) -> Any:
    return json.loads(savings(capsys, *flags, "--json"))


def test_the_table_reads_well_at_100_columns(
    host: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)  # where nobody says how wide, it is 100
    shown = savings(capsys, "--file", str(host), "--price", "0.5")
    assert max(map(len, shown.splitlines())) <= 100
    rows = [line.split() for line in shown.splitlines()]
    assert ["requests_total", "600"] in [row[:2] for row in rows]
    assert ["1", "metric", "without", "an", "error", "600"] in [row[:6] for row in rows]
    for name in ("the data, each 1 s", "delta 1%", "delta 5%", "delta 15%", "scrape each 15 s", "scrape each 60 s"):
        assert [line for line in shown.splitlines() if line.startswith(name)] != []
    assert "price" in shown
    assert "5 series of 2 targets, 2023-11-14 22:13:20Z to 2023-11-14 22:23:19Z (10m)." in shown


LONG = "vllm:number_of_requests_that_wait_in_all_the_replicas"


@pytest.mark.parametrize("columns", [40, 60, 80, 100, 140])
def test_in_every_width_all_names_and_numbers_are_there_and_no_line_runs_off(
    columns: int, host: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    pulse = [100.0 if second % 40 < 3 else 0.0 for second in range(600)]
    with host.open("a") as file:
        file.write(lines(LONG, pulse) + lines("requests_total", [0.0] * 600, labels='job="c"'))
    shown = savings(capsys, "--file", str(host), "--price", "1000000")
    assert max(map(len, shown.splitlines())) <= columns
    assert "…" not in shown
    text = "".join(shown.split())
    beside = columns >= 100
    for name in ("requests_total", "queue_length", "1metricwithoutanerror", "target_info"):
        assert name in text
    assert all(part in text for part in ("vllm:number_of_requests", "replicas", "100/100%", "gauges", "counters"))
    assert (LONG in text) == (not beside or columns == 140)
    assert ("metricsamples" in text) == beside
    assert text.count("scrapeeach60s") == 1 + (0 if beside else 6)


def test_a_name_that_would_steer_the_terminal_is_shown_as_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "odd"
    file.write_text(lines("", [1.0, 5.0, 1.0], labels='"a\x1b[31m\\nb\u202e"'))
    assert "a\\x1b[31m\\nb\\u202e " in savings(capsys, "--file", str(file))
    assert found(capsys, "--file", str(file))["metrics"][0]["metric"] == "a\x1b[31m\nb\u202e"


def test_a_fault_that_would_steer_the_terminal_is_shown_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["savings", "--file", "/none/\x1b[2J\n"]) == 1
    assert capsys.readouterr().err == "otelperf: cannot read /none/\\x1b[2J\\n: No such file or directory\n"


def test_samples_of_one_moment_cannot_be_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "one"
    file.write_text(lines("a", [1.0]) + lines("b_total", [1.0]))
    assert cli.main(["savings", "--file", str(file)]) == 1
    assert capsys.readouterr().err == "otelperf: all samples are of one moment: there is nothing to compare\n"


def test_the_calendars_first_and_last_moments_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "edges"
    file.write_text("a 1 0\na 1 253402300799999\n")
    assert "1970-01-01 00:00:00Z to 9999-12-31 23:59:59Z" in savings(capsys, "--file", str(file))


def test_a_gauge_between_the_largest_numbers_is_scored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "large"
    file.write_text(lines("a", [1e308, -1e308] * 60))
    *_, scrape = found(capsys, "--file", str(file))["total"]
    assert scrape["gauge_error"]["worst"] == pytest.approx(2.0)


@settings(max_examples=25)  # a whole run of the command each
@given(st.lists(st.tuples(st.floats(), st.floats(), st.integers(1, 100_000)), min_size=2, max_size=12))
def test_whatever_the_numbers_are_they_are_compared(samples: list[tuple[float, float, int]]) -> None:
    with TemporaryDirectory() as folder:
        file = Path(folder, "samples")
        at, text = 0, ""
        for gauge, counter, gap in samples:
            at += gap
            text += f"a {gauge!r} {at / 1000}\nb_total {counter!r} {at / 1000}\n"
            text += f'c_bucket{{le="1"}} {abs(gauge)!r} {at / 1000}\nc_count {abs(counter)!r} {at / 1000}\n'
        file.write_text(text)
        assert cli.main(["savings", "--file", str(file), "--json"]) == 0
        assert cli.main(["savings", "--file", str(file), "--price", "1e12"]) == 0


def test_standard_input_that_is_closed_is_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    assert cli.main(["savings", "--file", "-"]) == 1
    assert capsys.readouterr().err == "otelperf: standard input is closed: give --file FILE, or open it\n"


def test_a_standard_output_in_ascii_takes_any_name(host: Path) -> None:
    with host.open("a", encoding="utf-8") as file:
        file.write(lines("", [1.0, 5.0], labels='"é"'))
    script = f"import sys; from otelperf import cli; sys.exit(cli.main(['savings', '--file', {str(host)!r}]))"
    done = subprocess.run(
        [sys.executable, "-X", "utf8=0", "-c", script],
        env={"PYTHONIOENCODING": "ascii"}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert "\\xe9" in done.stdout


INTERRUPTED = """
import signal, sys
class Finder:
    def find_spec(self, name, path, target=None):
        if name == "otelperf.config":
            signal.raise_signal(signal.SIGINT)
sys.meta_path.insert(0, Finder())
from otelperf.cli import main
print("imported")
"""


def test_without_a_price_nothing_is_priced(host: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "price" not in savings(capsys, "--file", str(host))
    assert found(capsys, "--file", str(host))["total"][0]["cost_a_month"] is None


def test_a_month_is_thirty_days_of_the_same(host: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = found(capsys, "--file", str(host), "--price", "2")["data"]
    assert (data["samples"], data["seconds"], data["series"], data["targets"]) == (3000, 600, 5, 2)
    assert data["samples_a_month"] == 3000 * 6 * 24 * 30
    assert data["cost_a_month"] == pytest.approx(3000 * 6 * 24 * 30 / 1e6 * 2)


def test_sums_are_those_of_the_metrics_and_of_target_info(host: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer = found(capsys, "--file", str(host))
    assert sum(metric["samples"] for metric in answer["metrics"]) == answer["data"]["samples"]
    for number, total in enumerate(answer["total"]):
        parts = [metric["ways"][number] for metric in answer["metrics"]]
        assert total["samples"] == sum(part["samples"] for part in parts) + total["target_info"]
        for key in ("gauge_error", "gauge_error_live", "rate_error", "histogram_rate_error"):
            assert total[key]["worst"] == max(part[key]["worst"] for part in parts if part[key])
    assert [total["target_info"] for total in answer["total"][3:]] == [0, 0, 0]


def test_gauges_stay_within_the_delta_and_larger_deltas_keep_less(
    host: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ways = found(capsys, "--file", str(host), "--delta", "2%,10%")["total"][:2]
    assert [way["delta"] for way in ways] == [0.02, 0.1]
    assert all(way["gauge_error"]["worst"] <= way["delta"] for way in ways)
    assert ways[0]["samples"] > ways[1]["samples"]


def test_a_scrape_keeps_its_share_of_samples(host: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ways = found(capsys, "--file", str(host), "--scrape", "500ms,1s,20s,60s")["total"][3:]
    assert [(way["scrape_seconds"], way["share"], way["is_all_data"]) for way in ways] == [
        (0.5, 1.0, True),
        (1.0, 1.0, True),
        (20.0, 0.05, False),
        (60.0, 1 / 60, False),
    ]
    assert [way["rate_error"]["worst"] for way in ways[:2]] == [0.0, 0.0]


def test_a_scrape_that_is_the_data_is_said_to_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "sparse"
    file.write_text(lines("a", [float(n % 7) for n in range(100)], step=30))
    shown = savings(capsys, "--file", str(file))
    assert ["= data" in line for line in shown.splitlines() if line.startswith("scrape each")] == [True, True, False]


def test_types_that_were_guessed_are_marked(host: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = {metric["metric"]: metric for metric in found(capsys, "--file", str(host))["metrics"]}
    assert {name: (each["type"], each["type_is_known"], each["series"]) for name, each in metrics.items()} == {
        "requests_total": ("counter", False, 1),
        "queue_length": ("gauge", False, 1),
        "version": ("gauge", False, 1),
        "h": ("histogram", False, 2),
    }


def test_one_sample_is_enough(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "one"
    file.write_text(lines("a", [1.0]) + lines("b_total", [1.0]) + lines("c", [math.nan, math.inf]))
    assert found(capsys, "--file", str(file), "--price", "1")["data"]["samples"] == 4
    assert "4 series" not in savings(capsys, "--file", str(file))


def test_notes_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "odd"
    file.write_text("a 2 1700000001\na 1 1700000000\n")
    assert "Samples out of order, sorted: 1." in savings(capsys, "--file", str(file))


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ([], "give either --url, a Prometheus to read, or --file, samples"),
        (["--url", "http://a:1", "--file", "b"], "give either --url"),
        (["--url", "http://a:1"], "--selector is missing: which series to read"),
        (["--url", "nowhere", "--selector", "a"], "argument --url: 'nowhere': expected a whole URL"),
        (["--file", "a", "--selector", "a"], "--selector goes with --url"),
        (["--file", "a", "--since", "6h"], "--since goes with --url"),
        (["--url", "http://a:1", "--selector", "a", "--since", "1h", "--start", "1"], "give either --since or --start"),
        (["--url", "http://a:1", "--selector", "a", "--start", "5", "--end", "5"], "begins at or after its end"),
        (["--url", "http://a:1", "--selector", "a", "--start", "noon"], "'noon': expected a time such as"),
        (["--file", "a", "--delta", "5"], "argument --delta: '5': expected percentages up to 100%, such as 1%,5%"),
        (["--file", "a", "--delta", "500%"], "expected percentages up to 100%"),
        (["--file", "a", "--scrape", "10m"], "expected durations up to 5m"),
        (["--file", "a", "--heartbeat", "3m"], "expected a duration above 0, at most 110s"),
        (
            ["--url", "http://a:1", "--selector", "a", "--start", "1e30", "--end", "1e31"],
            "'1e30': expected a time such",
        ),
        (["--url", "http://a:1", "--selector", "a", "--start", "0001-01-01"], "in the years 1970 to 9999"),
        (["--url", "http://a:1", "--selector", "a", "--end", "3600"], "the time begins 18000 s before 1970"),
        (["--file", "a", "--price", "-1"], "expected a number from 0 to 1e12"),
        (["--file", "a", "--price", "1e308"], "expected a number from 0 to 1e12"),
        (["--file", "a", "--max-series", "0"], "expected a whole number from 1"),
        (["--file", "a", "--fast"], "unknown flag --fast"),
        (["--url", "http://a:1", "--selector", "a", "--header", "x"], "expected a header such as"),
        (["--url", "http://a:1", "--selector", "a", "--client-key", "k"], "--client-key is given without"),
        (["--url", "https://a:1", "--selector", "a", "--certificate", "/none"], "cannot use the TLS files /none"),
        (
            ["--url", "http://a:1", "--selector", "a", "--bearer-token-file", "/none"],
            "--bearer-token-file /none cannot be read",
        ),
    ],
)
def test_flags_that_cannot_be_meant_are_one_line_and_exit_with_2(
    flags: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["savings", *flags]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "no samples in "),
        ("# EOF\n", "no samples in "),
        ('h_bucket{le="1"} 1 1700000000\n', "no samples in {file}; series left out, no whole histogram: 1"),
        ("<html>\n", "{file}, line 1: '<html>' is no sample"),
    ],
)
def test_a_file_without_samples_is_one_line_and_exits_with_1(
    text: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "samples"
    file.write_text(text)
    assert cli.main(["savings", "--file", str(file)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert told.format(file=file) in line


def test_help_has_examples_and_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        cli.main(["savings", "--help"])
    shown = capsys.readouterr().out
    assert raised.value.code == 0
    assert "promtool tsdb dump-openmetrics" in shown
    assert "default 1%,5%,15%" in shown
    assert "2%,10%" in shown
