from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otelperf import catalog
from otelperf.readings import Buckets
from otelperf.sources.histogram import DOUBLING
from otelperf.sources.workers import STATES, Worker, Workers, worker


class Watch:
    """A clock that stands still until it is told."""

    def __init__(self) -> None:
        self.now = 1_000_000_000

    def __call__(self) -> int:
        return self.now

    def go(self, seconds: float) -> None:
        self.now += round(seconds * 1e9)


def values(of: Worker) -> dict[str, object]:
    """Every reading by its name and, if it has one, its state or error type."""
    found: dict[str, object] = {}
    for reading in of.readings():
        part = reading.attributes.get("otelperf.worker.state") or reading.attributes.get("error.type")
        found[f"{reading.name} {part}" if part else reading.name] = reading.value
    return found


def state(of: Worker) -> list[str]:
    told = values(of)
    return [each for each in STATES if told[f"otelperf.worker.state {each}"] == 1]


def test_a_task_makes_its_worker_active_and_is_counted_with_its_duration() -> None:
    clock = Watch()
    ocr = Worker("ocr", clock)
    clock.go(2)
    with ocr.task():
        clock.go(0.3)
        assert state(ocr) == ["active"]
        assert values(ocr)["otelperf.worker.active_tasks"] == 1
    told = values(ocr)
    assert state(ocr) == ["idle"]
    assert told["otelperf.worker.tasks"] == 1
    assert told["otelperf.worker.time idle"] == 2.0
    assert told["otelperf.worker.time active"] == 0.3
    counts = (*tuple(int(0.16 < bound <= 0.32) for bound in DOUBLING), 0)
    assert told["otelperf.worker.task.duration"] == Buckets(1, 0.3, DOUBLING, counts)


def test_an_error_passes_through_and_lasts_until_the_next_task() -> None:
    clock = Watch()
    ocr = Worker("ocr", clock)
    with pytest.raises(ZeroDivisionError), ocr.task():
        _ = 1 / 0
    clock.go(5)
    assert state(ocr) == ["error"]
    assert values(ocr)["otelperf.worker.errors ZeroDivisionError"] == 1
    with ocr.task():
        assert state(ocr) == ["active"]
    assert state(ocr) == ["idle"]
    assert values(ocr)["otelperf.worker.time error"] == 5.0


def test_a_cancelled_task_is_counted_but_is_no_state_of_error() -> None:
    ocr = Worker("ocr")

    async def cancelled() -> None:
        running = asyncio.ensure_future(wait())
        await asyncio.sleep(0)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    @ocr
    async def wait() -> None:
        await asyncio.Event().wait()

    asyncio.run(cancelled())
    assert state(ocr) == ["idle"]
    assert values(ocr)["otelperf.worker.errors CancelledError"] == 1


def test_functions_of_every_kind_are_tasks_until_they_end() -> None:
    ocr = Worker("ocr")

    @ocr
    def plain(x: int) -> int:
        return x + values(ocr)["otelperf.worker.active_tasks"]  # type: ignore[operator] # a count

    @ocr
    def several() -> Iterator[str]:
        yield from ("a", "b")

    @ocr
    async def later() -> str:
        return "later"

    @ocr
    async def streamed() -> AsyncIterator[str]:
        yield "c"
        yield "d"

    async def collected() -> list[str]:
        return [each async for each in streamed()]

    assert plain(1) == 2
    assert list(several()) == ["a", "b"]
    assert asyncio.run(later()) == "later"
    assert asyncio.run(collected()) == ["c", "d"]
    assert plain.__name__ == "plain"
    assert values(ocr)["otelperf.worker.tasks"] == 4
    assert state(ocr) == ["idle"]


def test_a_stream_that_nobody_reads_to_its_end_is_over_when_it_is_closed() -> None:
    ocr = Worker("ocr")

    @ocr
    def several() -> Iterator[int]:
        yield 1
        yield 2

    stream = several()
    next(stream)
    assert state(ocr) == ["active"]
    stream.close()  # type: ignore[attr-defined] # it is a generator
    assert state(ocr) == ["idle"]


def test_a_task_may_end_while_its_worker_is_read() -> None:
    """A garbage collection closes generators wherever it runs."""
    running: list[int] = []

    def clock() -> int:
        if running:
            ocr.end(running.pop())
        return 0

    ocr = Worker("ocr", clock)
    running.append(ocr.begin())
    reading = threading.Thread(target=ocr.readings, daemon=True)
    reading.start()
    reading.join(10)
    assert not reading.is_alive()
    assert state(ocr) == ["idle"]


