"""The benchmark of the headline claim: what it reads of rules and boards, and how it scores."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from benchmarks import traffic
from benchmarks.headline import public, score
from benchmarks.headline.public import Alert, PublicError
from benchmarks.headline.run import DENSE, OTELPERF, Record
from stack.processes import HOST
from tests.engines.loopback import Loopback, saying

RULE = Alert("Long", "us", "sum by (pod) (\n  waiting\n) > 50\n", 60)


def record(dense: Sequence[float | None], way: Sequence[float | None]) -> Record:
    """Return a run in which the queue was looked at each second."""
    rows = {DENSE: dense, OTELPERF: way}
    return Record(
        60.0, queue={name: [[float(at), value] for at, value in enumerate(row)] for name, row in rows.items()}
    )


def test_a_rule_is_taken_apart_at_its_threshold() -> None:
    assert RULE.threshold == ("sum by (pod) (\n  waiting\n)", ">", 50.0)
    assert Alert("Two", "us", "increase(a[5m])\n<\nincrease(b[5m])", 0).threshold is None
    assert Alert("Down", "us", "sum(up) == 0", 0).threshold is None


def test_rules_and_boards_are_read_as_published(tmp_path: Path) -> None:
    sources = yaml.safe_load(public.SOURCES.read_text())
    rules = {
        "spec": {"groups": [{"rules": [{"record": "r", "expr": "1"}, {"alert": "A", "expr": "a > 1", "for": "5m"}]}]}
    }
    for source in sources["rules"]:
        (tmp_path / source["file"]).write_text(yaml.safe_dump(rules))
    board = '{"panels": [{"targets": [{"expr": "rate(a{model_name=~\\"$Deployment_id\\"}[$__rate_interval])"}]}]}'
    for source in sources["boards"]:
        (tmp_path / source["file"]).write_text(board)
    assert [("A", "vLLM, proposed", 300), ("A", "llm-d", 300)] == [
        (a.name, a.of, a.seconds) for a in public.alerts(tmp_path)
    ]
    assert {('rate(a{model_name=~"tiny"}[1m])',)} == {each.queries for each in public.boards(tmp_path, "tiny")}


def test_an_absent_file_is_told_with_where_it_is_to_be_had(tmp_path: Path) -> None:
    with pytest.raises(PublicError, match=r"put examples/.* of https://github.com/vllm-project/vllm at .* there"):
        public.alerts(tmp_path)


def test_a_long_queue_is_noticed_late_or_missed() -> None:
    dense: list[float | None] = [0, 20, 20, 20, 0, 20, 20, 0]
    shown: list[float | None] = [None, 0, 0, 20, 20, 0, 0, 20]
    run = record(dense, shown)
    assert score.queues(run) == [(1.0, 4.0), (5.0, 7.0)]
    assert score.noticed(run, OTELPERF) == score.Noticed([2.0], 1)
    assert score.noticed(run, DENSE) == score.Noticed([0.0, 0.0], 0)


def test_a_queue_that_begins_in_an_outage_is_set_apart() -> None:
    run = record([0, 20, 0, 0, 0, 20, *([0] * 30), 20, 0], [])
    run.events = [(6.0, "collector killed"), (7.0, "collector back")]
    assert score.quiet_queues(run) == [(1.0, 2.0), (36.0, 37.0)]


def test_a_rule_sees_what_stands_when_it_is_evaluated() -> None:
    dense = [20.0 if 20 <= second < 26 else 0.0 for second in range(60)]
    found = score.evaluated(record(list(dense), []), DENSE)
    assert len(found.delays) == 6  # of 15 seconds in which its evaluation may fall
    assert found.missed == 9
    assert max(found.delays) == 5


def test_a_lowered_threshold_lies_half_way_and_fires_after_thirty_seconds() -> None:
    values = {str(number): float(number) for number in range(11)}
    run = Record(60.0, compared={DENSE: {"Long": {"{}": values}}})
    assert score.lowered(run, RULE) == 5
    (episode,) = score.fired_lowered(run, DENSE, RULE, 5)
    assert (episode.first, episode.last) == (8, 10)


def test_an_error_is_set_against_the_truth_and_an_absent_answer_counted() -> None:
    run = Record(
        60.0,
        rates={
            DENSE: {"q": [[0.0, 10.0], [5.0, 10.0], [10.0, None]]},
            OTELPERF: {"q": [[0.0, 8.0], [5.0, None], [10.0, 1.0]]},
        },
    )
    assert score.errors(run, OTELPERF, "q") == ([0.2], 1)


def test_the_trace_is_cut_for_a_tiny_model_and_may_run_faster() -> None:
    slow, fast = traffic.trace(180, 240), traffic.trace(180, 240, speed=2)
    assert len(slow) == len(fast) == 531
    assert slow[-1].at == pytest.approx(2 * fast[-1].at)
    assert max(request.prompt for request in slow) <= traffic.LONGEST_CONTEXT
    assert max(request.output for request in slow) == traffic.LONGEST_OUTPUT


def test_the_client_counts_what_a_server_says_and_what_went_wrong() -> None:
    answer = '{"choices": [{"finish_reason": "length"}], "usage": {"prompt_tokens": 7, "completion_tokens": 3}}'
    with Loopback(saying({"/v1/completions": answer})) as server:
        client = traffic.Client(server.url, stream=False)
        client.complete(7, 3)
    assert ({"length": 1}, 7, 3) == (client.counts.requests, client.counts.prompt_tokens, client.counts.output_tokens)
    client = traffic.Client(f"http://{HOST}:1", stream=False)
    client.complete(7, 3)
    assert client.counts.errors == {"ConnectionRefusedError": 1}
