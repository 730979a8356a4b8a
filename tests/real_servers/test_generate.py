"""Models in the program itself, in the environment of the real vLLM: what is measured is what the program counts."""

from __future__ import annotations

import json
import os
import subprocess

import pytest

from stack import processes
from stack.parts import part
from stack.processes import Process, query, wait_until
from tests.conftest import PROJECT
from tests.end_to_end.tempo import collector, tempo
from tests.real_servers.conftest import prometheus
from tests.receiver import Receiver

__all__ = ["collector", "prometheus", "tempo"]

pytestmark = pytest.mark.real_servers("vllm")


def test_generate_in_this_process_is_what_it_counts_itself(
    collector: Process, prometheus: Process, tempo: Receiver
) -> None:
    python = part("vllm")
    settings = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
        "PYTHONPATH": str(PROJECT / "src"),
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
    }
    model = python.parent.parent / "model"
    done = subprocess.run(
        [python, PROJECT / "examples" / "vllm_generate.py", model],
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        timeout=processes.VLLM_READY_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    [line] = [line for line in done.stdout.splitlines() if line.startswith('{"calls"')]  # vLLM logs there, too
    counted = json.loads(line)
    assert counted["output"] > 0

    def stored(promql: str) -> list[float]:
        return [float(row["value"][1]) for row in query(prometheus.url, promql)]

    tokens = 'sum by (gen_ai_token_type) (last_over_time(gen_ai_client_token_usage_sum{job="vllm-batch"}[10m]))'
    wait_until(lambda: sorted(stored(tokens)) == sorted([counted["input"], counted["output"]]), 30, tokens)
    calls = 'sum(last_over_time(gen_ai_client_operation_duration_seconds_count{job="vllm-batch"}[10m]))'
    assert stored(calls) == [counted["calls"]]
    wait_until(lambda: bool(tempo.spans()), 20, "no span has come")
    [span] = tempo.spans()
    assert span.attributes["gen_ai.usage.output_tokens"] == counted["output"]
    assert span.attributes["otelperf.gate.represented"] == 1
    assert "Once upon a time" not in repr(tempo.spans())


TRANSFORMERS = """
import json, sys, otelperf
with otelperf.instrument("hf", libraries=["transformers"]):
    import torch
    from transformers import AutoModelForCausalLM
    model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
    class Streamer:
        chunks = 0
        def put(self, value):
            self.chunks += 1
        def end(self):
            pass
    def ask(rows, tokens, **more):
        ids = torch.full((rows, 7), 42)
        return model.generate(ids, attention_mask=torch.ones_like(ids), min_new_tokens=tokens, max_new_tokens=tokens, **more)
    streamer = Streamer()
    answers = [ask(3, 6), ask(1, 5, streamer=streamer), ask(1, 4, num_beams=2, return_dict_in_generate=True).sequences]
    try:
        ask(1, -1)
    except ValueError:
        pass
counted = {"input": 5 * 7, "output": sum(each[:, 7:].numel() for each in answers), "chunks": streamer.chunks - 1}
print(json.dumps(counted))
"""


def test_generate_of_transformers_is_what_it_counts_itself(tempo: Receiver) -> None:
    python = part("vllm")
    settings = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": tempo.url,
        "PYTHONPATH": str(PROJECT / "src"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [python, "-c", TRANSFORMERS, python.parent.parent / "model"],
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    counted = json.loads(done.stdout.splitlines()[-1])

    def last(name: str, **wanted: str) -> float:
        points = [point for point in tempo.points(name) if not point.gone]
        chosen = [point for point in points if all(point.attributes.get(key) == value for key, value in wanted.items())]
        return float(chosen[-1].point.sum if wanted else chosen[-1].point.count)

    usage = {kind: last("gen_ai.client.token.usage", **{"gen_ai.token.type": kind}) for kind in ("input", "output")}
    assert usage == {"input": counted["input"], "output": counted["output"]} == {"input": 35, "output": 27}
    assert last("gen_ai.client.operation.time_per_output_chunk") == counted["chunks"] - 1 == 4
    assert sum(span.attributes["otelperf.gate.represented"] for span in tempo.spans()) == 4
    assert {span.attributes["gen_ai.request.model"] for span in tempo.spans()} == {"model"}
