"""What the span gate promises, whatever begins and ends in whatever order."""

from __future__ import annotations

from collections import Counter
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import Span

from tests.gate.traced import PARTIAL, REASON, REPRESENTED, Traced, of, remote

HEARTBEAT = 50
CALLERS = {"nobody": None, "sampled": remote(sampled=True), "unsampled": remote(sampled=False)}

WHAT = ["call", "call", "child", "child", "child", "end", "end", "end", "wait", "sweep"]
NAMES = "abbaa"
CALLING = ["nobody", "unsampled", "unsampled", "sampled", "nobody"]
HOW = ["well", "well", "failed", "raised", "renamed"]
PAUSES = [0.0, 0.001, 0.7, 12, 70]

choice = st.integers(0, 4)
scripts = st.lists(st.tuples(st.sampled_from(WHAT), choice, choice), min_size=20, max_size=80)
bounds = st.fixed_dictionaries(
    {
        "max_traces": st.sampled_from([1, 2, 5, 1000]),
        "max_spans": st.sampled_from([1, 2, 3, 1000]),
        "max_bytes": st.sampled_from([3_000, 10_000, 10_000_000]),
        "grace": st.sampled_from([0, 10]),
        "latency_memory": st.sampled_from([1, 300]),
        "probability": st.sampled_from([0, 0.1]),
    }
)


class Played:
    """A script that was played to its end: the SDK's spans, and what was sent."""

    def __init__(self, script: list[tuple[str, int, int]], options: dict[str, Any]) -> None:
        self.traced = Traced(**options)
        self.spans: list[Span] = []
        self.parents: dict[int, int] = {}
        self.open: list[int] = []
        self.callers: dict[int, str] = {}
        for what, first, second in script:
            getattr(self, what)(first, second)
            self.check_bounds()
        for number in range(len(self.open)):
            self.end(number % 5, 0)
        self.check_bounds()
        self.traced.provider.shutdown()
        self.sent = {span.context.span_id: span for span in self.traced.sent if span.context}

    def check_bounds(self) -> None:
        gate, stats = self.traced.gate, self.traced.gate.stats
        assert stats.traces <= gate._max_traces
        assert stats.buffered <= gate._max_traces * gate._max_spans
        assert 0 <= stats.buffered_bytes <= gate._max_bytes
        assert len(gate._members) <= gate._max_traces * gate._max_spans
        assert all(len(trace.ids) <= gate._max_spans for trace in gate._traces.values())
        assert stats.buffered_bytes == sum(trace.bytes for trace in gate._traces.values())

    def call(self, name: int, caller: int) -> None:
        self.callers[len(self.spans)] = CALLING[caller]
        self._began(self.traced.begin(NAMES[name], CALLERS[CALLING[caller]]))

    def child(self, back: int, _: int) -> None:
        """Begin a child of one of the newest spans, which may have ended."""
        if self.spans:
            parent = max(0, len(self.spans) - 1 - back)
            self.parents[len(self.spans)] = parent
            self._began(self.traced.begin("child", self.spans[parent]))

    def _began(self, span: Span) -> None:
        self.open.append(len(self.spans))
        self.spans.append(span)

    def end(self, back: int, how: int) -> None:
        if self.open:
            span = self.spans[self.open.pop(max(0, len(self.open) - 1 - back))]
            if HOW[how] == "raised":
                span.record_exception(ValueError("no"))
            if HOW[how] == "renamed":
                span.update_name("renamed")
            self.traced.end(span, failed=HOW[how] == "failed")

    def wait(self, pause: int, _: int) -> None:
        self.traced.wait(PAUSES[pause])

    def sweep(self, _: int, __: int) -> None:
        self.traced.gate.sweep()

    def calls(self) -> list[ReadableSpan]:
        return [self.spans[number] for number in self.callers]  # type: ignore[misc] # the SDK's spans can be read

    def root(self, number: int) -> int:
        while number in self.parents:
            number = self.parents[number]
        return number


def outcome(span: ReadableSpan) -> tuple[str, bool]:
    return span.name, span.status.is_ok


@given(scripts, bounds)
def test_counts_rebuild_exactly_by_name_and_outcome(script: list[Any], options: dict[str, Any]) -> None:
    played = Played(script, {**options, "errors_per_minute": 1})
    rebuilt: Counter[tuple[str, bool]] = Counter()
    for span in played.sent.values():
        rebuilt[outcome(span)] += of(span).get(REPRESENTED, 0)
    assert Counter(map(outcome, played.calls())) == +rebuilt
    stats = played.traced.gate.stats
    assert (stats.calls, stats.seen, stats.sent) == (len(played.calls()), len(played.spans), len(played.traced.sent))
    assert stats.kept.total() + stats.dropped == stats.calls


@given(scripts, bounds)
def test_counts_rebuild_in_all_where_there_are_more_kinds_than_allowed(
    script: list[Any], options: dict[str, Any]
) -> None:
    played = Played(script, {**options, "max_kinds": 1})
    assert len(played.calls()) == sum(of(span).get(REPRESENTED, 0) for span in played.sent.values())


@given(scripts, bounds)
def test_nothing_that_was_sampled_is_lost_or_sent_twice_or_orphaned(script: list[Any], options: dict[str, Any]) -> None:
    played = Played(script, options)
    assert len(played.sent) == len(played.traced.sent)
    for number, span in enumerate(played.spans):
        context = span.get_span_context()
        flag = context.trace_flags.sampled
        assert flag == played.spans[played.root(number)].get_span_context().trace_flags.sampled
        if flag:
            assert PARTIAL not in of(played.sent[context.span_id])
        elif context.span_id in played.sent:
            assert of(played.sent[context.span_id])[PARTIAL] is True
    for sent in played.sent.values():
        whole = sent.parent is None or sent.parent.is_remote or sent.parent.span_id in played.sent
        assert whole or PARTIAL in of(sent)


@given(scripts, bounds)
def test_callers_are_followed_and_failures_told(script: list[Any], options: dict[str, Any]) -> None:
    played = Played(script, {**options, "errors_per_minute": 10**9})
    for number, caller in played.callers.items():
        span: Any = played.spans[number]
        sent = played.sent.get(span.context.span_id)
        assert caller == "nobody" or span.context.trace_flags.sampled == (caller == "sampled")
        if caller == "sampled":
            assert sent is not None
            assert (of(sent)[REASON], of(sent)[REPRESENTED]) == ("parent", 1)
        if not span.status.is_ok or any(event.name == "exception" for event in span.events):
            assert sent is not None


@given(st.lists(st.tuples(st.floats(0, 20), st.booleans()), min_size=1, max_size=60), st.sampled_from([5, 50]))
def test_no_count_is_older_than_two_heartbeats(calls: list[tuple[float, bool]], heartbeat: int) -> None:
    """Swept each second, what ended two heartbeats ago has been told, whatever goes on."""
    traced = Traced(heartbeat=heartbeat, errors_per_minute=1)
    ended: list[int] = []
    for pause, failed in calls:
        traced.call(seconds=0.1, failed=failed)
        ended.append(traced.now)
        for _ in range(int(pause)):
            traced.wait(1)
            traced.gate.sweep()
            told = sum(of(span).get(REPRESENTED, 0) for span in traced.sent)
            assert sum(traced.now - time > (2 * heartbeat + 1) * 1e9 for time in ended) <= told
