"""The drawings of chapter 2b: what a cache holds, where the rotary key joins, the two forms of one layer."""

from __future__ import annotations

from utils.course.drawings.sketch import MUTED, Sketch

NUMBER = 2, 3  # pixels of one cached number: width, height


def cache_areas() -> Sketch:
    """What one token leaves in one layer's cache at Kimi K2's size, one area for each number, all to one scale."""
    draw = Sketch(
        816, 280,
        "Three areas to one scale, for one token in one layer. 64 plain heads keep a large block of 64 rows, a key of "
        "128 and a value of 128 numbers in each: 16,384 numbers. Eight shared pairs of key and value keep a strip of "
        "eight rows, 2,048 numbers. The latent and the rotary key are a small square: 512 and 64 numbers.",
    )  # fmt: skip
    wide, high = NUMBER
    draw.text(0, 10, "64 plain heads", 15, "start", bold=True)
    draw.text(512, 10, "64 x (128 + 128) = 16,384 numbers", 13, "end", MUTED)
    draw.box(0, 26, 128 * wide, 64 * high, "", "blue", round=0)
    draw.box(128 * wide, 26, 128 * wide, 64 * high, "", "orange", round=0)
    for row in range(8, 64, 8):
        draw.line((0, 26 + row * high), (256 * wide, 26 + row * high), width=0.5)
    draw.text(64 * wide, 110, "64 keys", bold=True)
    draw.text(192 * wide, 110, "64 values", bold=True)
    draw.text(0, 236, "each band is 8 heads; a number has 2 x 3 pixels, here and on the right", 13, "start", MUTED)

    left = 556
    draw.text(left, 10, "8 shared pairs (GQA)", 15, "start", bold=True)
    draw.text(left, 32, "8 x (128 + 128) = 2,048", 13, "start", MUTED)
    scaled = 128 * wide * 8 * high  # the same area as two rows of four heads, to fit beside the block
    side = scaled / (16 * high)
    draw.box(left, 48, side, 16 * high, "keys", "blue", 13, round=0)
    draw.box(left + side, 48, side, 16 * high, "values", "orange", 13, round=0)

    draw.text(left, 142, "latent + rotary key", 15, "start", bold=True)
    draw.text(left, 164, "512 + 64 = 576", 13, "start", MUTED)
    draw.box(left, 180, 64, 512 * wide * high / 64, "512", "green", 15, round=0)
    draw.box(left + 64, 180, 64 * wide * high / 48, 48, "", "vermilion", 13, round=0)
    draw.arrow((left + 104, 192), (left + 76, 192))
    draw.text(left + 110, 192, "64", 15, "start")
    draw.text(left + 84, 218, "read by every head", 13, "start", MUTED)
    draw.text(0, 266, "One token, one layer. Kimi K2 has 61 layers, and two bytes for each number.", 15, "start")
    return draw


def rotary_key() -> Sketch:
    """Where position enters a layer of latent attention: beside the latent, not through it."""
    draw = Sketch(
        820, 366,
        "Above, the word that asks, at place i: its query splits into a part without rotation, n numbers a head, "
        "and R numbers for each head that are turned by i. Below, an old word at place j: its down-projection splits "
        "into R numbers, turned by j, and C numbers, normed. A dashed frame, the cache, holds both. From it the "
        "up-projection makes keys and values. Turned query times rotary key, plus plain query times key, is the score.",
    )  # fmt: skip
    new = draw.box(0, 54, 56, 44, "x_i", "plain", 15)
    query = draw.box(86, 50, 90, 52, "w_q", "plain", 15)
    q_n = draw.box(310, 18, 120, 44, "query, plain", "blue", 14)
    turn_i = draw.box(214, 88, 60, 44, "turn\nby i", "yellow", 14)
    q_r = draw.box(310, 88, 120, 44, "query, turned", "vermilion", 14)
    draw.text(0, 28, "asks, at place i", 13, "start", MUTED)
    draw.shape(440, 28, "H x n", "start")
    draw.shape(440, 98, "H x R", "start")
    draw.arrow(new.right, query.left)
    draw.line((176, 76), (194, 76))
    draw.arrow((194, 76), (194, 40), q_n.left)
    draw.arrow((194, 76), (194, 110), turn_i.left)
    draw.arrow(turn_i.right, q_r.left)

    old = draw.box(0, 224, 56, 44, "x_j", "plain", 15)
    down = draw.box(86, 220, 90, 52, "w_kv_down", "plain", 13)
    turn_j = draw.box(214, 182, 60, 44, "turn\nby j", "yellow", 14)
    norm = draw.box(214, 274, 60, 44, "norm", "plain", 14)
    draw.box(296, 168, 148, 166, "", "none", dashed=True, round=10)
    draw.text(370, 350, "the cache", 14, bold=True)
    k_r = draw.box(310, 182, 120, 44, "rotary key", "vermilion", 14)
    latent = draw.box(310, 274, 120, 44, "latent", "green", 14)
    draw.text(0, 198, "looked at, at place j", 13, "start", MUTED)
    draw.shape(450, 190, "R", "start")
    draw.shape(450, 282, "C", "start")
    draw.arrow(old.right, down.left)
    draw.line((176, 246), (194, 246))
    draw.arrow((194, 246), (194, 204), turn_j.left)
    draw.arrow((194, 246), (194, 296), norm.left)
    draw.arrow(turn_j.right, k_r.left)
    draw.arrow(norm.right, latent.left)

    up = draw.box(470, 274, 82, 44, "w_kv_up", "plain", 13)
    key = draw.box(592, 252, 84, 40, "keys", "blue", 14)
    value = draw.box(592, 308, 84, 40, "values", "orange", 14)
    draw.shape(686, 286, "H x n", "start")
    draw.shape(686, 328, "H x v", "start")
    draw.arrow(latent.right, up.left)
    draw.line((552, 296), (572, 296))
    draw.arrow((572, 296), (572, 272), key.left)
    draw.arrow((572, 296), (572, 328), value.left)

    turned = draw.circle(600, 154, 13, "·", "vermilion")
    plain = draw.circle(740, 154, 13, "·", "blue")
    plus = draw.circle(670, 154, 13, "+")
    score = draw.box(626, 194, 88, 40, "score", "here", 15, bold=True)
    draw.arrow(q_r.right, (600, 110), turned.top)
    draw.arrow(k_r.right, (600, 204), turned.bottom)
    draw.arrow(q_n.right, (740, 40), plain.top)
    draw.arrow(key.right, (740, 272), plain.bottom)
    draw.arrow(turned.right, plus.left)
    draw.arrow(plain.left, plus.right)
    draw.arrow(plus.bottom, score.top)
    draw.text(758, 146, "the", 13, "start", MUTED)
    draw.text(758, 164, "content", 13, "start", MUTED)
    draw.text(584, 146, "the", 13, "end", MUTED)
    draw.text(584, 164, "distance", 13, "end", MUTED)
    return draw


