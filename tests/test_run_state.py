"""A run in motion: what is saved, what is resumed, and what a step that is left out leaves alone."""

import ctypes
import dataclasses
import math

import pytest
import torch

from tests.helpers import TINY_MODELS, every_architecture, save_again, storyteller
from utils import device, run_state, training
from utils.__main__ import main
from utils.checkpoint import checkpoint_file, load_checkpoint, load_model, save_checkpoint
from utils.config import TrainConfig
from utils.data import TokenData
from utils.device import fork_rng
from utils.model import Kimi
from utils.muonclip import MuonClip
from utils.record import Record
from utils.training import train

TEXT = "Once upon a time, Lily lost her red ball. She looked under a bench and found it. The end."
SHORT = TrainConfig(steps=3, batch_size=2, block_size=16, eval_interval=1, eval_batches=1, number_format="fp32")


@pytest.fixture
def job():
    """A model and data for it, made anew by each call."""

    def make(architecture="k2", **changes):
        model = storyteller(TEXT, architecture, **changes)
        return model, TokenData.from_stories([TEXT] * 20, model.tokenizer)

    return make


def test_a_run_in_fp16_is_not_resumed_on_a_cpu(job, tmp_path):
    """Fault of the first edition: only a new run was asked whether the device has its number format."""
    train(*job(), SHORT, tmp_path)
    state = load_checkpoint(tmp_path)
    state["training"]["number_format"] = "fp16"
    save_again(tmp_path, state)
    with pytest.raises(ValueError, match="number_format is 'fp16', on a CPU it must be auto, fp32 or bf16"):
        train(*job(), SHORT, tmp_path, resume=True)


def test_a_clock_that_stands_still_divides_nothing_by_zero(job, monkeypatch):
    """On Windows before Python 3.13 a clock moves every 16 ms, and a small step takes less."""
    monkeypatch.setattr(run_state.time, "perf_counter", lambda: 5.0)
    history = train(*job(), SHORT)
    assert all(math.isfinite(row["tokens_per_second"]) for row in history.rows)


def test_a_step_that_fp16_leaves_out_moves_nothing(job, monkeypatch):
    """Fault of the first edition: it moved the experts' biases, and reported the norm of the step before."""
    monkeypatch.setattr(training, "pick_number_format", lambda device, wanted: ("fp16", "for this test"))
    monkeypatch.setattr(training, "autocast", lambda device, number_format: device_off())
    norms, biases = [], []
    count_step = run_state.RunState.count_step

    def spy(run, loss, norm, record):
        norms.append(norm.item())
        biases.append(torch.stack([router.expert_bias for router in run.model.routers()]).clone())
        return count_step(run, loss, norm, record)

    monkeypatch.setattr(run_state.RunState, "count_step", spy)
    model, data = job(bias_rate=0.01)
    overflow = {"next": True}

    def poison(grad):
        now, overflow["next"] = overflow["next"], False
        return grad * math.inf if now else grad

    model.head.weight.register_hook(poison)
    before = torch.stack([router.expert_bias for router in model.routers()]).clone()
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    seen = []
    watch = lambda view: seen.append({n: p.detach().clone() for n, p in view.named_parameters()}) or {}  # noqa: E731
    history = train(model, data, dataclasses.replace(SHORT, steps=2), watch=watch)
    assert norms[0] == math.inf and math.isfinite(norms[1]) and len(history.losses) == 2
    assert torch.equal(biases[0], before) and not torch.equal(biases[1], before)
    assert all(torch.equal(seen[1][name], value) for name, value in weights.items())  # seen[0] is before the first step
    assert not all(torch.equal(seen[2][name], value) for name, value in weights.items())


def device_off():
    return torch.autocast("cpu", enabled=False)


def test_the_generator_of_mps_is_forked_and_saved(monkeypatch):
    """torch.random.fork_rng knows no MPS. (There is none here: a stand-in plays its generator.)"""
    state = {"now": torch.tensor([1], dtype=torch.uint8)}
    monkeypatch.setattr(torch.mps, "get_rng_state", lambda: state["now"].clone())
    monkeypatch.setattr(torch.mps, "set_rng_state", lambda new: state.update(now=new.clone()))
    mps = torch.device("mps")
    before = torch.get_rng_state()
    with fork_rng(mps):
        torch.rand(3)
        state["now"] = torch.tensor([9], dtype=torch.uint8)
        assert device.rng_state(mps).item() == 9
    assert state["now"].item() == 1 and torch.equal(torch.get_rng_state(), before)
    device.set_rng_state(mps, torch.tensor([4], dtype=torch.uint8))
    assert state["now"].item() == 4


