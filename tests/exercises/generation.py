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
THROW = "def throw(p, dart):\n    "
FAN_OUT = """def fan_out(cache, n):
    copies = []
    for layer in cache:
        copy = KVCache(layer.capacity)
        """
FILLED = "[buffer[..., : layer.length, :] for buffer in layer.buffers]"

WRONG = {
    "check_throw": [
        (THROW + "return p.argmax(dim=-1)", "every dart hits the likeliest word"),
        (THROW + "return (dart[:, None] >= p.cumsum(dim=-1)).sum(dim=-1) - 1", "one word too low"),
        (THROW + "return (dart[:, None] >= p.cumsum(dim=-1)).sum(dim=-1) + 1", "one word too high"),
        (THROW + "return (dart[:, None] >= p.cumsum(dim=-1)).sum(dim=-1)", "Divide the edges by their last one"),
        (
            THROW + "edges = p.cumsum(dim=-1) / p.sum(dim=-1, keepdim=True)\n    "
            "return (dart[:, None] > edges).sum(dim=-1)",
            "would be told",
        ),
        (THROW + "return torch.searchsorted(p[0].cumsum(0), dart, right=True)", "each row has its own line"),
        (THROW + "return dart[:, None] >= p.cumsum(dim=-1)", "one word for each row"),
        (THROW + "p.cumsum(dim=-1)", "returns None"),
    ],
    "check_fan_out": [
        ("def fan_out(cache, n):\n    return cache", "the first dimension is that of stories"),
        ("def fan_out(cache, n):\n    return [cache] * n", "one for each layer"),
        (
            FAN_OUT + "copy.append(*[b.repeat_interleave(n, dim=0) for b in layer.buffers])\n        "
            "copies.append(copy)\n    return copies",
            "only the first",
        ),
        (FAN_OUT + "copies.append(copy)\n    return copies", "your caches are empty"),
        (
            """def fan_out(cache, n):
    for layer in cache:
        layer.buffers = [buffer.repeat_interleave(n, dim=0) for buffer in layer.buffers]
    return cache""",
            "you changed the cache that was given to you",
        ),
        (
            FAN_OUT + "copy.length = layer.length\n        "
            "copy.buffers = [b.expand(n, *b.shape[1:]) for b in layer.buffers]\n        "
            "copies.append(copy)\n    return copies",
            "`expand` makes a view",
        ),
        (
            FAN_OUT + f"copy.append(*[torch.zeros_like(b).repeat_interleave(n, 0) for b in {FILLED}])\n        "
            "copies.append(copy)\n    return copies",
            "is not what the prompt left behind",
        ),
    ],
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
        (
            PENALISED
            + """p = logits.softmax(dim=-1)
    odds = p / (1 - p) / penalty
    return torch.where(seen, odds / (1 + odds), p).log()""",
            "1 - p holds the other",
        ),
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

ALSO_RIGHT = {
    "check_throw": [
        """def throw(p, dart):
    hit = []
    for row, d in zip(p.tolist(), dart.tolist()):
        d, reached = d * sum(row), 0.0
        for word, x in enumerate(row):
            reached += x
            if d < reached:
                break
        hit.append(word)
    return hit""",
        """def throw(p, dart):
    edges = p.double().cumsum(dim=-1)
    edges /= edges[:, -1:].clone()
    return torch.searchsorted(edges, dart[:, None].double(), right=True)[:, 0]""",
        """def throw(p, dart):
    edges = p.cumsum(dim=-1)
    beyond = dart.unsqueeze(-1) < edges / edges.amax(dim=-1, keepdim=True)
    return beyond.int().argmax(dim=1).int()""",
    ],
    "check_top_p": [
        """def keep_top_p(p, reach):
    kept = torch.zeros_like(p)
    for b, row in enumerate(p):
        reached = 0.0
        for word in row.argsort(descending=True).tolist():
            if reached >= reach:
                break
            kept[b, word] = row[word]
            reached += row[word].item()
    return kept / kept.sum(-1, True)""",
        """def keep_top_p(p, reach):
    likelier = (p[:, None, :] > p[:, :, None]).to(p)
    before = torch.einsum("bij,bj->bi", likelier, p)
    kept = p.masked_fill(before >= reach, 0)
    return torch.nn.functional.normalize(kept, p=1, dim=1)""",
        """def keep_top_p(p, reach):
    order = p.double().argsort(dim=-1, descending=True)
    sums = p.double().gather(-1, order).cumsum(dim=-1)
    outside = torch.roll(sums >= reach, 1, dims=-1)
    outside[:, 0] = False
    back = order.argsort(dim=-1)
    kept = torch.where(outside.gather(-1, back), 0, p.double())
    return kept / kept.sum(dim=-1).unsqueeze(-1)""",
    ],
    "check_min_p": [
        """def keep_min_p(p, share):
    rows = []
    for row in p.tolist():
        kept = [x if x >= share * max(row) else 0.0 for x in row]
        rows.append([x / sum(kept) for x in kept])
    return torch.tensor(rows)""",
        """def keep_min_p(p, share):
    relative = p / p.max(dim=-1, keepdim=True).values
    kept = torch.where(relative < share, 0.0, p)
    return kept / kept.sum(1)[:, None]""",
        """def keep_min_p(p, share):
    logits = p.log()
    bar = logits.amax(-1, keepdim=True) + math.log(share)
    return logits.masked_fill(logits < bar, -math.inf).softmax(dim=-1)""",
    ],
    "check_penalised": [
        """def penalised(logits, seen, penalty):
    return torch.where(seen, logits - math.log(penalty), logits)""",
        """def penalised(logits, seen, penalty):
    divided = logits.softmax(dim=-1) / penalty ** seen.float()
    return divided.log()""",
        """def penalised(logits, seen, penalty):
    new = logits.double().clone()
    new[seen] -= math.log(penalty)
    return new""",
        """def penalised(logits, seen, penalty):
    return logits + math.log(penalty) * (~seen)""",
    ],
    "check_fan_out": [
        FAN_OUT
        + f"""copy.append(*[torch.cat([t] * n) for t in {FILLED}])
        copies.append(copy)
    return copies""",
        """def fan_out(cache, n):
    import copy

    copies = copy.deepcopy(cache)
    for layer in copies:
        layer.buffers = [b.expand(n, *b.shape[1:]).contiguous() for b in layer.buffers]
    return copies""",
        FAN_OUT
        + """copy.buffers = [b.repeat(n, *[1] * (b.ndim - 1)) for b in layer.buffers]
        copy.length = layer.length
        copies.append(copy)
    return tuple(copies)""",
    ],
    "check_until": [
        """def until(pieces, stop):
    text, shown = "", 0
    for piece in pieces:
        text += piece
        end = text.find(stop)
        if end >= 0:
            yield text[shown:end]
            return
        safe = len(text) - len(stop) + 1
        if safe > shown:
            yield text[shown:safe]
            shown = safe
    yield text[shown:]""",
        """def until(pieces, stop):
    held = ""
    for piece in pieces:
        for letter in piece:
            held += letter
            if held.endswith(stop):
                if held[: -len(stop)]:
                    yield held[: -len(stop)]
                return
            while held and not stop.startswith(held):
                yield held[0]
                held = held[1:]
    if held:
        yield held""",
        """def until(pieces, stop):
    held = ""
    for piece in pieces:
        before, found, _ = (held + piece).partition(stop)
        if found:
            yield before
            break
        keep = max(i for i in range(len(stop)) if before.endswith(stop[:i]))
        held = before[len(before) - keep :]
        yield before[: len(before) - keep]
    else:
        yield held""",
    ],
}
