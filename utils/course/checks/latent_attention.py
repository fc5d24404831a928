"""Checks of chapter 2b: two matrices absorbed, the bytes of a cache, the ramp of YaRN."""

from __future__ import annotations

import math
import textwrap

import torch
from torch.utils.flop_counter import FlopCounterMode

from utils.config import K2Config, KimiConfig
from utils.course.checks import verdict
from utils.course.checks.verdict import check, close, expect_tensor


def expect(condition: object, mistake: str) -> None:
    """As that of `verdict`, with the mistake in lines that leave room for what is said after it."""
    verdict.expect(condition, textwrap.fill(mistake, 72))


def _draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _products(*shapes, out_shape: tuple[int, ...], **_) -> int:
    """FLOPs of a product of numbers, which torch does not count: who writes no matmul multiplies and adds as well."""
    return 2 * math.prod(out_shape)


def absorbed_attention(
    q: torch.Tensor, w_k: torch.Tensor, w_v: torch.Tensor, latents: torch.Tensor, scale: float
) -> torch.Tensor:
    """q (H, n), w_k (H, n, C), w_v (H, v, C), latents (S, C) -> the heads' mixtures (H, v)."""
    q_latent = torch.einsum("hnc,hn->hc", w_k, q)  # (H, C)
    weights = (q_latent @ latents.T * scale).softmax(dim=-1)  # (H, S)
    return torch.einsum("hvc,hc->hv", w_v, weights @ latents)  # (H, v)


@check(ours=absorbed_attention)
def check_absorbed(answer) -> str:
    """answer(q (H, n), w_k (H, n, C), w_v (H, v, C), latents (S, C), scale): the naive form's result, for less work."""
    heads, n, v, width, length = 3, 5, 4, 6, 60
    q, latents, scale = _draw(heads, n), _draw(length, width, seed=1), 0.3
    w_k, w_v = _draw(heads, n, width, seed=2), _draw(heads, v, width, seed=3)
    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.mul: _products}) as counter:
        mixtures = answer(q, w_k, w_v, latents, scale)
    expect_tensor(mixtures, (heads, v))

    logits = torch.einsum("hnc,sc,hn->hs", w_k, latents, q)  # (H, S)
    values = torch.einsum("hvc,sc->hsv", w_v, latents)  # (H, S, v)

    def mixed(weights: torch.Tensor) -> torch.Tensor:
        return torch.einsum("hs,hsv->hv", weights, values)

    weights = (logits * scale).softmax(dim=-1)
    for wrong, mistake in (
        (mixed(logits.softmax(dim=-1)), "the scale is missing: logits are multiplied by `scale` before the softmax."),
        (
            mixed((logits * scale).softmax(dim=0)),
            "the softmax runs over the heads. Over the positions it must be, dim=-1: each head's weights sum to 1.",
        ),
        (
            mixed((logits / math.sqrt(width)).softmax(dim=-1)),
            "you divide by the root of C. The scores are the same numbers as in the naive form, "
            "so they keep its scale.",
        ),
        (mixed(logits * scale), "there is no softmax between logits and mixture."),
        (
            torch.einsum("hvc,c->hv", w_v, weights.mean(0) @ latents),
            "the heads' mixtures of latents are averaged. Each head keeps its own, (H, C), until W_v.",
        ),
    ):
        expect(not close(mixtures, wrong), mistake)
    expect(close(mixtures, mixed(weights), 1e-4), "the mixtures are others than those of the naive form.")
    least = 2 * heads * width * (n + 2 * length + v)  # W_k into q, scores, mixture of latents, W_v
    flops = counter.get_total_flops()
    expect(
        flops < 1.5 * least,
        f"the numbers are right, but you spend {flops:,} FLOPs where {least:,} are enough: an old latent "
        "is expanded. Apply W_k to the query, and W_v to the mixture of latents.",
    )
    return "the same mixtures, and no key or value of an old word was made."


def cache_bytes(config: K2Config, tokens: int, form: str, bytes_each: int = 2) -> int:
    """Bytes of the cache for `tokens` tokens in all layers; form: "latent" or "expanded"."""
    if form == "latent":
        numbers = config.kv_lora_rank + config.qk_rope_head_dim
    else:
        key = config.qk_nope_head_dim + config.qk_rope_head_dim
        numbers = config.n_heads * (key + config.v_head_dim)
    return tokens * config.n_layers * numbers * bytes_each


# What a wrong count leaves out or has too often, by what it gives for the odd configuration below.
ODD = KimiConfig.k2_mini(
    100, n_layers=3, n_heads=5, kv_lora_rank=22, qk_rope_head_dim=6, qk_nope_head_dim=7, v_head_dim=11
)


