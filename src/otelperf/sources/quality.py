"""Scores of answers (an evaluation's, a judge's, a user's), and how far they have drifted from a baseline."""

from __future__ import annotations

import math
import os
import threading
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Sequence

from otelperf.readings import Attributes, Buckets, Reading

BASELINE = 500  # scores
WINDOW = 200  # scores
BOUNDS = tuple(step / 10 for step in range(11))
_LEAST = 50  # scores on each side: with fewer, the limit is so wide that nothing passes it
_MOST = 1000  # series of scores


def drift(baseline: Sequence[float], recent: Sequence[float]) -> float:
    """Return the two-sample Kolmogorov-Smirnov statistic: the largest distance between the two empirical distributions, 0 to 1.

    N. V. Smirnov, "On the estimation of the discrepancy between empirical curves of distribution for two independent samples",
    Bulletin of Moscow University 2 (1939). It needs no bins, and takes any shape of scores. *baseline* is in rising order.
    """
    ordered = sorted(recent)
    largest, i, j = 0.0, 0, 0
    while i < len(baseline) and j < len(ordered):
        value = min(baseline[i], ordered[j])
        while i < len(baseline) and baseline[i] == value:
            i += 1
        while j < len(ordered) and ordered[j] == value:
            j += 1
        largest = max(largest, abs(i / len(baseline) - j / len(ordered)))
    return largest


def drift_limit(baseline: int, recent: int, alpha: float = 0.001) -> float:
    """Return the drift that chance alone passes in a share *alpha* of cases, for as many scores on either side.

    The asymptotic critical value sqrt(-ln(alpha / 2) / 2 * (n + m) / (n m)): Knuth, The Art of Computer Programming 2, 3.3.1.
    """
    return math.sqrt(-math.log(alpha / 2) / 2 * (baseline + recent) / (baseline * recent))


class Scores:
    """The scores of one name and model. The first ones are the baseline, unless it is given."""

    def __init__(self, attributes: Attributes) -> None:
        self._attributes = attributes
        self._given: list[float] | None = None
        self.begin_anew()

    def begin_anew(self) -> None:
        """Forget all scores but a given baseline: in a forked child they are the parent's, and so is the lock."""
        self._lock = threading.Lock()
        self._start = time.time_ns()
        self._first: list[float] = []
        self._recent: deque[float] = deque(maxlen=WINDOW)
        self._counts = [0] * (len(BOUNDS) + 1)
        self._sum = 0.0
        self._known: tuple[float, float] | None = None
        self._changed = False

    def add(self, score: float) -> None:
        """Count *score*."""
        with self._lock:
            self._counts[bisect_left(BOUNDS, score)] += 1
            self._sum += score
            if self._given is None and len(self._first) < BASELINE:
                self._first.append(score)
            else:
                self._recent.append(score)
                self._changed = True

    def compare_with(self, baseline: Iterable[float]) -> None:
        """Take *baseline* instead of the first scores."""
        scores = sorted(map(float, baseline))
        if len(scores) < _LEAST or not all(map(math.isfinite, scores)):
            msg = f"otelperf.quality_baseline: {len(scores)} scores, expected {_LEAST} finite ones or more"
            raise ValueError(msg)
        with self._lock:
            self._given = scores
            self._changed = True

    def readings(self) -> list[Reading]:
        """Read the distribution, and the drift once there are scores enough on both sides."""
        with self._lock:
            count, start = sum(self._counts), self._start
            buckets = Buckets(count, self._sum, BOUNDS, tuple(self._counts))
            base = self._given if self._given is not None else self._first
            recent = list(self._recent) if self._changed else None
            self._changed = False
        if recent is not None and len(recent) >= _LEAST:
            self._known = (drift(sorted(base), recent), drift_limit(len(base), len(recent)))
        found = [Reading("otelperf.quality.score", buckets, self._attributes, start)] if count else []
        if self._known:
            found.append(Reading("otelperf.quality.drift", self._known[0], self._attributes))
            found.append(Reading("otelperf.quality.drift.limit", self._known[1], self._attributes))
        return found


class Quality:
    """The source of all scores of this process."""

    name = "quality"

    def __init__(self, entity: str) -> None:
        self.entity = entity

    def read(self, now: int) -> list[Reading]:
        """Read each series of scores."""
        return [reading for each in tuple(_scores.values()) for reading in each.readings()]

    def close(self) -> None:
        """Nothing is kept open, and the scores stay."""


_scores: dict[tuple[str, str | None], Scores] = {}


def _of(name: str, model: str | None) -> Scores | None:
    found = _scores.get((name, model))
    if found is None and len(_scores) < _MOST:
        model_too = {} if model is None else {"gen_ai.request.model": model}
        found = _scores.setdefault((name, model), Scores({"gen_ai.evaluation.name": name, **model_too}))
    return found


def quality(score: float, *, model: str | None = None, name: str = "quality") -> None:
    """Count a *score* of an answer of *model*; *name* is what is scored (relevance, faithfulness). Best between 0 and 1.

    ``otelperf.quality.drift`` compares the last 200 scores with the baseline: the first 500, unless ``quality_baseline`` gave
    another. A score that is no finite number is left out.
    """
    value = float(score)
    if math.isfinite(value) and (scores := _of(name, model)):
        scores.add(value)


def quality_baseline(scores: Iterable[float], *, model: str | None = None, name: str = "quality") -> None:
    """Compare with *scores* from now on: 50 finite numbers or more, else ValueError."""
    if found := _of(name, model):
        found.compare_with(scores)


def _in_child() -> None:
    for each in _scores.values():
        each.begin_anew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
