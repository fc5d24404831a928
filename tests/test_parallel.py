"""A run on several processes is the run of one: losses, weights, what is measured, and what is left when one dies."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from tests import several
from tests.helpers import tiny_model
from utils import training
from utils.__main__ import main
from utils.checkpoint import load_checkpoint, load_model
from utils.config import KimiConfig, TrainConfig
from utils.cost import plan
from utils.course import processes
from utils.data import TokenData
from utils.parallel import spread
from utils.parallel.form import form_of
from utils.parallel.muon import owners, rows_of
from utils.parallel.whole import Whole
from utils.ranks import Ranks
from utils.scale import ddp, fsdp, on_meta

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="this torch was built without torch.distributed")

ROOT = Path(__file__).resolve().parents[1]
ONE = (("nano", "k2"), ("adamw", "muonclip"), ("fp32", "fp64"))
CASES = list(itertools.product(*ONE[:2], ("ddp", "fsdp")))


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
    for n in (2, 4):
        folders[n] = tmp_path_factory.mktemp(f"on-{n}")
        cases = ["-".join((*case, precision)) for precision in ("fp32", "fp64") for case in CASES]
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


@pytest.mark.parametrize("n", [2, 4])
@pytest.mark.parametrize("precision, limit", [("fp32", 1e-5), ("fp64", 1e-12)])
@pytest.mark.parametrize("architecture, optimizer, form", CASES)
def test_several_processes_train_as_one(trained, alone, architecture, optimizer, form, precision, limit, n):
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
    largest, their_largest = (np.array(run["max_logits"]) for run in (noted, theirs))  # (L, H)
    assert their_largest == pytest.approx(largest, abs=10 * limit, rel=0)
    assert their_weights.keys() == weights.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(their_weights[name], weight, atol=limit, rtol=0)


@pytest.mark.parametrize("architecture, optimizer, form", CASES)
def test_a_process_holds_what_the_plan_says(trained, architecture, optimizer, form):
    model = on_meta(KimiConfig.small(architecture, 50, **several.SHAPES[architecture]))
    expected = {"ddp": ddp, "fsdp": fsdp}[form](model, TrainConfig(optimizer=optimizer), 2).held
    noted = json.loads((trained[2] / f"{architecture}-{optimizer}-{form}-fp32.json").read_text())
    assert noted["held"] == pytest.approx(expected, rel=0.01)  # odd rows are not halved


def test_each_matrix_has_an_owner_and_all_have_about_as_much_to_do():
    shapes = [torch.Size(shape) for shape in [(8, 8)] * 6 + [(64, 32), (32, 48), (4, 100)]]
    work = [min(shape) ** 2 * max(shape) for shape in shapes]
    for n in (1, 2, 3, 4):
        owner = owners(shapes, n)
        load = [sum(w for w, o in zip(work, owner, strict=True) if o == rank) for rank in range(n)]
        assert len(owner) == len(shapes) and set(owner) <= set(range(n))
        assert max(load) <= max(max(work), 4 / 3 * sum(work) / n)  # Graham's bound for the largest first


@pytest.mark.parametrize("rows, n", [(6, 4), (1, 3), (8, 2), (7, 3)])
def test_rows_are_cut_as_torch_cuts_them(rows, n):
    cut = [len(piece) for piece in torch.arange(rows).chunk(n)]
    assert [rows_of(torch.Size((rows, 5)), rank, n) for rank in range(n)] == cut + [0] * (n - len(cut))


def test_one_process_is_the_first_of_one():
    ranks, record, values = Ranks(), object(), torch.randn(3)
    assert (ranks.rank, ranks.size, ranks.is_first) == (0, 1, True)
    assert ranks.sum(values) is values and torch.equal(ranks.mean(values), values)
    assert ranks.any(True, False) == [True, False] and ranks.of_first(7) == 7 and ranks.part(6) == slice(0, 6)
    before = torch.get_rng_state()
    ranks.reseed(1, 2)
    ranks.join_(record)
    assert torch.equal(torch.get_rng_state(), before)


def test_what_cannot_be_is_named():
    two = Ranks()
    two.size = 2
    with pytest.raises(ValueError, match="batch_size is 5, on 2 processes it must be a multiple of 2"):
        two.part(5)
    with pytest.raises(ValueError, match="parallel is 'tp', it must be one of auto, ddp, fsdp"):
        form_of(None, "tp", TrainConfig(), Ranks())


def test_parts_take_no_scaler_and_no_watcher(monkeypatch):
    job = tiny_model(), TokenData(np.arange(100, dtype=np.uint16) % 50, 80, {}), TrainConfig(batch_size=2, block_size=8)
    monkeypatch.setattr(Whole, "is_sharded", True)
    with pytest.raises(ValueError, match="watch is given a whole model"):
        training.train(*job, watch=lambda model: {})
    monkeypatch.setattr(training, "pick_number_format", lambda *_: ("fp16", "as on a T4"))
    with pytest.raises(ValueError, match="number_format is 'fp16', with parallel='fsdp' it must be bf16 or fp32"):
        training.train(*job)


def test_parts_are_taken_where_copies_are_too_large(monkeypatch):
    model, config = tiny_model(), TrainConfig(batch_size=2, block_size=8)
    need = plan(model, config).bytes
    for free, form in ((None, "ddp"), (2 * need, "ddp"), (2 * need - 2, "fsdp")):
        monkeypatch.setattr(spread, "free_bytes", lambda _, free=free: free)
        assert spread.pick(model, config, Ranks()) == form


# The command line

SMOKE = [
    "--preset",
    "smoke",
    "--source",
    "builtin",
    "--stories",
    "300",
    "--number-format",
    "fp32",
    "--warmup",
    "0",
    "--decay",
    "0",
]


def train(n: int, folder: Path, *options: str, status: int = 0) -> str:
    """What several processes print; one trains here."""
    arguments = ["train", *SMOKE, "--run", str(folder), *options]
    if n > 1:
        return finish(launch(n, "utils", *arguments), status)
    assert main(arguments) == status
    return ""


@pytest.mark.parametrize("form", ["ddp", "fsdp"])
def test_a_run_goes_on_with_fewer_processes(form, tmp_path):
    """On four, then on two, then on one: the run of one process; evaluated on two as on one."""
    told = train(4, tmp_path / "more", "--steps", "4", "--parallel", form)
    assert f"in each ({form})" in told and told.count("number format:") == told.count("minutes in all") == 1
    train(2, tmp_path / "more", "--steps", "8", "--parallel", form, "--resume")
    train(1, tmp_path / "more", "--steps", "12", "--resume")
    train(1, tmp_path / "one", "--steps", "12")
    one, more = (load_checkpoint(tmp_path / name) for name in ("one", "more"))
    assert more["tensors"]["losses"].tolist() == pytest.approx(one["tensors"]["losses"].tolist(), abs=1e-4)
    for name, weight in one["model"].items():
        torch.testing.assert_close(more["model"][name], weight, atol=1e-3, rtol=0)


def test_two_processes_evaluate_as_one(tmp_path):
    train(1, tmp_path / "run", "--steps", "4")
    asked = ["evaluate", "--run", str(tmp_path / "run"), "--stories", "3", "--json"]
    assert main([*asked, str(tmp_path / "one.json")]) == 0
    printed = finish(launch(2, "utils", *asked, str(tmp_path / "two.json")))
    assert printed.count("told: 3 stories") == 1
    assert printed.count("validation:   0%") == printed.count("stories 1 to 3 of 3:   0%") == 1  # bars of the first
    written = [json.loads((tmp_path / name).read_text()) for name in ("one.json", "two.json")]
    one, two = (found["runs"][str(tmp_path / "run")]["found"] for found in written)
    for name in ("loss", "perplexity", "bits_per_byte", "dropped"):
        assert two.pop(name) == pytest.approx(one.pop(name), rel=1e-6)
    assert one.pop("tokens_per_second") > 0 < two.pop("tokens_per_second")
    assert two == one


@pytest.mark.parametrize("form", ["ddp", "fsdp"])
def test_a_run_of_two_goes_on_to_the_bit(form, tmp_path):
    """A sum of two has no order: what goes on is what would have been, dropout too."""
    nano = ["--model", "nano", "--dropout", "0.2", "--parallel", form]
    train(2, tmp_path / "whole", "--steps", "6", *nano)
    train(2, tmp_path / "parts", "--steps", "3", *nano)
    train(2, tmp_path / "parts", "--steps", "6", *nano[2:], "--resume")
    whole, parts = (load_checkpoint(tmp_path / name) for name in ("whole", "parts"))
    assert torch.equal(whole["tensors"]["losses"], parts["tensors"]["losses"])
    assert all(torch.equal(whole["model"][name], parts["model"][name]) for name in whole["model"])


@pytest.mark.skipif(not Path("/proc/self/environ").is_file(), reason="finds the second process in /proc")
def test_a_lost_process_ends_the_run_with_one_sentence_and_it_goes_on(tmp_path):
    """Within 30 seconds; then on one process, from its checkpoint."""
    endless = ["--run", str(tmp_path), "--steps", "100000", "--checkpoint-minutes", "0.01"]
    run = launch(2, "utils", "train", *SMOKE, *endless)
    deadline = time.monotonic() + 200
    while not (tmp_path / "checkpoint.safetensors").is_file():
        assert time.monotonic() < deadline and run.poll() is None
        time.sleep(0.2)
    os.kill(second_of(run.pid), signal.SIGKILL)
    printed, _ = run.communicate(timeout=30)
    told = [line for line in printed.splitlines() if line.startswith("error:")]
    assert run.returncode != 0 and len(told) == 1
    assert "another process of this run has ended; the checkpoint of step" in told[0]
    step = load_model(tmp_path)[1]
    going_on = launch(1, "utils", "train", *SMOKE, *endless, "--resume")
    while load_model(tmp_path)[1] == step:
        assert time.monotonic() < deadline and going_on.poll() is None
        time.sleep(0.5)
    going_on.terminate()  # it is saved, and ends
    going_on.communicate(timeout=60)


def second_of(launcher: int) -> int:
    """The process of rank 1 that a launcher has started."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == launcher and b"RANK=1" in (process / "environ").read_bytes().split(b"\0"):
                return int(process.name)
        except OSError:  # it has ended in between
            continue
    raise LookupError(f"no process of {launcher} has rank 1")


