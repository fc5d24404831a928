"""What only a GPU can show: the same numbers as on the CPU, and what is said when its memory is full.

All of it is skipped on a machine without one; docs/measured.md says when and on what it ran last.
"""

import contextlib
import io
import signal
from dataclasses import replace

import pytest
import torch

from tests.helpers import TINY_MODELS, every_architecture, random_tokens, storyteller
from utils import memory
from utils.checkpoint import load_checkpoint
from utils.decoding import Decoder
from utils.fast.experts import pick_backend, run_experts
from utils.fast.newton_schulz import orthogonalise
from utils.generation import generate, tell_stories
from utils.interrupt import StopRequest
from utils.recipe import build, new_recipe
from utils.training import train

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU")
GPU = torch.device("cuda")
needs_bf16 = pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.get_device_capability()[0] < 8, reason="this GPU has no bf16"
)
every_format = pytest.mark.parametrize("number_format", ["fp32", pytest.param("bf16", marks=needs_bf16), "fp16"])
TEXT = "once upon a time there was a little dog . it ran , and the dog said : hello ! the end ."


def made(architecture: str, preset: str = "smoke", **changes):
    """Model, data and configuration of a run of seconds, on the GPU."""
    fixed = dict(stories=300, steps=20, batch_size=8, eval_interval=10, eval_batches=1)
    with contextlib.redirect_stdout(io.StringIO()):
        return build(new_recipe(architecture, preset, "builtin", **{**fixed, **changes}), GPU)


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
def test_bf16_is_as_near_to_full_precision_as_on_the_cpu(architecture):
    x, model = random_tokens(8, 16), TINY_MODELS[architecture]()
    exact = model(x)
    with torch.autocast("cpu", torch.bfloat16):
        expected = relative(model(x).float(), exact)  # wide weights: of k2, some tokens go to other experts
    with torch.autocast("cuda", torch.bfloat16):
        assert relative(model.to(GPU)(x.to(GPU)).float(), exact) < 2 * expected


@needs_bf16
@pytest.mark.parametrize("backend", ["tiles", "grouped_mm"])
def test_sparse_dispatch_in_bf16_is_the_sum_of_the_chosen_experts(backend, monkeypatch):
    if backend == "grouped_mm" and pick_backend(torch.zeros(1, 64, device=GPU), torch.bfloat16) != backend:
        pytest.skip("this GPU has no kernel for it")
    monkeypatch.setattr("utils.fast.experts.pick_backend", lambda *_: backend)
    generator = torch.Generator().manual_seed(0)
    x, w_up, w_down = (
        torch.randn(shape, generator=generator) / 8 for shape in ((500, 64), (8, 2, 96, 64), (8, 64, 96))
    )
    chosen = torch.rand(500, 8, generator=generator).topk(2).indices
    weights = torch.rand(500, 2, generator=generator)
    expected = run_experts(x, weights, chosen, w_up, w_down)
    with torch.autocast("cuda", torch.bfloat16):
        found = run_experts(*(tensor.to(GPU) for tensor in (x, weights, chosen, w_up, w_down)))
    assert relative(found, expected) < 0.02


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
    here, there = (storyteller(TEXT, architecture) for _ in range(2))
    there.to(GPU)
    settings = dict(max_new_tokens=40, seed=3, number_format="fp32", temperature=0.7, stop_at_eos=False)
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
    model, data, config = made("k2", batch_size=64, steps=40, checkpoint_minutes=1e-6)

    def take_the_rest(history):
        if history.rows[-1]["step"] == 20:
            torch.cuda.empty_cache()
            total = torch.cuda.get_device_properties(GPU).total_memory
            torch.cuda.set_per_process_memory_fraction(1.02 * torch.cuda.memory_allocated() / total)

    try:
        with pytest.raises(MemoryError, match="batch_size 32 with accumulation 2 computes the same"):
            train(model, data, config, tmp_path / "run", show=take_the_rest)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert 10 <= load_checkpoint(tmp_path / "run")["step"] <= 20


@every_architecture
def test_the_batch_that_is_said_to_fit_does_fit(architecture, monkeypatch):
    limit = 3 * 10**9
    model, data, config = made(architecture, preset="laptop", stories=2000, number_format="fp32")
    monkeypatch.setattr(memory, "free_bytes", lambda device: limit)
    with pytest.raises(MemoryError, match=r"a batch_size of [0-9]+ fits") as told:
        train(model, data, replace(config, batch_size=10**6))
    fits = int(str(told.value).partition("a batch_size of ")[2].split()[0])
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    train(model, data, replace(config, batch_size=fits, steps=2))
    used = torch.cuda.max_memory_allocated() - before
    assert 0.7 * limit < used < limit, f"{fits} windows took {used / 1e9:.2f} GB"
