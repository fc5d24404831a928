"""Drawings of 06_training: the whole model with one of its blocks, a training step, and what a run keeps."""

from __future__ import annotations

from utils.course.drawings.sketch import MUTED, Sketch
from utils.plots import BLUE, VERMILION

NAMES = ("nano", "k2")
PARTS = (
    ("norms", "LayerNorm", "RMSNorm (2)"),
    ("positions", "learned (2)", "rotated (2)"),
    ("attention", "plain heads (2)", "one latent (2b)"),
    ("router", "softmax (3)", "sigmoid, biases (3)"),
    ("experts", "SwiGLU (4)", "SwiGLU, one shared (4)"),
    ("optimizer", "AdamW (5)", "MuonClip (5)"),
)  # fmt: skip


def whole_model() -> Sketch:
    """The model from ids to logits, one block opened, and what nano and k2 put into each part."""
    draw = Sketch(
        832, 400,
        "Left, the model as a column: token ids, the embedding and positions, L blocks on top of each other, a norm, "
        "the head, and logits. Middle, one block opened: the stream x runs upwards; attention reads it through a norm "
        "and adds to it, then the experts read it through a second norm and add to it. Right, a table of the parts "
        "that nano and k2 are made of, with the chapters that built them.",
    )  # fmt: skip
    column, width = 4, 128
    ids = draw.box(column, 352, width, 36, "ids (B, T)", "none", 14)
    embedding = draw.box(column, 290, width, 44, "embedding,\npositions", "yellow", 14)
    blocks = [draw.box(column, 248 - 46 * i, width, 28, text, "plain", 14) for i, text in
              enumerate(("block 1", "...", "block L"))]  # fmt: skip
    norm = draw.box(column, 108, width, 30, "norm", "sky", 14)
    head = draw.box(column, 60, width, 30, "head", "yellow", 14)
    logits = draw.box(column, 4, width, 36, "logits (B, T, V)", "none", 14)
    for below, above in ((ids, embedding), (embedding, blocks[0]), (blocks[0], blocks[1]), (blocks[1], blocks[2]),
                         (blocks[2], norm), (norm, head), (head, logits)):  # fmt: skip
        draw.arrow(below.top, above.bottom)

    frame = draw.box(178, 20, 280, 364, "", "none", dashed=True, round=12)
    draw.line(blocks[2].right, (frame.x, frame.y + 12))
    draw.line((blocks[2].x + width, blocks[2].y + 28), (frame.x, frame.y + frame.height - 12))
    draw.text(frame.x + 268, 366, "one block", 13, "end", MUTED)
    stream = 216
    sums = {name: draw.circle(stream, y, 13, "+") for name, y in (("attention", 226), ("ffn", 60))}
    draw.arrow((stream, 384), sums["attention"].bottom)
    draw.arrow(sums["attention"].top, sums["ffn"].bottom)
    draw.arrow(sums["ffn"].top, (stream, 4))
    for name, y, reads, text, fill in (
        ("attention", 226, 340, "attention", "green"), ("ffn", 60, 174, "router,\nexperts", "orange"),
    ):  # fmt: skip
        norm = draw.box(262, reads - 16, 74, 32, "norm", "sky", 14)
        part = draw.box(258, (reads + y) / 2 - 28, 186, 40, text.replace(",\n", " and "), fill, 15, bold=True)
        draw.arrow((stream, reads), norm.left)
        draw.arrow(norm.top, (norm.top[0], part.y + part.height))
        draw.arrow((norm.top[0], part.y), (norm.top[0], y), sums[name].right)
    draw.text(308, 214, "adds to x", 13, "start", MUTED)
    draw.text(308, 48, "adds to x", 13, "start", MUTED)

    left, top, row = 480, 66, 48
    for x, name, colour in ((left + 92, "nano", BLUE), (left + 208, "k2", VERMILION)):
        draw.text(x, top - 28, name, 16, "start", colour, bold=True)
    for i, (part, nano, k2) in enumerate(PARTS):
        y = top + i * row
        draw.line((left, y - 14 if i == 0 else y - 24), (832, y - 14 if i == 0 else y - 24))
        draw.text(left, y + 2, part, 14, "start", bold=True)
        draw.text(left + 92, y + 2, nano, 13, "start", BLUE)
        draw.text(left + 208, y + 2, k2.replace(", ", ",\n"), 13, "start", VERMILION)
    draw.text(left, top + 6 * row + 8, "In brackets: the chapter that built it.\nk2's first block is dense: no router.",
              13, "start", MUTED)  # fmt: skip
    return draw


