"""The command line: python -m utils train | generate | evaluate | export."""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from pathlib import Path

import torch

from utils.checkpoint import load_model
from utils.config import NUMBER_FORMATS, K2Config, NanoConfig, TrainConfig
from utils.cost import plan
from utils.data import TokenData
from utils.device import keep_freed_memory, pick_device
from utils.evaluate import evaluate
from utils.generation import Sampling, generate, stream
from utils.hf import export_hf
from utils.model import Kimi, count_parameters
from utils.presets import PRESETS
from utils.recipe import RECIPE_FIELDS, build, load_split, new_recipe, read_recipe
from utils.settings import defaults_of, settings_of
from utils.training import TrainingDiverged, refuse_other_run, train

PROMPT = "Once upon a time"


def main(arguments: list[str] | None = None) -> int:
    """Run one command; return the exit status: 0 done, 1 cannot be done, 130 stopped by Ctrl-C."""
    args = build_parser().parse_args(arguments)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_: print(f"note: {message}", file=sys.stderr)
            return args.command(args)
    except (ValueError, OSError, TrainingDiverged) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def train_command(args: argparse.Namespace) -> int:
    """Load stories, train (or continue), tell a story."""
    started = time.monotonic()
    preset, architecture = args.preset or ("colab" if torch.cuda.is_available() else "laptop"), args.model or "k2"
    folder = Path(args.run or (f"runs/{preset}" if architecture == "k2" else f"runs/{architecture}-{preset}"))
    refuse_other_run(folder, args.resume, args.overwrite)
    recipe = _saved_recipe(folder, args) if args.resume else _new_recipe(architecture, preset, args)
    model, data, config = build(recipe, pick_device(), run=folder if args.resume else None)
    if model.device.type == "cpu":
        keep_freed_memory()  # the process is ours, and ends with the run
    total, active = count_parameters(model)
    words, name, cost = len(model.tokenizer), model.config.architecture, plan(model, config)
    print(f"data: {data.n_train:,} training and {len(data.split('val')):,} validation tokens, {words:,} words")
    print(f"model: {name}, {total:,} parameters, {active:,} active for each token, on {model.device}")
    print(f"plan: {config.steps:,} steps, {cost.flops:.1e} FLOPs, {cost.bytes / 1e6:,.0f} MB for weights and optimizer")
    figure = loss_figure(folder, model)
    history = train(model, data, config, folder, args.resume, args.overwrite, recipe, show=figure)

    if history.step < config.steps:
        return 130
    print(f"\n{generate(model, PROMPT, seed=config.seed)}\n")
    minutes = (time.monotonic() - started) / 60
    print(f"{minutes:.1f} minutes in all; validation loss {history.rows[-1]['val_loss']:.3f}; saved in {folder}")
    print(f'more stories: python -m utils generate --run {folder} --prompt "{PROMPT}"')
    return 0


def loss_figure(folder: Path, model: Kimi):
    """The picture that a run keeps of its losses."""
    from utils.plots import COLOUR, LossFigure  # matplotlib takes half a second to import, and other commands need none

    return LossFigure(folder / "loss.png", colour=COLOUR[model.config.architecture])


def generate_command(args: argparse.Namespace) -> int:
    """Tell one story, word by word."""
    model, _ = load_model(args.run, pick_device())
    settings = {name: getattr(args, name) for name in settings_of(Sampling)}
    more = dict(seed=args.seed, number_format=args.number_format)
    for piece in stream(model, args.prompt, args.max_new_tokens, **more, **settings):
        print(piece, end="", flush=True)
    print()
    return 0


def evaluate_command(args: argparse.Namespace) -> int:
    """Measure a run on its own validation stories, and judge the stories that it tells."""
    model, step = load_model(args.run, pick_device())
    recipe = read_recipe(args.run)
    train_stories, val_stories = load_split(recipe)
    data = TokenData.from_stories(train_stories, model.tokenizer, validation=val_stories)
    result = evaluate(model, data, n_stories=args.stories, temperature=args.temperature, seed=args.seed)
    print(f"step {step}: validation loss {result.loss:.3f} nats per token, perplexity {result.perplexity:.2f}, "
          f"{result.bits_per_byte:.3f} bits per byte")  # fmt: skip
    coherent = (
        f"{result.coherent:.1%}" if recipe["source"] == "builtin" else "not judged (only built-in stories can be)"
    )
    print(f"{args.stories} stories told at temperature {args.temperature}:")
    print(f"  coherent: {coherent}")
    print(f"  repeated four-word sequences: {result.repetition:.1%}")
    print(f"experts that no validation token went to: {result.dead_experts:.1%}")
    return 0


def export_command(args: argparse.Namespace) -> int:
    """Write a run's model in the format that transformers reads."""
    model, _ = load_model(args.run)
    export_hf(model, args.to)
    print(f"written to {args.to}: transformers reads it with AutoModelForCausalLM.from_pretrained({args.to!r})")
    return 0


# The recipe of a run


