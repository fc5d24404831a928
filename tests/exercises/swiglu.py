"""Typical wrong answers of chapter 4 and the words that must meet them."""

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
    value, gate = x @ w_up[0].T, x @ w_up[1].T
    return value * F.silu(gate)""",
            "the shape must be (5, 4), yours is (5, 3)",
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
    ],
    "check_swiglu_gradient": [
        (
            """def swiglu_gradient(value, gate, upstream):
    return upstream * F.silu(gate), upstream * value * torch.sigmoid(gate)""",
            "forgets that the sigmoid moves too",
        ),
        (
            """def swiglu_gradient(value, gate, upstream):
    s = torch.sigmoid(gate)
    return upstream * F.silu(gate), upstream * value * s * (1 - s)""",
            "that is the slope of the sigmoid",
        ),
        (
            """def swiglu_gradient(value, gate, upstream):
    s = torch.sigmoid(gate)
    return upstream * F.silu(gate), upstream * s * (1 + gate * (1 - s))""",
            "the factor value is missing",
        ),
        (
            """def swiglu_gradient(value, gate, upstream):
    s = torch.sigmoid(gate)
    return F.silu(gate), value * s * (1 + gate * (1 - s))""",
            "the upstream gradient is missing",
        ),
        (
            """def swiglu_gradient(value, gate, upstream):
    s = torch.sigmoid(gate)
    return upstream * value * s * (1 + gate * (1 - s)), upstream * F.silu(gate)""",
            "in the wrong order",
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
    ],
}
