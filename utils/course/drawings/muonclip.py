"""Drawings of 05_muonclip: a training step, a matrix as turn and stretch, the parameter groups, QK-Clip's weights."""

from __future__ import annotations

import math

from utils.course.drawings.sketch import MUTED, Sketch
from utils.plots import BLUE, VERMILION


def training_step() -> Sketch:
    """One step of training, and where in it each part of MuonClip acts."""
    draw = Sketch(
        832, 320,
        "One training step from left to right. A batch goes forward to a loss and backward to gradients, which are "
        "clipped by their global norm. The gradients of hidden matrices go to momentum, Newton-Schulz and a factor for "
        "the shape, those of tables and norms go to AdamW; both update the weights. Last, QK-Clip scales single heads "
        "of the new weights, by the largest logits that the forward pass has noted, and the next step starts there.",
    )  # fmt: skip
    middle = 204
    batch = draw.box(0, middle - 26, 62, 52, "batch", "none")
    forward = draw.box(84, middle - 28, 82, 56, "forward:\nloss")
    backward = draw.box(188, middle - 28, 94, 56, "backward:\ngradients", size=14)
    clip = draw.box(304, middle - 36, 100, 72, "clip by the\nglobal norm\n(3)", "green", 14)
    for a, b in ((batch, forward), (forward, backward), (backward, clip)):
        draw.arrow(a.right, b.left)

    momentum = draw.box(444, 120, 80, 48, "momen-\ntum (7)", "vermilion", 14)
    orthogonal = draw.box(548, 120, 84, 48, "Newton-\nSchulz (5)", "vermilion", 14)
    factor = draw.box(656, 120, 64, 48, "size\n(6)", "vermilion", 14)
    draw.text(444, 100, "Muon: hidden matrices (8)", 13, "start", MUTED)
    adamw = draw.box(516, 246, 138, 48, "AdamW (1, 2)", "blue", 14)
    draw.text(585, 310, "embedding, head, norms (8)", 13, colour=MUTED)
    weights = draw.box(752, middle - 28, 80, 56, "weights\nmove", bold=True)
    fork = 424
    draw.arrow(clip.right, (fork, middle), (fork, momentum.left[1]), momentum.left)
    draw.arrow(clip.right, (fork, middle), (fork, adamw.left[1]), adamw.left)
    draw.arrow(momentum.right, orthogonal.left)
    draw.arrow(orthogonal.right, factor.left)
    draw.arrow(factor.right, (780, factor.right[1]), (780, weights.y))
    draw.arrow(adamw.right, (780, adamw.right[1]), (780, weights.y + 56))

    qk_clip = draw.box(640, 38, 192, 46, "QK-Clip (11): heads\nbeyond tau are scaled", "orange", 14)
    draw.arrow((814, weights.y), (814, qk_clip.y + qk_clip.height))
    draw.arrow((138, forward.y), (138, 61), qk_clip.left, dashed=True)
    draw.text(392, 49, "largest logit of each head", 13, colour=MUTED)
    draw.arrow(qk_clip.top, (qk_clip.top[0], 20), (110, 20), (110, forward.y), dashed=True)
    draw.text(392, 8, "the next step starts from the clipped weights", 13, colour=MUTED)
    return draw


