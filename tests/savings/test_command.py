"""The command as its users meet it: tables, JSON, flags, and one line for each fault."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest

from otelperf import cli
from tests.savings.files import lines

NUMBERS = random.Random(4)


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """Ten minutes of a machine, each second."""
    counted, total = [], 0.0
    for second in range(600):
        total += 5 if second % 97 else 400
        counted.append(total)
    gauge = [100 + 20 * math.sin(second / 60) + NUMBERS.gauss(0, 0.1) for second in range(600)]
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


def test_the_table_reads_well_at_100_columns(host: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = savings(capsys, "--file", str(host), "--price", "0.5")
    assert max(map(len, shown.splitlines())) <= 100
    rows = [line.split() for line in shown.splitlines()]
    assert ["requests_total", "600"] in [row[:2] for row in rows]
    assert ["1", "metric", "without", "an", "error", "600"] in [row[:6] for row in rows]
    for name in ("the data, each 1 s", "delta 1%", "delta 5%", "delta 15%", "scrape each 15 s", "scrape each 60 s"):
        assert [line for line in shown.splitlines() if line.startswith(name)] != []
    assert "price" in shown
    assert "5 series of 2 targets, 2023-11-14 22:13:20Z to 2023-11-14 22:23:19Z (10m)." in shown


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
        (["--file", "a", "--price", "-1"], "expected a number of 0 or more"),
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
