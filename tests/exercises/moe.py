"""Typical wrong answers to the exercises of chapter 3, each with words of the message that names its mistake."""

WRONG = {
    "check_top_k_weights": [
        (
            """
def top_k_weights(logits, k):
    weights, chosen = logits.softmax(dim=-1).topk(k, dim=-1)
    return weights, chosen
""",
            "softmax over all E experts",
        ),
        (
            """
def top_k_weights(logits, k):
    top, chosen = logits.topk(k, dim=-1)
    return top.softmax(dim=1), chosen
""",
            "your softmax runs over the tokens",
        ),
        (
            """
def top_k_weights(logits, k):
    top, chosen = logits.topk(k, dim=-1)
    return top.softmax(dim=0), chosen
""",
            "your softmax runs over the sequences",
        ),
        (
            """
def top_k_weights(logits, k):
    return logits.topk(k, dim=-1)
""",
            "these are the logits themselves",
        ),
        (
            """
def top_k_weights(logits, k):
    top, chosen = logits.topk(k, dim=-1)
    return top / top.sum(dim=-1, keepdim=True), chosen
""",
            "they are no softmax",
        ),
        (
            """
def top_k_weights(logits, k):
    chosen = logits.argsort(dim=-1)[..., :k]
    return logits.gather(-1, chosen).softmax(dim=-1), chosen
""",
            "are its largest",
        ),
        (
            """
def top_k_weights(logits, k):
    top, chosen = logits.topk(k, dim=-1)
    return chosen, top.softmax(dim=-1)
""",
            "must be whole numbers",
        ),
    ],
    "check_dispatch": [
        (
            """
def dispatch(x, weights, chosen, experts):
    flat = chosen.flatten()
    order = flat.argsort(stable=True)
    groups = x[order // chosen.shape[1]].split(torch.bincount(flat, minlength=len(experts)).tolist())
    rows = torch.cat([expert(group) for expert, group in zip(experts, groups)])
    return (rows.unflatten(0, chosen.shape) * weights[..., None]).sum(dim=1)
""",
            "still sorted by expert",
        ),
        (
            """
def dispatch(x, weights, chosen, experts):
    flat = chosen.flatten()
    order = flat.argsort(stable=True)
    groups = x[order % len(x)].split(torch.bincount(flat, minlength=len(experts)).tolist())
    rows = torch.cat([expert(group) for expert, group in zip(experts, groups)])
    outputs = torch.empty_like(rows)
    outputs[order] = rows
    return (outputs.unflatten(0, chosen.shape) * weights[..., None]).sum(dim=1)
""",
            "belongs to token i // K",
        ),
        (
            """
def dispatch(x, weights, chosen, experts):
    flat = chosen.flatten()
    order = flat.argsort(stable=True)
    token = order // chosen.shape[1]
    groups = x[token].split(torch.bincount(flat, minlength=len(experts)).tolist())
    rows = torch.cat([expert(group) for expert, group in zip(experts, groups)])
    y = torch.zeros_like(x)
    y[token] += rows * weights.flatten()[order, None]
    return y
""",
            "one of its two experts only",
        ),
        (
            """
def dispatch(x, weights, chosen, experts):
    y = torch.zeros_like(x)
    for e, expert in enumerate(experts):
        token, choice = torch.where(chosen == e)
        y[token] += expert(x[token])
    return y
""",
            "every expert counts fully",
        ),
        (
            """
def dispatch(x, weights, chosen, experts):
    y = torch.zeros_like(x)
    for e, expert in enumerate(experts):
        y += (weights * (chosen == e)).sum(dim=-1, keepdim=True) * expert(x)
    return y
""",
            "costs E/K times as much",
        ),
    ],
    "check_moved_bias": [
        (
            """
def moved_bias(bias, load, rate):
    load = load.float()
    return bias + rate * (load - load.mean()).sign()
""",
            "the sign is the wrong way round",
        ),
        (
            """
def moved_bias(bias, load, rate):
    load = load.float()
    return bias + rate * (load.mean() - load)
""",
            "takes its sign only",
        ),
        (
            """
def moved_bias(bias, load, rate):
    return bias + rate * (1 / len(load) - load).sign()
""",
            "compare counts with their mean",
        ),
        (
            """
def moved_bias(bias, load, rate):
    load = load.float()
    return bias + torch.where(load < load.mean(), rate, -rate)
""",
            "exactly the mean load",
        ),
        (
            """
def moved_bias(bias, load, rate):
    load = load.float()
    return rate * (load.mean() - load).sign()
""",
            "this is the step alone",
        ),
    ],
}
