"""Typical wrong answers of chapter 2 and the words that must meet them."""

MASK = "def causal_mask_of(n_queries, n_keys):\n    "
SCORE = "def relative_score(q, k, distance, frequencies):\n    "
TURN = """a, b = q[0::2], q[1::2]
    cos, sin = (distance * frequencies).cos(), (distance * frequencies).sin()
    """
ABSORBED = "def absorbed_attention(q, w_k, w_v, latents, scale):\n    "

WRONG = {
    "check_causal_mask": [
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
    "check_absorbed": [
        (
            ABSORBED
            + """k = torch.einsum("hnc,sc->hsn", w_k, latents)
    v = torch.einsum("hvc,sc->hsv", w_v, latents)
    weights = (torch.einsum("hn,hsn->hs", q, k) * scale).softmax(dim=-1)
    return torch.einsum("hs,hsv->hv", weights, v)""",
            "an old latent",
        ),
        (
            ABSORBED
            + """weights = (torch.einsum("hnc,hn->hc", w_k, q) @ latents.T).softmax(dim=-1)
    return torch.einsum("hvc,hc->hv", w_v, weights @ latents)""",
            "the scale is missing",
        ),
        (
            ABSORBED
            + """weights = (torch.einsum("hnc,hn->hc", w_k, q) @ latents.T * scale).softmax(dim=0)
    return torch.einsum("hvc,hc->hv", w_v, weights @ latents)""",
            "runs over the heads",
        ),
        (
            ABSORBED
            + """logits = torch.einsum("hnc,hn->hc", w_k, q) @ latents.T
    weights = (logits / latents.shape[-1] ** 0.5).softmax(dim=-1)
    return torch.einsum("hvc,hc->hv", w_v, weights @ latents)""",
            "the root of C",
        ),
        (
            ABSORBED
            + """weights = (torch.einsum("hnc,hn->hc", w_k, q) @ latents.T * scale).softmax(dim=-1)
    return weights @ latents""",
            "the shape must be (3, 4), yours is (3, 6)",
        ),
    ],
}
