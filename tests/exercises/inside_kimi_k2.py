"""Answers to the exercises of 09_inside_kimi_k2: wrong ones, each with words of the message that names its mistake, and
right ones that were written another way."""


def _rows(place: str, n: str = "(end - first) * row", view: str = "view(end - first, *entry['shape'][1:])") -> str:
    return f"""def read_rows(file, entry, data_start, first, end):
    dtype = DTYPES[entry["dtype"]]
    row = math.prod(entry["shape"][1:]) * dtype.itemsize
    begin = entry["data_offsets"][0]
    file.seek({place})
    return torch.frombuffer(bytearray(file.read({n})), dtype=dtype).{view}"""


def _back(body: str) -> str:
    return f"def dequantise(eight, factors, block):\n    n, m = eight.shape\n    return {body}"


def _chosen(
    experts: str = "chosen.unique().tolist()", weight: str = "weights[token, slot, None]", up: str = "0",
    gate: str = "1", add: str = "+=",
) -> str:  # fmt: skip
    return f"""def run_chosen(x, weights, chosen, read_expert):
    y = torch.zeros_like(x)
    for e in {experts}:
        w_up, w_down = read_expert(e)
        token, slot = (chosen == e).nonzero(as_tuple=True)
        hidden = (x[token] @ w_up[{up}].T) * torch.nn.functional.silu(x[token] @ w_up[{gate}].T)
        y[token] {add} {weight} * (hidden @ w_down.T)
    return y"""


def _number(body: str) -> str:
    return f"def effective_number(load):\n    p = load / load.sum()\n    return {body}"


SPREAD = "factors.repeat_interleave(block, 0).repeat_interleave(block, 1)"

WRONG = {
    "check_read_rows": [
        (_rows("begin + first * row"), "add data_start"),
        (_rows("data_start + first * row"), "its own data_offsets[0]"),
        (_rows("data_start + begin"), "you return its first rows"),
        (_rows("data_start + begin + first * row", view="view(-1)"), "they must be rows again"),
        (_rows("data_start + begin", "end * row", "view(end, *entry['shape'][1:])[first:]"), "seek to the first row"),
        (_rows("data_start + begin + first * row", "end * row", "view(-1, *entry['shape'][1:])"), "end - first"),
        (_rows("data_start + begin + first * row", "(end - first) * row // dtype.itemsize",
               "view(-1, *entry['shape'][1:])"), "dtype.itemsize bytes"),
        (
            _rows("data_start + begin + first * row").replace('DTYPES[entry["dtype"]]', "torch.bfloat16"),
            "the dtype must be",
        ),
    ],
    "check_dequantise": [
        (_back("eight.float()"), "without their factors"),
        (_back(f"eight.float() / {SPREAD}[:n, :m]"), "the way there"),
        (_back("eight.float() * factors.repeat(block, block)[:n, :m]"), "whole copies side by side"),
        (_back("eight.float() * factors[0, 0]"), "a factor of its own"),
        (_back(f"eight.float() * {SPREAD}"), "blocks at the edge are cut"),
        (_back(f"(eight.float() * {SPREAD}[:n, :m]).bfloat16()"), "must be fp32"),
    ],
    "check_run_chosen": [
        (_chosen(up="1", gate="0"), "exchanged"),
        (_chosen(weight="1"), "the token's weight for it"),
        (_chosen(weight="weights[token, :1]"), "not of the first"),
        (_chosen("range(6)"), "which no token has chosen"),
        (
            """def run_chosen(x, weights, chosen, read_expert):
    y = torch.zeros_like(x)
    for n in range(len(x)):
        for k in range(chosen.shape[1]):
            w_up, w_down = read_expert(chosen[n, k].item())
            hidden = (w_up[0] @ x[n]) * torch.nn.functional.silu(w_up[1] @ x[n])
            y[n] += weights[n, k] * (w_down @ hidden)
    return y""",
            "read it once, for all its tokens",
        ),
        (
            """def run_chosen(x, weights, chosen, read_expert):
    y = torch.zeros_like(x)
    read = {e: read_expert(e) for e in chosen.unique().tolist()}
    for n in range(len(x)):
        for k in range(chosen.shape[1]):
            w_up, w_down = read[chosen[n, k].item()]
            hidden = (w_up[0] @ x[n]) * torch.nn.functional.silu(w_up[1] @ x[n])
            y[n] = weights[n, k] * (w_down @ hidden)
    return y""",
            "only a token's last expert",
        ),
        (_chosen().replace("y = torch.zeros_like(x)", "y = x"), "changes x"),
    ],
    "check_effective_number": [
        (_number("-torch.xlogy(p, p).sum()"), "that is the entropy"),
        (_number("torch.xlogy(p, p).sum().exp()"), "the sign"),
        (_number("2 ** -torch.xlogy(p, p).sum()"), "2 to the power"),
        (_number("torch.exp(-(p * p.log()).sum())"), "you get nan"),
        (_number("1 / (p * p).sum()"), "another measure"),
        (_number("(p > 0).sum()"), "that have any token"),
        (_number("torch.exp(-(p * p.log()).mean())"), "are the shares of sum 1"),
    ],
}  # fmt: skip

