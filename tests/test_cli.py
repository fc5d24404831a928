"""The command line, as a newcomer types it."""

import errno
import io
import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.helpers import save_again, visible
from utils import commands, recipe, sealed, token_store
from utils.__main__ import main
from utils.checkpoint import load_checkpoint, load_model
from utils.commands import COMMANDS
from utils.config import KimiConfig, TrainConfig
from utils.data import TokenData
from utils.generation import Sampling
from utils.grammar import builtin_stories
from utils.hf import import_hf
from utils.options import build_parser, quoted
from utils.presets import PRESETS, Preset
from utils.recipe import load_split, new_recipe, read_recipe
from utils.run_state import RunState
from utils.token_workers import held_out
from utils.tokenizer import WordTokenizer
from utils.train_command import repeats

ROOT = Path(__file__).resolve().parents[1]
STORY = "Once upon a time, there was a cat named Tom. Tom had a red ball. He was happy. The end."


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """A preset that takes a second, and no source from outside."""
    training = TrainConfig(steps=6, batch_size=2, block_size=32, eval_interval=3, eval_batches=1, number_format="fp32")
    shapes = {
        "nano": dict(block_size=32, d_model=16, n_heads=4, n_layers=1, d_ff=16, dropout=0.0),
        "k2": dict(block_size=32, d_model=16, n_heads=2, n_layers=2, d_ff=16, dense_ff=16, n_experts=4, top_k=2),
    }
    for architecture, model in shapes.items():
        preset = Preset(stories=40, min_count=1, model=model, training=training)
        monkeypatch.setitem(PRESETS[architecture], "smoke", preset)
    monkeypatch.setenv("TINYSTORIES_PATH", "builtin")


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    assert main(["train", "--preset", "smoke", "--run", str(folder)]) == 0
    return folder


def error_of(capsys, *arguments):
    capsys.readouterr()
    assert main(list(map(str, arguments))) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    message = [line for line in lines if line.startswith("error: ")]
    assert len(message) == 1 and not any("Traceback" in line for line in lines)
    return message[0]


def test_train_ends_with_a_told_story_and_what_to_do_next(run, capsys, tmp_path):
    main(["train", "--preset", "smoke", "--run", str(tmp_path / "again")])
    out = capsys.readouterr().out
    assert "built-in stories" in out and "active for each token" in out and "\nOnce upon a time" in out
    assert f'python -m utils generate --run {tmp_path / "again"} --prompt "Once upon a time"' in out
    assert visible(run) == ["checkpoint.safetensors", "history.json", "loss.png"]


@pytest.mark.parametrize("accumulation", [1, 3])
def test_a_run_that_reads_its_text_many_times_is_told_with_the_steps_that_would_not(accumulation):
    data = TokenData(np.zeros(6_000, dtype=np.uint16), 5_000, {})
    config = TrainConfig(steps=1_000, batch_size=4, block_size=32, accumulation=accumulation)
    told = repeats(data, config)
    assert f"reads its 5,000 training tokens {1_000 * 128 * accumulation / 5_000:.1f} times" in told
    fewer = int(re.search(r"--steps (\d+) for 4 passes", told)[1])
    assert repeats(data, replace(config, steps=fewer)) is None
    assert repeats(data, replace(config, steps=fewer + 1))


def test_of_a_text_shorter_than_a_step_no_impossible_number_of_steps_is_asked():
    data = TokenData(np.zeros(40, dtype=np.uint16), 31, {})
    assert repeats(data, TrainConfig(batch_size=4, block_size=32)).endswith("take more text, or fewer steps (--steps)")


SHIPPED = [(name, preset) for presets in PRESETS.values() for name, preset in presets.items()]


@pytest.mark.parametrize("name, preset", SHIPPED, ids=lambda value: value if isinstance(value, str) else "")
def test_of_the_presets_and_their_stories_nothing_is_said(name, preset):
    """The built-in stories are shorter than those of TinyStories, so they are read more often."""
    sample = builtin_stories(200)
    tok = WordTokenizer.train(sample)
    n_train = preset.stories * sum(len(tok.encode(story)) + 1 for story in sample) // len(sample)
    assert repeats(TokenData(np.zeros(n_train, dtype=np.uint16), n_train, {}), preset.training) is None


def test_a_small_text_of_ones_own_is_learned_by_heart_and_that_is_said_before(tmp_path, capsys):
    (tmp_path / "own.txt").write_text("\n".join(f"{STORY} {i}" for i in range(30)))
    own = ["train", "--preset", "smoke", "--source", str(tmp_path / "own.txt"), "--split-on", "line"]
    for steps, said in ((60, 1), (6, 0)):
        capsys.readouterr()
        assert main([*own, "--run", str(tmp_path / str(steps)), "--steps", str(steps)]) == 0
        notes = [line for line in capsys.readouterr().err.splitlines() if "training tokens" in line]
        assert len(notes) == said and all(note.startswith("note: this run reads") for note in notes)


def test_the_model_is_k2_unless_nano_is_said(run, tmp_path, capsys):
    assert load_checkpoint(run)["config"]["architecture"] == "k2"
    assert main(["train", "--preset", "smoke", "--model", "nano", "--run", str(tmp_path / "nano")]) == 0
    assert "model: nano, " in capsys.readouterr().out
    assert load_checkpoint(tmp_path / "nano")["config"]["architecture"] == "nano"
    assert main(["generate", "--run", str(tmp_path / "nano"), "--max-new-tokens", "3"]) == 0


def test_generate_tells_the_same_story_for_a_seed(run, capsys):
    told = []
    for _ in range(2):
        capsys.readouterr()
        assert (
            main(["generate", "--run", str(run), "--prompt", "Once upon", "--seed", "1", "--temperature", "0.5"]) == 0
        )
        told.append(capsys.readouterr().out)
    assert told[0] == told[1] and told[0].startswith("Once upon")


