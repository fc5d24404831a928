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


def _clip(gamma: str, factors: str) -> str:
    return f"""def clip_heads(q_nope, q_rope, k_nope, k_rope, largest, tau):
    gamma = {gamma}
    gamma = gamma.expand(len(largest))[:, None, None]
    parts = zip((q_nope, q_rope, k_nope, k_rope), {factors})
    return tuple(part * factor for part, factor in parts)"""


GAMMA = "(tau / largest).clamp(max=1.0)"
RIGHT = "(gamma.sqrt(), gamma, gamma.sqrt(), 1.0)"
WRONG = {
    "check_newton_schulz_step": [
        (_step("a * x + b * x**3 + c * x**5"), "the directions turned"),
        (_step("a * x + b * gram @ x"), "the fifth power is missing"),
        (_step("a * x + b * gram @ x + c * gram @ x"), "it must be A @ A @ x"),
        (_step("a * x - b * gram @ x + c * gram @ gram @ x"), "b is negative already"),
        (_step("1.5 * x - 0.5 * gram @ x"), "the cubic of the textbook"),
        (_step("b * gram @ x + c * gram @ gram @ x"), "a * x is missing"),
        (_NORMALISED, "inside the step"),
    ],
    "check_muon_update": [
        (_update("max(n, m) ** 0.5"), "the target 0.2 is missing"),
        (_update("0.2 * min(n, m) ** 0.5"), "the smaller side"),
        (_update("0.2 * max(n, m)"), "the root is missing"),
        (_update("0.2 * (n * m) ** 0.5"), "n * m is for one direction"),
        (_update("max(1, n / m) ** 0.5"), "the first Muon"),
        (_update("0.2 / direction.square().mean().sqrt()"), "measured RMS"),
        (_update("0.2 * max(direction.shape[0], direction.shape[1]) ** 0.5"), "shape[-2:]"),
    ],
    "check_clip_heads": [
        (_clip(GAMMA, "(gamma.sqrt(), gamma.sqrt(), gamma.sqrt(), gamma.sqrt().mean())"), "shared by all heads"),
        (_clip(GAMMA, "(gamma.sqrt(), gamma.sqrt(), gamma.sqrt(), 1.0)"), "q_rope takes all of gamma"),
        (_clip("tau / largest", RIGHT), "yet it grew"),
        (_clip("tau / largest.max()", RIGHT), "one value for each head"),
        (_clip(GAMMA, "(gamma, gamma, gamma, 1.0)"), "gamma squared"),
        (_clip(GAMMA, "(gamma.sqrt(), 1.0, gamma.sqrt(), 1.0)"), "q_rope is untouched"),
        (_clip(GAMMA, "(gamma, gamma, 1.0, 1.0)"), "one side carries it all"),
    ],
}
