"""Typical wrong answers of chapter 4 and the words that must meet them, and right ones unlike our solutions."""

GRADIENT = """def gated_layer_gradient(x, w_up, w_down, upstream):
    value, gate = x @ w_up[0].T, x @ w_up[1].T
    s = torch.sigmoid(gate)
    hidden = value * gate * s
    grad_hidden = upstream @ w_down
    grad_value = {value}
    grad_gate = {gate}
    grad_x = {x}
    return {result}"""
RIGHT = {
    "value": "grad_hidden * gate * s",
    "gate": "grad_hidden * value * s * (1 + gate * (1 - s))",
    "x": "grad_value @ w_up[0] + grad_gate @ w_up[1]",
    "result": "grad_x, torch.stack([grad_value.T @ x, grad_gate.T @ x]), upstream.T @ hidden",
}

WRONG = {
    "check_gated_layer": [
        (
            """def gated_layer(x, w_up, w_down):
    return (F.silu(x @ w_up[0].T) * (x @ w_up[1].T)) @ w_down.T""",
            "SiLU sits on the value",
        ),
        (
            """def gated_layer(x, w_up, w_down):
    value, gate = x @ w_up[0].T, x @ w_up[1].T
    return (value * torch.sigmoid(gate)) @ w_down.T""",
            "the gate gets the sigmoid alone",
        ),
        (
            """def gated_layer(x, w_up, w_down):
    value, gate = x @ w_up[0].T, x @ w_up[1].T
    return (value + F.silu(gate)) @ w_down.T""",
            "A gate multiplies",
        ),
        (
            """def gated_layer(x, w_up, w_down):
    both = F.silu(x @ w_up.flatten(0, 1).T)
    value, gate = both.chunk(2, dim=-1)
    return (value * gate) @ w_down.T""",
            "SiLU sits on both halves",
        ),
        (
            """def gated_layer(x, w_up, w_down):
    return F.silu((x @ w_up[0].T) * (x @ w_up[1].T)) @ w_down.T""",
            "SiLU sits around the product",
        ),
        (
            """def gated_layer(x, w_up, w_down):
    value, gate = x @ w_up[0].T, x @ w_up[1].T
    return value * F.silu(gate)""",
            "the shape must be (5, 4), yours is (5, 3)",
        ),
        (
            """def gated_layer(x, w_up, w_down):
    value, gate = (x.detach() @ w.detach().T for w in w_up)
    return ((value * F.silu(gate)) @ w_down.detach().T)""",
            "no gradient passes through",
        ),
        (
            """def gated_layer(x, w_up, w_down):
    result = torch.zeros_like(x)
    result += (x @ w_up[0].T * F.silu(x @ w_up[1].T)) @ w_down.T
    return result""",
            "the shape must be (5, 1), yours is (5, 4)",
        ),
    ],
    "check_matched_width": [
        ("""def matched_width(d_ff, multiple=1):\n    return 3 * d_ff // 2 // multiple * multiple""", "upside down"),
        ("""def matched_width(d_ff, multiple=1):\n    return d_ff // 2 // multiple * multiple""", "forgets w_down"),
        ("""def matched_width(d_ff, multiple=1):\n    return 2 * d_ff // 3""", "no multiple of 64"),
        ("""def matched_width(d_ff, multiple=1):\n    return 2 * d_ff / 3""", "take // instead of /"),
        (
            """def matched_width(d_ff, multiple=1):\n    return -(-2 * d_ff // (3 * multiple)) * multiple""",
            "Round down",
        ),
        ("""def matched_width(d_ff, multiple=1):\n    return d_ff""", "half as large again"),
        (
            """def matched_width(d_ff, multiple=1):
    return (2 * d_ff // 3 // multiple - (d_ff > 200)) * multiple""",
            "fits as well",
        ),
    ],
    "check_gated_layer_gradient": [
        (
            """def gated_layer_gradient(x, w_up, w_down, upstream):
    leaves = [t.clone().requires_grad_() for t in (x, w_up, w_down)]
    value, gate = leaves[0] @ leaves[1][0].T, leaves[0] @ leaves[1][1].T
    y = (value * F.silu(gate)) @ leaves[2].T
    return torch.autograd.grad(y, leaves, upstream)""",
            "it seems to call torch.autograd",
        ),
        (
            GRADIENT.format(**RIGHT | {"gate": "grad_hidden * value * s"}),
            "forgets that the sigmoid moves too",
        ),
        (
            GRADIENT.format(**RIGHT | {"gate": "grad_hidden * value * s * (1 - s)"}),
            "that is the slope of the sigmoid",
        ),
        (
            GRADIENT.format(**RIGHT | {"gate": "grad_hidden * s * (1 + gate * (1 - s))"}),
            "the factor value is missing",
        ),
        (GRADIENT.format(**RIGHT | {"value": "grad_hidden * s"}), "not sigmoid(gate)"),
        (GRADIENT.format(**RIGHT | {"x": "grad_value @ w_up[0]"}), "x goes two ways"),
        (
            GRADIENT.format(**RIGHT | {"result": "grad_x, torch.stack([grad_gate.T @ x, grad_value.T @ x]), "
                                                 "upstream.T @ hidden"}),
            "have traded places",
        ),
        (
            GRADIENT.format(**RIGHT | {"result": "grad_x, torch.stack([grad_value.T @ x, grad_gate.T @ x]), "
                                                 "upstream.T @ value"}),
            "not the value alone",
        ),
        (
            GRADIENT.format(**RIGHT | {"result": "grad_x, torch.stack([grad_value.T @ x, grad_gate.T @ x]), "
                                                 "upstream.T @ hidden / len(x)"}),
            "is the mean over the words",
        ),
        (
            GRADIENT.format(**RIGHT | {"result": "grad_x, torch.stack([grad_value.T @ x, grad_gate.T @ x]), "
                                                 "hidden.T @ upstream"}),
            "grad_w_down must have the shape",
        ),
    ],
    "check_gate_half": [
        (
            """def gate_half(layer, width):
    x = torch.zeros(1, 2 * width)
    x[:, :width] = 1.0
    return "first" if layer(x).abs().max() == 0 else "second\"""",
            'you say "first" for both layers',
        ),
        (
            """def gate_half(layer, width):
    torch.manual_seed(0)
    half = torch.randn(1, width)
    x = torch.cat([half, half], dim=-1)
    value, gate = x.chunk(2, dim=-1)
    return "second" if torch.allclose(layer(x), value * F.silu(gate)) else "first\"""",
            'you say "second" for both layers',
        ),
        (
            """def gate_half(layer, width):
    x = torch.ones(1, 2 * width)
    doubled = x.clone()
    doubled[:, :width] *= 2
    return "first" if torch.allclose(layer(doubled), 2 * layer(x)) else "second\"""",
            "both answers are upside down",
        ),
        ("""def gate_half(layer, width):\n    return 2""", 'must be "first" or "second", yours is 2'),
    ],
}  # fmt: skip