def test_evaluate_reports_every_figure(run, capsys):
    assert main(["evaluate", "--run", str(run), "--stories", "3"]) == 0
    out = capsys.readouterr().out
    for figure in (
        r"bits per byte of the text +\d\.\d{3}\n",
        r"what words leave out +\d\.\d{3}\n",
        r"nats per token +\d\.\d{3}\n",
        r"perplexity +\d",
        r"likeliest +\d",
        r"no token went to +\d",
        r"read per second +\d",
        r"coherent \(built-in grammar\) +0\.0%",
        r"different pairs +\d",
        r"four-word sequences +\d",
        r"3 stories at temperature 0\.8",
    ):
        assert re.search(figure, out), figure


def test_evaluate_says_why_two_shares_differ_where_it_prints_both(run, capsys, monkeypatch):
    for share, said in (({"ending": 0.5, "none": 0.5}, True), (None, False)):
        monkeypatch.setattr("utils.evaluate.Judge.shares", lambda *_, share=share: share)
        capsys.readouterr()
        assert main(["evaluate", "--run", str(run), "--stories", "2"]) == 0
        out = capsys.readouterr().out
        assert "coherent (built-in grammar)" in out and ("none of these faults" in out) == said
        assert (commands.TWO_JUDGES in out) == said


def test_evaluate_shows_on_stderr_how_far_it_is_and_prints_its_table_alone(run, capsys):
    capsys.readouterr()
    assert main(["evaluate", "--run", str(run), "--stories", "3"]) == 0
    printed = capsys.readouterr()
    bars = ["validation: ", "what words leave out: ", "stories 1 to 3 of 3: "]
    places = [printed.err.find(bar) for bar in bars]
    assert -1 < places[0] < places[1] < places[2] and not any(bar in printed.out for bar in bars)


def test_a_bar_that_cannot_be_drawn_ends_no_evaluation(run, capsys, monkeypatch):
    class Closed(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stderr", Closed())
    assert main(["evaluate", "--run", str(run), "--stories", "3"]) == 0
    assert "bits per byte" in capsys.readouterr().out


def test_runs_are_evaluated_side_by_side_in_a_table_in_json_and_in_a_figure(run, tmp_path, capsys):
    (tmp_path / "own.txt").write_text("\n<|endoftext|>\n".join(f"{STORY} {i}" for i in range(30)))
    other = str(tmp_path / "other")
    main(["train", "--preset", "smoke", "--run", other, "--source", str(tmp_path / "own.txt"), "--tokenizer", "bpe"])
    files = [str(tmp_path / name) for name in ("found.json", "found.png")]
    both = ["evaluate", "--run", str(run), "--run", other, "--stories", "2", "--json", files[0], "--figure", files[1]]
    capsys.readouterr()
    assert main(both) == 0
    out = capsys.readouterr().out
    assert re.search(r"steps of training +6 +6\n", out) and re.search(r"grammar\) +0\.0% +not judged\n", out)
    assert "measured on different texts" in out
    found = json.loads((tmp_path / "found.json").read_text())
    assert list(found["runs"]) == [str(run), other] and found["settings"]["stories"] == 2
    for name in found["runs"]:
        shown = f"{found['runs'][name]['found']['bits_per_byte']:.3f}"
        assert shown in out
    assert (tmp_path / "found.png").read_bytes().startswith(b"\x89PNG")

    assert main([*both, "--source", str(tmp_path / "own.txt")]) == 0
    assert "different texts" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "options, message",
    [
        (["--stories", "-3"], "--stories is -3, it must be from 0 to 100,000"),
        (["--figure", "found.jpeg2"], "its ending must be one of png, pdf, svg"),
        (["--source", "gone.txt"], "gone.txt does not exist"),
        (["--encoding", "cp1252"], "--encoding says how --source is read: give both or neither"),
    ],
)
def test_evaluate_names_what_is_wrong(run, capsys, options, message):
    assert message in error_of(capsys, "evaluate", "--run", run, *options)


def test_evaluate_reads_several_sources_in_the_ways_that_train_does(run, tmp_path, capsys):
    (tmp_path / "a.txt").write_bytes("caf\u00e9 one\ncaf\u00e9 two\n".encode("cp1252"))
    (tmp_path / "b.csv").write_text("id,tale\n1,Lily ran.\n2,Lily sat.\n")
    sources = ["--source", tmp_path / "a.txt", "--source", tmp_path / "b.csv"]
    how = ["--encoding", "cp1252", "--split-on", "line", "--text-column", "tale"]
    assert main([str(word) for word in ["evaluate", "--run", run, "--stories", "1", *sources, *how]]) == 0
    out = capsys.readouterr().out
    assert "2 from" in out and "a.txt" in out and "'tale'" in out
    assert "not UTF-8" in error_of(capsys, "evaluate", "--run", run, "--source", tmp_path / "a.txt")


def test_training_texts_of_one_source_are_not_measured_because_another_has_no_validation_texts(run, tmp_path, capsys):
    """Fault of the first form, which asked for the validation texts of all sources together or took all their texts."""
    both, more = tmp_path / "both", tmp_path / "more.txt"
    both.mkdir()
    (both / "train.txt").write_text("Lily ran.\n" * 5)
    (both / "valid.txt").write_text("Lily sat.\nLily fell.\n")
    more.write_text("Tom ran.\nTom sat.\nTom fell.\n")
    sources = ["--source", both, "--source", more, "--split-on", "line"]
    capsys.readouterr()
    assert main([str(word) for word in ["evaluate", "--run", run, "--stories", "1", *sources]]) == 0
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("stories: ") and "from" in line]
    assert len(told) == 2 and "2 from" in told[0] and "validation" in told[0] and "3 from" in told[1]


