"""A run on several processes is the run of one: losses, weights, what is measured, and what is left when one dies."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from tests import several

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="this torch was built without torch.distributed")

ROOT = Path(__file__).resolve().parents[1]
CASES = list(itertools.product(("nano", "k2"), ("adamw", "muonclip"), ("ddp", "fsdp")))


def launch(n: int, *module_and_arguments: str, **how) -> subprocess.Popen:
    """Start a module as n processes, as torchrun does."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(n), "--standalone"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "TINYSTORIES_PATH": "builtin"}
    streams = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return subprocess.Popen([*command, "-m", "--", *module_and_arguments], env=environment, **streams, **how)


def finish(process: subprocess.Popen, status: int = 0) -> str:
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == status, printed
    return printed


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """By number of processes, the folder in which their runs are."""
    folders = {}
    for n, precisions in ((2, ("fp32", "fp64")), (4, ("fp64",))):
        folders[n] = tmp_path_factory.mktemp(f"on-{n}")
        cases = ["-".join((*case, precision)) for precision in precisions for case in CASES]
        finish(launch(n, "tests.several", str(folders[n]), *cases))
    return folders


@pytest.fixture(scope="module")
def alone():
    """The same on one process, each once."""
    runs = {}
    for architecture, optimizer, precision in itertools.product(
        ("nano", "k2"), ("adamw", "muonclip"), ("fp32", "fp64")
    ):
        runs[architecture, optimizer, precision] = several.run(architecture, optimizer, "auto", precision)
    return runs


@pytest.mark.parametrize("n, precision, limit", [(2, "fp32", 1e-5), (2, "fp64", 1e-12), (4, "fp64", 1e-12)])
@pytest.mark.parametrize("architecture, optimizer, form", CASES)
def test_several_processes_train_as_one(trained, alone, architecture, optimizer, form, n, precision, limit):
    """Two batches a step, heads clipped, the balance loss and the experts' biases acting."""
    noted, weights = alone[architecture, optimizer, precision]
    name = f"{architecture}-{optimizer}-{form}-{precision}"
    theirs, their_weights = (
        json.loads((trained[n] / f"{name}.json").read_text()),
        load_file(trained[n] / f"{name}.safetensors"),
    )
    assert theirs["losses"] == pytest.approx(noted["losses"], abs=limit) and len(noted["losses"]) == several.STEPS
    assert theirs["val_loss"] == pytest.approx(noted["val_loss"], abs=limit)
    assert theirs["expert_load"] == noted["expert_load"]
    assert theirs["clipped"] == noted["clipped"] > 0
    assert sum(theirs["max_logits"], []) == pytest.approx(sum(noted["max_logits"], []), abs=10 * limit)
    assert their_weights.keys() == weights.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(their_weights[name], weight, atol=limit, rtol=0)
