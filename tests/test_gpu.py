"""What only a GPU can show: the same numbers as on the CPU, and what is said when its memory is full.

All of it is skipped on a machine without one; docs/measured.md says when and on what it ran last.
"""

import contextlib
import io
import signal

import pytest
import torch

from tests.helpers import TINY_MODELS, every_architecture, random_tokens, storyteller
from utils import memory, training
from utils.checkpoint import load_checkpoint
from utils.config import TrainConfig
from utils.decoding import Decoder
from utils.fast.newton_schulz import orthogonalise
from utils.generation import generate, tell_stories
from utils.interrupt import StopRequest
from utils.memory import refuse_too_much
from utils.recipe import build, new_recipe
from utils.training import train

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU")
GPU = torch.device("cuda")
needs_bf16 = pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.get_device_capability()[0] < 8, reason="this GPU has no bf16"
)
every_format = pytest.mark.parametrize("number_format", ["fp32", pytest.param("bf16", marks=needs_bf16), "fp16"])
TEXT = "once upon a time there was a little dog . it ran , and the dog said : hello ! the end ."


def made(architecture: str, **changes):
    """Model, data and configuration of a run of seconds, on the GPU."""
    fixed = dict(stories=300, steps=20, batch_size=8, eval_interval=10, eval_batches=1)
    with contextlib.redirect_stdout(io.StringIO()):
        return build(new_recipe(architecture, "smoke", "builtin", **{**fixed, **changes}), GPU)


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found.cpu().double() - expected.double()).norm() / expected.double().norm()).item()


@every_architecture
def test_logits_and_gradients_are_those_of_the_cpu(architecture):
    x, y = random_tokens(8, 16), random_tokens(8, 16, seed=1)
    here, there = (TINY_MODELS[architecture]() for _ in range(2))
    there.to(GPU)
    assert relative(there(x.to(GPU)), here(x)) < 1e-5
    here.loss(x, y).backward()
    there.loss(x.to(GPU), y.to(GPU)).backward()
    grads = {name: p.grad for name, p in there.named_parameters()}
    assert all(relative(grads[name], p.grad) < 1e-4 for name, p in here.named_parameters() if p.grad.norm() > 1e-6)


@needs_bf16
@every_architecture
def test_bf16_stays_near_full_precision(architecture):
    x, model = random_tokens(8, 16).to(GPU), TINY_MODELS[architecture]().to(GPU)
    exact = model(x).cpu()
    with torch.autocast("cuda", torch.bfloat16):
        assert relative(model(x).float(), exact) < 0.03


@every_architecture
def test_a_run_goes_as_on_the_cpu(architecture):
    model, data, config = made(architecture, number_format="fp32", steps=8)
    expected = train(build(new_recipe(architecture, "smoke", "builtin", stories=300)).model, data, config).losses
    assert train(model, data, config).losses == pytest.approx(expected, rel=1e-3)


@every_format
@every_architecture
def test_every_number_format_learns(architecture, number_format):
    losses = train(*made(architecture, number_format=number_format, steps=60)).losses
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])


@every_format
@every_architecture
def test_a_resumed_run_goes_on_as_one_that_was_not_stopped(architecture, number_format, tmp_path):
    changes = dict(number_format=number_format, steps=20)
    model, data, config = made(architecture, **changes)
    expected = train(model, data, config, tmp_path / "whole").losses
    stop = StopRequest()

    def ask_to_stop(history):
        if history.rows[-1]["step"] == 10:
            stop.number = signal.SIGINT

    assert train(*made(architecture, **changes), tmp_path / "cut", show=ask_to_stop, stop=stop).step == 10
    history = train(*made(architecture, **changes), tmp_path / "cut", resume=True)
    # what a GPU adds up in parallel it adds in another order each time
    assert history.losses == pytest.approx(expected, rel=2e-2)


@every_architecture
def test_a_repeated_decoding_step_gives_the_logits_of_a_whole_pass(architecture):
    model = TINY_MODELS[architecture]().to(GPU).eval()
    tokens = random_tokens(3, 16).to(GPU)
    decoder = Decoder(model, "fp32")
    for begin in range(2):  # the second time the graph is there already
        decoder.restart()
        found = [decoder(tokens[:, :4])] + [decoder(tokens[:, i : i + 1]) for i in range(4, 16)]
        with torch.no_grad():
            expected = model(tokens)[:, 3:]
        assert relative(torch.stack(found, dim=1), expected.cpu()) < 1e-5, begin


@every_architecture
def test_a_seed_tells_the_same_story_on_every_device(architecture):
    here, there = (storyteller(TEXT, architecture, ends=False) for _ in range(2))
    there.to(GPU)
    settings = dict(max_new_tokens=40, seed=3, number_format="fp32", temperature=0.7)
    assert generate(there, "the dog", **settings) == generate(here, "the dog", **settings)
    assert len(tell_stories(there, 5, "the dog", max_new_tokens=30)) == 5


@pytest.mark.parametrize("dtype", [pytest.param(torch.bfloat16, marks=needs_bf16), torch.float16])
def test_newton_schulz_in_two_bytes_brings_singular_values_near_1(dtype):
    generator = torch.Generator().manual_seed(0)
    for shape in ((64, 96), (4, 1152, 448)):
        matrix = torch.randn(shape, generator=generator).to(GPU) * 1e-4  # as small as gradients are
        values = torch.linalg.svdvals(orthogonalise([matrix], dtype)[0].double())
        assert values.min() > 0.6 and values.max() < 1.3
        assert relative(orthogonalise([matrix], dtype)[0], orthogonalise([matrix])[0].cpu()) < 0.05


def test_memory_that_is_full_in_mid_run_is_one_sentence_and_the_checkpoint_is_kept(tmp_path):
    model, data, config = made("k2", batch_size=64, steps=40, checkpoint_minutes=0.0)
    taken = []

    def take_the_rest(history):
        if history.rows[-1]["step"] == 10:
            torch.cuda.empty_cache()
            total = torch.cuda.get_device_properties(GPU).total_memory
            torch.cuda.set_per_process_memory_fraction(1.02 * torch.cuda.memory_allocated() / total)
            taken.append(True)

    try:
        with pytest.raises(MemoryError, match="batch_size 32 with accumulation 2 computes the same"):
            train(model, data, config, tmp_path / "run", show=take_the_rest)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert taken and load_checkpoint(tmp_path / "run")["step"] >= 9


@every_architecture
def test_the_batch_that_is_said_to_fit_does_fit(architecture, monkeypatch):
    model, data, config = made(architecture, stories=2000)
    large = TrainConfig(steps=2, batch_size=10**6, block_size=64, eval_batches=1, optimizer=config.optimizer)
    monkeypatch.setattr(memory, "free_bytes", lambda device: 2 * 10**9)
    with pytest.raises(MemoryError, match=r"a batch_size of [0-9]+ fits") as told:
        refuse_too_much(model, large, "fp32")
    fits = int(str(told.value).partition("a batch_size of ")[2].split()[0])
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    small = TrainConfig(steps=2, batch_size=fits, block_size=64, eval_batches=1, optimizer=config.optimizer)
    monkeypatch.setattr(training, "refuse_too_much", lambda *_: None)
    train(model, data, TrainConfig(**{**vars(small), "number_format": "fp32"}))
    used = torch.cuda.max_memory_allocated() - before
    assert 0.5 * 2e9 < used < 1.15 * 2e9, f"{fits} windows took {used / 1e9:.2f} GB"