def test_help_names_each_default_once(capsys):
    for command in ("train", "plan", "generate", "evaluate", "export"):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        text = " ".join(capsys.readouterr().out.split())
        assert "(default: None)" not in text and ") (default" not in text


def test_export_writes_what_import_reads(run, tmp_path, capsys):
    assert main(["export", "--run", str(run), "--to", str(tmp_path / "hf")]) == 0
    assert f"from_pretrained('{tmp_path / 'hf'}')" in capsys.readouterr().out
    ours, theirs = load_model(run)[0], import_hf(tmp_path / "hf")
    assert ours.config == theirs.config and ours.tokenizer.words == theirs.tokenizer.words
    assert all(torch.equal(p, q) for p, q in zip(ours.parameters(), theirs.parameters(), strict=True))
    main(["train", "--preset", "smoke", "--model", "nano", "--run", str(tmp_path / "nano")])
    message = error_of(capsys, "export", "--run", tmp_path / "nano", "--to", tmp_path / "x")
    assert "the model is nano: only k2" in message


def test_only_built_in_stories_are_judged(tmp_path, capsys):
    (tmp_path / "own.txt").write_text("\n<|endoftext|>\n".join([STORY] * 30))
    main(["train", "--preset", "smoke", "--run", str(tmp_path / "run"), "--source", str(tmp_path / "own.txt")])
    assert main(["evaluate", "--run", str(tmp_path / "run"), "--stories", "1"]) == 0
    assert re.search(r"grammar\) +not judged", capsys.readouterr().out)


def test_resume_continues_a_stopped_run_to_the_same_end(run, tmp_path, capsys, monkeypatch):
    stopped = tmp_path / "stopped"
    count = RunState.count_step
    monkeypatch.setattr(RunState, "count_step", lambda self, *step: count(self, *step) or stop_after_step_2(self))
    assert main(["train", "--preset", "smoke", "--run", str(stopped)]) == 130
    assert "stopped after step 2 of 6" in capsys.readouterr().out
    monkeypatch.undo()
    monkeypatch.setenv("TINYSTORIES_PATH", "/gone")  # the run knows its own source
    assert main(["train", "--run", str(stopped), "--resume"]) == 0
    losses = [json.loads((folder / "history.json").read_text())["losses"] for folder in (run, stopped)]
    assert losses[0] == losses[1]


def stop_after_step_2(run):
    if run.step == 2:
        os.kill(os.getpid(), signal.SIGINT)


def test_a_run_is_kept_unless_overwrite_is_said(run, capsys):
    before = (run / "checkpoint.safetensors").read_bytes()
    assert "holds another run: continue it with --resume or" in error_of(
        capsys, "train", "--preset", "smoke", "--run", run
    )
    assert (run / "checkpoint.safetensors").read_bytes() == before
    assert main(["train", "--preset", "smoke", "--run", str(run), "--overwrite", "--steps", "2"]) == 0
    assert load_checkpoint(run)["step"] == 2


def test_a_wrong_option_leaves_the_old_run_alone(run, capsys):
    before = {name: (run / name).read_bytes() for name in visible(run)}
    error_of(capsys, "train", "--preset", "smoke", "--run", run, "--overwrite", "--top-k", "9")
    error_of(capsys, "train", "--preset", "smoke", "--run", run, "--overwrite", "--source", run / "nothing.txt")
    assert {name: (run / name).read_bytes() for name in visible(run)} == before


@pytest.mark.parametrize(
    "options, message",
    [
        (
            ["--model", "nano", "--d-model", 30, "--n-heads", 4],
            "NanoConfig.d_model is 30, it must be a multiple of n_heads (4)",
        ),
        (["--seed", 2**64], "TrainConfig.seed is 18446744073709551616, it must be a whole number, 0 or more and below"),
        (["--seed", -1], "TrainConfig.seed is -1, it must be a whole number, 0 or more and below 2^63"),
        (["--stories", 0], "stories is 0, it must be a whole number from 1 to 100,000,000"),
        (["--top-k", 5], "K2Config.top_k is 5, it must be at most n_experts (4)"),
        (["--lr", "nan"], "TrainConfig.lr is nan, it must be a finite number above 0"),
        (["--optimizer", "sgd"], "TrainConfig.optimizer is 'sgd', it must be one of muonclip, adamw"),
        (["--dropout", 0.1], "K2Config has no field 'dropout', its fields are"),
        (["--model", "nano", "--kv-lora-rank", 8], "NanoConfig has no field 'kv_lora_rank', its fi"),
        pytest.param(
            ["--number-format", "fp16"],
            "number_format is 'fp16', on a CPU it must be auto, fp32 or bf16",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU takes it"),
        ),
        (["--block-size", 99999], "a block of 99999 needs at least 100000"),
        (["--source", "missing.txt"], "missing.txt does not exist"),
    ],
)
def test_bad_options_of_train_are_one_clear_line(tmp_path, capsys, options, message):
    assert message in error_of(capsys, "train", "--preset", "smoke", "--run", tmp_path / "new", *options)
    assert not (tmp_path / "new").exists()


