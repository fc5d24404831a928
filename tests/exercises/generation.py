"""Typical wrong answers of chapter 7 and the words that must meet them."""

TOP_P = "def keep_top_p(p, reach):\n    "
SORTED = """ordered, index = p.sort(dim=-1, descending=True)
    """
BACK = """kept = torch.zeros_like(p).scatter(-1, index, ordered * inside)
    """
SHARES = "return kept / kept.sum(dim=-1, keepdim=True)"
MIN_P = "def keep_min_p(p, share):\n    "
PENALISED = "def penalised(logits, seen, penalty):\n    "
UNTIL = "def until(pieces, stop):\n    "

WRONG = {
    "check_top_p": [
        (
            TOP_P + SORTED + "inside = ordered.cumsum(dim=-1) <= reach\n    " + BACK + SHARES,
            "the word that crosses the line is missing",
        ),
        (
            TOP_P
            + SORTED
            + "inside = ordered.cumsum(dim=-1) - ordered < reach\n    kept = ordered * inside\n    "
            + SHARES,
            "out of place: scatter them back from sorted order.",
        ),
        (
            TOP_P
            + SORTED
            + "inside = ordered.cumsum(dim=-1) - ordered < reach\n    return torch.zeros_like(p).scatter(-1, index, "
            "ordered * inside)",
            "does not sum to 1",
        ),
        (
            TOP_P + "inside = p.cumsum(dim=-1) - p < reach\n    kept = p * inside\n    " + SHARES,
            "in the order of the vocabulary",
        ),
        (TOP_P + "kept = p * (p >= 1 - reach)\n    " + SHARES, "you compare single probabilities"),
        (
            TOP_P
            + """order = p[0].argsort(descending=True)
    inside = p[0][order].cumsum(dim=0) - p[0][order] < reach
    kept = torch.zeros_like(p)
    kept[:, order[inside]] = p[:, order[inside]]
    """
            + SHARES,
            "each row has its own order",
        ),
    ],
    "check_min_p": [
        (MIN_P + "kept = p * (p >= share)\n    " + SHARES, "the bar stands at `share` itself"),
        (MIN_P + "kept = p * (p >= share * p.max())\n    " + SHARES, "the bar of row 0 comes from row 1"),
        (MIN_P + "return p * (p >= share * p.amax(dim=-1, keepdim=True))", "does not sum to 1"),
        (MIN_P + "kept = p * (p > share * p.amax(dim=-1, keepdim=True))\n    " + SHARES, "Compare with >="),
        (
            MIN_P + "kept = p * (p >= (1 - share) * p.amax(dim=-1, keepdim=True))\n    " + SHARES,
            "`share` is turned around",
        ),
        (
            MIN_P + "p[p < share * p.amax(dim=-1, keepdim=True)] = 0\n    return p / p.sum(dim=-1, keepdim=True)",
            "make a new tensor",
        ),
    ],
    "check_penalised": [
        (PENALISED + "return torch.where(seen, logits / penalty, logits)", "the sign trap"),
        (
            PENALISED
            + "mended = torch.where(logits > 0, logits / penalty, logits * penalty)\n    "
            + "return torch.where(seen, mended, logits)",
            "add 5 to all logits",
        ),
        (PENALISED + "return logits - penalty * seen", "Subtract its logarithm"),
        (PENALISED + "return logits - math.log(penalty)", "softmax does not notice"),
        (PENALISED + "return logits + math.log(penalty) * seen", "the sign: your seen words"),
        (PENALISED + "logits[seen] -= math.log(penalty)\n    return logits", "make a new tensor"),
        (PENALISED + "return logits - math.log(penalty) * ~seen", "NOT seen"),
    ],
    "check_until": [
        (
            UNTIL
            + """for piece in pieces:
        if stop in piece:
            return
        yield piece""",
            "look for it in what is joined",
        ),
        (
            UNTIL
            + """text = ""
    for piece in pieces:
        text += piece
        if stop in text:
            return
        yield piece""",
            "Hold back the last",
        ),
        (UNTIL + 'text = "".join(pieces)\n    yield text.partition(stop)[0]', "that is no stream any more"),
        (UNTIL + 'text = "".join(pieces)\n    return [text.partition(stop)[0]]', "use `yield`"),
        (
            UNTIL
            + """held = ""
    for piece in pieces:
        held += piece
        if stop in held:
            yield held[: held.index(stop)]
            return
        safe = max(0, len(held) - len(stop) + 1)
        yield held[:safe]
        held = held[safe:]""",
            "After the loop",
        ),
        (
            UNTIL
            + """held = ""
    for piece in pieces:
        held += piece
        if stop in held:
            yield held[: held.index(stop) + len(stop)]
            return
        safe = max(0, len(held) - len(stop) + 1)
        yield held[:safe]
        held = held[safe:]
    yield held""",
            "cut before it",
        ),
    ],
}
