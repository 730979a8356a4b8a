"""Serve a model that sleeps and doubles by Triton: ``python tiny_triton.py HTTP_PORT METRICS_PORT LOAD_SECONDS`` (needs pytriton).

Its one input is a number: it waits for as many milliseconds, and answers twice the number; a negative one is an error. At
most four requests run together. Triton answers ``/metrics`` from its start, before the model is bound.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import numpy as np  # type: ignore[import-not-found, unused-ignore]
from pytriton.decorators import batch  # type: ignore[import-not-found, unused-ignore]
from pytriton.model_config import ModelConfig, Tensor  # type: ignore[import-not-found, unused-ignore]
from pytriton.triton import Triton, TritonConfig  # type: ignore[import-not-found, unused-ignore]

HOST = "127.0.0.1"
BATCH = 4


@batch  # type: ignore[untyped-decorator, unused-ignore]
def double(number: Any) -> dict[str, Any]:
    """Take a batch of numbers."""
    if number.min() < 0:
        msg = "a negative number"
        raise ValueError(msg)
    time.sleep(float(number.max()) / 1000)
    return {"doubled": number * 2}


def main(http_port: int, metrics_port: int, load_seconds: float) -> None:
    """Serve until killed; loading the model takes *load_seconds*."""
    config = TritonConfig(
        http_port=http_port,
        metrics_port=metrics_port,
        http_address=HOST,
        metrics_address=HOST,
        allow_grpc=False,
    )
    with Triton(config=config) as triton:
        triton.run()
        time.sleep(load_seconds)
        triton.bind(
            model_name="tiny",
            infer_func=double,
            inputs=[Tensor(name="number", dtype=np.float32, shape=(1,))],
            outputs=[Tensor(name="doubled", dtype=np.float32, shape=(1,))],
            config=ModelConfig(max_batch_size=BATCH),
        )
        triton.serve()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