def test_bad_files_are_one_clear_line(tmp_path, capsys, run):
    empty, latin = tmp_path / "empty.txt", tmp_path / "latin.txt"
    empty.write_text("")
    latin.write_bytes("Once upon a café".encode("latin-1"))
    for file, message in ((empty, "holds no text"), (latin, "line 1: the text is not UTF-8")):
        assert message in error_of(capsys, "train", "--preset", "smoke", "--run", tmp_path / "x", "--source", file)
    assert "there is no checkpoint" in error_of(capsys, "generate", "--run", tmp_path / "x")
    assert "there is no checkpoint at" in error_of(capsys, "train", "--run", tmp_path / "x", "--resume")
    (run / "checkpoint.safetensors").write_bytes((run / "checkpoint.safetensors").read_bytes()[:5000])
    assert "is damaged" in error_of(capsys, "generate", "--run", run)
    assert "is damaged" in error_of(capsys, "train", "--run", run, "--resume")


def test_bad_options_of_generate_are_one_clear_line(run, capsys):
    assert "temperature is -1.0" in error_of(capsys, "generate", "--run", run, "--temperature", -1)
    for seed in (-1, 2**64):
        message = error_of(capsys, "generate", "--run", run, "--seed", seed)
        assert f"seed is {seed}, it must be a whole number" in message


def test_a_prompt_beyond_the_block_is_noted_in_one_line(run, capsys):
    prompt = "ball " * 40
    assert main(["generate", "--run", str(run), "--prompt", prompt, "--max-new-tokens", "3"]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith(prompt.rstrip())
    assert captured.err.startswith("note: the prompt has 40 tokens, the model's block takes the last 32: it does not")
    assert captured.err.count("\n") == 1


def test_a_folder_that_cannot_hold_a_run_is_refused_before_the_stories_are_loaded(run, tmp_path, capsys):
    """Its steps were computed first, and lost."""
    (tmp_path / "file").write_text("a file")
    checkpoint = run / "checkpoint.safetensors"
    for folder, options, message in (
        (tmp_path / "file", [], "file cannot be a folder to write to: it is a file"),
        (tmp_path / "file" / "below", ["--overwrite"], "below cannot be a folder to write to: "),
        (
            tmp_path / "v1.safetensors",
            [],
            f"v1.safetensors is the name of a checkpoint, a run needs that of a folder, such as {tmp_path}/v1",
        ),
        (checkpoint, ["--overwrite"], f"a run needs that of a folder, such as {run}"),
        (checkpoint, ["--resume"], f"a run needs that of a folder, such as {run}"),
    ):
        before = checkpoint.read_bytes()
        assert message in error_of(capsys, "train", "--preset", "smoke", "--run", folder, *options)
        assert "stories:" not in capsys.readouterr().out and checkpoint.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "run"]


def test_a_full_disk_ends_a_run_in_one_sentence(tmp_path, capsys, monkeypatch):
    def full(path, write, keep=None):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(sealed, "write_atomically", full)  # of the checkpoint
    message = error_of(capsys, "train", "--preset", "smoke", "--run", tmp_path / "run")
    assert re.search(
        r"No space left on device; checkpoint\.safetensors needs \d+ MB .* nothing is saved\. Make room", message
    )
    assert visible(tmp_path / "run") == ["loss.png"]


def test_a_small_text_is_trained_and_too_small_a_one_names_the_cure(tmp_path, capsys):
    source = tmp_path / "a.txt"
    source.write_text("\n<|endoftext|>\n".join(f"Tom had a ball {i}." for i in range(20)))  # a story is 7 tokens
    options = ["train", "--preset", "smoke", "--run", str(tmp_path / "run"), "--source", str(source)]
    assert main([*options, "--tokenizer", "word"]) == 0  # validation: 14 tokens, a block: 32
    assert "126 training and 14 validation tokens" in capsys.readouterr().out
    history = json.loads((tmp_path / "run" / "history.json").read_text())
    assert all(0 < row["val_loss"] < 20 for row in history["rows"])
    before = (tmp_path / "run" / "checkpoint.safetensors").read_bytes()
    message = error_of(capsys, *options, "--tokenizer", "word", "--overwrite", "--block-size", 126)
    assert message == (
        "error: a block of 126 needs at least 127 training tokens and 2 to validate, there are 126 training and 14 "
        "validation tokens: take more text or a block of at most 125 (--block-size)"
    )
    assert (tmp_path / "run" / "checkpoint.safetensors").read_bytes() == before
    assert main([*options, "--tokenizer", "word", "--overwrite", "--block-size", "125"]) == 0


def test_a_block_of_a_few_tokens_is_trained_to_the_told_story(tmp_path, capsys):
    """The story's beginning is longer than the block: that was found out behind the last step."""
    options = ["train", "--preset", "smoke", "--run", str(tmp_path / "run"), "--block-size"]
    assert main([*options, "3"]) == 0
    captured = capsys.readouterr()
    assert "\nOnce upon a time" in captured.out and "block takes the last 3: it does not read 'Once'" in captured.err


def test_evaluate_measures_some_of_the_built_in_stories_which_have_no_end(run, capsys, monkeypatch):
    monkeypatch.setattr("utils.commands.BUILTIN_STORIES", 30)
    assert main(["evaluate", "--run", str(run), "--source", "builtin", "--stories", "0"]) == 0
    assert "stories: 30 built-in" in capsys.readouterr().out


