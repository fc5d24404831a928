"""Typical wrong answers of chapter 2b, the words that must meet them, and right answers in other styles."""

ABSORBED = "def absorbed_attention(q, w_k, w_v, latents, scale):\n    "
BYTES = "def cache_bytes(config, tokens, form, bytes_each=2):\n    "
COUNT = """c, r = config.kv_lora_rank, config.qk_rope_head_dim
    n, v, heads = config.qk_nope_head_dim, config.v_head_dim, config.n_heads
    times = tokens * config.n_layers * bytes_each
    """
RAMP = "def yarn_ramp(width, base, original, beta_fast, beta_slow):\n    "
ENDS = """at = lambda turns: width * math.log(original / (2 * math.pi * turns)) / (2 * math.log(base))
    low, high = max(math.floor(at(beta_fast)), 0), min(math.ceil(at(beta_slow)), width - 1)
    pair = torch.arange(width // 2)
    """

WRONG = {
    "check_absorbed": [
        (
            ABSORBED
            + """k = torch.einsum("hnc,sc->hsn", w_k, latents)
    v = torch.einsum("hvc,sc->hsv", w_v, latents)
    weights = (torch.einsum("hn,hsn->hs", q, k) * scale).softmax(dim=-1)
    return torch.einsum("hs,hsv->hv", weights, v)""",
            "latent is expanded",
        ),
        (
            ABSORBED
            + """v = (w_v[:, None] * latents[None, :, None]).sum(-1)
    weights = (torch.einsum("hnc,hn->hc", w_k, q) @ latents.T * scale).softmax(dim=-1)
    return (weights[..., None] * v).sum(1)""",
            "latent is expanded",
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
            + """weights = torch.einsum("hnc,hn->hc", w_k, q) @ latents.T * scale
    return torch.einsum("hvc,hc->hv", w_v, weights @ latents)""",
            "no softmax",
        ),
        (
            ABSORBED
            + """weights = (torch.einsum("hnc,hn->hc", w_k, q) @ latents.T * scale).softmax(dim=-1)
    return torch.einsum("hvc,c->hv", w_v, (weights @ latents).mean(0))""",
            "are averaged",
        ),
        (
            ABSORBED
            + """weights = (torch.einsum("hnc,hn->hc", w_k, q) @ latents.T * scale).softmax(dim=-1)
    return weights @ latents""",
            "the shape must be (3, 4), yours is (3, 6)",
        ),
    ],
    "check_cache_bytes": [
        (BYTES + COUNT + "return times // config.n_layers * (c + r)", "that is one layer"),
        (BYTES + COUNT + "return times // bytes_each * (c + r)", "two bytes"),
        (
            BYTES + COUNT + 'return times * (c + heads * r if form == "latent" else heads * (n + r + v))',
            "once for each head",
        ),
        (
            BYTES + COUNT + 'return times * (c if form == "latent" else heads * (n + r + v))',
            "the rotary key is missing",
        ),
        (BYTES + COUNT + 'return times * (2 * c + r if form == "latent" else heads * (n + r + v))', "counted twice"),
        (BYTES + COUNT + "return times * heads * (c + r)", "the latent form has no heads"),
        (BYTES + COUNT + 'return times * (c + r if form == "latent" else heads * (n + v))', "yours has n only"),
        (BYTES + COUNT + 'return times * (c + r if form == "latent" else n + r + v)', "that is one head"),
        (BYTES + COUNT + 'return times * (c + r if form == "latent" else heads * (n + r))', "the values are missing"),
        (BYTES + COUNT + "return times * (c + r)", "expanded: one token must take"),
        (
            BYTES + COUNT + 'return times // tokens * (c + r if form == "latent" else heads * (n + r + v))',
            "ten times as much",
        ),
        (
            BYTES + COUNT + 'return times // bytes_each * 2 * (c + r if form == "latent" else heads * (n + r + v))',
            "`bytes_each`",
        ),
    ],
    "check_yarn_ramp": [
        (RAMP + ENDS + "return 1 - ((pair - low) / (high - low)).clamp(0, 1)", "turned around"),
        (RAMP + ENDS + "return (pair - low) / (high - low)", "clamp it"),
        (RAMP + ENDS + "return (pair >= high).float()", "it is a step"),
        (
            RAMP
            + """at = lambda turns: width * math.log(original / turns) / (2 * math.log(base))
    low, high = max(math.floor(at(beta_fast)), 0), min(math.ceil(at(beta_slow)), width - 1)
    return ((torch.arange(width // 2) - low) / (high - low)).clamp(0, 1)""",
            "2 pi radians",
        ),
        (
            RAMP
            + """turns = original * base ** (-2 * torch.arange(width // 2) / width) / (2 * math.pi)
    return 1 - ((turns - beta_slow) / (beta_fast - beta_slow)).clamp(0, 1)""",
            "linear in the number of turns",
        ),
        (
            RAMP
            + """at = lambda turns: width * math.log(original / (2 * math.pi * turns)) / (2 * math.log(base))
    low, high = at(beta_fast), at(beta_slow)
    return ((torch.arange(width // 2) - low) / (high - low)).clamp(0, 1)""",
            "not whole numbers",
        ),
        (
            RAMP
            + """at = lambda turns: round(width * math.log(original / (2 * math.pi * turns)) / (2 * math.log(base)))
    low, high = at(beta_fast), at(beta_slow)
    return ((torch.arange(width // 2) - low) / (high - low)).clamp(0, 1)""",
            "your ramp has nan or inf",
        ),
        (
            RAMP
            + """at = lambda turns: width * math.log(original / (2 * math.pi * turns)) / (2 * math.log(base))
    low, high = math.ceil(at(beta_fast)), math.floor(at(beta_slow))
    return ((torch.arange(width // 2) - low) / (high - low)).clamp(0, 1)""",
            "0 up to pair 10, 1 from pair 23",
        ),
        (
            RAMP + ENDS + "return ((pair - low) / (min(high, width // 2 - 1) - low)).clamp(0, 1)",
            "ramp ends at R/2 - 1",
        ),
        (
            RAMP
            + """at = lambda turns: width * math.log(original / (2 * math.pi * turns)) / (2 * math.log(base))
    low, high = max(math.floor(at(beta_fast)), 0), math.ceil(at(beta_slow))
    return ((torch.arange(width // 2) - low) / (high - low)).clamp(0, 1)""",
            "may end",
        ),
    ],
}

