"""Load a run and tell the first word of a story, or with no run given only import torch; `tests.bench` times this."""

import sys

import torch  # noqa: F401

if len(sys.argv) > 1:
    from utils.checkpoint import load_model
    from utils.generation import stream

    model, _ = load_model(sys.argv[1])
    pieces = stream(model, "once upon a time", seed=0)
    _ = next(pieces), next(pieces)  # the prompt, and the first word after it
print(0)
