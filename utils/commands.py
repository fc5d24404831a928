"""What each command of the command line does."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import sys
import time
import warnings
from pathlib import Path

import torch

from utils.checkpoint import DAMAGED, load_model, restore_previous
from utils.config import TrainConfig, from_dict
from utils.convert import convert
from utils.cost import plan
from utils.data import TokenData
from utils.device import keep_freed_memory, pick_device
from utils.evaluate import evaluate
from utils.generation import Sampling, generate, generator_of, stream
from utils.hf import export_hf
from utils.interrupt import StopRequest
from utils.mirror import take_copy
from utils.model import Kimi, count_parameters
from utils.options import PROMPT, build_parser, option, quoted
from utils.recipe import RECIPE_FIELDS, build, load_texts, new_recipe, read_recipe
from utils.report import Evaluated, table, write_json
from utils.run_folder import FIGURE, refuse_other_run
from utils.settings import settings_of
from utils.sources.read import READING
from utils.stories import NoValidationSplit, load_stories
from utils.tokenizer import WordTokenizer
from utils.training import TrainingDiverged, learning_rate, train

MOST_TOLD = 100_000  # stories that one command evaluates
BUILTIN_STORIES = 2_000  # of the grammar, which tells for ever, for evaluate --source builtin


def run_command(arguments: list[str] | None = None) -> int:
    """Run one command; return the exit status: 0 done, 1 cannot be done, 128 and more stopped by a signal."""
    args = build_parser(COMMANDS).parse_args(arguments)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_: print(f"note: {message}", file=sys.stderr)
            return args.command(args)
    except BrokenPipeError:
        raise
    except (ValueError, OSError, MemoryError, TrainingDiverged) as error:
        with contextlib.suppress(OSError):  # a closed terminal
            print(f"error: {error}", file=sys.stderr)
        return 1


def train_command(args: argparse.Namespace) -> int:
    """Load stories, train (or continue), tell a story."""
    started = time.monotonic()
    preset, architecture = args.preset or ("colab" if torch.cuda.is_available() else "laptop"), args.model or "k2"
    folder = Path(args.run or (f"runs/{preset}" if architecture == "k2" else f"runs/{architecture}-{preset}"))
    refuse_other_run(folder, args.resume, args.overwrite)
    if args.resume:
        take_copy(folder, args.copy_to and Path(args.copy_to))
    recipe = _saved_recipe(folder, args) if args.resume else _new_recipe(architecture, preset, args)
    model, data, config = build(recipe, pick_device(), run=folder if args.resume else None)
    if model.device.type == "cpu":
        keep_freed_memory()  # the process is ours, and ends with the run
    total, active = count_parameters(model)
    name, cost = model.config.architecture, plan(model, config)
    print(f"data: {describe(data, model.tokenizer)}")
    print(f"model: {name}, {total:,} parameters, {active:,} active for each token, on {model.device}")
    print(f"plan: {config.steps:,} steps, {cost.flops:.1e} FLOPs, {cost.bytes / 1e6:,.0f} MB for weights and optimizer")
    figure, stop = loss_figure(folder, model), StopRequest()
    history = train(
        model, data, config, folder, args.resume, args.overwrite, recipe, show=figure, copy_to=args.copy_to, stop=stop
    )

    if history.step < config.steps:
        return stop.status
    prompt = opening(model, data)
    print(f"\n{generate(model, prompt, seed=config.seed)}\n")
    minutes = (time.monotonic() - started) / 60
    print(f"{minutes:.1f} minutes in all; validation loss {history.rows[-1]['val_loss']:.3f}; saved in {folder}")
    if problem := recipe.get("problem"):
        print(f"these were built-in stories, for {problem}: real ones with --source hub")
    print(f"more stories: python -m utils generate --run {quoted(str(folder))} --prompt {quoted(prompt)}")
    return 0


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


def generate_command(args: argparse.Namespace) -> int:
    """Tell one story, word by word."""
    model, _ = load_model(args.run, pick_device())
    settings = {name: getattr(args, name) for name in (*settings_of(Sampling), "seed", "number_format")}
    for piece in stream(model, args.prompt, args.max_new_tokens, **settings):
        print(piece, end="", flush=True)
    print()
    return 0


def evaluate_command(args: argparse.Namespace) -> int:
    """Measure runs on validation texts, and judge the stories that they tell."""
    if not 0 <= args.stories <= MOST_TOLD:
        raise ValueError(f"--stories is {args.stories}, it must be from 0 to {MOST_TOLD:,}")
    if unused := [name for name in READING if getattr(args, name) and not args.source]:
        raise ValueError(f"{option(unused[0])} says how --source is read: give both or neither")
    Sampling(temperature=args.temperature)  # what cannot be is said before anything is measured
    generator_of(args.seed)
    if args.figure:
        from utils import plots  # matplotlib takes half a second to import

        plots.figure_kind(args.figure)
    runs = {run: evaluate_run(run, args) for run in dict.fromkeys(args.run)}
    print(f"\n{table(runs)}")
    print(f"\ntold: {args.stories} stories at temperature {args.temperature:g}, seed {args.seed}")
    if len({run.texts for run in runs.values()}) > 1:
        print("measured on different texts, so their bits per byte do not compare: give the same ones with --source")
    settings = {name: getattr(args, name) for name in ("source", "stories", "temperature", "seed")}
    if args.json:
        write_json(runs, args.json, settings)
    if args.figure:
        figure = plots.plot_evaluations(runs)
        plots.save_figure(figure, args.figure)
        plots.plt.close(figure)
    return 0


def evaluate_run(folder: str, args: argparse.Namespace) -> Evaluated:
    """What is found of one run."""
    model, step = load_model(folder, pick_device())
    recipe = read_recipe(folder)
    train, validation = load_texts(recipe)
    if args.source:
        validation = measured_texts(args)
    data = TokenData.from_stories(train[:1], model.tokenizer, validation=validation)  # only validation is read
    prompt = opening(model, data)
    found = evaluate(model, data, args.stories, args.temperature, args.seed, texts=(train, validation), prompt=prompt)
    total, active = count_parameters(model)
    texts = hashlib.sha256("\0".join(validation).encode("utf-8", "surrogatepass")).hexdigest()
    return Evaluated(step, total, active, texts, recipe["source"] == "builtin", found)


def measured_texts(args: argparse.Namespace) -> list[str]:
    """The validation texts of each source that was given, all its texts where it has no such part."""
    how, texts = {name: getattr(args, name) for name in READING}, []
    for source in args.source:
        n = BUILTIN_STORIES if source == "builtin" else sys.maxsize
        try:
            texts += load_stories(n, "validation", source, **how)
        except NoValidationSplit:
            texts += load_stories(n, "train", source, **how)
    return texts


def export_command(args: argparse.Namespace) -> int:
    """Write a run's model in the format that transformers reads."""
    model, _ = load_model(args.run)
    export_hf(model, args.to)
    print(f"written to {args.to}: transformers reads it with AutoModelForCausalLM.from_pretrained({args.to!r})")
    return 0


def convert_command(args: argparse.Namespace) -> int:
    """Bring an old checkpoint into the form of today."""
    print(f"written to {convert(args.run)}; the old file is still there")
    return 0


def restore_command(args: argparse.Namespace) -> int:
    """Take the checkpoint before the newest."""
    step = restore_previous(args.run)
    print(f"{args.run} is now at step {step:,}: go on with --resume; the newer checkpoint is kept as {DAMAGED}")
    return 0


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


COMMANDS = {
    "train": train_command, "generate": generate_command, "evaluate": evaluate_command, "export": export_command,
    "convert": convert_command, "restore": restore_command,
}  # fmt: skip