def test_a_mistake_is_said_once(tmp_path):
    told = train(2, tmp_path, "--batch-size", "5", status=1)
    assert told.count("error: batch_size is 5, on 2 processes it must be a multiple of 2") == told.count("error:") == 1


@pytest.mark.parametrize("n, taken_down", [(1, True), (2, False)])
def test_one_of_several_ends_before_python_is_taken_down(n, taken_down):
    """Else threads of gloo, which need Python to free what they sent, abort a process that is done."""
    command = ["python", "plan", "--model", "k2"]
    code = f"import atexit, runpy, sys; atexit.register(print, 'taken down'); sys.argv = {command}\n"
    code += "runpy.run_module('utils', run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env={**os.environ, "WORLD_SIZE": str(n)}, capture_output=True, text=True
    )
    assert done.returncode == 0 and "parameters" in done.stdout, done.stderr
    assert ("taken down" in done.stdout) == taken_down


def test_nothing_of_ours_is_the_last_that_knows_the_processes():
    """DDP, if it were, would take their threads down when it is freed, and hang when one of them needs Python."""

    def after_joined():
        import torch
        import torch.distributed as dist

        from utils.ranks import joined

        with joined(torch.device("cpu")):
            pass
        print("know each other:", dist.is_initialized())

    assert processes.launch(2, after_joined) == "\n".join(["know each other: True"] * 2)


def test_what_was_printed_and_the_status_outlive_the_end():
    code = "import sys; from utils.ranks import leave; print('said'); print('warned', file=sys.stderr); leave(3)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (3, "said\n", "warned\n")