def test_error_types_are_bounded() -> None:
    ocr = Worker("ocr")
    for number in range(100):
        ocr.end(ocr.begin(), f"Error{number}")
    told = [r for r in ocr.readings() if r.name == "otelperf.worker.errors"]
    assert len(told) == 21
    assert {r.attributes["error.type"]: r.value for r in told}["_OTHER"] == 80


@pytest.mark.parametrize(("word", "told"), [("x" * 9999, "x" * 200), ("\ud800", "?"), ("", "_OTHER")])
def test_an_errors_word_is_as_otlp_can_carry_it(word: str, told: str) -> None:
    ocr = Worker("ocr")
    ocr.end(ocr.begin(), word)
    assert values(ocr)[f"otelperf.worker.errors {told}"] == 1


@given(st.lists(st.tuples(st.sampled_from(["begin", "end", "fail", "read"]), st.integers(0, 5_000)), max_size=60))
def test_the_times_in_all_states_add_up_to_the_time_that_passed(steps: list[tuple[str, int]]) -> None:
    clock = Watch()
    born = clock.now
    ocr = Worker("ocr", clock)
    begun: list[int] = []
    done = 0
    for what, milliseconds in steps:
        clock.go(milliseconds / 1000)
        if what == "begin":
            begun.append(ocr.begin())
        elif what in {"end", "fail"} and begun:
            ocr.end(begun.pop(), "Failed" if what == "fail" else None)
            done += 1
        told = values(ocr)
        assert told["otelperf.worker.active_tasks"] == len(begun)
        assert told["otelperf.worker.tasks"] == done
        assert len(state(ocr)) == 1
        spent = sum(told[f"otelperf.worker.time {each}"] for each in STATES)  # type: ignore[misc] # numbers
        assert spent == pytest.approx((clock.now - born) / 1e9)


def test_every_reading_has_its_row_and_a_worker_is_known_by_its_name() -> None:
    assert worker("by name") is worker("by name")
    worker("by name").end(worker("by name").begin(), "Failed")
    readings = [r for r in Workers("process").read(0) if r.attributes["otelperf.worker.id"] == "by name"]
    assert {r.name for r in readings} <= catalog.BY_NAME.keys()
    for reading in readings:
        counts = catalog.BY_NAME[reading.name].kind in {"counter", "histogram"}
        assert (reading.start is not None) == counts, reading.name


def test_too_many_workers_are_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Workers.registry, "_all", {})
    names = {worker(f"request {number}").name for number in range(1100)}
    assert len(names) == 1001
    assert "_OTHER" in names


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_a_forked_child_counts_its_own_tasks_only() -> None:
    """Also while the parent is in the middle of one, and holds the lock."""
    parent = worker("forked")
    begun = parent.begin()
    read, write = os.pipe()
    with parent._lock:
        child = os.fork()
        if not child:  # pragma: no cover # the child is not measured
            parent.end(begun)
            with parent.task():
                pass
            told = values(parent)
            os.write(write, f"{told['otelperf.worker.tasks']} {state(parent)}".encode())
            os._exit(0)
    os.waitpid(child, 0)
    assert os.read(read, 100).decode() == "1 ['idle']"
    parent.end(begun)
    assert values(parent)["otelperf.worker.tasks"] == 1
    os.close(read)
    os.close(write)


def test_a_name_that_is_no_text_is_refused() -> None:
    for wrong in (3, None, len):  # the last: bare above a function
        with pytest.raises(TypeError, match=r"^otelperf\.worker: name is .*, expected text"):
            worker(wrong)  # type: ignore[arg-type] # wrong on purpose


def test_a_worker_that_is_entered_points_to_its_task() -> None:
    expected = r"^otelperf\.worker: a worker is no context: with otelperf\.worker\('a'\)\.task\(\)"
    with pytest.raises(TypeError, match=expected), worker("a"):  # type: ignore[attr-defined, unused-ignore]
        pass

    async def enter() -> None:
        async with worker("a"):  # type: ignore[attr-defined, unused-ignore]
            pass

    with pytest.raises(TypeError, match=expected):
        asyncio.run(enter())
