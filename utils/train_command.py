"""What the command `train` does."""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path

import torch

from utils.checkpoint import load_model
from utils.config import TrainConfig, from_dict
from utils.cost import flops_by_part, plan
from utils.data import TokenData
from utils.device import keep_freed_memory, pick_device
from utils.generation import generate
from utils.interrupt import StopRequest
from utils.mirror import take_copy
from utils.model import Kimi, count_parameters
from utils.options import PROMPT, option, quoted
from utils.pace import measure_pace
from utils.ranks import Ranks, joined
from utils.recipe import RECIPE_FIELDS, build, new_recipe, read_recipe
from utils.run_folder import FIGURE, refuse_other_run
from utils.tokenizer import WordTokenizer
from utils.training import learning_rate, train

PACE_STEPS = 8  # by which the minutes of a run are foretold
# Passes over its tokens that cost a run little: up to about 4 they teach nearly as much as new text would (Muennighoff
# et al. 2023, arXiv 2305.16264). On 15,462 stories k2's validation loss rose after 3.5 to 4 (docs/measured.md).
PASSES = 4
WORTH_MEASURING = 200  # steps of a run: of a shorter one they would be too large a part


def train_command(args: argparse.Namespace) -> int:
    """Load stories, train (or continue), tell a story; as one of several processes where torchrun has started them."""
    with joined(pick_device()) as ranks:
        return train_on(ranks, args)


def train_on(ranks: Ranks, args: argparse.Namespace) -> int:
    """What `train_command` does in one of these processes."""
    started = time.monotonic()
    preset, architecture = args.preset or ("colab" if torch.cuda.is_available() else "laptop"), args.model or "k2"
    folder = Path(args.run or (f"runs/{preset}" if architecture == "k2" else f"runs/{architecture}-{preset}"))
    ours = folder if ranks.is_first else None  # where this process writes
    refuse_other_run(ours, args.resume, args.overwrite)
    # a part of the model may be all that fits into the memory of a device
    device = torch.device("cpu") if ranks.size > 1 and args.parallel == "fsdp" else pick_device()
    with ranks.first_first():  # the others find its copy, and its tokens on disk
        if args.resume:
            take_copy(ours, args.copy_to and Path(args.copy_to))
        recipe = _saved_recipe(folder, args) if args.resume else _new_recipe(architecture, preset, args)
        model, data, config = build(recipe, device, run=folder if args.resume else None)
    if model.device.type == "cpu":
        keep_freed_memory()  # the process is ours, and ends with the run
    total, active = count_parameters(model)
    name = model.config.architecture
    print(f"data: {describe(data, model.tokenizer)}")
    print(f"model: {name}, {total:,} parameters, {active:,} active for each token, on {model.device}")
    loading = None if args.resume or ranks.size > 1 else time.monotonic() - started
    print(f"plan: {planned(model, data, config, loading)}")
    if problem := repeats(data, config):
        warnings.warn(problem, stacklevel=2)
    figure, stop = loss_figure(folder, model), StopRequest()
    history = train(
        model, data, config, folder, args.resume, args.overwrite, recipe, show=figure, copy_to=args.copy_to, stop=stop,
        parallel=args.parallel,
    )  # fmt: skip
    if history.step < config.steps:
        return stop.status
    if ranks.is_first:
        if ranks.size > 1:  # this process may hold a part of the model
            model, _ = load_model(folder, pick_device())
        prompt = opening(model, data)
        print(f"\n{generate(model, prompt, seed=config.seed)}\n")
        minutes = (time.monotonic() - started) / 60
        print(f"{minutes:.1f} minutes in all; validation loss {history.rows[-1]['val_loss']:.3f}; saved in {folder}")
        if problem := recipe.get("problem"):
            print(f"these were built-in stories, for {problem}: real ones with --source hub")
        print(f"more stories: python -m utils generate --run {quoted(str(folder))} --prompt {quoted(prompt)}")
    return 0


def planned(model: Kimi, data: TokenData, config: TrainConfig, loading: float | None) -> str:
    """What a run will take, everything counted: FLOPs, bytes and, where its pace is worth measuring, minutes.

    loading: seconds that it took to come here; None for a run that goes on, whose progress bar knows the time.
    """
    cost, parts = plan(model, config), flops_by_part(model, config)
    share = parts["Newton-Schulz"] / cost.flops
    flops = f"{cost.flops:.1e} FLOPs" + (f" ({share:.0%} of them Newton-Schulz)" if share else "")
    size = f"{config.steps:,} steps, {flops}, {cost.bytes / 1e6:,.0f} MB for weights, gradients and optimizer"
    if loading is None or config.steps < WORTH_MEASURING:
        return size
    started = time.monotonic()
    training = measure_pace(model, data, config, steps=PACE_STEPS).seconds(config)
    minutes = (loading + time.monotonic() - started + training) / 60
    return f"{size}; {minutes:.1f} minutes in all at the pace of {PACE_STEPS} steps"


