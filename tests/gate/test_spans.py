"""Which traces leave the process, and what is written on them."""

from __future__ import annotations

import gc
import re
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from opentelemetry import propagate, trace
from opentelemetry.context import Context
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased, Sampler
from opentelemetry.trace import SpanKind

from otelperf.gate.content import attributes_of
from otelperf.gate.spans import SpanGate, size_of
from tests.gate.traced import OTHER, PARTIAL, REASON, REPRESENTED, Traced, of, remote

HEARTBEAT = 50


def told(span: Any) -> dict[str, str]:
    """Return the headers that a callee gets."""
    headers: dict[str, str] = {}
    propagate.inject(headers, trace.set_span_in_context(span, Context()))
    return headers


# At the head


def test_the_first_call_of_a_kind_is_sampled_and_the_next_when_due() -> None:
    traced = Traced()
    for _ in range(110):
        traced.call(seconds=1)
    assert traced.kept() == [("new", 1), ("due", 50), ("due", 50)]


def test_kinds_differ_by_name_span_kind_and_chosen_attributes() -> None:
    traced = Traced()
    chat: dict[str, Any] = {"gen_ai__operation__name": "chat", "gen_ai__request__model": "a"}
    for attributes in (chat, chat | {"gen_ai__request__model": "b"}, chat | {"user__id": "ignored"}, {}):
        traced.call("chat", **attributes)
    traced.end(traced.begin("chat", kind=SpanKind.CLIENT))
    assert [reason for reason, _ in traced.kept()] == ["new"] * 4


def test_children_follow_and_downstream_is_told_the_same() -> None:
    traced = Traced()
    flags = []
    for _ in range(2):
        root = traced.begin()
        child = traced.begin("child", root)
        flags.append([told(span)["traceparent"][-2:] for span in (root, child)])
        assert (root.is_recording(), child.is_recording()) == (True, True)
        traced.end(child)
        traced.end(root)
        traced.wait(0.1)
    assert [[int(f, 16) & 1 for f in pair] for pair in flags] == [[1, 1], [0, 0]]


def test_a_sampled_caller_is_always_followed_and_its_calls_stand_for_themselves() -> None:
    traced = Traced()
    traced.calls(3, parent=remote(sampled=True))
    assert traced.kept() == [("parent", 1)] * 3
    assert {span.parent.span_id for span in traced.sent if span.parent} == {0xB7AD6B7169203331}


def test_a_caller_that_does_not_sample_is_honoured_but_failures_are_told() -> None:
    traced = Traced()
    caller = remote(sampled=False)
    assert told(traced.begin(parent=caller))["traceparent"].endswith("-00")
    traced.call(parent=caller)
    traced.call(parent=caller)
    traced.call(parent=caller, failed=True)
    assert traced.kept() == [("latency", 1), ("error", 1)]


@pytest.mark.parametrize("sampled", [True, False])
def test_the_tracestate_of_the_caller_passes_unchanged(*, sampled: bool) -> None:
    traced = Traced()
    root = traced.begin(parent=remote(sampled=sampled, tracestate="vendor=x,other=y"))
    assert told(traced.begin("child", root))["tracestate"] == "vendor=x,other=y"
    assert "tracestate" not in told(traced.begin("own"))


def test_some_calls_are_sampled_by_chance() -> None:
    traced = Traced(probability=1)
    traced.calls(3)
    assert traced.kept() == [("new", 1), ("chance", 1), ("chance", 1)]


def test_names_in_always_are_sampled_each_time() -> None:
    traced = Traced(always=["worker active"])
    traced.calls(3, "worker active")
    assert traced.kept() == [("always", 1)] * 3


def test_another_sampler_decides_alone_and_nothing_of_its_is_lost() -> None:
    traced = Traced(sampler=ALWAYS_ON)
    traced.calls(2, children=1)
    assert traced.kept() == [("sampled", 1)] * 2
    assert len(traced.sent) == 4


