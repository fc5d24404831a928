"""The options of the command line, their help texts and defaults: those of the fields that they set."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from shlex import quote

from utils.config import NUMBER_FORMATS, K2Config, NanoConfig, TrainConfig
from utils.generation import Sampling
from utils.parallel.form import FORMS
from utils.presets import PRESETS
from utils.settings import defaults_of, settings_of
from utils.vocabulary import TOKENIZERS

PROMPT = "Once upon a time"


def a_name(text: str) -> str:
    """A file or folder that was given; an empty one, as of a variable that is not set, would be the current folder."""
    if not text.strip() or "\0" in text:
        raise argparse.ArgumentTypeError("a name is empty")
    return text


DIR, FILE, PATH = (dict(type=a_name, metavar=name) for name in ("DIR", "FILE", "PATH"))


class WithDefaults(argparse.ArgumentDefaultsHelpFormatter):
    """Help texts that say the default of each option that has one."""

    def _get_help_string(self, action: argparse.Action) -> str:
        return action.help if action.default is None else super()._get_help_string(action)


def build_parser(commands_of: dict[str, Callable[[argparse.Namespace], int]]) -> argparse.ArgumentParser:
    """The command line; `commands_of` says by name what each command does."""
    parser = argparse.ArgumentParser(prog="python -m utils", description="Train a small Kimi K2, let it tell stories.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, (add, text) in {
        "train": (_add_train, "train a model and tell a story"),
        "plan": (_add_plan, "count what a run takes on several GPUs, before there is one"),
        "generate": (_add_generate, "tell a story with a trained model"),
        "evaluate": (_add_evaluate, "measure a trained model"),
        "export": (_add_export, "write a trained model for transformers"),
        "convert": (_add_folder, "bring an old checkpoint (checkpoint.pt) into the form of today"),
        "restore": (_add_folder, "take the checkpoint before the newest, which is damaged"),
    }.items():
        command = commands.add_parser(name, help=text)
        command.set_defaults(command=commands_of[name])
        add(command)
    return parser


def _add_train(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "Three defaults are those of smoke / laptop / colab."
    parser.add_argument(
        "--preset", choices=PRESETS["k2"], help="size of the job (default: colab with a GPU, else laptop)"
    )
    parser.add_argument("--model", choices=PRESETS, help="k2, the small Kimi K2, or nano, the simple first model "
                        "(default: k2)")  # fmt: skip
    parser.add_argument("--run", **DIR, help="folder of the run (default: runs/PRESET, runs/nano-PRESET)")
    parser.add_argument("--copy-to", **DIR, help="a second folder that gets every checkpoint, such as one on "
                        "Google Drive; with --resume the run is taken from there where DIR of --run has none "
                        "(default: none)")  # fmt: skip
    parser.add_argument("--parallel", choices=FORMS, default="auto", help="where torchrun has started several "
                        "processes: ddp, a copy of the model in each, or fsdp, a part of each matrix (default: "
                        "auto, ddp while it fits)")  # fmt: skip
    _add_texts(parser)
    either = parser.add_mutually_exclusive_group()
    either.add_argument(
        "--resume",
        action="store_true",
        help="continue the run in DIR with its next batch; --steps may be more, --source where its texts are now "
        "(default: no)",
    )
    either.add_argument("--overwrite", action="store_true", help="replace the run in DIR (default: no)")
    _add_settings(parser, {
        "stories": (int, "stories to train on, at most"),
        "min_count": (int, "words rarer than this in the training stories become <unk>"),
    })  # fmt: skip


def _add_settings(parser: argparse.ArgumentParser, options: dict[str, tuple[type, str]]) -> None:
    """An option for each field of a model and of its training, behind those that are given."""
    for config in (TrainConfig, NanoConfig, K2Config):
        for name, setting in settings_of(config).items():
            if name not in ("vocab_size", "architecture"):
                options.setdefault(name, (setting.kind, setting.help))
    defaults = {name: _defaults(name) for name in PRESETS}
    for name, (kind, text) in options.items():
        shown = "; ".join(f"{model} {_shown([v[name] for v in sizes])}" for model, sizes in defaults.items()
                          if name in sizes[0])  # fmt: skip
        parser.add_argument(option(name), type=kind, metavar=kind.__name__.upper(), help=f"{text} (default: {shown})")


def _add_plan(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "Three defaults are those of smoke / laptop / colab; kimi-k2 is as it was published and trained."
    numbers = {
        "--gpus": (int, 8, "GPUs of the run"),
        "--stages": (int, 1, "stages that the layers are in, one after the other"),
        "--experts-over": (int, 1, "GPUs that the experts of a layer are on"),
        "--peak": (float, 989e12, "FLOPs a second of a GPU by its data sheet; the default is an H100's in bf16"),
        "--mfu": (
            float,
            0.4,
            "share of these that training reaches; ours reaches 0.02 to 0.03 on one H100",
        ),
    }
    parser.add_argument("--model", choices=[*PRESETS, "kimi-k2"], default="k2", help="what is trained (default: k2)")
    parser.add_argument("--preset", choices=PRESETS["k2"], default="colab", help="size of the job (default: colab)")
    for name, (kind, default, text) in numbers.items():
        parser.add_argument(name, type=kind, default=default, metavar=kind.__name__.upper(),
                            help=f"{text} (default: {default:g})")  # fmt: skip
    parser.add_argument("--vocab-size", type=int, metavar="INT", help="tokens of the vocabulary (default: 8000)")
    _add_settings(parser, {})


def _add_sources(parser: argparse.ArgumentParser, default: str) -> None:
    """Where texts are and how they are read; `default` says which are taken without --source."""
    texts = {
        "--source": dict(
            action="append", **PATH,
            help="texts: a file (plain, .md, .csv, .tsv, .json, .jsonl, .parquet, each also .gz or .zst), a folder, a "
            f"glob, hub, hub:OWNER/NAME or builtin; may be given again (default: {default})",
        ),
        "--text-column": dict(
            metavar="NAME", help="column or field that holds the text (default: the usual or the only one)"
        ),
        "--encoding": dict(
            metavar="NAME", help="encoding of the files (default: what a byte order mark tells, else UTF-8)"
        ),
        "--split-on": dict(
            metavar="WHAT", help="what stands between two texts of a plain file: blank-line, line, none, or a line of "
            "your own (default: as the file looks)",
        ),
    }  # fmt: skip
    for name, settings in texts.items():
        parser.add_argument(name, **settings)


def _add_texts(parser: argparse.ArgumentParser) -> None:
    """Where the texts are, how they are read and how they are cut into tokens."""
    _add_sources(parser, "$TINYSTORIES_PATH, else the hub, else builtin")
    texts = {
        "--tokens": dict(
            **DIR, help="folder in which more than 100,000 stories are kept as tokens, once for all runs "
            "(default: runs/tokens)",
        ),
        "--tokenizer": dict(
            choices=TOKENIZERS, help="whole words, or byte-pair encoding, which keeps every text as it is (default: "
            "auto, words where they lose little)",
        ),
        "--vocab-size": dict(
            type=int, metavar="INT", help="tokens of the tokenizer, at most (default: for words those that occur "
            "--min-count times, for bpe 512 to 4096)",
        ),
    }  # fmt: skip
    for name, settings in texts.items():
        parser.add_argument(name, **settings)


def option(name: str) -> str:
    """The option that sets a field."""
    return f"--{name.replace('_', '-')}"


def quoted(text: str) -> str:
    """`text` as one word of a command line, in double quotes where any shell takes them."""
    return f'"{text}"' if set(text) & set(" '") and not set(text) & set('"$`\\!') else quote(text)


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
    parser.formatter_class = WithDefaults
    parser.add_argument("--run", **DIR, required=True, help="folder of a finished run")
    parser.add_argument("--prompt", default=PROMPT, help="how the story begins")
    parser.add_argument("--max-new-tokens", type=int, default=200, help="longest continuation, in words and signs")
    parser.add_argument("--seed", type=int, help="the same seed tells the same story; none: another every time")
    parser.add_argument("--number-format", choices=NUMBER_FORMATS, default="auto", help="that of the matmuls")
    for name, setting in settings_of(Sampling).items():
        parser.add_argument(option(name), type=setting.kind, default=defaults_of(Sampling)[name], help=setting.help)


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = WithDefaults
    parser.add_argument(
        "--run", **DIR, required=True, action="append", help="folder of a run; may be given again, to compare"
    )
    _add_sources(parser, "the validation texts of each run")
    parser.add_argument("--stories", type=int, default=200, help="stories to tell and judge")
    parser.add_argument("--temperature", type=float, default=0.8, help="temperature of those stories")
    parser.add_argument("--seed", type=int, default=0, help="seed of those stories")
    parser.add_argument("--json", **FILE, help="write every figure to it")
    parser.add_argument("--figure", **FILE, help="draw the runs side by side, as PNG, PDF or SVG")


def _add_export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--run", **DIR, required=True, help="folder of a finished run of k2")
    parser.add_argument("--to", **DIR, required=True, help="folder for the model's files")


def _add_folder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--run", **DIR, required=True, help="folder of the run")