def turn_stretch_turn() -> Sketch:
    """What a matrix does to a circle, and what is left of it when it is orthogonalised."""
    draw = Sketch(
        832, 410,
        "Two rows of four pictures of a circle with two arrows at right angles in it, v1 and v2. Upper row, a matrix: "
        "it turns the circle until the arrows lie along the axes, stretches it to a long thin ellipse by the singular "
        "values 1.5 and 0.3, and turns that. Lower row, the same matrix orthogonalised: both turns are the same, and "
        "nothing is stretched, so that the circle stays a circle.",
    )  # fmt: skip
    columns = (92, 305, 530, 748)
    for x, title in zip(columns, ("input", "turned", "stretched", "turned again"), strict=True):
        draw.text(x, 10, title, 15, bold=True)
    for y, values, name in ((125, (1.5, 0.3), "a matrix"), (315, (1.0, 1.0), "orthogonalised")):
        stages = ((-35.0, (1.0, 1.0)), (0.0, (1.0, 1.0)), (0.0, values), (40.0, values))
        for x, (angle, (along, across)) in zip(columns, stages, strict=True):
            _ellipse(draw, x, y, angle, along, across)
        draw.text(0, y - 94 if y < 200 else y - 84, name, 14, "start", MUTED)
        for i, sign in enumerate(("Vᵀ", "S" if values[1] < 1 else "no S", "U")):
            start = columns[i] + 78
            draw.arrow((start, y), (start + 54, y))
            draw.text(start + 24, y - 16, sign, 15, bold=True)
    draw.text(columns[2], 182, "singular values 1.5 and 0.3", 13, colour=MUTED)
    draw.text(columns[2], 386, "singular values 1 and 1", 13, colour=MUTED)
    return draw


def _ellipse(draw: Sketch, x: float, y: float, angle: float, along: float, across: float, radius: float = 48) -> None:
    """A circle of which one direction is stretched by `along` and the other by `across`, turned by `angle` degrees."""
    turn = math.radians(angle)

    def point(direction: float) -> tuple[float, float]:
        u, v = radius * along * math.cos(direction), radius * across * math.sin(direction)
        return x + u * math.cos(turn) - v * math.sin(turn), y - u * math.sin(turn) - v * math.cos(turn)

    draw.line(*(point(2 * math.pi * i / 60) for i in range(61)), width=1.6)
    draw.arrow((x, y), point(0.0), colour=VERMILION)
    draw.arrow((x, y), point(math.pi / 2), colour=BLUE)


def parameter_groups() -> Sketch:
    """Every weight of a k2 model, by the optimizer that moves it."""
    draw = Sketch(
        832, 316,
        "The weights of a k2 model in the order of the forward pass, with Muon's in orange-red and AdamW's in blue. "
        "AdamW has the embedding, the norms and the head. Muon has the five matrices of latent attention, the router, "
        "and the value, gate and down matrix of each expert, of the shared expert and of the dense layer.",
    )  # fmt: skip
    y = 66
    embedding = draw.box(0, 116, 92, 60, "embedding\n(V, D)", "blue", 14)
    draw.box(112, 26, 606, 284, "", "none", dashed=True, round=12)
    draw.text(126, 14, "each layer", 13, "start", MUTED)
    draw.box(128, 116, 58, 60, "norm", "blue", 14)
    draw.text(288, y - 22, "latent attention", 14, bold=True)
    for i, name in enumerate(("w_q_down", "w_q_up", "w_kv_down", "w_kv_up", "w_o")):
        draw.box(206, y + i * 44, 164, 34, name, "vermilion", 14)
    draw.box(390, 116, 58, 60, "norm", "blue", 14)
    draw.text(584, y - 22, "feed-forward", 14, bold=True)
    draw.box(470, y, 228, 34, "router (E, D)", "vermilion", 14)
    for i, name in enumerate(("value", "gate", "down")):
        for depth in (2, 1, 0):
            draw.box(470 + i * 78 + 5 * depth, y + 58 - 5 * depth, 62, 50, name if not depth else "", "vermilion", 14)
    draw.text(584, y + 122, "of each of the E experts", 13, colour=MUTED)
    for i, name in enumerate(("value", "gate", "down")):
        draw.box(470 + i * 78, y + 146, 72, 40, name, "vermilion", 14)
    draw.text(584, y + 202, "of the shared expert, or of", 13, colour=MUTED)
    draw.text(584, y + 218, "the dense first layer", 13, colour=MUTED)
    norm = draw.box(734, 58, 96, 44, "norm", "blue", 14)
    head = draw.box(734, 122, 96, 54, "head\n(V, D)", "blue", 14)
    draw.arrow(embedding.right, (128, embedding.right[1]))
    draw.arrow((718, norm.left[1]), norm.left)
    draw.arrow(norm.bottom, head.top)
    draw.box(734, 214, 28, 22, "", "vermilion")
    draw.text(770, 225, "Muon", 14, "start", bold=True)
    draw.box(734, 248, 28, 22, "", "blue")
    draw.text(770, 259, "AdamW", 14, "start", bold=True)
    return draw


