"""A server that is up before it has anything to tell: its page is empty until the first request, or the first model."""

from __future__ import annotations

import pytest

from otelperf.readings import Reading
from otelperf.sources.engines import ENGINES
from otelperf.sources.engines.engine import Engine
from otelperf.sources.engines.server import Server
from otelperf.sources.engines.trtllm import TRTLLM
from tests.engines.loopback import Loopback, message, saying
from tests.engines.pages import SECOND, START, Pages, names, page, read

UP, DOWN = [Reading("otelperf.server.up", 1)], [Reading("otelperf.server.up", 0)]
PATH = "/prometheus/metrics"
BUSY, MODELS = page("trtllm-1.1/busy.txt"), page("trtllm-1.1/v1-models.json")
COMMENTS = "".join(f"{line}\n" for line in BUSY.splitlines() if line.startswith("#"))
NAMED, AUTO = ((TRTLLM, ()), (None, ENGINES))


@pytest.mark.parametrize(("engine", "engines"), [NAMED, AUTO], ids=["named", "auto"])
@pytest.mark.parametrize("empty", ["", "\n", COMMENTS], ids=["nothing", "a line", "comments"])
def test_trtllm_is_up_before_its_first_request(engine: Engine | None, engines: tuple[Engine, ...], empty: str) -> None:
    pages: Pages = {PATH: empty, "/v1/models": MODELS}
    with Loopback(saying(pages)) as loopback:
        server = Server(loopback.url, engine, engines=engines)
        for second in range(0, 300, 5):
            assert read(server, START + second * SECOND) == (UP, "")
            assert server.up
        assert server.engine is TRTLLM
        pages[PATH] = BUSY
        readings, said = read(server, START + 300 * SECOND)
        server.close()
    assert said == ""
    assert "otelperf.server.requests" in names(readings)


def test_triton_without_a_model_is_up() -> None:
    nothing = "# TYPE nv_inference_count counter\n# TYPE nv_cpu_memory_used_bytes gauge\nnv_cpu_memory_used_bytes 5\n"
    with Loopback(saying({"/metrics": nothing})) as loopback:
        server = Server(loopback.url, None, engines=ENGINES)
        assert read(server) == (UP, "")
        server.close()


@pytest.mark.parametrize(
    "pages",
    [
        {PATH: ""},
        {PATH: "", "/v1/models": '{"data": [{"id": "m", "owned_by": "vllm"}]}'},
        {PATH: "", "/v1/models": message(MODELS, "401 Unauthorized")},
        {PATH: "<html></html>", "/v1/models": MODELS},
        {PATH: "go_goroutines 5\n", "/v1/models": MODELS},
        {PATH: message("", "500 Internal Server Error"), "/v1/models": MODELS},
        {PATH: message("", "503 Service Unavailable"), "/v1/models": MODELS},
    ],
    ids=["no mark", "another's", "closed", "html", "another's page", "broken", "loading"],
)
def test_without_an_empty_page_and_its_mark_elsewhere_it_is_down(pages: Pages) -> None:
    with Loopback(saying(pages)) as loopback:
        server = Server(loopback.url, TRTLLM)
        readings, said = read(server)
        server.close()
    assert readings == DOWN
    assert loopback.url in said


def test_another_server_in_the_place_of_one_that_told_nothing_is_recognised() -> None:
    pages: Pages = {PATH: "", "/v1/models": MODELS}
    with Loopback(saying(pages)) as loopback:
        server = Server(loopback.url, None, engines=ENGINES)
        read(server)
        pages.clear()
        pages["/metrics"] = page("vllm-0.32.0/idle.txt")
        told = [read(server, START + second * SECOND)[0][0] for second in (5, 10)]
        server.close()
    assert [told[0]] == DOWN
    assert [told[1]] == UP
    assert server.entity.startswith("vllm ")