def repeats(data: TokenData, config: TrainConfig) -> str | None:
    """What is to be said of a run that reads its training tokens more than `PASSES` times; None of others."""
    of_step = config.batch_size * config.block_size * config.accumulation
    fewer, passes = PASSES * data.n_train // of_step, config.steps * of_step / data.n_train
    if passes <= PASSES:
        return None
    least = f"{option('steps')} {fewer} for {PASSES} passes" if fewer else option("steps")
    return (
        f"this run reads its {data.n_train:,} training tokens {passes:,.1f} times: after about {PASSES} each pass"
        f" teaches less, and in the end the text is known by heart; take more text, or fewer steps ({least})"
    )


def describe(data: TokenData, tok) -> str:
    """How many tokens of which kind, and how many of them are unknown words."""
    val = data.split("val")
    tokens = f"{data.n_train:,} training and {len(val):,} validation tokens"
    if not isinstance(tok, WordTokenizer):
        return f"{tokens}, byte-pair encoding with {len(tok):,} of them"
    return f"{tokens}, {len(tok):,} words, {(val == tok.unk_id).mean():.1%} of the validation tokens unknown"


def opening(model: Kimi, data: TokenData) -> str:
    """How the story of a finished run begins: as English ones do, or as a validation text does."""
    tok, ids = model.tokenizer, data.split("val")[:5000].tolist()
    if PROMPT.lower() in tok.decode(ids).lower():
        return PROMPT
    text = tok.decode(ids[: ids.index(tok.eos_id)] if tok.eos_id in ids else ids)
    line = next((line.strip() for line in text.splitlines() if line.strip()), PROMPT)
    return " ".join(line.split(" ")[:3]) if " " in line[:100] else line[:3]


def loss_figure(folder: Path, model: Kimi):
    """The picture that a run keeps of its losses."""
    from utils.plots import COLOUR, LossFigure  # matplotlib takes half a second to import, and other commands need none

    return LossFigure(folder / FIGURE, colour=COLOUR[model.config.architecture])


# The recipe of a run


def _new_recipe(architecture: str, preset: str, args: argparse.Namespace) -> dict:
    changes = {k: v for k, v in _given(args).items() if k not in ("source", "preset", "model")}
    return new_recipe(architecture, preset, _sources(args), **changes)


def _saved_recipe(folder: Path, args: argparse.Namespace) -> dict:
    """The recipe of the run to continue. It may go on for longer, and its texts may have moved."""
    recipe, given = read_recipe(folder), _given(args)
    preset, architecture = recipe.get("preset", args.preset), recipe["architecture"]
    same = {**recipe["training"], **recipe["model"], **recipe, "preset": preset, "model": architecture}
    for name, value in given.items():
        if name == "source":
            recipe["source"] = _sources(args)  # training refuses other stories
        elif name == "tokens" and name in recipe:
            recipe["tokens"] = value
        elif name == "steps":
            recipe["training"] = _longer(recipe["training"], value)
        elif same.get(name) != value:
            raise ValueError(f"--resume takes this from the run in {folder}: leave out {option(name)}")
    return recipe


def _longer(training: dict, steps: int) -> dict:
    """The settings of a run with more steps, and a line that says what this does to its learning rate."""
    old, new = from_dict(TrainConfig, training), from_dict(TrainConfig, training | {"steps": steps})
    if new.steps < old.steps:
        raise ValueError(f"--steps is {new.steps}, to continue a run of {old.steps} it must be at least that")
    if new.steps == old.steps:
        return training
    rates = [learning_rate(old.steps, config) for config in (old, new)]
    print(f"planned for {old.steps:,} steps, now {new.steps:,}: after step {old.steps:,} the learning rate is "
          f"{rates[1]:.2g}, where the plan ended with {rates[0]:.2g}")  # fmt: skip
    return training | {"steps": steps}


def _sources(args: argparse.Namespace) -> str | list[str] | None:
    return args.source[0] if args.source and len(args.source) == 1 else args.source


def _given(args: argparse.Namespace) -> dict:
    """The options of the recipe that were given."""
    names = RECIPE_FIELDS | {"source", "preset", "model"}
    return {name: value for name, value in vars(args).items() if name in names and value is not None}