def test_a_gate_whose_sampler_is_not_in_use_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    traced = Traced(sampler=ALWAYS_ON)
    traced.call(parent=remote(sampled=True))
    assert not caplog.records
    traced.calls(3)
    assert [record.getMessage() for record in caplog.records] == [
        (
            "SpanGate: its sampler is not in use, so each call that another one samples is sent, and nothing is saved: "
            "write TracerProvider(sampler=gate.sampler)"
        )
    ]


@pytest.mark.parametrize("wrap", [lambda sampler: sampler, ParentBased])
def test_a_gate_whose_sampler_is_in_use_says_nothing(
    wrap: Callable[[Sampler], Sampler], caplog: pytest.LogCaptureFixture
) -> None:
    gate = SpanGate(SimpleSpanProcessor(InMemorySpanExporter()), background=False)
    provider = TracerProvider(wrap(gate.sampler), shutdown_on_exit=False)
    provider.add_span_processor(gate)
    for parent in (remote(sampled=True), Context()):
        provider.get_tracer("t").start_span("call", parent).end()
    assert (gate.stats.calls, caplog.records) == (2, [])


def test_inside_a_parent_based_sampler_counts_are_right() -> None:
    gate = SpanGate(SimpleSpanProcessor(exporter := InMemorySpanExporter()), probability=0, background=False)
    provider = TracerProvider(ParentBased(gate.sampler), shutdown_on_exit=False)
    provider.add_span_processor(gate)
    for _ in range(5):
        with provider.get_tracer("t").start_as_current_span("call"):
            provider.get_tracer("t").start_span("child").end()
    provider.shutdown()
    assert sum(of(span).get(REPRESENTED, 0) for span in exporter.get_finished_spans()) == 5


# Late


def warm(**options: Any) -> Traced:
    """Return a gate to which a call of 0.1 s is nothing new."""
    traced = Traced(**options)
    traced.call()
    traced.clear()
    return traced


def test_a_failed_call_is_sent_late_with_its_children_marked_partial() -> None:
    traced = warm()
    root = traced.call(failed=True, children=2)
    assert traced.names() == ["child 0", "child 1", "call"]
    assert {of(span)[PARTIAL] for span in traced.sent} == {True}
    assert {span.context.trace_id for span in traced.sent if span.context} == {root.get_span_context().trace_id}
    assert traced.kept() == [("error", 1)]
    assert int(told(root)["traceparent"][-2:], 16) & 1 == 0


@pytest.mark.parametrize("how", ["status", "exception"])
def test_a_failure_further_down_is_enough_and_does_not_stand_for_good_calls(how: str) -> None:
    traced = warm()
    traced.calls(4)
    root = traced.begin()
    child = traced.begin("child", root)
    if how == "exception":
        child.record_exception(ValueError("no"))
    traced.end(child, failed=how == "status")
    traced.wait(0.1)
    traced.end(root)
    assert traced.names() == ["child", "call"]
    assert traced.kept() == [("error", 1)]


def test_failures_beyond_the_limit_are_counted_by_the_next_that_is_kept() -> None:
    traced = warm(errors_per_minute=2)
    traced.calls(10, failed=True)
    traced.wait(60)
    traced.calls(5)
    traced.clear()
    traced.call(failed=True)
    assert traced.kept() == [("error", 9)]


def test_a_latency_is_kept_once_in_the_memory_of_its_kind() -> None:
    traced = warm(latency_memory=300, heartbeat=10_000)
    traced.calls(3, seconds=0.1)
    traced.calls(3, seconds=3)
    traced.calls(2, seconds=0.0001)
    assert traced.kept() == [("latency", 1)] * 2
    assert [span.end_time - span.start_time for span in traced.sent if span.end_time and span.start_time] == [
        3_000_000_000,
        100_000,
    ]
    traced.clear()
    traced.wait(300)
    traced.call(seconds=3)
    assert traced.kept() == [("latency", 1)]