def _new_recipe(architecture: str, preset: str, args: argparse.Namespace) -> dict:
    changes = {k: v for k, v in _given(args).items() if k not in ("source", "preset", "model")}
    return new_recipe(architecture, preset, args.source, **changes)


def _saved_recipe(folder: Path, args: argparse.Namespace) -> dict:
    """The recipe of the run to continue; nothing about it may be asked for anew."""
    if given := _given(args):
        raise ValueError(f"--resume takes everything from the run in {folder}: leave out {_option(next(iter(given)))}")
    return read_recipe(folder)


# The options


def _given(args: argparse.Namespace) -> dict:
    """The options of the recipe that were given."""
    names = RECIPE_FIELDS | {"source", "preset", "model"}
    return {name: value for name, value in vars(args).items() if name in names and value is not None}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m utils", description="Train a small Kimi K2, let it tell stories.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_train(commands.add_parser("train", help="train a model and tell a story"))
    _add_generate(commands.add_parser("generate", help="tell a story with a trained model"))
    _add_evaluate(commands.add_parser("evaluate", help="measure a trained model"))
    _add_export(commands.add_parser("export", help="write a trained model for transformers"))
    return parser


def _add_train(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(command=train_command)
    parser.epilog = "Three defaults are those of smoke / laptop / colab."
    parser.add_argument(
        "--preset", choices=PRESETS["k2"], help="size of the job (default: colab with a GPU, else laptop)"
    )
    parser.add_argument("--model", choices=PRESETS, help="k2, the small Kimi K2, or nano, the simple first model "
                        "(default: k2)")  # fmt: skip
    parser.add_argument("--run", metavar="DIR", help="folder of the run (default: runs/PRESET, runs/nano-PRESET)")
    parser.add_argument("--source", metavar="PATH", help="stories: a .txt, .jsonl or .parquet file, a folder of them, "
                        "hub or builtin (default: $TINYSTORIES_PATH, else the hub, else builtin)")  # fmt: skip
    either = parser.add_mutually_exclusive_group()
    either.add_argument(
        "--resume", action="store_true", help="continue the run in DIR with its next batch (default: no)"
    )
    either.add_argument("--overwrite", action="store_true", help="replace the run in DIR (default: no)")
    options = {
        "stories": (int, "stories to train on, at most"),
        "min_count": (int, "words rarer than this in the training stories become <unk>"),
    }
    for config in (TrainConfig, NanoConfig, K2Config):
        for name, setting in settings_of(config).items():
            if name not in ("vocab_size", "architecture"):
                options.setdefault(name, (setting.kind, setting.help))
    defaults = {name: _defaults(name) for name in PRESETS}
    for name, (kind, text) in options.items():
        shown = "; ".join(f"{model} {_shown([v[name] for v in sizes])}" for model, sizes in defaults.items()
                          if name in sizes[0])  # fmt: skip
        parser.add_argument(_option(name), type=kind, metavar=kind.__name__.upper(), help=f"{text} (default: {shown})")


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _defaults(architecture: str) -> list[dict]:
    """Every option's value in smoke, laptop and colab, in this order."""
    shape = defaults_of({"nano": NanoConfig, "k2": K2Config}[architecture])
    return [
        {**shape, **preset.model, **vars(preset.training), "stories": preset.stories, "min_count": preset.min_count}
        for preset in PRESETS[architecture].values()
    ]


def _shown(values: list) -> str:
    """The values of the presets, once where they are all the same."""
    return str(values[0]) if len(set(values)) == 1 else " / ".join(map(str, values))


def _add_generate(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.ArgumentDefaultsHelpFormatter
    parser.set_defaults(command=generate_command)
    parser.add_argument("--run", metavar="DIR", required=True, help="folder of a finished run")
    parser.add_argument("--prompt", default=PROMPT, help="how the story begins")
    parser.add_argument("--max-new-tokens", type=int, default=200, help="longest continuation, in words and signs")
    parser.add_argument("--seed", type=int, help="the same seed tells the same story; none: another every time")
    parser.add_argument("--number-format", choices=NUMBER_FORMATS, default="auto", help="that of the matmuls")
    for name, setting in settings_of(Sampling).items():
        parser.add_argument(_option(name), type=setting.kind, default=defaults_of(Sampling)[name], help=setting.help)


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.ArgumentDefaultsHelpFormatter
    parser.set_defaults(command=evaluate_command)
    parser.add_argument("--run", metavar="DIR", required=True, help="folder of a finished run")
    parser.add_argument("--stories", type=int, default=200, help="stories to tell and judge")
    parser.add_argument("--temperature", type=float, default=0.8, help="temperature of those stories")
    parser.add_argument("--seed", type=int, default=0, help="seed of those stories")


def _add_export(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(command=export_command)
    parser.add_argument("--run", metavar="DIR", required=True, help="folder of a finished run of k2")
    parser.add_argument("--to", metavar="DIR", required=True, help="folder for the model's files")


if __name__ == "__main__":
    sys.exit(main())
