"""Scores of answers (an evaluation's, a judge's, a user's), and how far they have drifted from a baseline."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence

from otelperf.logs import Log
from otelperf.readings import Attributes, Reading
from otelperf.sources.histogram import Histogram
from otelperf.sources.registry import Registry, RegistrySource, text

_log = Log("otelperf.quality")

BASELINE = 500  # scores
WINDOW = 200  # scores
BOUNDS = tuple(step / 10 for step in range(11))
_LEAST = 50  # scores on each side: with fewer, the limit is so wide that nothing passes it


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
        # Reentrant: a garbage collection may run what scores anywhere, in here too.
        self._lock = threading.RLock()
        self._start = time.time_ns()
        self._first: list[float] = []
        self._recent: deque[float] = deque(maxlen=WINDOW)
        self._all = Histogram(BOUNDS)
        self._known: tuple[float, float] | None = None
        self._changed = False

    def add(self, score: float) -> None:
        """Count *score*."""
        with self._lock:
            self._all.add(score)
            if self._given is None and len(self._first) < BASELINE:
                self._first.append(score)
            else:
                self._recent.append(score)
                self._changed = True

    def compare_with(self, baseline: Iterable[float]) -> None:
        """Take *baseline* instead of the first scores."""
        try:
            scores = sorted(map(float, baseline))
        except (TypeError, ValueError, OverflowError) as error:
            msg = f"otelperf.quality_baseline: {error}; expected {_LEAST} finite numbers or more"
            raise type(error)(msg) from None
        if len(scores) < _LEAST or not all(map(math.isfinite, scores)):
            msg = f"otelperf.quality_baseline: {len(scores)} scores, expected {_LEAST} finite ones or more"
            raise ValueError(msg)
        with self._lock:
            self._given = scores
            self._changed = True

    def readings(self) -> list[Reading]:
        """Read the distribution, and the drift once there are scores enough on both sides."""
        with self._lock:
            scores, start = self._all.buckets(), self._start
            base = self._given if self._given is not None else self._first
            recent = list(self._recent) if self._changed else None
            self._changed = False
        if recent is not None and len(recent) >= _LEAST:
            self._known = (drift(sorted(base), recent), drift_limit(len(base), len(recent)))
        found = [Reading("otelperf.quality.score", scores, self._attributes, start)] if scores.count else []
        if self._known:
            found.append(Reading("otelperf.quality.drift", self._known[0], self._attributes))
            found.append(Reading("otelperf.quality.drift.limit", self._known[1], self._attributes))
        return found


def _made(key: tuple[str, str | None]) -> Scores:
    name, model = key
    model_too = {} if model is None else {"gen_ai.request.model": model}
    return Scores({"gen_ai.evaluation.name": name, **model_too})


_scores: Registry[tuple[str, str | None], Scores] = Registry(_made, ("_OTHER", None))


class Quality(RegistrySource):
    """The source of all scores of this process."""

    name = "quality"
    registry = _scores


def quality(score: float | None, *, model: str | None = None, name: str = "quality") -> None:
    """Count a *score* of an answer of *model*; *name* is what is scored (relevance, faithfulness). Best between 0 and 1.

    ``otelperf.quality.drift`` compares the last 200 scores with the baseline: the first 500, unless ``quality_baseline`` gave
    another. What is no finite number is left out and logged; None only left out: a judge may have none.
    """
    if score is None:
        return
    try:
        value = float(score)
    except Exception:  # noqa: BLE001 # whatever it is
        value = math.nan
    if math.isfinite(value):
        _scores[text(name) or "", text(model)].add(value)
    else:
        _log.trouble("not a score", by=("which",), which=text(name), value=(text(score) or "")[:40])


def quality_baseline(scores: Iterable[float], *, model: str | None = None, name: str = "quality") -> None:
    """Compare with *scores* from now on: 50 finite numbers or more, else ValueError; what are no numbers at all, TypeError too."""
    _scores[text(name) or "", text(model)].compare_with(scores)