def test_a_child_that_fails_after_its_call_ended_brings_the_whole() -> None:
    traced = warm()
    root = traced.begin()
    late = traced.begin("late", root)
    traced.end(traced.begin("child", root))
    traced.wait(0.1)
    traced.end(root)
    assert traced.names() == []
    traced.end(late, failed=True)
    assert sorted(traced.names()) == ["call", "child", "late"]
    assert traced.gate.stats.buffered == 0


def test_a_call_waits_for_its_children_as_long_as_the_grace_lasts() -> None:
    traced = warm(grace=10)
    root = traced.begin()
    late = traced.begin("late", root)
    traced.wait(0.1)
    traced.end(root)
    traced.wait(9)
    traced.gate.sweep()
    assert traced.gate.stats.buffered == 1
    traced.wait(1)
    traced.gate.sweep()
    assert (traced.gate.stats.buffered, traced.gate.stats.dropped) == (0, 1)
    traced.end(late, failed=True)
    (span,) = traced.sent
    assert (span.name, of(span)[REASON], of(span)[PARTIAL], REPRESENTED in of(span)) == ("late", "error", True, False)


def test_a_grandchild_of_an_ended_child_still_belongs_to_the_call() -> None:
    traced = warm()
    root = traced.begin()
    child = traced.begin("child", root)
    traced.end(child)
    traced.end(traced.begin("grandchild", child), failed=True)
    assert traced.names() == ["child", "grandchild"]
    traced.wait(0.1)
    traced.end(root)
    assert traced.kept() == [("error", 1)]


# Counting


def test_a_call_kept_at_its_head_stands_for_those_dropped_before() -> None:
    traced = Traced()
    traced.calls(400)
    traced.wait(HEARTBEAT)
    traced.call()
    assert traced.kept() == [("new", 1), ("due", 400)]


def test_what_is_owed_for_a_heartbeat_goes_with_the_newest_call() -> None:
    traced = warm()
    traced.calls(7, children=1)
    newest = traced.call(children=1)
    traced.gate.sweep()
    assert traced.names() == []
    traced.wait(HEARTBEAT)
    traced.gate.sweep()
    assert traced.kept() == [("remainder", 8)]
    assert traced.names() == ["child 0", "call"]
    assert {span.context.trace_id for span in traced.sent if span.context} == {newest.get_span_context().trace_id}
    assert {of(span)[PARTIAL] for span in traced.sent} == {True}
    traced.wait(HEARTBEAT)
    traced.gate.sweep()
    assert traced.kept() == [("remainder", 8)]


def test_the_remainder_waits_for_a_kept_call_that_is_under_way() -> None:
    traced = warm()
    traced.calls(5)
    traced.wait(HEARTBEAT)
    due = traced.begin()
    traced.wait(5)
    traced.gate.sweep()
    assert traced.kept() == []
    traced.end(due)
    assert traced.kept() == [("due", 6)]


def test_the_remainder_waits_two_heartbeats_at_most() -> None:
    traced = warm()
    traced.calls(5)
    traced.wait(HEARTBEAT - 0.5)
    traced.begin()  # due, and never ends
    traced.wait(HEARTBEAT - 2)
    traced.gate.sweep()
    assert traced.kept() == []
    traced.wait(3)
    traced.gate.sweep()
    assert traced.kept() == [("remainder", 5)]


def test_steady_calls_that_nobody_samples_are_told_each_heartbeat() -> None:
    traced = Traced()
    for _ in range(111):
        traced.call(parent=remote(sampled=False), seconds=1)
        traced.gate.sweep()
    assert traced.kept() == [("latency", 1), ("remainder", 51), ("remainder", 51)]