def clip_of_latent_heads() -> Sketch:
    """Which weights of latent attention QK-Clip scales for a head, and by what."""
    draw = Sketch(
        832, 400,
        "Latent attention from the input on the left to the logit on the right. The rows of w_q_up that make a head's "
        "query without rotation are scaled by the root of gamma, those of its rotated query by gamma. The rows of "
        "w_kv_up that make the head's key are scaled by the root of gamma, those of its value stay. w_q_down and "
        "w_kv_down, which makes the rotated key, are shared by all heads and stay. Both products get gamma.",
    )  # fmt: skip
    x = draw.box(0, 176, 56, 44, "x", "none", bold=True)
    q_down = draw.box(96, 66, 100, 44, "w_q_down")
    q_latent = draw.box(222, 66, 76, 44, "latent", "none", 14)
    kv_down = draw.box(96, 286, 100, 44, "w_kv_down")
    kv_latent = draw.box(222, 254, 76, 44, "latent", "none", 14)
    draw.arrow(x.right, (76, 198), (76, 88), q_down.left)
    draw.arrow(x.right, (76, 198), (76, 308), kv_down.left)
    draw.arrow(q_down.right, q_latent.left)
    draw.arrow((196, 298), (209, 298), (209, 276), kv_latent.left)

    draw.text(420, 14, "weights of one head", 14, bold=True)
    rows = {}
    for name, y, words, fill in (
        ("q_n", 36, "w_q_up: n rows", "vermilion"), ("q_r", 96, "w_q_up: R rows", "orange"),
        ("k_n", 222, "w_kv_up: n rows", "vermilion"), ("v", 282, "w_kv_up: v rows", "plain"),
    ):  # fmt: skip
        rows[name] = draw.box(340, y, 160, 44, words, fill, 14)
    for name, latent in (("q_n", q_latent), ("q_r", q_latent), ("k_n", kv_latent), ("v", kv_latent)):
        draw.arrow(latent.right, (319, latent.right[1]), (319, rows[name].left[1]), rows[name].left)
    draw.arrow((196, 318), (209, 318), (209, 366), (572, 366))
    draw.text(396, 352, "rotated key: one for all heads", 13, colour=MUTED)

    outputs = {}
    for name, y, words, factor in (
        ("q_n", 36, "q_n", "× √γ"), ("q_r", 96, "q_r", "× γ"), ("k_n", 222, "k_n", "× √γ"), ("v", 282, "v", "× 1"),
        ("k_r", 344, "k_r", "× 1"),
    ):  # fmt: skip
        outputs[name] = draw.box(572, y, 56, 44, words, "none", 15, bold=True)
        draw.text(534, y + 8, factor, 15, bold=name in ("q_n", "q_r", "k_n"))
        if name != "k_r":
            draw.arrow(rows[name].right, (572, y + 22))
    draw.box(700, 112, 132, 52, "q_n · k_n\n√γ √γ = γ", "vermilion", 15)
    draw.box(700, 216, 132, 52, "q_r · k_r\nγ · 1 = γ", "orange", 15)
    draw.arrow(outputs["q_n"].right, (678, 58), (678, 128), (700, 128))
    draw.arrow(outputs["k_n"].right, (678, 244), (678, 148), (700, 148))
    draw.arrow(outputs["q_r"].right, (656, 118), (656, 230), (700, 230))
    draw.arrow(outputs["k_r"].right, (688, 366), (688, 254), (700, 254))
    draw.text(766, 190, "+", 18, bold=True)
    draw.text(766, 292, "every logit of", 13, colour=MUTED)
    draw.text(766, 308, "the head: × γ", 13, colour=MUTED)
    return draw
