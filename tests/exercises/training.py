"""Typical wrong answers to the exercises of 06_training, each with words of the message that names its mistake."""


def _trapezoid(up: str, down: str, ceiling: str = "1.0, ") -> str:
    return f"def trapezoid(step, steps, peak, warmup, decay):\n    return peak * min({ceiling}{up}, {down})"


UP, DOWN = "(step + 1) / warmup", "(steps - 1 - step) / decay"


def _accumulate(body: str, end: str) -> str:
    return f"""def accumulate(loss_of, parts):
    total, n = 0.0, sum(len(x) for x, _ in parts)
    for x, y in parts:
        {body}
    return {end}"""


_CLEARED = """def accumulate(loss_of, parts):
    total, n = 0.0, sum(len(x) for x, _ in parts)
    for x, y in parts:
        loss = loss_of(x, y) * len(x) / n
        gradients = torch.autograd.grad(loss, leaf_of(loss))
        leaf_of(loss).grad = gradients[0]
        total += loss.item()
    return total


def leaf_of(loss):
    node = loss.grad_fn
    while not hasattr(node, "variable"):
        node = next(f for f, _ in node.next_functions if f is not None)
    return node.variable"""
WEIGHED = "loss = loss_of(x, y) * len(x) / n; loss.backward(); total += "


def _plan(formula: str) -> str:
    return f"def plan_minutes(active, looked_up, tokens, peak, share):\n    return {formula}"


def _share(formula: str) -> str:
    return f"def right_share(her, his):\n    return {formula}"


WRONG = {
    "check_trapezoid": [
        (_trapezoid("step / warmup", DOWN), "step 0 has rate 0"),
        (_trapezoid(UP, DOWN, ceiling=""), "a ceiling is missing"),
        (_trapezoid(UP, "(steps - 5 - step) / decay"), "below 0"),
        (_trapezoid("(step + 1) / (warmup + 1)", DOWN), "not by warmup + 1"),
        (_trapezoid(UP, "(steps - 1 - step) / (steps - warmup)"), "not begin where the warm-up ends"),
        (_trapezoid(UP, "(steps - step) / decay"), "steps - 1 - step are left"),
        (_trapezoid(UP, f"({DOWN}) ** 2 if {DOWN} < 1 else 1.0"), "equal steps"),
    ],
    "check_accumulate": [
        (
            _accumulate("loss = loss_of(x, y); loss.backward(); total += loss.item() / len(parts)", "total"),
            "three times",
        ),
        (_CLEARED, "only the last piece is left"),
        (
            _accumulate("loss = loss_of(x, y) / len(parts); loss.backward(); total += loss.item()", "total"),
            "as the six",
        ),
        (_accumulate("total += loss_of(x, y).item() * len(x) / n", "total"), "no gradients"),
        (_accumulate(WEIGHED + "loss", "total"), "keeps its graph"),
        (_accumulate(WEIGHED + "loss_of(x, y).item()", "total"), "the sum of the pieces' means"),
        (_accumulate(WEIGHED + "loss_of(x, y).item() / len(parts)", "total"), "the mean of means"),
        (_accumulate(WEIGHED + "loss_of(x, y).item() * len(x) / n", "total"), "was called 6 times"),
    ],
    "check_plan_minutes": [
        (_plan("6 * (active - looked_up) * tokens / (peak * share)"), "those are seconds"),
        (_plan("6 * (active - looked_up) * tokens / (peak * share) / 3600"), "those are hours"),
        (_plan("2 * (active - looked_up) * tokens / (peak * share) / 60"), "the forward pass alone"),
        (_plan("6 * active * tokens / (peak * share) / 60"), "looked up, not multiplied"),
        (_plan("6 * (active - looked_up) * tokens / peak / 60"), "data sheet"),
        (_plan("6 * (active - looked_up) * tokens / peak * share / 60"), "twice the time"),
    ],
    "check_right_share": [
        (
            _share("max(her['Lily'] / (her['Lily'] + his['Lily']), her['Tom'] / (her['Tom'] + his['Tom']))"),
            "always says",
        ),
        (
            _share("(his['Lily'] / (her['Lily'] + his['Lily']) + her['Tom'] / (her['Tom'] + his['Tom'])) / 2"),
            "wrong word",
        ),
        (_share("(her['Lily'] + his['Tom']) / 2"), "divide by p(her) + p(his)"),
        (_share("((her['Lily'] > his['Lily']) + (his['Tom'] > her['Tom'])) / 2"), "which word leads"),
        (_share("her['Lily'] / (her['Lily'] + his['Lily']) + his['Tom'] / (her['Tom'] + his['Tom'])"), "passes 1"),
        (_share("(her['Lily'] + his['Tom']) / sum([*her.values(), *his.values()])"), "drowns the other"),
    ],
}