def test_a_kind_is_not_forgotten_while_it_owes() -> None:
    traced = warm(latency_memory=1, errors_per_minute=0)
    traced.wait(HEARTBEAT - 2)
    traced.call(failed=True)
    traced.wait(2)
    traced.begin()  # due, and never ends
    for _ in range(200):
        traced.wait(1)
        traced.gate.sweep()
    assert traced.kept() == [("remainder", 1)]


def test_the_remainder_is_sent_at_shutdown() -> None:
    traced = Traced()
    traced.calls(10, "a")
    traced.calls(4, "b", failed=True)
    traced.calls(3, "b")
    traced.provider.shutdown()
    assert traced.counts() == Counter({"a": 10, "b": 7})
    assert traced.gate.stats.dropped == 17 - len(traced.kept())


def test_counts_rebuild_by_outcome() -> None:
    traced = Traced(errors_per_minute=1)
    for failed in (False, True, True, True, False, False, True):
        traced.call(failed=failed)
    traced.provider.shutdown()
    counts = Counter({True: 0, False: 0})
    for span in traced.sent:
        counts[not span.status.is_ok] += of(span)[REPRESENTED]
    assert counts == {True: 4, False: 3}


def test_a_call_counts_under_the_name_that_it_has_in_the_end() -> None:
    traced = Traced()
    for route in ("GET /a", "GET /b", "GET /c", "GET /c", "GET /c", "GET /b"):
        root = traced.begin("GET")
        root.update_name(route)
        traced.wait(0.1)
        traced.end(root)
    traced.provider.shutdown()
    assert traced.counts() == {"GET /a": 1, "GET /b": 2, "GET /c": 3}


def test_kinds_beyond_the_limit_are_counted_together_and_say_so() -> None:
    traced = Traced(max_kinds=2)
    for index in range(10):
        traced.call(f"user {index}")
    traced.provider.shutdown()
    assert traced.gate.stats.kinds == 2
    assert traced.counts().total() == 10
    assert {span.name for span in traced.sent if OTHER not in of(span)} == {"user 0", "user 1"}


def test_kinds_that_nobody_calls_make_room() -> None:
    traced = Traced(max_kinds=2)
    for _ in range(3):
        traced.call("a")
        traced.call("b")
        traced.wait(400)
        traced.gate.sweep()
        traced.wait(400)
        traced.gate.sweep()
    assert traced.gate.stats.kinds == 0
    traced.clear()
    traced.call("c")
    assert traced.kept() == [("new", 1)]
    assert OTHER not in of(traced.sent[0])


def test_attribute_values_of_any_type_make_a_kind(caplog: pytest.LogCaptureFixture) -> None:
    traced = Traced(attributes=["x"])
    for value in (1, "1", [1, 2], ["a"], {"a": ["b"]}, {"a": ["b"]}):
        traced.call(x=value)
    assert [reason for reason, _ in traced.kept()] == ["new"] * 5
    traced.provider.shutdown()
    assert traced.counts() == {"call": 6}
    assert caplog.records == []


def test_the_stats_say_what_was_done() -> None:
    traced = Traced()
    traced.calls(3, children=2)
    traced.call(failed=True)
    stats = traced.gate.stats
    assert (stats.seen, stats.sent, stats.calls, stats.dropped, stats.kinds) == (10, 4, 4, 2, 1)
    assert stats.kept == {"new": 1, "error": 1}


# Bounds


def test_a_trace_keeps_its_newest_children() -> None:
    traced = warm(max_spans=4)
    root = traced.begin()
    for index in range(10):
        traced.end(traced.begin(f"child {index}", root))
        assert len(traced.gate._members) == len(traced.gate._traces[root.get_span_context().span_id].ids) <= 4
    traced.wait(0.1)
    traced.end(root, failed=True)
    assert traced.names() == ["child 7", "child 8", "child 9", "call"]
    assert traced.gate.stats.overflow == 7


