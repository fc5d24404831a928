"""What each command of the command line does."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import sys
import warnings

from utils.accessories import Progress, progress_bars
from utils.checkpoint import DAMAGED, load_model, restore_previous
from utils.convert import convert
from utils.data import TokenData
from utils.device import pick_device
from utils.evaluate import evaluate
from utils.generation import Sampling, generator_of, stream
from utils.hf import export_hf
from utils.model import count_parameters
from utils.options import build_parser, option
from utils.plan_command import plan_command
from utils.ranks import AlreadyTold, RankLost, joined
from utils.recipe import load_texts, read_recipe
from utils.report import Evaluated, table, write_json
from utils.settings import settings_of
from utils.sources.read import READING
from utils.stories import NoValidationSplit, load_stories
from utils.train_command import opening, train_command
from utils.training import TrainingDiverged

MOST_TOLD = 100_000  # stories that one command evaluates
TWO_JUDGES = (
    "the grammar of the built-in stories knows which of them are whole; the faults are found by rules for any stories,"
    " which blame some whole ones and pass some broken ones: the two shares differ"
)
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
    except AlreadyTold:  # by another of several processes
        return 1
    except (ValueError, OSError, MemoryError, TrainingDiverged, RankLost) as error:
        with contextlib.suppress(OSError):  # a closed terminal
            print(f"error: {error}", file=sys.stderr)
        return 1


def generate_command(args: argparse.Namespace) -> int:
    """Tell one story, word by word."""
    model, _ = load_model(args.run, pick_device())
    settings = {name: getattr(args, name) for name in (*settings_of(Sampling), "seed", "number_format")}
    for piece in stream(model, args.prompt, args.max_new_tokens, **settings):
        print(piece, end="", flush=True)
    print()
    return 0


def evaluate_command(args: argparse.Namespace) -> int:
    """Measure runs on validation texts, and judge the stories that they tell; several processes share the texts."""
    if not 0 <= args.stories <= MOST_TOLD:
        raise ValueError(f"--stories is {args.stories}, it must be from 0 to {MOST_TOLD:,}")
    if unused := [name for name in READING if getattr(args, name) and not args.source]:
        raise ValueError(f"{option(unused[0])} says how --source is read: give both or neither")
    Sampling(temperature=args.temperature)  # what cannot be is said before anything is measured
    generator_of(args.seed)
    if args.figure:
        from utils import plots  # matplotlib takes half a second to import

        plots.figure_kind(args.figure)
    with joined(pick_device()) as ranks:
        progress = progress_bars(ranks.is_first)
        runs = {run: evaluate_run(run, args, progress) for run in dict.fromkeys(args.run)}
        if ranks.is_first:
            tell_evaluations(runs, args)
    return 0


def tell_evaluations(runs: dict[str, Evaluated], args: argparse.Namespace) -> None:
    """What was found, as a table and as the files that were asked for."""
    print(f"\n{table(runs)}")
    print(f"\ntold: {args.stories} stories at temperature {args.temperature:g}, seed {args.seed}")
    if any(run.judged_by_grammar and run.found.faults for run in runs.values()):
        print(TWO_JUDGES)
    if len({run.texts for run in runs.values()}) > 1:
        print("measured on different texts, so their bits per byte do not compare: give the same ones with --source")
    settings = {name: getattr(args, name) for name in ("source", "stories", "temperature", "seed")}
    if args.json:
        write_json(runs, args.json, settings)
    if args.figure:
        from utils import plots

        figure = plots.plot_evaluations(runs)
        plots.save_figure(figure, args.figure)
        plots.plt.close(figure)


def evaluate_run(folder: str, args: argparse.Namespace, progress: Progress) -> Evaluated:
    """What is found of one run."""
    model, step = load_model(folder, pick_device())
    recipe = read_recipe(folder)
    train, validation = load_texts(recipe)
    if args.source:
        validation = measured_texts(args)
    data = TokenData.from_stories(train[:1], model.tokenizer, validation=validation)  # only validation is read
    prompt = opening(model, data)
    how = dict(texts=(train, validation), prompt=prompt, progress=progress)
    found = evaluate(model, data, args.stories, args.temperature, args.seed, **how)
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


COMMANDS = {
    "train": train_command, "plan": plan_command, "generate": generate_command, "evaluate": evaluate_command,
    "export": export_command, "convert": convert_command, "restore": restore_command,
}  # fmt: skip
