"""How the gate treats series that go under a server's own names: a whole agent, with a manual clock."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from opentelemetry.sdk.metrics.export import NumberDataPoint

from otelperf import catalog, config
from otelperf.agent import Agent
from otelperf.gate.metrics import Emission
from otelperf.gate.policy import UNKNOWN, Policy, Rule
from otelperf.native_rules import BY_TYPE, native_rules
from otelperf.sources.engines.sglang import SGLANG
from otelperf.sources.engines.triton import TRITON
from otelperf.sources.engines.vllm import VLLM
from tests.engines.loopback import Loopback, saying

SECOND = 1_000_000_000
START = 1_800_000_000 * SECOND


def run(page: Callable[[int], str], seconds: int, tmp_path: Path, rules: str = "") -> list[Emission]:
    """Let an agent read *page* of each second, with only native names; return what was let out."""
    file = tmp_path / "settings.yaml"
    file.write_text(f"gate: {{rules: [{rules}]}}\n")
    pages: dict[str, bytes | str] = {}
    now = START
    emissions: list[Emission] = []
    with Loopback(saying(pages)) as loopback:
        values = {
            "metrics.exporter": "none",
            "endpoint.enabled": "false",
            "host.enabled": "false",
            "server.url": loopback.url,
            "server.engine": "vllm",
            "server.interval": "1s",
            "server.mapped": "false",
            "server.passthrough": "vllm:*",
        }
        agent = Agent(config.load(values, {}, file), environ={}, clock=lambda: now, threads=False)
        agent.gate._observe = emissions.append
        for second in range(seconds):
            pages["/metrics"] = page(second)
            agent.tick()
            now += SECOND
        agent.close()
    return [e for e in emissions if e.name.startswith("vllm:") and e.reason != "marked"]


def told(emissions: list[Emission]) -> list[tuple[float, str]]:
    """Return the values that went because of what they are, and why."""
    return [
        (e.new.value, e.reason)
        for e in emissions
        if isinstance(e.new, NumberDataPoint) and e.reason in {"first", "change", "threshold"}
    ]


@pytest.mark.parametrize("name", ["vllm:x_total", "vllm:x"])
def test_a_counter_is_held_while_its_rate_is_as_it_was_whether_or_not_it_is_called_total(
    name: str, tmp_path: Path
) -> None:
    """A steady one: some readings at the beginning, then heartbeats."""
    emissions = run(lambda second: f"# TYPE {name} counter\n{name} {100 + 7 * second}\n", 200, tmp_path)
    assert {e.name for e in emissions} == {name}
    assert len([e for e in emissions if e.time > START + 100 * SECOND]) <= 4


def test_a_gauge_that_no_map_knows_goes_when_it_moved_by_more_than_a_twentieth(tmp_path: Path) -> None:
    values = {0: 100, 1: 104, 2: 105, 3: 106, 4: 101, 5: 100}
    emissions = run(lambda second: f"# TYPE vllm:x gauge\nvllm:x {values[second]}\n", 6, tmp_path)
    assert told(emissions) == [(100, "first"), (106, "change"), (100, "change")]


def test_a_gauge_that_the_map_knows_goes_as_our_metric_does(tmp_path: Path) -> None:
    """At once across 0.9, and else past 0.02; under 5 % it would have gone at 0.10 and not at 0.905."""
    values = {0: 0.09, 1: 0.10, 2: 0.89, 3: 0.905, 4: 0.905}
    emissions = run(
        lambda second: f"# TYPE vllm:kv_cache_usage_perc gauge\nvllm:kv_cache_usage_perc {values[second]}\n",
        5,
        tmp_path,
    )
    assert told(emissions) == [(0.09, "first"), (0.89, "change"), (0.905, "threshold")]


def test_a_rule_of_the_users_fits_a_native_name_and_nobody_is_warned(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    emissions = run(
        lambda second: f"# TYPE vllm:x gauge\nvllm:x {100 + second % 2}\n", 6, tmp_path, '{metric: "vllm:*", delta: 0}'
    )
    assert len(emissions) == 6
    assert "fits no metric" not in caplog.text


def test_a_rule_that_fits_nothing_is_told_where_nothing_passes_through(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text('gate: {rules: [{metric: "vllm:*", delta: 0}]}\n')
    values = {"metrics.exporter": "none", "endpoint.enabled": "false", "host.enabled": "false"}
    Agent(config.load(values, {}, file), environ={}, threads=False).close()
    assert "fits no metric" in caplog.text


def test_a_series_that_is_one_of_our_metrics_has_its_rule_with_the_groups_reach_in_the_servers_labels() -> None:
    rules = native_rules([VLLM])
    assert rules["vllm:prefix_cache_hits_total"] == catalog.BY_NAME["otelperf.server.prefix_cache.hits"].rule
    assert rules["vllm:request_success_total"].within == ("finished_reason",)
    assert rules["vllm:time_to_first_token_seconds"].kind == "histogram"


def test_what_is_part_of_a_metric_or_in_another_unit_has_the_rule_of_its_type() -> None:
    assert "http_requests_total" not in native_rules([VLLM])  # only its errors are urgent
    assert "vllm:cache_config_info" not in native_rules([VLLM])
    assert "nv_inference_queue_duration_us" not in native_rules([TRITON])
    assert "sglang:num_running_reqs" not in native_rules([SGLANG])
    assert Policy(native_rules([VLLM]), unknown=BY_TYPE).rule("http_requests_total", "monotonic", {}) == Rule(
        kind="trend", relative=0.25
    )
    assert BY_TYPE.keys() == UNKNOWN.keys()