def test_children_under_way_are_bounded_too() -> None:
    traced = warm(max_spans=4)
    root = traced.begin()
    children = [traced.begin(f"child {index}", root) for index in range(10)]
    for child in children:
        traced.end(child)
    traced.wait(0.1)
    traced.end(root, failed=True)
    assert traced.names() == ["child 0", "child 1", "child 2", "call"]
    assert traced.gate.stats.overflow == 7


def test_calls_that_never_end_make_room_and_late_ones_are_counted_all_the_same() -> None:
    traced = Traced(max_traces=5)
    roots = [traced.begin() for _ in range(20)]
    assert (traced.gate.stats.traces, traced.gate.stats.overflow) == (5, 15)
    traced.wait(0.1)
    for root in roots:
        traced.end(root)
    traced.provider.shutdown()
    assert traced.counts() == {"call": 20}


def test_long_texts_are_let_go_before_memory_is_full() -> None:
    traced = warm(max_bytes=200_000)
    root = traced.begin()
    for index in range(10):
        traced.end(traced.begin(f"child {index}", root, prompt="x" * 30_000))
        assert traced.gate.stats.buffered_bytes <= 100_000
    traced.wait(0.1)
    traced.end(root, failed=True)
    assert traced.names() == ["child 7", "child 8", "child 9", "call"]


def test_calls_that_wait_for_children_are_bounded_by_bytes_and_number() -> None:
    traced = warm(max_bytes=20_000)
    for _ in range(50):
        root = traced.begin()
        traced.begin("never ends", root)
        traced.wait(0.1)
        traced.end(root)
        assert traced.gate.stats.buffered_bytes <= 10_000
    traced.provider.shutdown()
    assert traced.counts() == {"call": 50}
    traced = warm(max_traces=5)
    for _ in range(50):
        root = traced.begin()
        traced.begin("never ends", root)
        traced.wait(0.1)
        traced.end(root)
        assert len(traced.gate._waiting) <= 5
    assert traced.gate.stats.overflow == 0
    traced.provider.shutdown()
    assert traced.counts() == {"call": 50}


def test_children_that_outlive_their_call_are_bounded_by_bytes() -> None:
    traced = warm(max_bytes=20_000)
    root = traced.begin()
    children = [traced.begin("child", root) for _ in range(50)]
    traced.wait(0.1)
    traced.end(root)
    for child in children:
        traced.end(child)
        assert traced.gate.stats.buffered_bytes <= 10_000
    traced.provider.shutdown()
    assert traced.counts()["call"] == 1


def test_a_huge_call_stands_for_others_without_its_texts() -> None:
    traced = warm(max_bytes=1_000_000, content=True)
    traced.calls(3, prompt="x" * 100_000, gen_ai__request__model="m")
    traced.wait(HEARTBEAT)
    traced.clear()
    traced.gate.sweep()
    (span,) = traced.sent
    assert {"gen_ai.request.model": "m", PARTIAL: True, REASON: "remainder", REPRESENTED: 2} == of(span)
    assert span.dropped_attributes == 1


@pytest.mark.parametrize(
    "value", ["text" * 50, b"text" * 50, ["text"] * 50, [{"content": "text" * 50}], {"a": {"b": "text" * 50}}]
)
def test_texts_are_weighed_wherever_they_are(value: Any) -> None:
    traced = Traced()
    small, large = traced.call(x=1), traced.call(x=value)
    assert isinstance(small, ReadableSpan)
    assert isinstance(large, ReadableSpan)
    assert size_of(large) - size_of(small) >= 200
    # Read past the public way for speed: the same must be found there.
    assert large._attributes._dict == attributes_of(large)  # type: ignore[union-attr]


# A good guest