def test_a_prompt_of_unknown_words_is_noted_in_one_line(run, capsys):
    assert main(["generate", "--run", str(run), "--prompt", "zorblax", "--max-new-tokens", "3"]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("zorblax ")
    assert captured.err.startswith("note: no word of the prompt 'zorblax' is known") and captured.err.count("\n") == 1


def test_what_evaluate_cannot_do_is_said_before_anything_is_measured(run, capsys, monkeypatch):
    monkeypatch.setattr("utils.commands.load_model", lambda *_: pytest.fail("measured first"))
    for option, value, message in (
        ("--stories", -3, "--stories is -3, it must be from 0 to 100,000"),
        ("--seed", 2**64, "seed is 18446744073709551616, it must be a whole number"),
        ("--seed", -1, "seed is -1, it must be a whole number"),
        ("--temperature", -1, "Sampling.temperature is -1.0, it must be 0 or more"),
    ):
        assert message in error_of(capsys, "evaluate", "--run", run, option, value)


def test_resume_takes_the_settings_of_the_run_again(run, capsys):
    """The command that began the run, with --resume behind it."""
    recipe = read_recipe(run)
    again = ["--steps", "6", "--stories", recipe["stories"], "--lr", recipe["training"]["lr"], "--top-k", 2]
    assert main([str(word) for word in ["train", "--preset", "smoke", "--run", run, "--resume", *again]]) == 0


def test_resume_takes_what_would_change_the_run_from_the_run(run, capsys):
    for options in (["--lr", "0.1"], ["--model", "nano"], ["--preset", "laptop"], ["--stories", "9"]):
        assert f"leave out {options[0]}" in error_of(capsys, "train", "--run", run, "--resume", *options)
    assert "--steps is 5, to continue a run of 6" in error_of(capsys, "train", "--run", run, "--resume", "--steps", "5")
    assert "the stories are not those the run began with" in error_of(
        capsys, "train", "--run", run, "--resume", "--source", ROOT / "README.md"
    )


def test_the_command_that_began_a_run_continues_it(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    count = RunState.count_step
    with monkeypatch.context() as stopped:
        stopped.setattr(RunState, "count_step", lambda self, *step: count(self, *step) or stop_after_step_2(self))
        assert main(["train", "--preset", "smoke", "--model", "k2"]) == 130
    assert main(["train", "--preset", "smoke", "--model", "k2", "--resume"]) == 0
    assert load_model(tmp_path / "runs" / "smoke")[1] == 6


def test_a_finished_run_goes_on_for_more_steps(run, capsys):
    assert main(["train", "--run", str(run), "--resume", "--steps", "8"]) == 0
    assert "planned for 6 steps, now 8: after step 6 the learning rate is" in capsys.readouterr().out
    assert load_model(run)[1] == 8 and read_recipe(run)["training"]["steps"] == 8
    assert len(json.loads((run / "history.json").read_text())["losses"]) == 8


def test_texts_may_have_moved(tmp_path, capsys):
    (tmp_path / "old.txt").write_text("\n\n".join(builtin_stories(30)))
    options = ["--preset", "smoke", "--run", str(tmp_path / "run")]
    assert main(["train", *options, "--source", str(tmp_path / "old.txt")]) == 0
    (tmp_path / "old.txt").rename(tmp_path / "new.txt")
    assert "old.txt does not exist" in error_of(capsys, "train", *options, "--resume", "--steps", "7")
    assert main(["train", *options, "--resume", "--steps", "7", "--source", str(tmp_path / "new.txt")]) == 0
    assert read_recipe(tmp_path / "run")["source"] == str(tmp_path / "new.txt")


# Texts of any kind

HINDI = "एक दिन सीता ने बिल्ली देखी और वह हिन्दी में बोली कि मौसम अच्छा है। "
END = "\n<|endoftext|>\n"
RABBITS = "".join(
    f"从前有{one}{other}兔在林中跳舞，后来回家了。{END}" for one in "红黄蓝白黑灰" for other in "大小老新旧高"
)
TEXTS = {  # what a person comes with: file by file
    "play.txt": "FIRST CITIZEN:\nBefore we proceed, hear me speak.\n\nALL:\nSpeak!\n\n" * 40,
    "names.txt": "\n".join(f"{a}{b}{c}" for a in "abcdefgh" for b in "klmnoprst" for c in ("ana", "leo")),
    "tales.txt": "\n\n".join(builtin_stories(400)),
    "chinese.txt": RABBITS,
    "hindi.txt": f"{HINDI}{END}" * 30,
    "arabic.jsonl": "".join(
        f'{{"story": "كَانَ يَا مَا كَانَ {word} صغيرة. ذهبت إلى السوق يوما."}}\n' for word in "بتثجحخد" * 3
    ),
    "emoji.csv": "id,tale\n"
    + "".join(f"{i},the {animal} 👩‍👩‍👧 ran 🎉 home\n" for i, animal in enumerate("🐶🐱🐭🐹" * 9)),
    "code.py": "def f(x):\n    if x == 1:\n        return x_y\n    return None\n\n\n" * 40,
    "tales.md": "# The cat\n\n" + "\n\n".join(builtin_stories(400)) + "\n",
    "french.txt": f"L'ami dit : « Aujourd'hui, c'est l'été ! »{END}C'est l'ami d'Ali.{END}" * 20,
}
SUITS = {  # the tokenizer that suits it, and what is said about it
    "play.txt": ("BPETokenizer", "one text"),
    "names.txt": ("BPETokenizer", "an item in each line"),
    "tales.txt": ("WordTokenizer", "items between blank lines"),
    "chinese.txt": ("BPETokenizer", "of the words unknown"),
    "hindi.txt": ("WordTokenizer", "0.0% of the validation tokens unknown"),
    "arabic.jsonl": ("BPETokenizer", "JSON lines, field 'story'"),
    "emoji.csv": ("BPETokenizer", "CSV, column 'tale'"),
    "code.py": ("BPETokenizer", "as many line ends gone"),
    "tales.md": ("WordTokenizer", "one text"),
    "french.txt": ("BPETokenizer", "spaced otherwise"),
}


@pytest.mark.parametrize("name", TEXTS)
def test_texts_of_any_kind_are_trained_told_resumed_measured_and_exported(name, tmp_path, capsys, monkeypatch):
    content, (tokenizer, said) = TEXTS[name], SUITS[name]
    source, folder = tmp_path / name, tmp_path / "a run"
    source.write_text(content, encoding="utf-8")
    count = RunState.count_step
    options = ["--preset", "smoke", "--run", str(folder), "--block-size", "16", "--stories", "400"]
    with monkeypatch.context() as stopped:
        stopped.setattr(RunState, "count_step", lambda self, *step: count(self, *step) or stop_after_step_2(self))
        assert main(["train", *options, "--source", str(source)]) == 130
    out = capsys.readouterr().out
    assert "stories: " in out and str(source) in out and said in out
    assert main(["train", "--run", str(folder), "--resume"]) == 0
    out = capsys.readouterr().out
    tok = load_model(folder)[0].tokenizer
    assert type(tok).__name__ == tokenizer
    assert f'utils generate --run "{folder}" --prompt ' in out
    assert (
        main(["generate", "--run", str(folder), "--prompt", content[:5], "--seed", "1", "--max-new-tokens", "9"]) == 0
    )
    assert capsys.readouterr().out.startswith(content[:5].rstrip())
    assert main(["evaluate", "--run", str(folder), "--stories", "2"]) == 0
    assert main(["export", "--run", str(folder), "--to", str(tmp_path / "hf")]) == 0
    assert import_hf(tmp_path / "hf").tokenizer.to_dict() == tok.to_dict()


@pytest.mark.parametrize(
    "text",
    [
        "L'ami d'Ali dit : « C'est l'été, aujourd'hui ! »",
        "Der Hund rief: „Guten Tag, Frau Müller!“ Das war’s.",
        "¿Dónde está el gato? ¡Aquí! —dijo ella—. ¡Qué bien!",
        "Mr. Smith of the U.S.A. paid £3 at 5 p.m. to O'Brien.",
        "Lit up the night,\n  a silver star\nhung low.",
        "x = {'a': 1}\nif x:\n    print(x['a'])",
    ],
)
def test_what_words_would_space_otherwise_comes_back_as_it_was_written(text, tmp_path, capsys):
    source, folder = tmp_path / "a.txt", tmp_path / "run"
    source.write_text(END.join([f"{text} a b", f"{text} b a"] * 10), encoding="utf-8")
    options = ["--preset", "smoke", "--block-size", "16", "--steps", "1"]
    assert main(["train", *options, "--run", str(folder), "--source", str(source)]) == 0
    assert "tokenizer: words would leave" in capsys.readouterr().out
    tok = load_model(folder)[0].tokenizer
    assert tok.decode(tok.encode(text)) == text


OPENINGS = {  # what a run's own story begins with: words of the first line of a text that validates
    "russian": ("Жил-был {} кот. Он любил рыбу и молоко.", r"Жил-был \w+ кот\."),
    "hindi": ("एक दिन {} ने बिल्ली देखी।", r"एक दिन \w+"),
    "chinese": ("{}兔在林中跳舞，后来回家了。", r"\w兔在"),
    "names": ("{}a", r"\wa"),
    "code": ("def {}(x):\n    return x", r"def \w\(x\):"),
    "verse": ("\n\n{} moon\nhung low\nover the hill", r"\w moon"),
}


@pytest.mark.parametrize("name", OPENINGS)
def test_the_story_at_the_end_of_a_run_begins_as_its_own_texts_do(name, tmp_path, capsys):
    text, begins = OPENINGS[name]
    source, folder = tmp_path / "a.txt", tmp_path / "run"
    source.write_text(END.join(text.format(letter) for letter in "абвгдежзиклмнопрст"), encoding="utf-8")
    assert main(["train", "--preset", "smoke", "--run", str(folder), "--source", str(source)]) == 0
    out = capsys.readouterr().out
    told, command = re.search(r"^\n(.*?)\n\n0\.\d minutes", out, re.S | re.M)[1], out.splitlines()[-1]
    assert re.match(begins, told) and re.search(rf"--prompt ['\"]?{begins}['\"]?$", command), (told, command)


def test_the_tokenizer_and_its_size_can_be_said(tmp_path, capsys):
    source = tmp_path / "a.txt"
    source.write_text(RABBITS, encoding="utf-8")
    options = ["train", "--preset", "smoke", "--block-size", "8", "--source", str(source)]
    assert main([*options, "--run", str(tmp_path / "w"), "--tokenizer", "word"]) == 0
    assert "tokenizer: words leave" in (out := capsys.readouterr().out) and "--tokenizer bpe keeps every text" in out
    assert main([*options, "--run", str(tmp_path / "b"), "--tokenizer", "bpe", "--vocab-size", "270"]) == 0
    assert len(load_model(tmp_path / "b")[0].tokenizer) == 270
    assert "vocab_size is 9, it must be at least 257" in error_of(
        capsys, *options, "--run", tmp_path / "c", "--tokenizer", "bpe", "--vocab-size", 9
    )


def test_a_reading_option_reaches_the_files_again_when_the_run_goes_on(tmp_path, capsys):
    source = tmp_path / "a.csv"
    source.write_bytes(b"title,tale\n" + b"".join(b"caf\xe9,Tom had a ball %d.\n" % i for i in range(40)))
    options = ["--preset", "smoke", "--block-size", "16", "--encoding", "cp1252", "--text-column", "tale"]
    assert main(["train", *options, "--source", str(source), "--run", str(tmp_path / "run")]) == 0
    assert "CSV, column 'tale'" in capsys.readouterr().out
    assert main(["evaluate", "--run", str(tmp_path / "run"), "--stories", "2"]) == 0
    assert "CSV, column 'tale'" in capsys.readouterr().out


def test_a_text_in_both_splits_is_told(tmp_path, capsys):
    """A copy of a folder inside itself, or of a file under another name."""
    stories = builtin_stories(30)
    for file, texts in (
        ("train.txt", stories[:25]),
        ("validation.txt", stories[22:]),
        ("old/train.txt", stories[25:28]),
    ):
        (tmp_path / "texts" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "texts" / file).write_text(END.join(texts))
    options = [
        "train",
        "--preset",
        "smoke",
        "--stories",
        "100",
        "--run",
        str(tmp_path / "run"),
        "--overwrite",
        "--source",
    ]
    assert main([*options, str(tmp_path / "texts")]) == 0
    assert "stories: 6 texts are in training and in validation" in capsys.readouterr().out
    (tmp_path / "texts" / "validation.txt").write_text(END.join(stories[28:]))
    assert main([*options, str(tmp_path / "texts")]) == 0
    assert "texts are in training and in validation" not in capsys.readouterr().out


def test_a_folder_copied_into_itself_puts_no_text_on_both_sides(tmp_path):
    """Without names of splits a tenth of the texts is drawn: with all its copies."""
    stories = builtin_stories(30)
    for file, texts in (("a.txt", stories[:20]), ("b.txt", stories[20:])):
        for folder in (tmp_path, tmp_path / "copy", tmp_path / ".hidden"):
            folder.mkdir(exist_ok=True)
            (folder / file).write_text(END.join(texts))
    train, val = load_split(new_recipe("k2", "smoke", str(tmp_path), stories=100))
    assert (len(train), len(val)) == (54, 6) and not set(train) & set(val)


def test_several_sources_are_one_text(tmp_path, capsys):
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text("\n\n".join(builtin_stories(9, ord(name))))
    sources = ["--source", str(tmp_path / "a.txt"), "--source", str(tmp_path / "b.txt")]
    assert main(["train", "--preset", "smoke", "--run", str(tmp_path / "run"), *sources]) == 0
    assert capsys.readouterr().out.count("stories: 9 from") == 2
    assert read_recipe(tmp_path / "run")["source"] == sources[1::2]


# The whole dataset


@pytest.fixture
def large(monkeypatch, tmp_path):
    """More than 30 stories count as many; options of a run on 60 of them, whose validation part is of 3."""
    for name, value in {"IN_MEMORY": 30, "FEW": 20}.items():
        monkeypatch.setattr(recipe, name, value)
    monkeypatch.chdir(tmp_path)
    return ["train", "--preset", "smoke", "--source", "builtin", "--stories", "60"]


def test_more_stories_than_fit_are_tokenised_once_for_all_runs(large, tmp_path, capsys, monkeypatch):
    count = RunState.count_step
    with monkeypatch.context() as stopped:
        stopped.setattr(RunState, "count_step", lambda self, *step: count(self, *step) or stop_after_step_2(self))
        assert main([*large, "--run", "runs/one"]) == 130
    first = capsys.readouterr().out
    assert "tokenizer: made from the first 30 stories" in first
    assert "stories: up to 60 from builtin (built-in stories)\n" in first
    assert "tokens: kept on disk, as for more than 30 stories, in runs" in first
    told = re.search(r"tokens: (63 stories, [\d,]+ tokens, 0 MB in runs.tokens.\w+)\n", first)[1]
    monkeypatch.setattr(token_store.TokenStore, "fill", lambda *_: pytest.fail("tokenised again"))
    assert main(["train", "--run", "runs/one", "--resume"]) == 0
    assert f"tokens: {told}, from an earlier start" in capsys.readouterr().out
    assert main([*large, "--run", "runs/two"]) == 0
    assert f"tokens: {told}, from an earlier start" in (second := capsys.readouterr().out)
    assert "tokenizer: made" not in second
    losses = [json.loads(Path(f"runs/{run}/history.json").read_text())["losses"] for run in ("one", "two")]
    assert losses[0] == losses[1]
    assert main(["evaluate", "--run", "runs/one", "--stories", "2"]) == 0
    assert "up to 60 from builtin (built-in stories): the first 30 and 3 to validate" in capsys.readouterr().out
    model, data = load_model("runs/one")[0], recipe.load_tokens(read_recipe("runs/one"))[1]
    stories = [builtin_stories(60), builtin_stories(3, 1)]
    expected = TokenData.from_stories(stories[0], model.tokenizer, validation=stories[1])
    assert model.tokenizer.words == WordTokenizer.train(stories[0][:30]).words
    assert data.fingerprint() == expected.fingerprint() and data.n_bytes == expected.n_bytes


def test_a_tokenizer_of_before_serves_only_the_same_texts_and_wishes(large, capsys):
    Path("mine.jsonl").write_text("".join(f'"{text} {i}"\n' for i, text in enumerate(["a", "b", "c"] * 60)))
    others = [[], ["--vocab-size", "50"], ["--tokenizer", "bpe"], ["--min-count", "9"], ["--source", "mine.jsonl"]]
    toks = {}
    for _ in range(2):
        for i, more in enumerate(others):
            options = [*large[:3], *large[5:]] if "--source" in more else large
            assert main([*options, "--run", "runs/one", "--overwrite", "--block-size", "4", "--steps", "1", *more]) == 0
            toks.setdefault(i, []).append(json.dumps(load_model("runs/one")[0].tokenizer.to_dict()))
    assert capsys.readouterr().out.count("from an earlier start") == len(others)
    assert all(first == second for first, second in toks.values())
    assert len({first for first, _ in toks.values()}) == len(others)


def test_tokenising_that_was_stopped_goes_on_with_the_same_command(large, capsys, monkeypatch):
    monkeypatch.setattr(token_store, "BLOCK_TEXTS", 10)
    append = token_store.TokenStore._append
    with monkeypatch.context() as stopped:

        def interrupted(store, state, *more):
            append(store, state, *more)
            if state["n_read"]["train"] == 40:
                raise KeyboardInterrupt

        stopped.setattr(token_store.TokenStore, "_append", interrupted)
        assert main([*large, "--run", "runs/one"]) == 130
    assert "stopped: the tokens made so far are kept" in capsys.readouterr().out
    assert main([*large, "--run", "runs/one"]) == 0
    assert "tokens: goes on after 40 stories" in capsys.readouterr().out


def test_a_folder_of_tokens_can_be_named_and_moved(large, tmp_path, capsys):
    assert main([*large, "--run", "runs/one", "--tokens", "elsewhere"]) == 0
    assert not Path("runs/tokens").exists()
    Path("elsewhere").rename("moved")
    go_on = ["train", "--run", "runs/one", "--resume", "--tokens", "moved", "--steps", "7"]
    assert main(go_on) == 0
    assert "from an earlier start" in capsys.readouterr().out
    assert recipe.read_recipe("runs/one")["tokens"] == "moved"
    Path("a_file").write_text("")
    assert "tokens cannot be written to a_file" in error_of(capsys, *large, "--run", "x", "--tokens", "a_file")


def test_texts_that_tell_no_split_are_held_out_by_what_they_say(large, tmp_path, capsys):
    texts = builtin_stories(400)
    Path("mine.jsonl").write_text("".join(json.dumps(text) + "\n" for text in texts))
    options = [*large[:3], "--source", "mine.jsonl", "--stories", "1000"]
    assert main([*options, "--run", "runs/mine"]) == 0
    path = Path("mine.jsonl").resolve()
    assert f"stories: up to 1,000 from {path} (JSON lines)\n" in capsys.readouterr().out
    data = recipe.load_tokens(read_recipe("runs/mine"))[1]
    assert data.split("val").size > 0
    parts = {part: [text for text in texts if held_out(text) == part] for part in (False, True)}
    tok = load_model("runs/mine")[0].tokenizer
    assert data.fingerprint() == TokenData.from_stories(parts[False], tok, validation=parts[True]).fingerprint()
    assert tok.words == WordTokenizer.train(text for text in texts[:30] if not held_out(text)).words


def test_a_small_source_stays_in_memory_however_many_are_asked_for(large, tmp_path, capsys):
    Path("novel.txt").write_text("It was a dark night,\nand the rain fell on us.\n" * 200)
    assert main([*large[:3], "--source", "novel.txt", "--stories", "1000", "--run", "runs/novel"]) == 0
    assert "tokens: " not in capsys.readouterr().out and not Path("runs/tokens").exists()


def test_a_run_from_before_tokens_were_kept_goes_on_in_memory(large, monkeypatch, capsys):
    with monkeypatch.context() as before:
        before.setattr(recipe, "IN_MEMORY", 1000)
        assert main([*large, "--run", "runs/old"]) == 0
    state = load_checkpoint("runs/old")
    del state["training"]["recipe"]["tokens"]
    save_again("runs/old", state)
    assert main(["train", "--run", "runs/old", "--resume", "--steps", "7"]) == 0
    assert "tokens: " not in capsys.readouterr().out
    assert "leave out --tokens" in error_of(capsys, "train", "--run", "runs/old", "--resume", "--tokens", "x")


def test_built_in_stories_in_the_place_of_many_real_ones_are_told_at_both_ends(large, capsys, monkeypatch):
    monkeypatch.delenv("TINYSTORIES_PATH")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main([*large[:3], "--stories", "60", "--run", "runs/one"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "stories: no network, so built-in stories (HF_HUB_OFFLINE is set)"
    assert "these were built-in stories, for no network: real ones with --source hub" in lines
    assert read_recipe("runs/one")["source"] == "builtin"


def test_built_in_stories_in_the_place_of_real_ones_are_told_at_both_ends(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("TINYSTORIES_PATH")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main(["train", "--preset", "smoke", "--run", str(tmp_path / "run")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("stories: no network, so 40 built-in stories (")
    assert "these were built-in stories, for no network: real ones with --source hub" in lines


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("runs/laptop", "runs/laptop"), ("my runs/a", '"my runs/a"'), ("Once upon", '"Once upon"'), ("it's", '"it\'s"'),
        ('say "hi"', "'say \"hi\"'"), ("a $HOME", "'a $HOME'"),
    ],
)  # fmt: skip
def test_printed_commands_can_be_pasted(text, expected):
    assert quoted(text) == expected


def test_help_explains_every_option_with_its_default():
    parser = build_parser(COMMANDS)
    commands = next(action for action in parser._actions if hasattr(action, "choices") and action.choices)
    for name, command in commands.choices.items():
        text = command.format_help()
        for action in command._actions[1:]:
            assert action.help, (name, action.dest)
            has_default = "default" in action.help or "(default" in text
            assert has_default or action.required, (name, action.dest)
    options = {action.dest for action in commands.choices["train"]._actions}
    shapes = set(vars(KimiConfig.nano(2))) | set(vars(KimiConfig.k2_mini(2)))
    assert shapes - {"vocab_size", "architecture"} | set(vars(TrainConfig())) <= options
    assert set(vars(Sampling())) <= {action.dest for action in commands.choices["generate"]._actions}


def test_python_dash_m_utils_works_from_the_projects_folder():
    done = subprocess.run([sys.executable, "-m", "utils", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "train" in done.stdout
    done = subprocess.run(
        [sys.executable, "-m", "utils", "generate", "--run", "nowhere"], cwd=ROOT, capture_output=True
    )
    assert done.returncode == 1 and done.stderr.decode().startswith("error: there is no checkpoint at nowhere")
