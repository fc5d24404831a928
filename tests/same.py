"""Does this tree compute what another commit computes, to the last bit? python -m tests.same COMMIT

Checks the commit out beside this tree, runs the same small jobs in both with the same seeds (both models, both
optimizers, fp32 and bf16, accumulation, dropout, QK-Clip and the experts' bias acting), and compares every loss,
weight, optimizer state, random state, logit, story and exported file. Exit status 1 where one differs. Bits are those
of one machine and one torch, so nothing is stored: both sides are computed. 3 minutes on 2 cores.

    python -m tests.same COMMIT                     compare with a commit of this repository
    python -m tests.same --record FILE              only compute, in the tree of the working directory
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

HERE = Path(__file__).resolve()
NANO = dict(block_size=24, d_model=32, n_heads=4, n_layers=2, d_ff=48, n_experts=4, top_k=2)
K2 = dict(
    block_size=24, d_model=32, n_heads=4, n_layers=3, q_lora_rank=20, kv_lora_rank=12, qk_nope_head_dim=8,
    qk_rope_head_dim=4, v_head_dim=6, dense_ff=40, d_ff=24, n_experts=8, top_k=2,
)  # fmt: skip
MODELS = {
    "nano": ("nano", NANO | dict(dropout=0.0)),
    "nano, dropout": ("nano", NANO | dict(dropout=0.1)),
    "k2": ("k2_mini", K2),
    "k2, balance loss": ("k2_mini", K2 | dict(balance_coef=0.01)),
    "k2, YaRN, groups": ("k2_mini", K2 | dict(yarn_factor=4.0, yarn_original=16, n_group=4, topk_group=2)),
}
RUNS = {
    "adamw": dict(optimizer="adamw", lr=3e-3),
    "muonclip": dict(optimizer="muonclip", lr=2e-2, tau=0.05),
    "muonclip, accumulation 2": dict(optimizer="muonclip", lr=2e-2, accumulation=2),
}
COMPARED = ("step", "tokens", "loss", "val_loss", "lr", "max_logits")  # of a row of the history
TOLD = dict(temperature=0.8, top_k=20, top_p=0.9, min_p=0.01, repetition_penalty=1.2)


def record() -> dict[str, torch.Tensor | str]:
    """Everything that must not change, by name, computed with the `utils` that Python finds."""
    from utils.checkpoint import load_checkpoint
    from utils.config import KimiConfig, TrainConfig
    from utils.data import TokenData
    from utils.evaluate import evaluate
    from utils.generation import generate, stream
    from utils.hf import export_hf, import_hf
    from utils.model import Kimi
    from utils.stories import load_stories
    from utils.tokenizer import WordTokenizer
    from utils.training import train

    torch.set_num_threads(2)
    found: dict[str, torch.Tensor | str] = {}
    stories = load_stories(400, source="builtin")
    tok = WordTokenizer.train(stories)
    data = TokenData.from_stories(stories, tok)
    found["data"] = torch.from_numpy(data.tokens.astype("int64"))

    def model_of(kind: str, shape: dict) -> Kimi:
        model = Kimi(getattr(KimiConfig, kind)(len(tok), **shape), seed=3)
        model.tokenizer = tok
        return model

    for kind in ("nano", "k2_mini"):
        found |= named(f"{kind} at birth", Kimi(getattr(KimiConfig, kind)(500)).state_dict())

    for name, (kind, shape) in MODELS.items():
        for run, settings in RUNS.items():
            for number_format in ("fp32", "bf16"):
                title = f"{name}, {run}, {number_format}"
                config = TrainConfig(
                    steps=12, batch_size=6, block_size=20, eval_interval=4, eval_batches=2, seed=1,
                    number_format=number_format, **settings,
                )  # fmt: skip
                with tempfile.TemporaryDirectory() as folder:
                    model = model_of(kind, shape)
                    train(model, data, config, folder)
                    state = load_checkpoint(folder)
                found |= named(title, state["model"])
                tensors, rows = rest_of(state)
                found |= named(title, tensors)
                for row in rows:
                    values = {name: row[name] for name in COMPARED if row[name] is not None}
                    for name, value in values.items():
                        found[f"{title}, step {row['step']}, {name}"] = torch.tensor(value, dtype=torch.float64)
            found |= told(f"{name}, {run}", model, data, generate, stream, evaluate)
        if kind == "k2_mini":
            with tempfile.TemporaryDirectory() as folder:
                export_hf(model, folder)
                for file in sorted(Path(folder).glob("*.*")):
                    found[f"{name}, exported {file.name}"] = hashlib.sha256(file.read_bytes()).hexdigest()
                x, _ = data.batch("val", 2, 20, torch.Generator().manual_seed(0))
                found[f"{name}, imported, logits"] = import_hf(folder)(x).detach()
    found |= of_the_command_line(load_checkpoint)
    return found


def rest_of(state: dict) -> tuple[dict[str, torch.Tensor], list[dict]]:
    """(tensors, rows of the history) of a saved run, also from before 2026-11-26, when all was in one dict."""
    training = state["training"]
    if "tensors" in state:
        return {name: tensor for name, tensor in state["tensors"].items() if name != "device_rng"}, training["rows"]
    averages = training["optimizer"]["state"]
    tensors = {f"optimizer.{i}.{kind}": value for i, kinds in averages.items() for kind, value in kinds.items()}
    losses = torch.tensor(training["history"]["losses"], dtype=torch.float64)
    random = {name: training[name] for name in ("batches", "rng")}
    return {**tensors, **random, "losses": losses}, training["history"]["rows"]


def told(title: str, model, data, generate, stream, evaluate) -> dict[str, torch.Tensor | str]:
    """Logits, stories of several kinds, the evaluation."""
    model.eval()
    x, y = data.batch("val", 2, 20, torch.Generator().manual_seed(0))
    found = {f"{title}, logits": model(x).detach(), f"{title}, loss": model(x, targets=y)[1].detach()}
    for number_format in ("auto", "fp32", "bf16"):
        for seed in (0, 1):
            settings = dict(max_new_tokens=60, seed=seed, number_format=number_format)
            found[f"{title}, story {number_format} {seed}"] = generate(model, "Once upon a time", **settings, **TOLD)
    found[f"{title}, greedy"] = "".join(stream(model, "", 40, temperature=0, stop_at_eos=False))
    result = evaluate(model, data, n_stories=20)._asdict()
    names = ("loss", "perplexity", "bits_per_byte", "repetition", "coherent")
    return found | {f"{title}, evaluation": torch.tensor([result[name] for name in names], dtype=torch.float64)}


def of_the_command_line(load_checkpoint) -> dict[str, torch.Tensor | str]:
    """The main job at smoke size, both models."""
    from utils.__main__ import main

    found = {}
    for model in ("k2", "nano"):
        with tempfile.TemporaryDirectory() as folder:
            options = ["--model", model, "--preset", "smoke", "--run", folder, "--source", "builtin"]
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(io.StringIO()):
                assert main(["train", *options, "--number-format", "fp32"]) == 0
                assert main(["generate", "--run", folder, "--seed", "2"]) == 0
            story = next(line for line in printed.getvalue().splitlines() if line.startswith("Once upon"))
            found[f"main job, {model}, story"] = story
            found[f"main job, {model}, generated"] = printed.getvalue().splitlines()[-1]
            found |= named(f"main job, {model}", load_checkpoint(folder)["model"])
    return found


def named(title: str, values: dict) -> dict[str, torch.Tensor]:
    """The tensors and numbers of a nested dict, under one name each; one number more where a value is none of these."""
    found = {}
    for key, value in values.items():
        if isinstance(value, dict):
            found |= named(f"{title}, {key}", value)
        elif isinstance(value, torch.Tensor | int | float):
            found[f"{title}, {key}"] = torch.as_tensor(value).clone()
    return found


def record_in(tree: Path, file: Path) -> None:
    """Run `record` in a process of its own, in another tree."""
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    environment.pop("TINYSTORIES_PATH", None)
    command = [sys.executable, str(HERE), "--record", str(file)]
    subprocess.run(command, cwd=tree, env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def differences(before: dict, after: dict) -> Iterator[str]:
    """One line for each thing that is missing, new or not the same to the last bit."""
    for name in sorted(before.keys() | after.keys()):
        if name not in before or name not in after:
            yield f"{name}: only {'after' if name in after else 'before'}"
        elif isinstance(before[name], str) or isinstance(after[name], str):
            if before[name] != after[name]:
                yield f"{name}: {before[name]!r} became {after[name]!r}"
        elif not _same_bits(before[name], after[name]):
            yield f"{name}: {tuple(before[name].shape)} differs"


def _same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    same_kind = a.shape == b.shape and a.dtype == b.dtype
    return same_kind and bool(((a == b) | (a.isnan() & b.isnan() if a.is_floating_point() else a == b)).all())


def compare(commit: str) -> int:
    home = HERE.parents[1]
    with tempfile.TemporaryDirectory() as folder:
        other = Path(folder) / "other"
        subprocess.run(["git", "clone", "-q", "--no-checkout", str(home), str(other)], check=True)
        subprocess.run(["git", "checkout", "-q", commit], cwd=other, check=True)
        sides = []
        for tree, name in ((other, "before"), (home, "after")):
            file = Path(folder) / name
            record_in(tree, file)
            sides.append(torch.load(file, weights_only=True))
    before, after = sides
    found = list(differences(before, after))
    print(*found, sep="\n")
    tensors = [value for value in before.values() if isinstance(value, torch.Tensor)]
    texts = len(before) - len(tensors)
    numbers = sum(tensor.numel() for tensor in tensors)
    print(f"compared {len(tensors):,} tensors ({numbers:,} numbers) and {texts} texts and files: {len(found)} differ")
    return 1 if found else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.same", description=__doc__.splitlines()[0])
    either = parser.add_mutually_exclusive_group(required=True)
    either.add_argument("commit", nargs="?", help="the commit to compare with")
    either.add_argument("--record", metavar="FILE", help="only compute, and save to FILE")
    args = parser.parse_args()
    if args.record:
        # the script's own folder comes first on the path; the tree to record is the working directory
        sys.path[0] = os.getcwd()
        torch.save(record(), args.record)
    else:
        sys.exit(compare(args.commit))
