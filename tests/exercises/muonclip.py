"""Typical wrong answers to the exercises of 05_muonclip, each with words of the message that names its mistake."""


def _step(body: str) -> str:
    return f"def newton_schulz_step(x):\n    a, b, c = NEWTON_SCHULZ\n    gram = x @ x.mT\n    return {body}"


_NORMALISED = """def newton_schulz_step(x):
    a, b, c = NEWTON_SCHULZ
    x = x / x.norm()
    gram = x @ x.mT
    return a * x + (b * gram + c * gram @ gram) @ x"""


def _update(factor: str) -> str:
    return f"def muon_update(direction):\n    n, m = direction.shape[-2:]\n    return {factor} * direction"


def _muon(momentum: str, ahead: str, weight: str) -> str:
    return f"""def muon_step(weight, gradient, momentum, update_of, lr, mu, weight_decay, nesterov):
    new = {momentum}
    ahead = {ahead}
    return {weight}, new"""


def _plain(gamma: str, factors: str) -> str:
    return f"""def clip_heads(w_q, w_k, largest, tau):
    gamma = {gamma}
    gamma = gamma.expand(len(largest))[:, None, None]
    return tuple(part * factor for part, factor in zip((w_q, w_k), {factors}))"""


def _latent(gamma: str, factors: str) -> str:
    return f"""def clip_latent_heads(q_nope, q_rope, k_nope, k_rope, largest, tau):
    gamma = {gamma}
    gamma = gamma.expand(len(largest))[:, None, None]
    parts = zip((q_nope, q_rope, k_nope, k_rope), {factors})
    return tuple(part * factor for part, factor in parts)"""


