"""Bytes of memory that training of k2 needs at its peak: python -m tests.bench.peak WHO FORMAT BATCH.

Weights, gradients, activations and whatever the allocator keeps; not the libraries, whose code a step of a tiny model
has read before.
"""

import sys

from tests.bench.measure import memory
from tests.bench.peers import transformers_model
from tests.bench.rows import forward_backward, our_step
from tests.bench.shapes import shape, tokens
from utils.model import Kimi


def train(who: str, number_format: str, batch: int, **changes) -> None:
    x, y = tokens(batch, 256)
    config = shape("k2", **changes)
    if who == "transformers":
        model = transformers_model(config).train()
        step = forward_backward(model, lambda: model(input_ids=x, labels=x).loss, number_format)
    else:
        step = our_step(Kimi(config), x, y, number_format)
    for _ in range(3):
        step()


if __name__ == "__main__":
    who, number_format, batch = sys.argv[1], sys.argv[2], int(sys.argv[3])
    train(who, number_format, 1, d_model=64, n_layers=2, d_ff=64, dense_ff=64)
    before = memory("VmRSS")
    train(who, number_format, batch)
    print(memory("VmHWM") - before)