def two_forms() -> Sketch:
    """Naive beside absorbed: the same numbers in another order, and what has to be made for each old word."""
    draw = Sketch(
        826, 530,
        "Two columns that begin with the same query and the same S cached latents and end in the same mixtures. Naive: "
        "the latents are multiplied up to keys and values for H heads, S times H times n and S times H times v; "
        "then scores and a mixture of values. Absorbed: the query is multiplied to C numbers for each head, scores are "
        "taken with the latents themselves, the latents are mixed, and one product at the end gives H times v numbers.",
    )  # fmt: skip
    draw.line((420, 0), (420, 490))

    draw.text(200, 8, "naive: expand the latents", 16, bold=True)
    query = draw.box(0, 40, 130, 42, "query", "blue", 15)
    latents = draw.box(215, 40, 150, 42, "cached latents", "green", 15)
    expand = draw.box(215, 114, 150, 36, "W_UK and W_UV", "yellow", 14)
    keys = draw.box(180, 190, 100, 56, "keys", "blue", 15)
    values = draw.box(300, 190, 100, 56, "values", "orange", 15)
    scores = draw.box(0, 286, 130, 44, "scores,\nsoftmax", "plain", 14)
    result = draw.box(270, 446, 130, 42, "mixtures", "here", 15, bold=True)
    draw.shape(76, 98, "H x n", "start")
    draw.shape(306, 98, "S x C", "start")
    draw.shape(172, 218, "S x H x n", "end")
    draw.shape(340, 264, "S x H x v", "end")
    draw.shape(76, 346, "H x S", "start")
    draw.shape(260, 484, "H x v", "end")
    draw.arrow(query.bottom, scores.top)
    draw.arrow(latents.bottom, expand.top)
    draw.line(expand.bottom, (290, 168))
    draw.arrow((290, 168), (230, 168), keys.top)
    draw.arrow((290, 168), (350, 168), values.top)
    draw.arrow((215, 246), (215, 308), scores.right)
    draw.arrow(values.bottom, (350, 446))
    draw.arrow(scores.bottom, (65, 467), result.left)
    draw.text(200, 518, "two large tensors that grow with S", 14, colour=MUTED)

    x = 440
    draw.text(x + 200, 8, "absorbed: move the matrices out", 16, bold=True)
    query = draw.box(x, 40, 150, 42, "query", "blue", 15)
    latents = draw.box(x + 215, 40, 130, 42, "cached latents", "green", 14)
    absorb = draw.box(x, 114, 150, 36, "W_UK transposed", "yellow", 14)
    packed = draw.box(x, 190, 150, 56, "query in the\nlatent's terms", "green", 14)
    scores = draw.box(x, 286, 150, 44, "scores,\nsoftmax", "plain", 14)
    mixed = draw.box(x + 215, 340, 130, 38, "mixed latents", "green", 14)
    unpack = draw.box(x + 215, 396, 130, 32, "W_UV", "yellow", 14)
    result = draw.box(x + 215, 446, 130, 42, "mixtures", "here", 15, bold=True)
    draw.shape(x + 86, 98, "H x n", "start")
    draw.shape(x + 290, 98, "S x C", "start")
    draw.shape(x + 86, 262, "H x C", "start")
    draw.shape(x + 86, 345, "H x S", "start")
    draw.shape(x + 352, 359, "H x C", "start")
    draw.shape(x + 352, 467, "H x v", "start")
    draw.arrow(query.bottom, absorb.top)
    draw.arrow(absorb.bottom, packed.top)
    draw.arrow(packed.bottom, scores.top)
    draw.arrow(latents.bottom, mixed.top)
    draw.arrow((x + 280, 308), scores.right)
    draw.arrow(scores.bottom, (x + 75, 359), mixed.left)
    draw.arrow(mixed.bottom, unpack.top)
    draw.arrow(unpack.bottom, result.top)
    draw.text(x + 200, 518, "for each old word only its scores are made", 14, colour=MUTED)
    return draw