GAMMA = "torch.where(largest > tau, tau / largest, 1.0)"
M = "mu * momentum + gradient"
AHEAD = "gradient + mu * new if nesterov else new"
W = "(1 - lr * weight_decay) * weight - lr * update_of(ahead)"
HALVES = "(gamma.sqrt(), gamma.sqrt())"
FACTORS = "(gamma.sqrt(), gamma, gamma.sqrt(), 1.0)"
WRONG = {
    "check_newton_schulz_step": [
        (_step("a * x + b * x**3 + c * x**5"), "the directions turned"),
        (_step("a * x + b * gram @ x"), "the fifth power is missing"),
        (_step("a * x + b * gram @ x + c * gram @ x"), "it must be A @ A @ x"),
        (_step("a * x - b * gram @ x + c * gram @ gram @ x"), "b is negative already"),
        (_step("1.5 * x - 0.5 * gram @ x"), "the cubic of the textbook"),
        (_step("b * gram @ x + c * gram @ gram @ x"), "a * x is missing"),
        (_step("a * x + (b * gram + c * gram @ gram) @ (2 * x)"), "the value 0.3 must become"),
        (_NORMALISED, "inside the step"),
    ],
    "check_muon_update": [
        (_update("max(n, m) ** 0.5"), "the target 0.2 is missing"),
        (_update("0.2 * min(n, m) ** 0.5"), "the smaller side"),
        (_update("0.2 / max(n, m) ** 0.5"), "multiply by the root"),
        (_update("0.2 * max(n, m)"), "the root is missing"),
        (_update("0.2 * (n * m) ** 0.5"), "n * m is for one direction"),
        (_update("max(1, n / m) ** 0.5"), "the first Muon"),
        (_update("0.2 / direction.square().mean().sqrt()"), "measured RMS"),
        (_update("0.2 * max(direction.shape[0], direction.shape[1]) ** 0.5"), "shape[-2:]"),
        (_update("1.0"), "nothing was scaled"),
    ],
    "check_muon_step": [
        (_muon("mu * momentum + (1 - mu) * gradient", AHEAD, W), "that is an average"),
        (_muon("mu * momentum + update_of(gradient)", "new", W), "orthogonalise last"),
        (_muon("mu * momentum + gradient + weight_decay * weight", AHEAD, W), "the decay is in the gradient"),
        (_muon(M, AHEAD, "weight - lr * update_of(ahead)"), "decay is missing"),
        (_muon(M, AHEAD, W.replace("- lr * u", "+ lr * u")), "minus, not plus"),
        (_muon(M, AHEAD, W.replace("- lr * u", "- u")), "by the learning rate"),
        (_muon(M, AHEAD, W.replace("update_of(ahead)", "ahead")), "call update_of"),
        (_muon(M, "momentum", W), "the old momentum"),
        (_muon(M, "gradient", W), "without momentum"),
        (_muon(M, AHEAD, W.replace("1 - lr * ", "1 - ")), "the decay must be multiplied"),
        (_muon(M, "gradient + mu * momentum if nesterov else new", W), "the M of this step"),
        (_muon(M, "gradient + mu * new", W), "without nesterov"),
        (_muon(M, AHEAD, f"{W} * 2"), "the weight is off"),
        (_muon(M, AHEAD, W).replace(", new", ", ahead"), "only update_of gets"),
    ],
    "check_clip_heads": [
        (_plain("(tau / largest).clamp(0.0, 1.0)", HALVES), "wipes it out"),
        (_plain("tau / largest", HALVES), "yet it grew"),
        (_plain("(tau / largest).clamp(max=1.0)", HALVES), "has a largest logit of -5"),
        (_plain("tau / largest.max()", HALVES), "all heads shrink alike"),
        (_plain(GAMMA, "(gamma, gamma)"), "gamma squared"),
        (_plain(GAMMA, "(gamma.sqrt(), 1.0)"), "only half is done"),
        (_plain(GAMMA, "(gamma, 1.0)"), "one side carries it all"),
        (_plain("torch.ones(4)", HALVES), "no head has changed"),
    ],
    "check_clip_latent_heads": [
        (_latent(GAMMA, "(gamma.sqrt(), gamma.sqrt(), gamma.sqrt(), gamma.sqrt().mean())"), "shared by all heads"),
        (_latent(GAMMA, "(gamma.sqrt(), gamma.sqrt(), gamma.sqrt(), 1.0)"), "q_rope takes all of gamma"),
        (_latent("tau / largest", FACTORS), "yet it grew"),
        (_latent("(tau / largest).clamp(max=1.0)", FACTORS), "has a largest logit of -5"),
        (_latent("tau / largest.max()", FACTORS), "all heads shrink alike"),
        (_latent(GAMMA, "(gamma, gamma, gamma, 1.0)"), "gamma squared"),
        (_latent(GAMMA, "(gamma.sqrt(), 1.0, gamma.sqrt(), 1.0)"), "q_rope is untouched"),
        (_latent(GAMMA, "(gamma, gamma, 1.0, 1.0)"), "one side carries it all"),
    ],
}
ALSO_RIGHT = {
    "check_newton_schulz_step": [
        """def newton_schulz_step(x):
    u, s, vt = torch.linalg.svd(x, full_matrices=False)
    return u @ torch.diag(3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5) @ vt""",
        """def newton_schulz_step(x):
    a, b, c = NEWTON_SCHULZ
    right = x.mT @ x
    return a * x + b * x @ right + c * x @ right @ right""",
        """def newton_schulz_step(x):
    a, b, c = NEWTON_SCHULZ
    x = x.float()
    cubed = torch.einsum("ij,kj,kl->il", x, x, x)
    return a * x + b * cubed + c * torch.einsum("ij,kj,kl->il", x, x, cubed)""",
        """def newton_schulz_step(x):
    a, b, c = NEWTON_SCHULZ
    x = x.bfloat16()
    gram = x @ x.T
    return a * x + (b * gram + c * gram @ gram) @ x""",
    ],
    "check_muon_update": [
        """def muon_update(direction):
    rows, columns = direction.shape[-2:]
    return direction * 0.2 * torch.tensor(float(max(rows, columns))).sqrt()""",
        """def muon_update(direction):
    rms = max(direction.size(-1), direction.size(-2)) ** -0.5
    return 0.2 * direction / rms""",
        """def muon_update(direction):
    if direction.ndim > 2:
        return torch.stack([muon_update(matrix) for matrix in direction])
    larger = direction.shape[0] if direction.shape[0] > direction.shape[1] else direction.shape[1]
    return direction.float() * (0.04 * larger) ** 0.5""",
    ],
    "check_muon_step": [
        """def muon_step(weight, gradient, momentum, update_of, lr, mu, weight_decay, nesterov):
    momentum.mul_(mu).add_(gradient)
    update = update_of(torch.add(gradient, momentum, alpha=mu)) if nesterov else update_of(momentum)
    weight.mul_(1 - lr * weight_decay).sub_(lr * update)
    return weight, momentum""",
        """def muon_step(weight, gradient, momentum, update_of, lr, mu, weight_decay, nesterov):
    new = gradient.float() + mu * momentum.float()
    ahead = new
    if nesterov:
        ahead = gradient.float() + mu * new
    return [weight - lr * (update_of(ahead) + weight_decay * weight), new]""",
        """def muon_step(weight, gradient, momentum, update_of, lr, mu, weight_decay, nesterov):
    momentum = torch.stack([mu * m + g for m, g in zip(momentum, gradient)])
    ahead = mu * momentum + gradient if nesterov else momentum.clone()
    return torch.lerp(weight, torch.zeros_like(weight), lr * weight_decay) - update_of(ahead) * lr, momentum""",
    ],
    "check_clip_heads": [
        """def clip_heads(w_q, w_k, largest, tau):
    new_q, new_k = w_q.clone(), w_k.clone()
    for head, value in enumerate(largest.tolist()):
        if value > tau:
            new_q[head] *= (tau / value) ** 0.5
            new_k[head] *= (tau / value) ** 0.5
    return new_q, new_k""",
        """def clip_heads(w_q, w_k, largest, tau):
    root = torch.where(largest > tau, tau / largest, 1.0).sqrt()
    return torch.einsum("h,hdm->hdm", root, w_q), torch.einsum("h,hdm->hdm", root, w_k)""",
        """def clip_heads(w_q, w_k, largest, tau):
    root = (torch.clamp(largest, min=tau) / tau).float() ** -0.5
    for head in range(len(root)):
        w_q[head] = w_q[head] * root[head]
        w_k[head] = w_k[head] * root[head]
    return [w_q, w_k]""",
    ],
    "check_clip_latent_heads": [
        """def clip_latent_heads(q_nope, q_rope, k_nope, k_rope, largest, tau):
    for head in range(len(largest)):
        gamma = min(1.0, tau / largest[head].item()) if largest[head] > 0 else 1.0
        q_nope[head] *= math.sqrt(gamma)
        k_nope[head] *= math.sqrt(gamma)
        q_rope[head] *= gamma
    return q_nope, q_rope, k_nope, k_rope""",
        """def clip_latent_heads(q_nope, q_rope, k_nope, k_rope, largest, tau):
    gamma = torch.where(largest > tau, tau / largest, 1.0)
    q = torch.einsum("h,hnq->hnq", gamma.sqrt(), q_nope)
    return q, gamma.view(-1, 1, 1) * q_rope, gamma.view(-1, 1, 1) ** 0.5 * k_nope, k_rope""",
        """def clip_latent_heads(q_nope, q_rope, k_nope, k_rope, largest, tau):
    root = (tau / torch.maximum(largest, torch.full_like(largest, tau))).sqrt().reshape(-1, 1, 1)
    return [root * q_nope, root * root * q_rope, root * k_nope, k_rope.clone()]""",
    ],
}