ALSO_RIGHT = {
    "check_absorbed": [
        ABSORBED
        + """answers = []
    for head in range(len(q)):
        query = w_k[head].T @ q[head]  # (C,)
        weights = torch.softmax(latents @ query * scale, dim=0)  # (S,)
        answers.append(w_v[head] @ (weights @ latents))
    return torch.stack(answers)""",
        ABSORBED
        + """packed = (q[:, None] @ w_k)[:, 0] * scale
    logits = packed @ latents.T
    p = (logits - logits.amax(dim=1, keepdim=True)).exp()
    p = p / p.sum(dim=1, keepdim=True)
    return (w_v @ (p @ latents)[..., None]).squeeze(-1)""",
        ABSORBED
        + """q, w_k, w_v, latents = (t.double() for t in (q, w_k, w_v, latents))
    p = torch.einsum("hn,hnc,sc->hs", q, w_k, latents).mul(scale).softmax(1)
    return torch.einsum("hvc,hc->hv", w_v, torch.einsum("hs,sc->hc", p, latents))""",
        ABSORBED
        + """packed = (q[:, :, None] * w_k).sum(dim=1)  # (H, C)
    p = ((packed[:, None] * latents).sum(dim=-1) * scale).softmax(dim=-1)
    mixed = (p[..., None] * latents).sum(dim=1)  # (H, C)
    return (w_v * mixed[:, None]).sum(dim=-1)""",
    ],
    "check_cache_bytes": [
        BYTES + 'return tokens * config.n_layers * bytes_each * (config.cached_per_token if form == "latent" '
        "else config.n_heads * (config.qk_head_dim + config.v_head_dim))",
        BYTES
        + """total = 0
    for layer in range(config.n_layers):
        if form == "latent":
            total += config.kv_lora_rank + config.qk_rope_head_dim
        else:
            for head in range(config.n_heads):
                total += config.qk_nope_head_dim + config.qk_rope_head_dim + config.v_head_dim
    return total * tokens * bytes_each""",
        BYTES + COUNT + """return float({"latent": c + r, "expanded": heads * (n + r) + heads * v}[form] * times)""",
    ],
    "check_yarn_ramp": [
        RAMP + ENDS + "return torch.clip((pair.double() - low) / (high - low), 0, 1)",
        RAMP
        + """ends = []
    for turns, rounded in ((beta_fast, math.floor), (beta_slow, math.ceil)):
        ends.append(rounded(width / 2 * math.log(original / (2 * math.pi * turns), base)))
    low, high = max(ends[0], 0), min(ends[1], width - 1)
    found = torch.zeros(width // 2)
    for i in range(width // 2):
        found[i] = 0.0 if i <= low else 1.0 if i >= high else (i - low) / (high - low)
    return found""",
        RAMP
        + """ends = torch.tensor([beta_fast, beta_slow])
    ends = width * torch.log(original / (2 * torch.pi * ends)) / (2 * math.log(base))
    low, high = ends[0].floor().clamp(min=0), ends[1].ceil().clamp(max=width - 1)
    return torch.minimum(torch.maximum((torch.arange(width // 2) - low) / (high - low), torch.tensor(0.0)),
                         torch.tensor(1.0))""",
    ],
}