ALSO_RIGHT = {
    "check_gated_layer": [
        """def gated_layer(x, w_up, w_down):
    both = F.linear(x, w_up.flatten(0, 1))
    value, gate = both.chunk(2, dim=-1)
    return F.linear(value * gate * gate.sigmoid(), w_down)""",
        """def gated_layer(x, w_up, w_down):
    value, gate = torch.einsum("nd,kfd->knf", x, w_up)
    return torch.einsum("nf,mf->nm", value * F.silu(gate), w_down)""",
        """def gated_layer(x, w_up, w_down):
    total = 0
    for unit in range(w_down.shape[1]):
        value, gate = x @ w_up[0, unit], x @ w_up[1, unit]
        total = total + torch.outer(value * gate / (1 + torch.exp(-gate)), w_down[:, unit])
    return total""",
        """def gated_layer(x, w_up, w_down):
    x, w_up, w_down = x.double(), w_up.double(), w_down.double()
    return ((x @ w_up[0].T) * F.silu(x @ w_up[1].T)) @ w_down.T""",
        """def gated_layer(x, w_up, w_down):
    rows = []
    for word in x:
        value, gate = w_up[0] @ word, w_up[1] @ word
        rows.append(w_down @ (value * F.silu(gate)))
    return torch.stack(rows)""",
    ],
    "check_matched_width": [
        """def matched_width(d_ff, multiple=1):
    width = 0
    while 3 * (width + multiple) <= 2 * d_ff:
        width += multiple
    return width""",
        """def matched_width(d_ff, multiple=1):
    return int(2 * d_ff / 3 / multiple + 1e-9) * multiple""",
        """def matched_width(d_ff, multiple=1):
    most = 2 * d_ff // 3
    return most - most % multiple""",
        """def matched_width(d_ff, multiple=1):
    return max(w for w in range(0, d_ff, multiple) if 3 * w <= 2 * d_ff)""",
        """def matched_width(d_ff, multiple=1):
    return torch.tensor(2 * d_ff) // (3 * multiple) * multiple""",
    ],
    "check_gated_layer_gradient": [
        """def gated_layer_gradient(x, w_up, w_down, upstream):
    value, gate = torch.einsum("nd,kfd->knf", x, w_up)
    s = torch.sigmoid(gate)
    back = torch.einsum("nm,mf->nf", upstream, w_down)
    grads = torch.stack([back * F.silu(gate), back * value * (s + gate * s * (1 - s))])
    grad_up = torch.einsum("knf,nd->kfd", grads, x)
    grad_x = torch.einsum("knf,kfd->nd", grads, w_up)
    return grad_x, grad_up, torch.einsum("nm,nf->mf", upstream, value * F.silu(gate))""",
        """def gated_layer_gradient(x, w_up, w_down, upstream):
    grad_x, grad_up, grad_down = torch.zeros_like(x), torch.zeros_like(w_up), torch.zeros_like(w_down)
    for n in range(len(x)):
        for f in range(w_up.shape[1]):
            v, g = w_up[0, f] @ x[n], w_up[1, f] @ x[n]
            s = 1 / (1 + torch.exp(-g))
            grad_down[:, f] += upstream[n] * v * g * s
            h = upstream[n] @ w_down[:, f]
            grad_up[0, f] += h * g * s * x[n]
            grad_up[1, f] += h * v * s * (1 + g * (1 - s)) * x[n]
            grad_x[n] += h * g * s * w_up[0, f] + h * v * s * (1 + g * (1 - s)) * w_up[1, f]
    return grad_x, grad_up, grad_down""",
        """def gated_layer_gradient(x, w_up, w_down, upstream):
    x, w_up, w_down, upstream = (t.double() for t in (x, w_up, w_down, upstream))
    both = x @ w_up.flatten(0, 1).T
    value, gate = both.chunk(2, dim=-1)
    s = gate.sigmoid()
    slope = s * (1 + gate - gate * s)
    back = upstream @ w_down
    grad_both = torch.cat([back * gate * s, back * value * slope], dim=-1)
    grad_up = (grad_both.T @ x).view(w_up.shape)
    return [grad_both @ w_up.flatten(0, 1), grad_up, upstream.T @ (value * gate * s)]""",
    ],
    "check_gate_half": [
        """def gate_half(layer, width):
    x = torch.randn(8, 2 * width)
    tripled = torch.cat([x[:, :width], 3 * x[:, width:]], dim=1)
    return "first" if (layer(tripled) - 3 * layer(x)).abs().max() < 1e-3 else "second\"""",
        """def gate_half(layer, width):
    x = torch.ones(1, 2 * width)
    x[:, width:] = -3
    return "second" if layer(x)[0, 0].abs() < 1 else "first\"""",
        """def gate_half(layer, width):
    x = torch.rand(4, 2 * width) + 1
    x[:, :width] *= -1  # with the gate below 0 the result is small
    return "first" if (layer(x).abs() < 1).all() else "second\"""",
        """def gate_half(layer, width):
    left, right = torch.randn(6, width), torch.randn(6, width)
    ours = layer(torch.cat([left, right], dim=-1))
    return "second" if torch.allclose(ours, left * F.silu(right), atol=1e-6) else "first\"""",
    ],
}
