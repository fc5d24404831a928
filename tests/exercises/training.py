"""Answers to the exercises of 06_training: wrong ones, each with words of the message that names its mistake, and right
ones that were written another way."""


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


def _seconds(formula: str) -> str:
    return f"import math\ndef run_seconds(steps, every, step, look):\n    return {formula}"


def _share(formula: str) -> str:
    return f"def right_share(her, his):\n    return {formula}"


def _snapshot(take: str, put: str) -> str:
    indent = "\n        "
    return f"""import copy
class Snapshot:
    def __init__(self, model, optimizer, batches):
        {take.replace("; ", indent)}

    def restore(self, model, optimizer, batches):
        {put.replace("; ", indent)}"""


TAKE_MODEL = "self.model = copy.deepcopy(model.state_dict()); "
TAKE_OPTIMIZER = "self.optimizer = copy.deepcopy(optimizer.state_dict()); "
TAKE_CHANCE = "self.batches = batches.get_state(); self.random = torch.get_rng_state()"
PUT_MODEL, PUT_OPTIMIZER = "model.load_state_dict(self.model); ", "optimizer.load_state_dict(self.optimizer); "
PUT_CHANCE = "batches.set_state(self.batches); torch.set_rng_state(self.random)"
TAKE, PUT = TAKE_MODEL + TAKE_OPTIMIZER + TAKE_CHANCE, PUT_MODEL + PUT_OPTIMIZER + PUT_CHANCE
PARAMETERS = "self.model = {name: p.detach().clone() for name, p in model.named_parameters()}; "
NOT_STRICT = "model.load_state_dict(self.model, strict=False); "

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
        (
            "def accumulate(loss_of, parts):\n    loss = sum(loss_of(x, y) * len(x) for x, y in parts)\n"
            "    loss = loss / sum(len(x) for x, y in parts); loss.backward(); return loss.item()",
            "3 pieces are held at once",
        ),
    ],
    "check_run_seconds": [
        (_seconds("steps * step"), "the looks are missing"),
        (_seconds("(1 + math.ceil(steps / every)) * look"), "the steps are missing"),
        (_seconds("steps * step + steps // every * look"), "before the first step is missing"),
        (_seconds("steps * step + (2 + math.ceil(steps / every)) * look"), "not twice"),
        (_seconds("steps * (step + look)"), "after every step"),
        (_seconds("steps * step + (1 + steps // every) * look"), "is no multiple of 100"),
        (_seconds("steps * step + (1 + steps / every) * look"), "no half a look"),
    ],
    "check_snapshot": [
        (_snapshot("self.model = model.state_dict(); " + TAKE_OPTIMIZER + TAKE_CHANCE, PUT), "live tensors"),
        (_snapshot(TAKE, PUT_OPTIMIZER + PUT_CHANCE), "not those of the snapshot: model.state_dict()"),
        (_snapshot(PARAMETERS + TAKE_OPTIMIZER + TAKE_CHANCE, NOT_STRICT + PUT_OPTIMIZER + PUT_CHANCE), "the buffer"),
        (_snapshot(TAKE, PUT_MODEL + PUT_CHANCE), "it begins anew"),
        (_snapshot(TAKE_MODEL + "self.optimizer = optimizer.state_dict(); " + TAKE_CHANCE, PUT), "alive too"),
        (_snapshot(TAKE, PUT_MODEL + PUT_OPTIMIZER + "torch.set_rng_state(self.random)"), "set_state()"),
        (_snapshot(TAKE, PUT_MODEL + PUT_OPTIMIZER + "batches.set_state(self.batches)"), "dropout draws"),
        (_snapshot(TAKE + "; torch.rand(1)", PUT), "has drawn random numbers"),
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

ALSO_RIGHT = {
    "check_trapezoid": [
        """def trapezoid(step, steps, peak, warmup, decay):
    if step < warmup:
        return peak * (step + 1) / warmup
    left = steps - 1 - step
    if left < decay:
        return peak * left / decay
    return peak""",
        """def trapezoid(step, steps, peak, warmup, decay):
    s = torch.tensor(float(step), dtype=torch.float64)
    return peak * torch.minimum((s + 1) / warmup, (steps - 1 - s) / decay).clamp(max=1)""",
        """def trapezoid(step, steps, peak, warmup, decay):
    rising = [peak / warmup * (i + 1) for i in range(warmup)]
    falling = [peak / decay * i for i in reversed(range(decay))]
    return (rising + [peak] * (steps - warmup - decay) + falling)[step]""",
    ],
    "check_accumulate": [
        """def accumulate(loss_of, parts):
    sizes = torch.tensor([len(x) for x, _ in parts], dtype=torch.float64)
    shares = sizes / sizes.sum()
    means = []
    for share, (x, y) in zip(shares.tolist(), parts):
        mean = loss_of(x, y)
        (share * mean).backward()
        means.append(share * float(mean.detach()))
    return sum(means)""",
        """def accumulate(loss_of, parts):
    n = 0
    for x, _ in parts:
        n = n + x.shape[0]
    done = 0
    for x, y in parts:
        loss = loss_of(x, y) * (x.shape[0] / n)
        loss.backward()
        done = done + loss.detach()
    return done.item()""",
        """def accumulate(loss_of, parts):
    n = sum(y.numel() for _, y in parts)

    def one(x, y):
        loss = loss_of(x, y)
        loss.backward(gradient=torch.tensor(y.numel() / n))
        return loss.item() * y.numel() / n

    return sum(one(x, y) for x, y in parts)""",
    ],
    "check_run_seconds": [
        _seconds("steps * step + look * (1 + -(-steps // every))"),
        _seconds("steps * step + look * len({*range(0, steps, every), steps})"),
        """def run_seconds(steps, every, step, look):
    seconds = look
    for done in range(1, steps + 1):
        seconds += step
        if done % every == 0 or done == steps:
            seconds += look
    return seconds""",
    ],
    "check_snapshot": [
        _snapshot(
            "self.kept = copy.deepcopy((model, optimizer.state_dict())); " + TAKE_CHANCE,
            "model.load_state_dict(self.kept[0].state_dict()); optimizer.load_state_dict(self.kept[1]); " + PUT_CHANCE,
        ),
        """import io
class Snapshot:
    def __init__(self, model, optimizer, batches):
        self.file = io.BytesIO()
        torch.save((model.state_dict(), optimizer.state_dict(), batches.get_state(), torch.get_rng_state()), self.file)

    def restore(self, model, optimizer, batches):
        self.file.seek(0)
        weights, averages, place, random = torch.load(self.file)
        torch.set_rng_state(random)
        batches.set_state(place)
        optimizer.load_state_dict(averages)
        model.load_state_dict(weights)""",
        """import copy
class Snapshot:
    def __init__(self, model, optimizer, batches):
        self.tensors = {k: v.detach().clone() for k, v in (*model.named_parameters(), *model.named_buffers())}
        self.optimizer = copy.deepcopy(optimizer.state_dict())
        self.states = batches.get_state().clone(), torch.random.get_rng_state().clone()

    @torch.no_grad()
    def restore(self, model, optimizer, batches):
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            tensor.copy_(self.tensors[name])
        optimizer.load_state_dict(self.optimizer)
        batches.set_state(self.states[0])
        torch.random.set_rng_state(self.states[1])""",
    ],
    "check_right_share": [
        """def right_share(her, his):
    lily = her["Lily"] / (her["Lily"] + his["Lily"])
    tom = his["Tom"] / (his["Tom"] + her["Tom"])
    return (lily + tom) / 2""",
        """def right_share(her, his):
    p = torch.tensor([[her["Lily"], his["Lily"]], [his["Tom"], her["Tom"]]], dtype=torch.float64)
    return (p / p.sum(1, keepdim=True))[:, 0].mean()""",
        """def right_share(her, his):
    shares = []
    for name, right, wrong in (("Lily", her, his), ("Tom", his, her)):
        shares.append(1 - wrong[name] / (right[name] + wrong[name]))
    return sum(shares) / len(shares)""",
    ],
}