@check(ours=cache_bytes)
def check_cache_bytes(answer) -> str:
    """answer(config, tokens, form, bytes_each): the bytes of a cache, "latent" or "expanded", in all layers."""
    layers, heads, c = ODD.n_layers, ODD.n_heads, ODD.kv_lora_rank
    r, n, v = ODD.qk_rope_head_dim, ODD.qk_nope_head_dim, ODD.v_head_dim

    def given(tokens: int, form: str, each: int) -> float:
        found = answer(ODD, tokens, form, each)
        expect(found is not None, "your function returns None: does it end in `return`?")
        return float(found)

    latent, expanded = given(1, "latent", 2), given(1, "expanded", 2)
    for wrong, mistake in (
        (2 * (c + r), "that is one layer: every layer has a cache of its own, so multiply by n_layers."),
        (layers * (c + r), "those are numbers. In bf16 each of them is two bytes (`bytes_each`)."),
        (2 * layers * (c + heads * r), "the rotary key is counted once for each head. All heads share the one."),
        (2 * layers * c, "the rotary key is missing: R numbers more, beside the latent's C."),
        (2 * layers * (2 * c + r), "the latent is counted twice. Key and value are both made from the one latent."),
        (2 * layers * heads * (c + r), "the latent form has no heads: all of them read the same C + R numbers."),
    ):
        expect(latent != wrong, f"latent: {mistake}")
    for wrong, mistake in (
        (2 * layers * heads * (n + v), "a head's whole key has n + R channels, yours has n only."),
        (2 * layers * (n + r + v), "that is one head, and each head has a key and a value of its own."),
        (2 * layers * heads * (n + r), "the values are missing: v numbers more in each head."),
    ):
        expect(expanded != wrong, f"expanded: {mistake}")
    expect(latent == 2 * layers * (c + r), f"latent: one token must take {2 * layers * (c + r)} bytes in {ODD}."[:118])
    right = 2 * layers * heads * (n + r + v)
    expect(expanded == right, f"expanded: one token must take H (n + R + v) = {right // 2 // layers} numbers a layer.")
    expect(given(10, "latent", 2) == 10 * latent, "ten tokens must take ten times as much as one: `tokens`.")
    expect(given(1, "expanded", 4) == 2 * expanded, "with four bytes a number it must be twice as much: `bytes_each`.")
    published = answer(KimiConfig.k2(), 1, "latent")
    expect(published == 70_272, f"Kimi K2's latent takes 70,272 bytes for a token, yours {published:,}.")
    return f"Kimi K2 keeps {published:,.0f} bytes for each token."


def yarn_ramp(width: int, base: float, original: int, beta_fast: float, beta_slow: float) -> torch.Tensor:
    """(R/2,): 0 for a channel pair that keeps its frequency, 1 for one that is slowed down in full."""

    def pair_with(turns: float) -> float:
        return width * math.log(original / (2 * math.pi * turns)) / (2 * math.log(base))

    low = max(math.floor(pair_with(beta_fast)), 0)
    high = min(math.ceil(pair_with(beta_slow)), width - 1)
    return ((torch.arange(width // 2) - low) / (high - low)).clamp(0, 1)


@check(ours=yarn_ramp)
def check_yarn_ramp(answer) -> str:
    """answer(R, base, original, beta_fast, beta_slow) must be YaRN's ramp (R/2,), as published models have it."""
    for width, base, original, fast, slow, whose in (
        (64, 10_000.0, 4096, 32.0, 1.0, "for DeepSeek-V3"),
        (64, 50_000.0, 4096, 1.0, 1.0, "for Kimi K2"),
        (16, 10_000.0, 64, 32.0, 1.0, "where no pair turns beta_fast times"),
        (16, 10.0, 1000, 32.0, 1.0, "where all pairs turn beta_slow times"),
    ):
        ramp = expect_tensor(answer(width, base, original, fast, slow), (width // 2,)).double()
        pair = torch.arange(width // 2, dtype=torch.float64)
        log_base = 2 * math.log(base) / width
        first, last = (math.log(original / (2 * math.pi * turns)) / log_base for turns in (fast, slow))
        low, high = max(math.floor(first), 0), min(math.ceil(last), width - 1)
        right = ((pair - low) / (high - low)).clamp(0, 1)
        turns = original * base ** (-2 * pair / width) / (2 * math.pi)
        no_pi = [math.log(original / turn) / log_base for turn in (fast, slow)]
        no_pi = max(math.floor(no_pi[0]), 0), min(math.ceil(no_pi[1]), width - 1)
        expect(not close(ramp, 1 - right), "turned around: fast pairs, which come first, keep their frequency: 0.")
        expect(
            ramp.isfinite().all(),
            f"{whose} your ramp has nan or inf. Round the ends outwards, so that they are never the same.",
        )
        expect(
            ramp.min() >= 0 and ramp.max() <= 1,
            "the ramp must stay between 0 and 1: clamp it where it runs on beyond its two ends.",
        )
        expect(
            not close(ramp, ((pair - no_pi[0]) / max(no_pi[1] - no_pi[0], 1e-9)).clamp(0, 1)),
            "a turn is 2 pi radians: after `original` words pair i has turned original * f / (2 pi) times.",
        )
        if fast > slow:
            expect(
                not close(ramp, (1 - (turns - slow) / (fast - slow)).clamp(0, 1)),
                "your ramp is linear in the number of turns, as the paper writes it. The published code, with "
                "which models were trained, is linear in the number of the pair.",
            )
            expect(
                not close(ramp, ((pair - first) / (last - first)).clamp(0, 1)),
                f"{whose} the ends are not whole numbers: round the lower one down and the upper one up.",
            )
        for end, mistake in (
            (min(high, width // 2 - 1), "ends at R/2 - 1, the last pair"),
            (math.ceil(last), "may end beyond R - 1"),
        ):
            expect(
                end in (high, low) or not close(ramp, ((pair - low) / (end - low)).clamp(0, 1)),
                f"{whose} your ramp {mistake}. In the published code it ends at R - 1 at most.",
            )
        expect(
            not close(ramp, (pair >= high).double()) or close(right, (pair >= high).double()),
            f"{whose} it is a step: between its two ends the ramp rises evenly from 0 to 1.",
        )
        expect(
            close(ramp, right, 1e-4),
            f"{whose} the ramp must be 0 up to pair {low}, 1 from pair {high} on, and rise evenly between.",
        )
    return "Kimi K2 keeps 20 of its 32 pairs as they are and slows the other 12 down by 32."
