"""The command line: python -m utils train | generate | evaluate | export."""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from dataclasses import asdict, fields
from pathlib import Path

import torch

from utils.checkpoint import load_model
from utils.config import NUMBER_FORMATS, PRESETS, KimiConfig, TrainConfig
from utils.data import TokenData
from utils.device import pick_device
from utils.evaluate import evaluate
from utils.generation import Sampling, generate, stream
from utils.hf import export_hf
from utils.model import count_parameters
from utils.recipe import build, field_names, load_split, new_recipe, read_recipe
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
    total, active = count_parameters(model)
    words, name = len(model.tokenizer), model.config.architecture
    print(f"data: {data.n_train:,} training and {len(data.split('val')):,} validation tokens, {words:,} words")
    print(f"model: {name}, {total:,} parameters, {active:,} active for each token, on {model.device}")
    history = train(model, data, config, folder, resume=args.resume, overwrite=args.overwrite, notes=recipe)

    if history.step < config.steps:
        return 130
    print(f"\n{generate(model, PROMPT, seed=config.seed)}\n")
    minutes = (time.monotonic() - started) / 60
    print(f"{minutes:.1f} minutes in all; validation loss {history.rows[-1]['val_loss']:.3f}; saved in {folder}")
    print(f'more stories: python -m utils generate --run {folder} --prompt "{PROMPT}"')
    return 0


def generate_command(args: argparse.Namespace) -> int:
    """Tell one story, word by word."""
    model, _ = load_model(args.run, pick_device())
    settings = {f.name: getattr(args, f.name) for f in fields(Sampling)}
    for piece in stream(
        model, args.prompt, args.max_new_tokens, seed=args.seed, number_format=args.number_format, **settings
    ):
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
        option = next(iter(given)).replace("_", "-")
        raise ValueError(f"--resume takes everything from the run in {folder}: leave out --{option}")
    return read_recipe(folder)


# The options


def _given(args: argparse.Namespace) -> dict:
    """The options of the recipe that were given."""
    names = {"source", "preset", "model", "stories", "min_count"} | field_names(KimiConfig) | field_names(TrainConfig)
    return {k: v for k, v in vars(args).items() if k in names and v is not None}


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
    types = {"int": int, "float": float, "str": str}
    for f in (*fields(TrainConfig), *fields(KimiConfig)):
        if f.metadata:
            options.setdefault(f.name, (types[f.type], f.metadata["help"]))
    defaults = {name: _defaults(name) for name in PRESETS}
    for name, (kind, text) in options.items():
        shown = "; ".join(f"{model} {_shown([v[name] for v in sizes])}" for model, sizes in defaults.items()
                          if name in sizes[0])  # fmt: skip
        option = f"--{name.replace('_', '-')}"
        parser.add_argument(option, type=kind, metavar=kind.__name__.upper(), help=f"{text} (default: {shown})")


def _defaults(architecture: str) -> list[dict]:
    """Every option's value in smoke, laptop and colab, in this order; without those that only the other model has."""
    other = {f.name for f in fields(KimiConfig) if f.metadata.get("only") not in (None, architecture)}
    sizes = []
    for preset in PRESETS[architecture].values():
        shape = asdict(KimiConfig.small(architecture, 2, **preset.model))
        values = {**shape, **asdict(preset.training), "stories": preset.stories, "min_count": preset.min_count}
        sizes.append({name: value for name, value in values.items() if name not in other})
    return sizes


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
    texts = {
        "temperature": (float, "0 takes the likeliest word, 1 the model's own probabilities"),
        "top_k": (int, "keep the k likeliest words; none: all"),
        "top_p": (float, "keep the likeliest words that reach this probability together"),
        "min_p": (float, "keep words at least this times as likely as the likeliest"),
        "repetition_penalty": (float, "divide the odds of words that have appeared by this"),
    }
    for name, (kind, text) in texts.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, default=getattr(Sampling, name), help=text)


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
