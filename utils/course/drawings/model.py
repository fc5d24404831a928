"""The drawing that every chapter begins with: the whole model, and where in it the chapter is."""

from __future__ import annotations

from utils.course.drawings.sketch import MUTED, Sketch

# Where each chapter is: the parts that are lit.
CHAPTERS = {
    "01_tokenizer": ("text to ids", "ids to text"),
    "02_attention": ("embedding", "norm 1", "attention", "sum 1"),
    "02b_latent_attention": ("attention",),
    "03_moe": ("router", "experts", "sum 2"),
    "04_swiglu": ("experts",),
    "05_muonclip": ("optimizer",),
    "06_training": ("embedding", "norm 1", "attention", "sum 1", "norm 2", "router", "experts", "sum 2", "norm 3",
                    "head", "loss", "optimizer"),
    "07_generation": ("sampling", "ids to text"),
    "08_scaling": ("experts", "loss", "optimizer"),
    "09_inside_kimi_k2": ("text to ids", "embedding", "norm 1", "attention", "sum 1", "norm 2", "router", "experts",
                          "sum 2", "norm 3", "head"),
}  # fmt: skip


def the_model(chapter: str | None = None) -> Sketch:
    """The model from text to text, the parts of `chapter` lit in yellow. Raises KeyError for an unknown chapter."""
    lit = CHAPTERS[chapter] if chapter else ()
    here = f" You are here: {', '.join(lit[:6])}." if chapter else ""
    draw = Sketch(
        832, 300,
        "The model from left to right. Text becomes ids, ids become vectors; L blocks follow, each with a norm and "
        "attention, then a norm, a router and experts, both added to the stream that runs past them; a norm and the "
        "head give logits. In training a loss and the optimizer change all weights, afterwards sampling gives the "
        f"next id, and ids become text.{here}",
    )  # fmt: skip

    def part(name: str, x: float, y: float, width: float, height: float, text: str):
        here = name in lit
        return draw.box(x, y, width, height, text, "here" if here else "plain", 14, bold=here)

    stream = 150  # the height at which the residual stream runs
    text = draw.box(0, stream - 26, 66, 52, '"Lily\nlost ..."', "none", 13)
    ids = part("text to ids", 80, stream - 26, 66, 52, "text\nto ids")
    embedding = part("embedding", 160, stream - 30, 50, 60, "em-\nbed")
    draw.arrow(text.right, ids.left)
    draw.arrow(ids.right, embedding.left)

    draw.box(224, 20, 352, 222, "", "none", dashed=True, round=12)
    draw.text(568, 34, "x L blocks", 13, "end", MUTED)
    norm_1 = part("norm 1", 242, 58, 56, 36, "norm")
    attention = part("attention", 310, 52, 84, 48, "attention")
    norm_2 = part("norm 2", 414, 58, 48, 36, "norm")
    part("router", 472, 46, 68, 26, "router")
    experts = part("experts", 472, 78, 68, 36, "experts")
    sums = {}
    for name, x in (("sum 1", 404), ("sum 2", 556)):
        sums[name] = draw.circle(x, stream, 12, "+", "here" if name in lit else "plain")
    draw.arrow(embedding.right, sums["sum 1"].left)
    draw.arrow((252, stream), (252, norm_1.y + norm_1.height))
    draw.arrow(norm_1.right, attention.left)
    draw.arrow(attention.right, (404, attention.right[1]), sums["sum 1"].top)
    draw.arrow(sums["sum 1"].right, sums["sum 2"].left)
    draw.arrow((430, stream), (430, norm_2.y + norm_2.height))
    draw.arrow(norm_2.right, (472, norm_2.right[1]))
    draw.arrow(experts.right, (556, experts.right[1]), sums["sum 2"].top)
    draw.text(325, stream + 16, "residual stream", 13, colour=MUTED)
    draw.shape(325, stream + 34, "(B, T, D)")

    norm_3 = part("norm 3", 596, stream - 18, 54, 36, "norm")
    head = part("head", 666, stream - 26, 58, 52, "head")
    sampling = part("sampling", 738, stream - 62, 92, 44, "sampling:\nthe next id")
    back = part("ids to text", 738, 28, 92, 40, "ids to text")
    loss = part("loss", 738, stream + 24, 92, 36, "loss")
    optimizer = part("optimizer", 658, 248, 172, 40, "optimizer: MuonClip")
    draw.arrow(sums["sum 2"].right, norm_3.left)
    draw.arrow(norm_3.right, head.left)
    draw.arrow((head.x + head.width, stream - 10), (731, stream - 10), (731, sampling.left[1]), sampling.left)
    draw.arrow((head.x + head.width, stream + 10), (731, stream + 10), (731, loss.left[1]), loss.left)
    draw.arrow(sampling.top, back.bottom)
    draw.arrow(loss.bottom, (loss.bottom[0], optimizer.y))
    draw.arrow(optimizer.left, (185, optimizer.left[1]), embedding.bottom, dashed=True)
    draw.text(420, optimizer.left[1] - 10, "changes every weight", 13, colour=MUTED)
    return draw
