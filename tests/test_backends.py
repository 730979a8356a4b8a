"""Backend profiles: which defaults they set, who overrides them, and that each setting named exists."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest

from otelperf import config
from otelperf.backends import BACKENDS
from otelperf.config import BY_KEY, load
from otelperf.gate.policy import Rule
from tests.gate.world import SECOND, World, arrivals, counter, gauge, number


def test_every_value_is_one_of_a_setting_that_is_not_the_usual() -> None:
    for values in BACKENDS.values():
        for key, value in values.items():
            assert BY_KEY[key].kind.parse(BY_KEY[key].show(value)) == value
            assert value != BY_KEY[key].default


def test_no_backend_takes_away_two_points_of_a_rate_window() -> None:
    for backend in BACKENDS:
        gate = load({"export.backend": backend}).gate
        assert 2 * gate.heartbeat < gate.rate_window


def test_where_a_request_may_hold_one_point_of_a_series_the_linger_is_shorter_than_the_spacing() -> None:
    gate = load({"export.backend": "google"}).gate
    assert gate.linger + 1.0 < gate.spacing  # a request may go a tick later


def test_google_is_sent_one_point_of_a_series_in_a_request_in_order_and_5_s_apart() -> None:
    gate = load({"export.backend": "google"}).gate
    world = World(
        {"g": Rule(delta=0.5), "c": Rule(kind="trend", relative=0.1)},
        previous=gate.previous,
        spacing=gate.spacing,
        linger=gate.linger,
    )
    total = 0
    for second in range(600):
        value = 3 if second % 97 < 20 and second % 3 else 0
        total += value
        world.tick(gauge("g", number(world.now, value)), counter("c", number(world.now, total)))
    world.flush()
    for name in ("g", "c"):
        times = [point.time_unix_nano for point in world.points(name)]
        assert min(after - before for before, after in pairwise(times)) >= gate.spacing * SECOND
    for request in world.recorder.requests:
        assert set(Counter(name for name, _, _ in arrivals(request)).values()) <= {1}


def test_the_usual_backend_changes_nothing() -> None:
    assert load({"export.backend": "prometheus"}) == load()


def test_a_backend_sets_defaults_and_says_so() -> None:
    settings = load({"export.backend": "google"})
    assert (settings.gate.previous, settings.gate.spacing, settings.gate.linger) == (False, 5.0, 2.0)
    assert settings.origin("gate.previous") == "default of backend google"


def test_a_user_and_a_profile_override_a_backend() -> None:
    environ = {"OTELPERF_GATE_RATE_WINDOW": "3m"}
    gate = load({"export.backend": "grafana-cloud", "profile": "development"}, environ).gate
    assert (gate.heartbeat, gate.rate_window, gate.histogram_interval) == (10.0, 180.0, 60.0)
    assert load({"gate.previous": "true", "export.backend": "victoriametrics"}).gate.previous


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("profile", config.PROFILES)
def test_every_backend_goes_with_every_profile(backend: str, profile: str) -> None:
    assert load({"export.backend": backend, "profile": profile}).export.backend == backend


@pytest.mark.parametrize(
    ("argv", "found"),
    [
        ({}, (30.0, "default")),
        ({"gate.native_histograms": "true"}, (10.0, "default with gate.native_histograms")),
        ({"gate.native_histograms": "true", "gate.histogram_interval": "5s"}, (5.0, "--gate-histogram-interval")),
        (
            {"gate.native_histograms": "true", "export.backend": "grafana-cloud"},
            (60.0, "default of backend grafana-cloud"),
        ),
    ],
)
def test_native_histograms_may_come_more_often(argv: dict[str, str], found: tuple[float, str]) -> None:
    settings = load(argv)
    assert (settings.gate.histogram_interval, settings.origin("gate.histogram_interval")) == found
