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
        (
            """
def top_k_weights(logits, k):
    top, chosen = logits.topk(k, dim=2)
    return top.softmax(dim=2), chosen
""",
            "whatever stands before",
        ),
        (
            """
def top_k_weights(logits, k):
    top, chosen = logits.topk(k, dim=-1)
    return 2 * top.softmax(dim=-1), chosen
""",
            "must sum to 1, token 0's sum to 2.00",
        ),
        (
            """
def top_k_weights(logits, k):
    flat = logits.reshape(-1, logits.shape[-1]).tolist()
    weights, chosen = [], []
    for row in flat:
        best = sorted(range(len(row)), key=lambda e: row[e])[-k:]
        powers = [math.exp(row[e]) for e in best]
        weights.append([p / sum(powers) for p in powers])
        chosen.append(best)
    shape = (*logits.shape[:-1], k)
    return torch.tensor(weights).reshape(shape), torch.tensor(chosen).reshape(shape)
""",
            "no gradient flows from the weights",
        ),
    ],
    "check_dispatch": [
        (
            """
def dispatch(x, weights, chosen, n_experts, run_groups):
    flat = chosen.flatten()
    order = flat.argsort(stable=True)
    sizes = torch.bincount(flat, minlength=n_experts)
    outputs = run_groups(x[order // chosen.shape[1]], sizes)
    return (outputs.unflatten(0, chosen.shape) * weights[..., None]).sum(dim=1)
""",
            "still sorted by expert",
        ),
        (
            """
def dispatch(x, weights, chosen, n_experts, run_groups):
    flat = chosen.flatten()
    order = flat.argsort(stable=True)
    sizes = torch.bincount(flat, minlength=n_experts)
    rows = run_groups(x[order // chosen.shape[1]], sizes)
    outputs = rows[order]
    return (outputs.unflatten(0, chosen.shape) * weights[..., None]).sum(dim=1)
""",
            "sorts a second time",
        ),
        (
            """
def dispatch(x, weights, chosen, n_experts, run_groups):
    flat = chosen.flatten()
    order = flat.argsort(stable=True)
    sizes = torch.bincount(flat, minlength=n_experts)
    rows = run_groups(x[order % len(x)], sizes)
    outputs = torch.empty_like(rows)
    outputs[order] = rows
    return (outputs.unflatten(0, chosen.shape) * weights[..., None]).sum(dim=1)
""",
            "belongs to token i // K",
        ),
        (
            """
def dispatch(x, weights, chosen, n_experts, run_groups):
    flat = chosen.flatten()
    order = flat.argsort(stable=True)
    sizes = torch.bincount(flat, minlength=n_experts)
    token = order // chosen.shape[1]
    rows = run_groups(x[token], sizes)
    y = torch.zeros_like(x)
    y[token] += rows * weights.flatten()[order, None]
    return y
""",
            "one of its two experts only",
        ),
        (
            """
def dispatch(x, weights, chosen, n_experts, run_groups):
    flat = chosen.flatten()
    order = flat.argsort(stable=True)
    sizes = torch.bincount(flat, minlength=n_experts)
    rows = run_groups(x[order // chosen.shape[1]], sizes)
    outputs = torch.empty_like(rows)
    outputs[order] = rows
    return outputs.unflatten(0, chosen.shape).sum(dim=1)
""",
            "every expert counts fully",
        ),
        (
            """
def dispatch(x, weights, chosen, n_experts, run_groups):
    flat = chosen.flatten()
    order = flat.argsort(stable=True)
    sizes = torch.bincount(flat)
    rows = run_groups(x[order // chosen.shape[1]], sizes)
    outputs = torch.empty_like(rows)
    outputs[order] = rows
    return (outputs.unflatten(0, chosen.shape) * weights[..., None]).sum(dim=1)
""",
            "a size for each of the 5 experts",
        ),
        (
            """
def dispatch(x, weights, chosen, n_experts, run_groups):
    sizes = torch.bincount(chosen.flatten(), minlength=n_experts)
    outputs = run_groups(x.repeat_interleave(chosen.shape[1], dim=0), sizes)
    return (outputs.unflatten(0, chosen.shape) * weights[..., None]).sum(dim=1)
""",
            "in the order of the tokens",
        ),
        (
            """
def dispatch(x, weights, chosen, n_experts, run_groups):
    flat = chosen.flatten()
    order = flat.argsort(stable=True)
    token = order // chosen.shape[1]
    rows = run_groups(x[token], torch.bincount(flat, minlength=n_experts)) * weights.flatten()[:, None]
    return torch.zeros_like(x).index_add(0, token, rows)
""",
            "in different orders",
        ),
        (
            """
def dispatch(x, weights, chosen, n_experts, run_groups):
    flat = chosen.flatten()
    order = flat.argsort(stable=True)
    sizes = torch.bincount(flat, minlength=n_experts)
    rows = run_groups(x, sizes)
    outputs = torch.empty_like(rows)
    outputs[order] = rows
    return (outputs.unflatten(0, chosen.shape) * weights[..., None]).sum(dim=1)
""",
            "once for each of its K experts",
        ),
        (
            """
def dispatch(x, weights, chosen, n_experts, run_groups):
    flat = chosen.flatten()
    order = flat.argsort(stable=True)
    sizes = torch.bincount(flat, minlength=n_experts)
    rows = run_groups(x[order // 2], sizes)
    outputs = torch.empty_like(rows)
    outputs[order] = rows
    return (outputs.unflatten(0, (-1, 2)) * weights[..., None]).sum(dim=1) if chosen.shape[1] == 2 else x
""",
            "not for K = 1",
        ),
        (
            """
def dispatch(x, weights, chosen, n_experts, run_groups):
    flat = chosen.flatten()
    order = flat.argsort(stable=True)
    sizes = torch.bincount(flat, minlength=n_experts)
    rows = run_groups(x[order // chosen.shape[1]] * weights.flatten()[order, None], sizes)
    return rows[order.argsort()].unflatten(0, chosen.shape).sum(dim=1)
""",
            "an expert is not linear",
        ),
        (
            """
def dispatch(x, weights, chosen, n_experts, run_groups):
    flat = chosen.flatten()
    order = flat.argsort(stable=True)
    rows = run_groups(x[order // chosen.shape[1]], torch.bincount(flat, minlength=n_experts))
    return (rows[order.argsort()].unflatten(0, chosen.shape) * weights[..., None]).mean(dim=1)
""",
            "the sum over K, no mean",
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
    return bias + rate * (load.mean() - load).sign()
""",
            "holds whole numbers",
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
        (
            """
def moved_bias(bias, load, rate):
    return bias + rate * (load.sum() // len(load) - load).sign()
""",
            "must not be rounded",
        ),
    ],
    "check_choose_and_weigh": [
        (
            """
def choose_and_weigh(scores, bias, k, factor):
    top, chosen = (scores + bias).topk(k, dim=-1)
    return factor * top / top.sum(dim=-1, keepdim=True), chosen
""",
            "the bias has come into your weights",
        ),
        (
            """
def choose_and_weigh(scores, bias, k, factor):
    top, chosen = scores.topk(k, dim=-1)
    return factor * top / top.sum(dim=-1, keepdim=True), chosen
""",
            "you choose by the scores alone",
        ),
        (
            """
def choose_and_weigh(scores, bias, k, factor):
    chosen = (scores - bias).topk(k, dim=-1).indices
    top = scores.gather(-1, chosen)
    return factor * top / top.sum(dim=-1, keepdim=True), chosen
""",
            "are its largest, yours are",
        ),
        (
            """
def choose_and_weigh(scores, bias, k, factor):
    chosen = (scores + bias).topk(k, dim=-1).indices
    return factor * scores.gather(-1, chosen).softmax(dim=-1), chosen
""",
            "a softmax of the scores",
        ),
        (
            """
def choose_and_weigh(scores, bias, k, factor):
    chosen = (scores + bias).topk(k, dim=-1).indices
    top = scores.gather(-1, chosen)
    return top / top.sum(dim=-1, keepdim=True), chosen
""",
            "the factor is missing",
        ),
        (
            """
def choose_and_weigh(scores, bias, k, factor):
    chosen = (scores + bias).topk(k, dim=-1).indices
    top = scores.gather(-1, chosen)
    return factor * top / top.sum(), chosen
""",
            "must sum to the factor",
        ),
        (
            """
def choose_and_weigh(scores, bias, k, factor):
    keep = torch.zeros_like(scores).scatter(-1, (scores + bias).topk(k, dim=-1).indices, 1.0)
    top, chosen = (keep * (scores + bias)).topk(k, dim=-1)
    top = scores.gather(-1, chosen)
    return factor * top / top.sum(dim=-1, keepdim=True), chosen
""",
            "all biases lowered by 2",
        ),
        (
            """
def choose_and_weigh(scores, bias, k, factor):
    chosen = (scores + bias).topk(k, dim=-1).indices
    top = scores.detach().gather(-1, chosen)
    return factor * top / top.sum(dim=-1, keepdim=True), chosen
""",
            "no gradient flows",
        ),
    ],
}

ALSO_RIGHT = {
    "check_top_k_weights": [
        """
def top_k_weights(logits, k):
    order = logits.argsort(dim=-1, descending=True)[..., :k]
    largest = torch.take_along_dim(logits, order, dim=-1)
    e = torch.exp(largest - largest.amax(dim=-1, keepdim=True))
    return e / e.sum(-1, keepdim=True), order
""",
        """
def top_k_weights(logits, k):
    p = logits.double().softmax(-1)
    p, chosen = p.topk(k)
    return p / p.sum(-1, keepdim=True), chosen
""",
        """
def top_k_weights(logits, k):
    weights, chosen = [], []
    for row in logits.reshape(-1, logits.shape[-1]):
        best = sorted(range(len(row)), key=lambda e: row[e].item())[-k:]
        powers = row[best].exp()
        weights.append(powers / powers.sum())
        chosen.append(torch.tensor(best, dtype=torch.int32))
    shape = (*logits.shape[:-1], k)
    return torch.stack(weights).reshape(shape), torch.stack(chosen).reshape(shape)
""",
        """
def top_k_weights(logits, k):
    smallest_kept = logits.topk(k).values[..., -1:]
    masked = logits.masked_fill(logits < smallest_kept, float("-inf")).softmax(-1)
    return tuple(masked.topk(k))
""",
    ],
    "check_dispatch": [
        """
def dispatch(x, weights, chosen, n_experts, run_groups):
    expert, order = chosen.flatten().sort()
    sizes = torch.tensor([(chosen == e).sum() for e in range(n_experts)])
    token = order // chosen.shape[1]
    rows = run_groups(x[token], sizes) * weights.flatten()[order].unsqueeze(1)
    return torch.zeros_like(x).index_add_(0, token, rows)
""",
        """
def dispatch(x, weights, chosen, n_experts, run_groups):
    # sizes as a list, the result in float64
    pairs = sorted((e, n, k) for n, row in enumerate(chosen.tolist()) for k, e in enumerate(row))
    sizes = [sum(1 for e, _, _ in pairs if e == wanted) for wanted in range(n_experts)]
    rows = run_groups(torch.stack([x[n] for _, n, _ in pairs]), sizes)
    y = torch.zeros_like(x, dtype=torch.double)
    for row, (_, n, k) in zip(rows, pairs):
        y[n] += weights[n, k] * row
    return y
""",
        """
def dispatch(x, weights, chosen, n_experts, run_groups):
    y = torch.zeros_like(x)
    for e in range(n_experts):
        token, slot = torch.where(chosen == e)
        sizes = torch.zeros(n_experts, dtype=torch.long)
        sizes[e] = len(token)
        y[token] += weights[token, slot][:, None] * run_groups(x[token], sizes)
    return y
""",
        """
def dispatch(x, weights, chosen, n_experts, run_groups):
    N, K = chosen.shape
    order = torch.argsort(chosen.reshape(-1), stable=True)
    sizes = torch.nn.functional.one_hot(chosen.reshape(-1), n_experts).sum(0)
    rows = run_groups(x.repeat_interleave(K, 0)[order], sizes)
    back = torch.argsort(order)
    return torch.einsum("nkd,nk->nd", rows[back].view(N, K, -1), weights)
""",
    ],
    "check_moved_bias": [
        """
def moved_bias(bias, load, rate):
    mean = load.sum() / len(load)
    return bias + rate * (load < mean) - rate * (load > mean)
""",
        """
def moved_bias(bias, load, rate):
    new = bias.tolist()
    mean = sum(load.tolist()) / len(load)
    for e, c in enumerate(load.tolist()):
        if c < mean:
            new[e] += rate
        elif c > mean:
            new[e] -= rate
    return torch.tensor(new)
""",
        """
def moved_bias(bias, load, rate):
    load = load.double()
    bias -= rate * torch.sign(load - load.mean())
    return bias
""",
        """
def moved_bias(bias, load, rate):
    return torch.lerp(bias, bias + rate, torch.sign(load.float().mean() - load))
""",
    ],
    "check_choose_and_weigh": [
        """
def choose_and_weigh(scores, bias, k, factor):
    order = (scores + bias).argsort(dim=-1, descending=True)[..., :k]
    kept = torch.take_along_dim(scores.double(), order, dim=-1)
    return factor * torch.nn.functional.normalize(kept, p=1, dim=-1), order
""",
        """
def choose_and_weigh(scores, bias, k, factor):
    chosen = torch.topk(scores.detach() + bias, k).indices
    keep = torch.nn.functional.one_hot(chosen, scores.shape[-1]).to(scores.dtype)
    kept = torch.einsum("...ke,...e->...k", keep, scores)
    return kept * (factor / kept.sum(-1, keepdim=True)), chosen
""",
        """
def choose_and_weigh(scores, bias, k, factor):
    weights, chosen = [], []
    for row in scores.reshape(-1, scores.shape[-1]):
        best = sorted(range(len(row)), key=lambda e: (row[e] + bias[e]).item())[-k:]
        weights.append(factor * row[best] / sum(row[e] for e in best))
        chosen.append(torch.tensor(best, dtype=torch.int32))
    shape = (*scores.shape[:-1], k)
    return torch.stack(weights).reshape(shape), torch.stack(chosen).reshape(shape)
""",
    ],
}
