"""What two processes send each other in a step, counted by the machine and by the plan: python -m tests.bench.wire.

gloo's processes on one machine talk over its loopback device, whose counters the kernel keeps (Linux). Nothing else may
talk there meanwhile. k2 in the preset `laptop`, DDP and FSDP2, AdamW and MuonClip; and the time of a step on two
processes of one thread against one process of one and of two.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

from tests.bench.measure import PROJECT, machine
from utils.config import KimiConfig, TrainConfig
from utils.data import TokenData
from utils.model import Kimi
from utils.parallel.form import form_of
from utils.presets import PRESETS
from utils.ranks import Ranks, joined, leave
from utils.run_state import RunState
from utils.scale import ddp, fsdp, on_meta
from utils.training import make_optimizer, train_mode, train_step

STEPS, WARM, VOCABULARY = 10, 3, 2000
PRESET = PRESETS["k2"]["laptop"]


def sent_bytes() -> int:
    """Bytes that this machine has sent itself."""
    line = next(line for line in Path("/proc/net/dev").read_text().splitlines() if line.strip().startswith("lo:"))
    return int(line.split(":")[1].split()[8])


def measure(form: str, optimizer: str) -> dict:
    """Seconds and bytes of a step, of this process."""
    model = Kimi(KimiConfig.small("k2", VOCABULARY, **PRESET.model))
    config = TrainConfig(batch_size=16, block_size=128, optimizer=optimizer)
    data = TokenData(np.random.default_rng(0).integers(0, VOCABULARY, 20_000).astype(np.uint16), 18_000, {})
    ranks = Ranks()
    with train_mode(model):
        spread = form_of(model, form, config, ranks)
        its_optimizer = make_optimizer(model, config, "fp32", spread.orthogonalise)
        run = RunState(model, data, config, "fp32", its_optimizer, form=spread)
        for _ in range(WARM):
            train_step(run)
        ranks.wait()
        before, started = sent_bytes(), time.perf_counter()
        for _ in range(STEPS):
            train_step(run)
        ranks.wait()
    return {"seconds": (time.perf_counter() - started) / STEPS, "bytes": (sent_bytes() - before) / STEPS / ranks.size}


def as_one_of_several(form: str, optimizer: str) -> None:
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    with joined(torch.device("cpu")) as ranks:
        found = measure(form, optimizer)
        if ranks.is_first:
            print(f"FOUND {json.dumps(found)}")
    leave()


def launch(n: int, threads: int, form: str, optimizer: str) -> dict:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(n), "-m", "--"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "passive"}
    done = subprocess.run(
        [*command, "tests.bench.wire", form, optimizer], cwd=PROJECT, env=environment, capture_output=True, text=True
    )
    line = next((line for line in done.stdout.splitlines() if line.startswith("FOUND ")), None)
    if line is None:
        raise RuntimeError(done.stderr[-2000:])
    return json.loads(line.removeprefix("FOUND "))


def main() -> None:
    model = on_meta(KimiConfig.small("k2", VOCABULARY, **PRESET.model))
    print(f"{machine('fp32')}; k2 laptop, 16 x 128\n")
    print("| form | optimizer | MB sent in a step | planned | seconds | one process, 1 thread | 2 threads |")
    print("|---|---|---|---|---|---|---|")
    for optimizer in ("adamw", "muonclip"):
        one, two = (launch(1, threads, "auto", optimizer)["seconds"] for threads in (1, 2))
        for form, plan in (("ddp", ddp), ("fsdp", fsdp)):
            found = launch(2, 1, form, optimizer)
            planned = plan(model, TrainConfig(optimizer=optimizer), 2).sent
            sent = f"{found['bytes'] / 1e6:.2f} | {planned / 1e6:.2f}"
            print(f"| {form} | {optimizer} | {sent} | {found['seconds']:.3f} | {one:.3f} | {two:.3f} |", flush=True)


if __name__ == "__main__":
    as_one_of_several(*sys.argv[1:]) if len(sys.argv) > 1 else main()