ALSO_RIGHT = {
    "check_read_rows": [
        """def read_rows(file, entry, data_start, first, end):
    begin, stop = entry["data_offsets"]
    row = (stop - begin) // entry["shape"][0]
    file.seek(data_start + begin + row * first)
    raw = torch.tensor(list(file.read(row * (end - first))), dtype=torch.uint8)
    shape = [end - first, *entry["shape"][1:]]
    return raw.view(DTYPES[entry["dtype"]]).reshape(shape)""",
        """def read_rows(file, entry, data_start, first, end):
    dtype = DTYPES[entry["dtype"]]
    out = torch.empty(end - first, *entry["shape"][1:], dtype=dtype)
    row = dtype.itemsize
    for n in entry["shape"][1:]:
        row *= n
    for i in range(first, end):
        file.seek(data_start + entry["data_offsets"][0] + i * row, 0)
        out[i - first] = torch.frombuffer(bytearray(file.read(row)), dtype=dtype).view(out.shape[1:])
    return out""",
        _rows("begin + data_start + row * first", view="reshape([-1] + entry['shape'][1:])"),
    ],
    "check_dequantise": [
        """def dequantise(eight, factors, block):
    matrix = eight.float()
    for i in range(factors.shape[0]):
        for j in range(factors.shape[1]):
            matrix[i * block : (i + 1) * block, j * block : (j + 1) * block] *= factors[i, j]
    return matrix""",
        """def dequantise(eight, factors, block):
    n, m = eight.shape
    rows, columns = torch.arange(n) // block, torch.arange(m) // block
    return eight.to(torch.float32) * factors[rows][:, columns]""",
        _back("eight.float() * torch.kron(factors, torch.ones(block, block))[:n, :m]"),
    ],
    "check_run_chosen": [
        """def run_chosen(x, weights, chosen, read_expert):
    experts = {e: read_expert(e) for e in set(chosen.flatten().tolist())}
    rows = []
    for n in range(len(x)):
        total = 0
        for w, e in zip(weights[n], chosen[n].tolist()):
            up, down = experts[e]
            value, gate = up @ x[n]
            total = total + w * (down @ (value * gate * gate.sigmoid()))
        rows.append(total)
    return torch.stack(rows)""",
        """def run_chosen(x, weights, chosen, read_expert):
    y = torch.zeros_like(x)
    for e in chosen.unique():
        w_up, w_down = read_expert(e.item())
        share = (weights * (chosen == e)).sum(dim=1, keepdim=True)
        value, gate = torch.einsum("ifd,nd->inf", w_up, x)
        y = y + share * torch.einsum("df,nf->nd", w_down, value * torch.nn.functional.silu(gate))
    return y""",
        """def run_chosen(x, weights, chosen, read_expert):
    y = torch.zeros_like(x)
    for e in sorted(set(chosen.flatten().tolist())):
        w_up, w_down = read_expert(e)
        token = (chosen == e).any(dim=1).nonzero().flatten()
        w = torch.where(chosen[token] == e, weights[token], 0).sum(-1, keepdim=True)
        value, gate = (x[token] @ w_up.flatten(0, 1).mT).chunk(2, dim=-1)
        y.index_add_(0, token, w * (torch.nn.functional.silu(gate) * value @ w_down.mT))
    return y""",
    ],
    "check_effective_number": [
        _number("torch.exp(-torch.xlogy(p, p).sum())"),
        """def effective_number(load):
    total, entropy = float(sum(load)), 0.0
    for n in load.tolist():
        if n:
            entropy -= n / total * math.log(n / total)
    return math.exp(entropy)""",
        _number("torch.distributions.Categorical(probs=p.double()).entropy().exp()"),
        "def effective_number(load):\n    return torch.special.entr(load / load.sum()).sum().exp().item()",
    ],
}  # fmt: skip