class Killed(BaseException):
    """Nobody can catch it."""


def test_a_replaced_run_is_not_resumed(job, tmp_path, capsys):
    """Fault of the first edition: --overwrite, killed before its first checkpoint, then --resume, went on with it."""
    train(*job(), SHORT, tmp_path)

    def kill(view):
        raise Killed

    with pytest.raises(Killed):
        train(*job(), SHORT, tmp_path, overwrite=True, watch=kill)
    assert not checkpoint_file(tmp_path).exists()
    assert main(["train", "--run", str(tmp_path), "--resume"]) == 1
    assert "there is no checkpoint" in capsys.readouterr().err


def test_a_run_that_cannot_begin_replaces_nothing(job, tmp_path):
    train(*job(), SHORT, tmp_path)
    model, data = job()
    with pytest.raises(ValueError, match="block_size"):
        train(model, data, dataclasses.replace(SHORT, block_size=500), tmp_path, overwrite=True)
    assert load_model(tmp_path)[1] == SHORT.steps


def test_only_the_command_line_changes_the_allocator_of_the_process(job, tmp_path, monkeypatch):
    """Fault of the first edition: a call of train() did, for the rest of its caller's process."""
    calls = []

    def spy(*arguments):
        calls.append(arguments)
        raise OSError("no C library in this test")

    monkeypatch.setattr(ctypes, "CDLL", spy)
    train(*job(), SHORT)
    assert not calls
    options = ["--preset", "smoke", "--source", "builtin", "--stories", "50", "--steps", "1", "--run", str(tmp_path)]
    main(["train", *options])
    assert len(calls) == 1 or device.sys.platform != "linux" or torch.cuda.is_available()


@every_architecture
def test_the_history_says_how_many_experts_got_no_token(job, architecture):
    model, data = job(architecture)
    with torch.no_grad():  # a collapsed router: every token of the last layer goes to the same two experts
        gate = model.routers()[-1].gate.weight
        gate.zero_()  # equal scores: topk takes the same experts every time
        gate.requires_grad_(False)
    rows = train(model, data, dataclasses.replace(SHORT, lr=1e-9)).rows
    assert rows[0]["dead_experts"] is None and rows[0]["expert_load"] is None
    for row in rows[1:]:
        load = torch.tensor(row["expert_load"])
        assert row["dead_experts"] == pytest.approx((load == 0).float().mean().item())
        assert (load[-1] == 0).sum() == model.config.n_experts - model.config.top_k


def flattened(value, name=""):
    """Every key of a nested dict."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from flattened(inner, key)


def test_a_checkpoint_holds_the_training_configuration_once(tmp_path):
    options = ["--preset", "smoke", "--source", "builtin", "--stories", "50", "--steps", "1", "--run", str(tmp_path)]
    assert main(["train", *options]) == 0
    assert list(flattened(load_checkpoint(tmp_path))).count("checkpoint_minutes") == 1


@pytest.mark.skipif(torch.__version__.startswith("2.11"), reason="its Dynamo stops with a bare assert at the experts")
@every_architecture
def test_a_compiled_model_trains_a_step_and_its_checkpoint_loads_into_one_that_is_not(architecture, tmp_path):
    """Names in a compiled model's state dict begin with _orig_mod, which no other model has."""
    model = TINY_MODELS[architecture]()
    compiled = torch.compile(model, backend="aot_eager")  # all of torch.compile but the C++ compiler
    optimizer, record = MuonClip(compiled, lr=0.01, tau=0.01), Record()
    tokens = torch.randint(50, (2, 16), generator=torch.Generator().manual_seed(0))
    before = model.head.weight.detach().clone()
    _, loss = compiled(tokens, targets=tokens, record=record)
    loss.backward()
    optimizer.step(record)
    model.end_step_(record)
    assert not torch.equal(model.head.weight, before) and record.max_logits().shape == (model.config.n_layers, 4)
    save_checkpoint(tmp_path, compiled, 1)
    assert not any("_orig_mod" in name for name in load_checkpoint(tmp_path)["model"])
    loaded, _ = load_model(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(loaded(tokens), model.eval()(tokens))


def test_the_training_loop_takes_a_compiled_model(job, tmp_path):
    model, data = job()
    compiled = torch.compile(model, backend="aot_eager")
    history = train(compiled, data, SHORT, tmp_path)
    plain, _ = job()
    assert history.losses == train(plain, data, SHORT).losses
    assert isinstance(load_model(tmp_path)[0], Kimi)
