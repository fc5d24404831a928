"""Typical wrong answers of chapter 2 and the words that must meet them."""

MASK = "def may_look(n_queries, n_keys):\n    "
SCORE = "def relative_score(q, k, distance, frequencies):\n    "
TURN = """a, b = q[0::2], q[1::2]
    cos, sin = (distance * frequencies).cos(), (distance * frequencies).sin()
    """
HEAD = "def one_head(x, w_q, w_k, w_v):\n    q, k, v = x @ w_q, x @ w_k, x @ w_v\n    "
PIECES = "def read_in_pieces(q, pieces):\n    "

WRONG = {
    "check_may_look": [
        (
            MASK + "return torch.ones(n_queries, n_keys, dtype=torch.bool).tril()",
            "shift the diagonal by S - T",
        ),
        (
            MASK + "return torch.ones(n_queries, n_keys, dtype=torch.bool).triu(n_keys - n_queries)",
            "take the lower",
        ),
        (
            MASK + "return torch.ones(n_queries, n_keys, dtype=torch.bool).triu(n_keys - n_queries + 1)",
            "turned around",
        ),
        (
            MASK + "return torch.ones(n_queries, n_keys, dtype=torch.bool).tril(n_keys - n_queries - 1)",
            "the diagonal belongs to the mask",
        ),
        (
            MASK + "return torch.ones(n_queries, n_keys, dtype=torch.bool).tril(n_queries - n_keys)",
            "the diagonal has the wrong sign",
        ),
        (MASK + "return torch.ones(n_queries, n_keys).tril(n_keys - n_queries)", "must be bool"),
        (
            MASK + 'return torch.full((n_queries, n_keys), float("-inf")).triu(n_keys - n_queries + 1)',
            "holds minus infinity",
        ),
        (MASK + "return torch.ones(n_queries, n_keys, dtype=torch.bool)", "the future included"),
    ],
    "check_relative_score": [
        (
            SCORE
            + "distance = -distance\n    "
            + TURN
            + "return (a * cos - b * sin) @ k[0::2] + (a * sin + b * cos) @ k[1::2]",
            "AHEAD of the query",
        ),
        (
            SCORE
            + """a, b = q.chunk(2)
    c, d = k.chunk(2)
    cos, sin = (distance * frequencies).cos(), (distance * frequencies).sin()
    return (a * cos - b * sin) @ c + (a * sin + b * cos) @ d""",
            "half-split",
        ),
        (SCORE + TURN + "return (a * cos + b * sin) @ k[0::2] + (a * sin + b * cos) @ k[1::2]", "a sign"),
        (
            SCORE
            + "frequencies = frequencies[0]\n    "
            + TURN
            + "return (a * cos - b * sin) @ k[0::2] + (a * sin + b * cos) @ k[1::2]",
            "all pairs turn at the first rate",
        ),
        (SCORE + "return q @ k", "nothing is turned"),
        (SCORE + TURN + "return (a * cos - b * sin) * k[0::2] + (a * sin + b * cos) * k[1::2]", "sum over channels"),
    ],
    "check_one_head": [
        (HEAD + "return (q @ k.T / math.sqrt(q.shape[-1])).softmax(dim=-1) @ v", "nothing is masked"),
        (
            HEAD
            + """mask = torch.ones(len(x), len(x), dtype=torch.bool).tril()
    return (q @ k.T).masked_fill(~mask, -math.inf).softmax(dim=-1) @ v""",
            "not divided by the root of d",
        ),
        (
            HEAD
            + """mask = torch.ones(len(x), len(x), dtype=torch.bool).tril()
    return (q @ k.T / math.sqrt(x.shape[-1])).masked_fill(~mask, -math.inf).softmax(dim=-1) @ v""",
            "the root of D",
        ),
        (
            HEAD + "return (q @ k.T / math.sqrt(q.shape[-1])).softmax(dim=-1).tril() @ v",
            "no longer sum to 1",
        ),
        (
            HEAD + "return (q @ k.T / math.sqrt(q.shape[-1])).tril().softmax(dim=-1) @ v",
            "a masked score of 0",
        ),
        (
            HEAD
            + """mask = torch.ones(len(x), len(x), dtype=torch.bool).tril()
    return (q @ k.T / math.sqrt(q.shape[-1])).masked_fill(~mask, -math.inf).softmax(dim=0) @ v""",
            "down the columns",
        ),
        (
            HEAD
            + """mask = torch.ones(len(x), len(x), dtype=torch.bool).tril()
    return (q @ k.T / math.sqrt(q.shape[-1])).masked_fill(mask, -math.inf).softmax(dim=-1) @ v""",
            "True and False are exchanged",
        ),
        (
            HEAD
            + """mask = torch.ones(len(x), len(x), dtype=torch.bool).triu()
    return (q @ k.T / math.sqrt(q.shape[-1])).masked_fill(~mask, -math.inf).softmax(dim=-1) @ v""",
            "turn the mask around",
        ),
        (
            HEAD
            + """mask = torch.ones(len(x), len(x), dtype=torch.bool).tril(-1)
    return (q @ k.T / math.sqrt(q.shape[-1])).masked_fill(~mask, -math.inf).softmax(dim=-1) @ v""",
            "A word may look at itself",
        ),
        (
            HEAD
            + """mask = torch.ones(len(x), len(x), dtype=torch.bool).tril()
    return (k @ q.T / math.sqrt(q.shape[-1])).masked_fill(~mask, -math.inf).softmax(dim=-1) @ v""",
            "queries and keys have changed places",
        ),
        (
            HEAD
            + """mask = torch.ones(len(x), len(x), dtype=torch.bool).tril()
    return (q @ v.T / math.sqrt(q.shape[-1])).masked_fill(~mask, -math.inf).softmax(dim=-1) @ k""",
            "keys and values have changed places",
        ),
    ],
    "check_read_in_pieces": [
        (
            PIECES
            + """scores, values = [], []
    for k, v in pieces:
        scores.append(k @ q / len(q) ** 0.5)
        values.append(v.clone())
    return torch.cat(scores).softmax(0) @ torch.cat(values)""",
            "of every piece",
        ),
        (
            PIECES + "return torch.stack([(k @ q / len(q) ** 0.5).softmax(0) @ v for k, v in pieces]).mean(0)",
            "you average the pieces",
        ),
        (
            PIECES
            + """kept = list(pieces)
    k, v = torch.cat([k for k, v in kept]), torch.cat([v for k, v in kept])
    return (k @ q / len(q) ** 0.5).softmax(0) @ v""",
            "keep sums, not pieces",
        ),
        (
            PIECES
            + """total, mixed = 0.0, 0.0
    for k, v in pieces:
        parts = (k @ q / len(q) ** 0.5).exp()
        total, mixed = total + parts.sum(), mixed + parts @ v
    return mixed / total""",
            "exp overflow",
        ),
        (
            PIECES
            + """total, mixed, largest = 0.0, 0.0, -math.inf
    for k, v in pieces:
        scores = k @ q / len(q) ** 0.5
        largest = max(largest, scores.max().item())
        parts = (scores - largest).exp()
        total, mixed = total + parts.sum(), mixed + parts @ v
    return mixed / total""",
            "older sums keep the old one",
        ),
        (
            PIECES
            + """total, mixed, largest = 0.0, 0.0, -math.inf
    for k, v in pieces:
        scores = k @ q / len(q) ** 0.5
        old, largest = largest, max(largest, scores.max().item())
        parts = (scores - largest).exp()
        total, mixed = total * math.exp(old - largest) + parts.sum(), mixed + parts @ v
    return mixed / total""",
            "the mixture is not",
        ),
        (
            PIECES
            + """total, mixed, largest = 0.0, 0.0, 0.0
    for k, v in pieces:
        scores = k @ q / len(q) ** 0.5
        old, largest = largest, max(largest, scores.max().item())
        parts, shrink = (scores - largest).exp(), math.exp(old - largest)
        total, mixed = total * shrink + parts.sum(), mixed * shrink + parts @ v
    return mixed / total""",
            "not at 0",
        ),
        (
            PIECES
            + """total, mixed = 0.0, 0.0
    for k, v in pieces:
        parts = (k @ q).exp()
        total, mixed = total + parts.sum(), mixed + parts @ v
    return mixed / total""",
            "not divided by the root of d",
        ),
    ],
}