def one_step() -> Sketch:
    """What happens in one step, in the words of the code."""
    draw = Sketch(
        832, 276,
        "One training step as seven boxes from left to right: a batch of x and y; the forward pass; the loss; the "
        "backward pass, which gives gradients; clipping by their global norm; the optimizer's step at the rate of the "
        "schedule; and end_step_, which moves the experts' biases. Below, a record that the forward pass writes and "
        "that the step and end_step_ read. A dashed arrow leads back: the next step has new weights.",
    )  # fmt: skip
    top, height = 98, 66
    boxes = {}
    for name, x, width, text, fill in (
        ("batch", 0, 84, "batch\nx, y", "none"), ("forward", 108, 98, "forward\npass", "sky"),
        ("loss", 230, 70, "loss", "yellow"), ("backward", 324, 108, "backward\npass", "sky"),
        ("clip", 456, 90, "clip", "green"), ("step", 570, 100, "step", "vermilion"),
        ("end", 694, 138, "end_step_", "orange"),
    ):  # fmt: skip
        boxes[name] = draw.box(x, top, width, height, text, fill, 15, bold=True)
    for a, b in zip(list(boxes.values()), list(boxes.values())[1:], strict=False):
        draw.arrow(a.right, b.left)
    for name, text in (("forward", "logits"), ("loss", "a number"), ("backward", "gradients"),
                       ("clip", "their length"), ("step", "weights"), ("end", "experts' biases")):  # fmt: skip
        draw.text(boxes[name].bottom[0], top + height + 16, text, 13, colour=MUTED)
    draw.text(boxes["batch"].bottom[0], top + height + 16, "(B, T) each", 13, colour=MUTED)
    schedule = draw.box(556, 36, 128, 36, "rate of this step", "none", 13)
    draw.arrow(schedule.bottom, boxes["step"].top)
    record = draw.box(290, 220, 260, 42, "Record: largest logits, loads", "purple", 14)
    middle, below = record.left[1], top + height + 26
    draw.arrow((157, below), (157, middle), record.left, dashed=True)
    draw.arrow(record.right, (620, middle), (620, below), dashed=True)
    draw.arrow((620, middle), (763, middle), (763, below), dashed=True)
    draw.text(628, middle - 15, "QK-Clip", 13, "start", MUTED)
    draw.arrow((763, top), (763, 12), (157, 12), (157, top), dashed=True)
    draw.text(350, 26, "the next step has the new weights", 13, colour=MUTED)
    return draw


def kept_of_a_run() -> Sketch:
    """What a run needs to go on as if nothing had happened, and what goes wrong without it."""
    draw = Sketch(
        832, 214,
        "Four boxes, what a run must keep, and under each what happens without it. Weights and biases: everything "
        "starts from chance. The optimizer's averages: the first steps go too far. The state of the batch generator: "
        "the first batches are read again. The global random numbers: dropout leaves out other numbers.",
    )  # fmt: skip
    draw.text(0, 12, "kept", 13, "start", MUTED)
    draw.text(0, 122, "without it", 13, "start", MUTED)
    for i, (kept, lost, fill) in enumerate((
        ("weights,\nexperts' biases", "all is lost", "yellow"),
        ("the optimizer's\naverages", "the next steps\ngo a wrong way", "vermilion"),
        ("where the batches\nare drawn", "the first batches\nare read again", "sky"),
        ("the global\nrandom numbers", "dropout leaves\nout others", "green"),
    )):  # fmt: skip
        box = draw.box(212 * i, 28, 196, 64, kept, fill, 15, bold=True)
        told = draw.box(212 * i, 140, 196, 60, lost, "none", 14)
        draw.arrow(box.bottom, told.top, dashed=True)
    return draw
