"""Types of series, and histograms put together from their parts."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.savings.files import START, lines, streamed


def kinds(tmp_path: Path, text: str) -> dict[str, tuple[str, bool]]:
    _, found = streamed(tmp_path, text)
    return {each.metric: (each.kind, each.known) for each in found}


@pytest.mark.parametrize(
    ("declared", "name", "expected"),
    [
        ("", "a_total", ("counter", False)),
        ("", "a", ("gauge", False)),
        ("", "a_count", ("gauge", False)),  # nothing says that it belongs to a histogram or summary
        ("# TYPE a counter\n", "a", ("counter", True)),
        ("# TYPE a counter\n", "a_total", ("counter", True)),  # OpenMetrics
        ("# TYPE a_total gauge\n", "a_total", ("gauge", True)),
        ("# TYPE a summary\n", "a", ("gauge", True)),
        ("# TYPE a summary\n", "a_count", ("counter", True)),
        ("# TYPE a histogram\n", "a_sum", ("counter", True)),  # alone, without its buckets
        ("# TYPE a unknown\n", "a", ("gauge", False)),
        ("# TYPE a info\n", "a", ("gauge", True)),
    ],
)
def test_a_type_is_what_is_told_or_what_the_name_says(
    tmp_path: Path, declared: str, name: str, expected: tuple[str, bool]
) -> None:
    assert kinds(tmp_path, declared + lines(name, [1, 2])) == {name: expected}


def test_a_sum_and_a_count_together_are_counters(tmp_path: Path) -> None:
    found = kinds(tmp_path, lines("a_sum", [1, 2]) + lines("a_count", [1, 2]))
    assert found == {"a_sum": ("counter", False), "a_count": ("counter", False)}


def parts(*, total: list[float], low: list[float], sums: bool = True, count: bool = True, infinite: bool = True) -> str:
    text = lines("h_bucket", low, labels='le="0.5",job="a"')
    text += lines("h_bucket", total, labels='le="+Inf",job="a"') if infinite else ""
    text += lines("h_count", total, labels='job="a"') if count else ""
    return text + (lines("h_sum", [each / 2 for each in total], labels='job="a"') if sums else "")


def test_a_histogram_is_put_together(tmp_path: Path) -> None:
    _, (found,) = streamed(tmp_path, parts(low=[1, 2], total=[3, 5]))
    assert (found.metric, found.kind, found.labels, found.cost, found.bounds) == (
        "h",
        "histogram",
        {"job": "a"},
        4,
        (0.5,),
    )
    assert (list(found.values), [found.counts(n) for n in (0, 1)]) == ([3, 5], [(1, 2), (2, 3)])
    assert found.sums is not None
    assert list(found.sums) == [1.5, 2.5]


@pytest.mark.parametrize(("missing", "cost"), [("sums", 3), ("count", 3), ("infinite", 3)])
def test_the_sum_the_count_or_the_last_bucket_may_be_missing(tmp_path: Path, missing: str, cost: int) -> None:
    _, (found,) = streamed(tmp_path, parts(low=[1, 2], total=[3, 5], **{missing: False}))
    assert (found.kind, found.cost, found.counts(1)) == ("histogram", cost, (2, 3))


def test_without_a_total_there_is_no_histogram(tmp_path: Path) -> None:
    recording, found = streamed(tmp_path, parts(low=[1, 2], total=[3, 5], infinite=False, count=False))
    assert found == []
    assert recording.notes == {"series left out, no whole histogram": 2}


@pytest.mark.parametrize("low", [[1, float("nan"), 3], [1, float("inf"), 3], [1, 9, 3], [1, -2, 3]])
def test_an_instant_that_is_no_histogram_is_left_out(tmp_path: Path, low: list[float]) -> None:
    recording, (found,) = streamed(tmp_path, parts(low=low, total=[3, 5, 7]))
    assert [found.counts(n) for n in range(len(found.times))] == [(1, 2), (3, 4)]
    assert recording.notes == {"samples of histograms left out, parts missing at that time or no histogram": 4}


def test_an_instant_at_which_a_part_is_missing_is_left_out(tmp_path: Path) -> None:
    text = parts(low=[1, 2, 3], total=[3, 5, 7]).replace(f'h_count{{job="a"}} 5 {START + 1}.000\n', "")
    recording, (found,) = streamed(tmp_path, text)
    assert list(found.values) == [3, 7]
    assert recording.notes.total() == 3


def test_parts_of_different_series_are_not_mixed(tmp_path: Path) -> None:
    text = parts(low=[1], total=[2]) + parts(low=[3], total=[9]).replace('job="a"', 'job="b"')
    _, found = streamed(tmp_path, text)
    assert {each.labels["job"]: each.counts(0) for each in found} == {"a": (1, 1), "b": (3, 6)}


def test_a_bucket_whose_bound_is_no_number_is_no_bucket(tmp_path: Path) -> None:
    text = parts(low=[1], total=[2]) + lines("h_bucket", [1], labels='le="many",job="a"')
    _, (found,) = streamed(tmp_path, text)
    assert found.bounds == (0.5,)


def test_buckets_of_a_gauge_histogram_are_gauges(tmp_path: Path) -> None:
    assert kinds(tmp_path, "# TYPE a gaugehistogram\n" + lines("a_bucket", [2, 1], labels='le="+Inf"')) == {
        "a_bucket": ("gauge", False)
    }


def test_values_of_a_counter_that_are_no_numbers_are_left_out(tmp_path: Path) -> None:
    recording, (found,) = streamed(tmp_path, lines("a_total", [1, float("nan"), 3, float("inf")]))
    assert list(found.values) == [1, 3]
    assert recording.notes.total() == 2


def test_values_of_a_gauge_that_are_no_numbers_stay(tmp_path: Path) -> None:
    _, (found,) = streamed(tmp_path, lines("a", [1, float("nan"), float("inf")]))
    assert len(found.values) == 3