def test_others_see_the_span_as_it_was() -> None:
    beside: list[ReadableSpan] = []

    class Beside(SpanProcessor):
        def on_end(self, span: ReadableSpan) -> None:
            beside.append(span)

    traced = Traced(beside=Beside())
    root = traced.begin(prompt="secret")
    root.add_event("exception", {"exception.message": "secret"})
    traced.end(root, failed=True)
    assert of(beside[0]) == {"prompt": "secret"}
    assert beside[0].events[0].attributes == {"exception.message": "secret"}
    assert "prompt" not in of(traced.sent[0])
    assert (traced.sent[0].resource, traced.sent[0].instrumentation_scope) == (
        beside[0].resource,
        beside[0].instrumentation_scope,
    )


def test_a_kept_child_with_nothing_to_hide_is_passed_as_it_is() -> None:
    class Same(SimpleSpanProcessor):
        def on_end(self, span: ReadableSpan) -> None:
            ended.append(span)

    ended: list[ReadableSpan] = []
    seen: list[ReadableSpan] = []

    class Beside(SpanProcessor):
        def on_end(self, span: ReadableSpan) -> None:
            seen.append(span)

    traced = Traced(processor=Same(InMemorySpanExporter()), beside=Beside())
    traced.call(children=1)
    assert ended[0] is seen[0]


def test_an_inner_processor_is_told_what_begins_if_it_wants_to_know() -> None:
    class Labels(SimpleSpanProcessor):
        def on_start(self, span: Span, parent_context: Context | None = None) -> None:
            span.set_attribute("tenant", "a")

    exporter = InMemorySpanExporter()
    traced = Traced(processor=Labels(exporter))
    traced.call()
    assert of(exporter.get_finished_spans()[0])["tenant"] == "a"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_failures_inside_never_reach_the_application(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(SimpleSpanProcessor):
        def on_end(self, span: ReadableSpan) -> None:
            raise OSError("disk")

        def shutdown(self) -> None:
            raise OSError("disk")

        def force_flush(self, timeout_millis: int = 0) -> bool:
            raise OSError("disk")

    traced = Traced(processor=Broken(InMemorySpanExporter()))
    traced.calls(3, children=1)
    assert traced.provider.force_flush() is False
    traced.provider.shutdown()
    assert len(caplog.records) == 1

    def broken() -> int:
        raise OverflowError("clock")

    traced = Traced(clock=broken)
    traced.call()
    assert len(caplog.records) == 3  # at the head, at the end


def test_a_span_may_end_in_the_middle_of_another_ones_end() -> None:
    """As when the garbage collector closes a stream: on the same thread, while the lock is held."""
    open_spans: list[Any] = []

    def clock() -> int:
        if open_spans:
            traced.end(open_spans.pop())
        return traced.now

    traced = Traced(clock=clock)
    roots = [traced.begin() for _ in range(10)]
    open_spans.extend(roots[1:])
    traced.end(roots[0])
    traced.provider.shutdown()
    assert traced.counts() == {"call": 10}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"heartbeat": 0}, "SpanGate: heartbeat is 0, expected a finite number above 0"),
        ({"grace": -1}, "SpanGate: grace is -1, expected a finite number of 0 or more"),
        ({"max_bytes": float("nan")}, "SpanGate: max_bytes is nan, expected a finite number above 0"),
        ({"probability": "1"}, "SpanGate: probability is '1', expected a finite number of 0 or more"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Traced(**settings)


def test_what_is_no_processor_is_refused_with_what_to_do() -> None:
    with pytest.raises(TypeError, match="wrap an exporter in BatchSpanProcessor"):
        SpanGate(InMemorySpanExporter())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="lists of names"):
        Traced(always="worker")


# Exemplars


def test_exemplars_link_to_sampled_traces_only() -> None:
    traced = Traced()
    reader = InMemoryMetricReader()
    meters = MeterProvider([reader])
    histogram = meters.get_meter("tests").create_histogram("latency")
    for value in range(50):
        root = traced.begin()
        histogram.record(value * 10, context=trace.set_span_in_context(root))
        traced.wait(2)
        traced.end(root)
    data = reader.get_metrics_data()
    assert data is not None
    (point,) = data.resource_metrics[0].scope_metrics[0].metrics[0].data.data_points
    linked = {exemplar.trace_id for exemplar in point.exemplars}
    sampled = {s.context.trace_id for s in traced.sent if s.context and of(s)[REASON] in {"new", "due"}}
    assert len(linked) == 2
    assert linked == sampled
    meters.shutdown()


