"""The rows of the table: each function measures ours against one kind of peer."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator
from functools import partial

import tokenizers
import torch
from tokenizers import Regex, models, normalizers, pre_tokenizers
from torch import nn

from tests.bench.measure import Row, child, cost, in_turn, rate
from tests.bench.peers import Dense, transformers_twin
from tests.bench.shapes import shape, tokens
from utils.checkpoint import save_checkpoint
from utils.cost import training_flops
from utils.decoding import Decoder
from utils.device import autocast
from utils.fast.newton_schulz import orthogonalise
from utils.generation import Sampling, sample
from utils.grammar import builtin_stories
from utils.model import Kimi
from utils.muonclip import MuonClip, muon_parameters
from utils.record import Record
from utils.tokenizer import UNK, WordTokenizer

CPU = torch.device("cpu")


def forward_backward(model: nn.Module, loss: Callable[[], torch.Tensor], number_format: str) -> Callable[[], None]:
    """One training step without an optimizer."""

    def step() -> None:
        model.zero_grad()
        with autocast(CPU, number_format):
            value = loss()
        value.backward()

    return step


def our_step(model: Kimi, x: torch.Tensor, y: torch.Tensor, number_format: str) -> Callable[[], Record]:
    """The same for ours, as the training loop does it: each step has a record, which it returns."""
    model.train()

    def step() -> Record:
        record = Record()

        def loss() -> torch.Tensor:
            value = model.loss(x, y, record)
            return value + model.config.balance_coef * record.balance_loss() if model.config.balance_coef else value

        forward_backward(model, loss, number_format)()
        return record

    return step


def muonclip(model: Kimi, dtype: torch.dtype | None) -> MuonClip:
    """The optimizer as the training loop makes it, with Newton-Schulz in `dtype`."""
    return MuonClip(model, orthogonalise=partial(orthogonalise, dtype=dtype))


def training(number_format: str) -> Iterator[Row]:
    """Training tokens/s, forward and backward."""
    x, y = tokens(4, 256)
    model, dense = Kimi(shape("nano")), Dense(shape("nano")).train()
    peer = forward_backward(dense, lambda: dense.loss(x, y), "fp32")
    for form, bar in ((number_format, "6 x"), ("fp32", "")):
        ours = our_step(model, x, y, form)
        yield rate(f"train nano, 4 x 256, {form}", "dense, fp32", x.numel(), "tokens/s", ours, peer, 5, bar)
    for name, batch, length in (("k2", 4, 256), ("sparse", 4, 256), ("laptop", 16, 128)):
        x, y = tokens(batch, length)
        model = Kimi(shape(name))
        twin = transformers_twin(model).train()
        for form in dict.fromkeys((number_format, "fp32")):
            ours = our_step(model, x, y, form)
            peer = forward_backward(twin, lambda twin=twin, x=x: twin(input_ids=x, labels=x).loss, form)
            title = f"train {name}, {batch} x {length}, {form}"
            bar = "1.5 x" if name == "k2" and form == number_format else ""
            yield rate(title, f"transformers, {form}", x.numel(), "tokens/s", ours, peer, 7, bar)


def memory(number_format: str) -> Iterator[Row]:
    """Peak memory of one training step of k2, each in a process of its own.

    What a step needs shows where the allocator gives freed blocks back at once; what a process then holds by default is
    more, by the holes between them.
    """
    for form in dict.fromkeys((number_format, "fp32")):
        for how, settings in (("needed", {"MALLOC_MMAP_THRESHOLD_": str(2**20)}), ("held", {})):
            ours, peer = (
                child("tests.bench.peak", who, form, "4", **settings) / 2**20 for who in ("ours", "transformers")
            )
            bar = "0.8 x the memory (1.25 x)" if form == number_format else ""
            title = f"peak memory {how}, train k2, 4 x 256, {form}"
            yield Row(title, f"transformers, {form}", "MB", ours, peer, peer / ours, bar)


def generation(number_format: str) -> Iterator[Row]:
    """Tokens/s of one story, greedy, from one token on."""
    length, start = 255, torch.zeros(1, 1, dtype=torch.long)
    model = Kimi(shape("nano"))
    dense = Dense(model.config).eval()
    recompute(dense, start, 8)  # a whole run takes most of a minute: a short one is warm-up enough
    for form, pairs, bar in (("auto", 2, "30 x"), ("fp32", 1, "")):
        tell(model, start, 8, form)
        yield rate(f"generate 255 tokens, nano, {form}", "dense, fp32, recomputing", length, "tokens/s",
                   lambda form=form: tell(model, start, length, form),
                   lambda: recompute(dense, start, length), pairs, bar, warm_up=0, ours_a_pair=9)  # fmt: skip
    model = Kimi(shape("k2"))
    twin = transformers_twin(model).eval()
    half = transformers_twin(model).eval().to(torch.bfloat16)
    for form, other, other_form, bar in (
        ("auto", twin, "fp32", "2 x"),
        ("fp32", twin, "fp32", ""),
        ("bf16", half, "bf16", ""),
    ):
        peer = f"transformers generate, cached, {other_form}"
        yield rate(f"generate 255 tokens, k2, {form}", peer, length, "tokens/s",
                   lambda form=form: tell(model, start, length, form),
                   lambda other=other: tell_transformers(other, start, length), 5, bar)  # fmt: skip


def tell(model: Kimi, start: torch.Tensor, length: int, number_format: str) -> None:
    """What `generate` does with each token, without making text of it."""
    choices = sample(Decoder(model, number_format), start, Sampling(temperature=0), torch.Generator())
    for _ in range(length):
        next(choices)


@torch.inference_mode()
def recompute(model: nn.Module, ids: torch.Tensor, length: int) -> None:
    for _ in range(length):
        ids = torch.cat([ids, model(ids)[:, -1:].argmax(-1)], dim=1)  # (1, T + 1)


@torch.inference_mode()
def tell_transformers(model: nn.Module, start: torch.Tensor, length: int) -> None:
    model.generate(start, max_new_tokens=length, min_new_tokens=length, do_sample=False, use_cache=True,
                   pad_token_id=0, eos_token_id=None, attention_mask=torch.ones_like(start))  # fmt: skip


def optimizer(number_format: str) -> Iterator[Row]:
    """One step of MuonClip, gradient clipping included, against torch's own parts on the same matrices."""
    for name, pairs in (("nano", 5), ("k2", 5), ("laptop", 15)):
        model, record = Kimi(shape(name)).train(), Record()
        with torch.no_grad():
            model.loss(*tokens(1, 64), record)  # what QK-Clip reads
        with_gradients(model.parameters())
        ours = muonclip(model, torch.bfloat16)
        matrices, others = muon_parameters(model)
        # torch's Muon takes single matrices only
        single = [nn.Parameter(m.clone()) for p in matrices for m in p.detach().view(-1, *p.shape[-2:])]
        others = [nn.Parameter(p.detach().clone()) for p in others]
        with_gradients(single + others)
        muon = torch.optim.Muon(single, lr=1e-3, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
        adamw = torch.optim.AdamW(others, lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)

        def peer(parameters=single + others, muon=muon, adamw=adamw) -> None:
            nn.utils.clip_grad_norm_(parameters, 1.0)
            muon.step()
            adamw.step()

        yield cost(f"MuonClip step, {name}", "torch Muon + AdamW(fused)",
                   lambda ours=ours, record=record: ours.step(record), peer, pairs, "1 x")  # fmt: skip


def with_gradients(parameters) -> None:
    for p in parameters:
        p.grad = torch.randn_like(p) * 0.01


def qk_clip(number_format: str) -> Iterator[Row]:
    """A whole training step with a record, from which QK-Clip and the experts' bias read, and one without any.

    Without a record there is no balance loss, so nano does without it on both sides.
    """
    for name, batch, length in (("nano", 32, 256), ("laptop", 16, 128)):
        x, y = tokens(batch, length)
        model = Kimi(shape(name, balance_coef=0.0))
        step = our_step(model, x, y, number_format)
        step_without = forward_backward(model, lambda model=model, x=x, y=y: model.loss(x, y), number_format)
        optimizer = muonclip(model, torch.bfloat16 if number_format == "bf16" else None)

        def whole(step=step, optimizer=optimizer, model=model, tau=optimizer.tau) -> None:
            optimizer.tau = tau
            record = step()
            optimizer.step(record)
            model.end_step_(record)

        def without(step=step_without, optimizer=optimizer) -> None:
            optimizer.tau = math.inf
            step()
            optimizer.step()

        bar = "at most 5 % (0.95 x)"
        pairs = 5 if name == "nano" else 21
        yield cost(
            f"training step with QK-Clip, {name}, {batch} x {length}", "the same without", whole, without, pairs, bar
        )


def limit(number_format: str) -> Iterator[Row]:
    """A whole training step of published nano against nothing but matmuls of as many FLOPs."""
    dtype = torch.bfloat16 if number_format == "bf16" else torch.float32
    square = torch.randn(2048, 2048, dtype=dtype)
    for batch, pairs, bar in ((32, 5, "0.45 x"), (4, 5, "")):
        x, y = tokens(batch, 256)
        model = Kimi(shape("nano"))
        step = our_step(model, x, y, number_format)
        optimizer = muonclip(model, dtype if number_format == "bf16" else None)

        def whole(step=step, optimizer=optimizer, model=model) -> None:
            record = step()
            optimizer.step(record)
            model.end_step_(record)

        flops = training_flops(model) * x.numel()
        matmuls = round(flops / (2 * len(square) ** 3))

        def plain(matmuls=matmuls) -> None:
            for _ in range(matmuls):
                torch.mm(square, square)

        mine, theirs, share = in_turn(whole, plain, pairs, warm_up=4)
        yield Row(f"training step with MuonClip, nano, {batch} x 256, {number_format}",
                  f"2,048 x 2,048 matmuls, {number_format}", "GFLOP/s", flops / mine / 1e9, flops / theirs / 1e9,
                  share, bar)  # fmt: skip


def tokenizer(number_format: str) -> Iterator[Row]:
    """Encoding 2,000 stories with the same words, on one thread."""
    stories = builtin_stories(2000, seed=0)
    tok = WordTokenizer.train(stories)
    rust = tokenizers.Tokenizer(models.WordLevel({word: i for i, word in enumerate(tok.words)}, unk_token=UNK))
    rust.normalizer = normalizers.Lowercase()
    rust.pre_tokenizer = pre_tokenizers.Split(Regex(r"\w+|[^\w\s]"), "removed", invert=True)
    assert all(rust.encode(story).ids == tok.encode(story) for story in stories[:100])
    n = sum(len(tok.encode(story)) for story in stories)

    def theirs() -> None:
        for story in stories:
            _ = rust.encode(story).ids

    yield rate("tokenizer, encode", "Rust tokenizers, one thread", n, "tokens/s",
               lambda: [tok.encode(story) for story in stories], theirs, 7, "0.5 x")  # fmt: skip


def start(number_format: str) -> Iterator[Row]:
    """From the start of Python to the first word of a saved model of the laptop preset's size."""
    stories = builtin_stories(500)
    tok = WordTokenizer.train(stories)
    model = Kimi(shape("laptop", vocab_size=len(tok)))
    model.tokenizer = tok
    with_gradients(model.parameters())
    optimizer = MuonClip(model, tau=math.inf, orthogonalise=orthogonalise)
    optimizer.step()
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(folder, model, 1, {"optimizer": optimizer.state_dict()})
        ours = lambda: child("tests.bench.first_word", folder)  # noqa: E731
        yield cost("start of Python to first word, laptop", "import torch alone", ours,
                   lambda: child("tests.bench.first_word"), 5, "4,000 ms")  # fmt: skip


ROWS = {
    "training": training, "memory": memory, "generation": generation, "optimizer": optimizer, "qk_clip": qk_clip,
    "limit": limit, "tokenizer": tokenizer, "start": start,
}  # fmt: skip