ALSO_RIGHT = {
    "check_may_look": [
        """def may_look(n_queries, n_keys):
    mask = torch.zeros(n_queries, n_keys, dtype=torch.bool)
    for t in range(n_queries):
        mask[t, : n_keys - n_queries + t + 1] = True
    return mask""",
        """def may_look(n_queries, n_keys):
    asks = torch.arange(n_keys - n_queries, n_keys)
    return torch.arange(n_keys)[None, :] <= asks[:, None]""",
        """def may_look(n_queries, n_keys):
    return ~torch.triu(torch.ones(n_queries, n_keys), diagonal=n_keys - n_queries + 1).bool()""",
        """def may_look(n_queries, n_keys):
    past = n_keys - n_queries
    return torch.tensor([[s <= past + t for s in range(n_keys)] for t in range(n_queries)])""",
        "def may_look(n_queries, n_keys):\n    return torch.ones(n_keys, n_keys).tril().bool()[-n_queries:]",
    ],
    "check_one_head": [
        """def one_head(x, w_q, w_k, w_v):
    rows = []
    for t in range(len(x)):
        seen = x[: t + 1]
        weights = torch.softmax((seen @ w_k) @ (x[t] @ w_q) / w_q.shape[1] ** 0.5, dim=0)
        rows.append(weights @ (seen @ w_v))
    return torch.stack(rows)""",
        """def one_head(x, w_q, w_k, w_v):
    q, k, v = (torch.einsum("tc,cd->td", x, w) for w in (w_q, w_k, w_v))
    scores = torch.einsum("td,sd->ts", q, k) * q.shape[-1] ** -0.5
    scores = scores + torch.full_like(scores, -math.inf).triu(1)
    return torch.einsum("ts,sd->td", scores.softmax(-1), v)""",
        """def one_head(x, w_q, w_k, w_v):
    q, k, v = (x @ w for w in (w_q, w_k, w_v))
    return torch.nn.functional.scaled_dot_product_attention(q[None], k[None], v[None], is_causal=True)[0]""",
        """def one_head(x, w_q, w_k, w_v):
    x, w_q, w_k, w_v = x.double(), w_q.double(), w_k.double(), w_v.double()
    parts = ((x @ w_q) @ (x @ w_k).T / math.sqrt(w_q.shape[1])).exp().tril()
    return parts / parts.sum(dim=1, keepdim=True) @ (x @ w_v)""",
    ],
    "check_relative_score": [
        """def relative_score(q, k, distance, frequencies):
    a = torch.view_as_complex(q.reshape(-1, 2))
    b = torch.view_as_complex(k.reshape(-1, 2))
    return (a * torch.exp(1j * distance * frequencies) * b.conj()).real.sum()""",
        """def relative_score(q, k, distance, frequencies):
    score = 0.0
    for m in range(len(q) // 2):
        angle = distance * frequencies[m].item()
        a, b = k[2 * m].item(), k[2 * m + 1].item()
        c = a * math.cos(-angle) - b * math.sin(-angle)
        d = a * math.sin(-angle) + b * math.cos(-angle)
        score += q[2 * m].item() * c + q[2 * m + 1].item() * d
    return score""",
        """def relative_score(q, k, distance, frequencies):
    cos, sin = torch.cos(distance * frequencies), torch.sin(distance * frequencies)
    turn = torch.stack([torch.stack([cos, -sin]), torch.stack([sin, cos])])
    return torch.einsum("abm,mb,ma->", turn, q.view(-1, 2), k.view(-1, 2))""",
    ],
    "check_read_in_pieces": [
        """def read_in_pieces(q, pieces):
    largest, total, mixed = torch.tensor(-math.inf), torch.tensor(0.0), torch.zeros(len(q))
    for k, v in pieces:
        for key, value in zip(k, v):
            score = key @ q / math.sqrt(len(q))
            top = torch.maximum(largest, score)
            total = total * (largest - top).exp() + (score - top).exp()
            mixed = mixed * (largest - top).exp() + (score - top).exp() * value
            largest = top
    return mixed / total""",
        """def read_in_pieces(q, pieces):
    log_total, mixture = torch.tensor(-math.inf), torch.zeros(len(q))
    for k, v in pieces:
        scores = k @ q / math.sqrt(len(q))
        new = torch.logsumexp(torch.cat([scores, log_total[None]]), dim=0)
        mixture = mixture * (log_total - new).exp() + (scores - new).exp() @ v
        log_total = new
    return mixture""",
        """def read_in_pieces(q, pieces):
    tops, totals, mixtures = [], [], []
    for k, v in pieces:
        scores = (k.double() @ q.double()) / math.sqrt(len(q))
        tops.append(scores.max())
        totals.append((scores - scores.max()).exp().sum())
        mixtures.append((scores - scores.max()).exp() @ v.double())
    share = (torch.stack(tops) - max(tops)).exp()
    return share @ torch.stack(mixtures) / (share @ torch.stack(totals))""",
    ],
}
