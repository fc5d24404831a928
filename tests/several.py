"""Runs as several processes do them: python -m torch.distributed.run --nproc-per-node N -m tests.several FOLDER CASES.

Each case is trained for 20 steps, and what came out is written by the first process: tests/test_parallel.py compares it
with one process.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch.overrides import TorchFunctionMode

from tests.helpers import TINY, TINY_K2
from utils.config import KimiConfig, TrainConfig
from utils.data import TokenData
from utils.model import Kimi
from utils.parallel.form import form_of
from utils.parallel.whole import full
from utils.ranks import Ranks, joined, leave
from utils.run_state import RunState
from utils.training import make_optimizer, train_mode, train_step
from utils.validation import validate

STEPS = 20
SHAPES = {"nano": {**TINY, "n_experts": 6}, "k2": {**TINY_K2, "n_experts": 6, "bias_rate": 0.01}}  # 6 on 4 processes


class Double(TorchFunctionMode):
    """In it everything that asks for fp32 gets fp64: router, softmax and loss compute in at least fp32."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        func = torch.Tensor.double if func is torch.Tensor.float else func
        kwargs = {k: torch.float64 if v is torch.float32 else v for k, v in (kwargs or {}).items()}
        return func(*args, **kwargs)


def run(architecture: str, optimizer: str, form: str, precision: str) -> tuple[dict, dict[str, torch.Tensor]]:
    """(what it noted, its weights) of a run on these processes: two batches a step, heads clipped, biases moving."""
    double = precision == "fp64"
    model = Kimi(KimiConfig.small(architecture, 50, **SHAPES[architecture]), seed=0, fast=not double)
    if double:
        model.double()
        for buffer in model.buffers():
            buffer.data = buffer.double()
    config = TrainConfig(
        steps=STEPS, batch_size=8, block_size=16, accumulation=2, optimizer=optimizer, lr=1e-2, tau=0.5, eval_batches=2,
        number_format="fp32",
    )  # fmt: skip
    tokens = np.random.default_rng(0).integers(0, 50, 3000).astype(np.uint16)
    data, mode = TokenData(tokens, 2500, {}), Double() if double else torch.enable_grad()
    clipped = held = 0
    with train_mode(model), mode:
        spread = form_of(model, form, config, Ranks())
        its_optimizer = make_optimizer(model, config, "fp32", spread.orthogonalise)
        if not double:  # AdamW divides a gradient by its size: of one that is nearly zero, rounding would be a step
            for group in its_optimizer.param_groups:
                group["eps"] = 1e-4
        state = RunState(model, data, config, "fp32", its_optimizer, form=spread)
        for _ in range(STEPS):
            record = train_step(state)
            held = held_bytes(model, its_optimizer)
            clipped += int((record.max_logits() > config.tau).any())
        state.read_losses()
        validate(state, record, None, lambda name, what, *default: what())
    row = state.history.rows[-1]
    noted = {name: row[name] for name in ("val_loss", "expert_load", "max_logits")}
    weights = {name: full(tensor.detach()).clone() for name, tensor in model.state_dict().items()}
    noted |= {"losses": state.history.losses, "clipped": clipped, "held": held}
    return noted, weights


def held_bytes(model: Kimi, optimizer: torch.optim.Optimizer) -> int:
    """Bytes of what this process holds all the time: weights, as large gradients, averages of the optimizer."""
    averages = [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
    here = [
        getattr(tensor, "_local_tensor", tensor) for tensor in (*model.parameters(), *model.parameters(), *averages)
    ]
    return sum(tensor.nbytes for tensor in here)


def main(folder: Path, cases: list[list[str]]) -> None:
    torch.set_num_threads(1)
    with joined(torch.device("cpu")) as ranks:
        for case in cases:
            noted, weights = run(*case)
            if ranks.is_first:
                name = "-".join(case)
                save_file(weights, folder / f"{name}.safetensors")
                (folder / f"{name}.json").write_text(json.dumps(noted))


if __name__ == "__main__":
    main(Path(sys.argv[1]), [case.split("-") for case in sys.argv[2:]])
    leave()