# Threads and time


def test_counts_are_exact_under_threads() -> None:
    gate = SpanGate(
        BatchSpanProcessor(exporter := InMemorySpanExporter(), max_queue_size=100_000),
        heartbeat=0.01,
        latency_memory=0.01,
        max_traces=3,
    )
    provider = TracerProvider(gate.sampler, shutdown_on_exit=False)
    provider.add_span_processor(gate)
    tracer = provider.get_tracer("tests")

    def work(number: int) -> None:
        for index in range(300):
            with tracer.start_as_current_span(f"call {index % 3}"):
                for _ in range(number):
                    with tracer.start_as_current_span("child"):
                        pass

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    provider.shutdown()
    counts: Counter[str] = Counter()
    for span in exporter.get_finished_spans():
        counts[span.name] += of(span).get(REPRESENTED, 0)
    del counts["child"]
    assert counts == {f"call {index}": 400 for index in range(3)}
    assert (gate.stats.buffered, gate.stats.buffered_bytes, gate.stats.traces) == (0, 0, 0)


def test_the_gate_sweeps_by_itself_and_its_thread_ends_with_it() -> None:
    sent = threading.Event()

    class Told(SimpleSpanProcessor):
        def on_end(self, span: ReadableSpan) -> None:
            if of(span).get(REASON) == "remainder":
                sent.set()

    before = set(threading.enumerate())
    gate: SpanGate | None = SpanGate(Told(InMemorySpanExporter()), heartbeat=0.05, latency_memory=1000, probability=0)
    assert gate is not None
    provider: TracerProvider | None = TracerProvider(gate.sampler, shutdown_on_exit=False)
    assert provider is not None
    provider.add_span_processor(gate)
    for _ in range(2):
        provider.get_tracer("t").start_span("call", start_time=1).end(2)
    assert sent.wait(30)
    (thread,) = set(threading.enumerate()) - before
    del gate, provider
    gc.collect()
    thread.join(30)
    assert not thread.is_alive()


def test_many_gates_leave_no_thread_behind() -> None:
    before = threading.active_count()
    for _ in range(100):
        gate = SpanGate(SimpleSpanProcessor(InMemorySpanExporter()))
        provider = TracerProvider(gate.sampler, shutdown_on_exit=False)
        provider.add_span_processor(gate)
        provider.get_tracer("t").start_span("call").end()
        provider.shutdown()
        assert gate._thread is not None
        gate._thread.join(30)
    assert threading.active_count() == before


def test_shutdown_and_flush_wait_no_longer_than_told() -> None:
    release = threading.Event()

    class Hanging(SimpleSpanProcessor):
        def shutdown(self) -> None:
            release.wait(60)

        def force_flush(self, timeout_millis: int = 0) -> bool:
            return release.wait(60)

    traced = Traced(processor=Hanging(InMemorySpanExporter()), shutdown_timeout=0.01)
    traced.call()
    assert traced.gate.force_flush(10) is False
    traced.provider.shutdown()  # does not hang
    assert not release.is_set()
    release.set()


def test_after_shutdown_nothing_is_remembered() -> None:
    traced = Traced()
    traced.call()
    under_way = traced.begin("other")
    traced.end(traced.begin("child", traced.begin()))
    traced.provider.shutdown()
    traced.end(under_way)
    traced.calls(3, children=1)
    stats = traced.gate.stats
    assert (stats.buffered, stats.buffered_bytes, stats.traces) == (0, 0, 0)
    assert traced.gate.force_flush() is False
    assert traced.kept() == [("new", 1)]
