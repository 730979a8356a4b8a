"""A batch: a pool of threads summarises documents. Calls, workers, a cache and the quality of answers are told by hand.

pip install .
python examples/batch_workers.py 200
"""

from __future__ import annotations

import functools
import json
import random
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import otelperf


@otelperf.cache
@functools.lru_cache(maxsize=100)
def tokenized(text: str) -> tuple[str, ...]:
    """Split *text*, once for each."""
    return tuple(text.split())


def summarise(number: int) -> int:
    """Ask a model, here a made-up one, for the summary of a document; return how many tokens it has."""
    document = f"document {number % 20} " * 10
    with otelperf.inference(model="tiny-summary", provider="example") as call:
        call.tokens(input=len(tokenized(document)))
        generated = 1 + number % 5
        for _ in range(generated):
            time.sleep(0.001)
            call.chunk()
        if number % 50 == 49:
            raise TimeoutError("the model did not answer")
        call.tokens(output=generated)
    otelperf.quality(random.Random(number).betavariate(8, 2), model="tiny-summary", name="coverage")  # a made-up score
    return generated


def main(documents: int) -> None:
    """Summarise them all, and print what was done."""
    with otelperf.instrument("batch", libraries="none"), ThreadPoolExecutor(4) as pool:
        otelperf.watch_pool(pool, "summaries")
        done = [pool.submit(summarise, number) for number in range(documents)]
        failed = sum(each.exception() is not None for each in done)
        tokens = sum(each.result() for each in done if each.exception() is None)
    print(json.dumps({"documents": documents, "failed": failed, "tokens": tokens}))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 200)
