"""A batch through vLLM in this process: ``LLM.generate`` is measured by itself.

pip install . vllm
python examples/vllm_generate.py MODEL
"""

from __future__ import annotations

import json
import sys

import otelperf

if __name__ == "__main__":  # vLLM starts processes that import this file
    with otelperf.instrument("vllm-batch", libraries=["vllm"]):
        from vllm import LLM, SamplingParams  # type: ignore[import-not-found, unused-ignore] # too heavy for the checks

        model = LLM(sys.argv[1], enforce_eager=True, max_model_len=1024)
        prompts = [f"Once upon a time there were {number}" for number in range(8)]
        answers = model.generate(prompts, SamplingParams(max_tokens=16))
        counted = {
            "calls": 1,
            "input": sum(len(answer.prompt_token_ids) for answer in answers),
            "output": sum(len(answer.outputs[0].token_ids) for answer in answers),
        }
        print(json.dumps(counted), flush=True)
