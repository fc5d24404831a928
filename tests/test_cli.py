"""The command line, as a newcomer types it."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from utils import recipe, token_store
from utils.__main__ import COMMANDS, main, quoted
from utils.checkpoint import load_checkpoint, load_model
from utils.config import KimiConfig, TrainConfig
from utils.data import TokenData
from utils.generation import Sampling
from utils.grammar import builtin_stories
from utils.hf import import_hf
from utils.options import build_parser
from utils.presets import PRESETS, Preset
from utils.recipe import read_recipe
from utils.run_state import RunState
from utils.token_workers import held_out
from utils.tokenizer import WordTokenizer

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
    assert sorted(p.name for p in run.iterdir()) == ["checkpoint.pt", "history.json", "loss.png"]


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
        r"loss \d\.\d+ nats",
        r"perplexity \d+",
        r"\d\.\d+ bits per byte",
        r"coherent: 0.0%",
        r"sequences: \d",
        r"no validation token went to: \d",
    ):
        assert re.search(figure, out), figure


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
    assert "coherent: not judged" in capsys.readouterr().out


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
    before = (run / "checkpoint.pt").read_bytes()
    assert "holds another run: continue it with --resume or" in error_of(
        capsys, "train", "--preset", "smoke", "--run", run
    )
    assert (run / "checkpoint.pt").read_bytes() == before
    assert main(["train", "--preset", "smoke", "--run", str(run), "--overwrite", "--steps", "2"]) == 0
    assert load_checkpoint(run)["step"] == 2


def test_a_wrong_option_leaves_the_old_run_alone(run, capsys):
    before = {p.name: p.read_bytes() for p in run.iterdir()}
    error_of(capsys, "train", "--preset", "smoke", "--run", run, "--overwrite", "--top-k", "9")
    error_of(capsys, "train", "--preset", "smoke", "--run", run, "--overwrite", "--source", run / "nothing.txt")
    assert {p.name: p.read_bytes() for p in run.iterdir()} == before


@pytest.mark.parametrize(
    "options, message",
    [
        (
            ["--model", "nano", "--d-model", 30, "--n-heads", 4],
            "NanoConfig.d_model is 30, it must be a multiple of n_heads (4)",
        ),
        (["--top-k", 5], "K2Config.top_k is 5, it must be at most n_experts (4)"),
        (["--lr", "nan"], "TrainConfig.lr is nan, it must be a number above 0"),
        (["--optimizer", "sgd"], "TrainConfig.optimizer is 'sgd', it must be one of muonclip, adamw"),
        (["--dropout", 0.1], "K2Config has no field 'dropout', its fields are"),
        (["--model", "nano", "--kv-lora-rank", 8], "NanoConfig has no field 'kv_lora_rank', its fi"),
        (["--number-format", "fp16"], "number_format is 'fp16', on a CPU it must be auto, fp32 or bf16"),
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
    (run / "checkpoint.pt").write_bytes((run / "checkpoint.pt").read_bytes()[:5000])
    assert "is not a checkpoint or is cut off" in error_of(capsys, "generate", "--run", run)
    assert "is not a checkpoint or is cut off" in error_of(capsys, "train", "--run", run, "--resume")


def test_bad_options_of_generate_are_one_clear_line(run, capsys):
    assert "temperature is -1.0" in error_of(capsys, "generate", "--run", run, "--temperature", -1)
    assert "the prompt has 33 tokens" in error_of(capsys, "generate", "--run", run, "--prompt", "ball " * 33)


def test_a_prompt_of_unknown_words_is_noted_in_one_line(run, capsys):
    assert main(["generate", "--run", str(run), "--prompt", "zorblax", "--max-new-tokens", "3"]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("zorblax ")
    assert captured.err.startswith("note: no word of the prompt 'zorblax' is known") and captured.err.count("\n") == 1


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
    "hindi.txt": ("BPETokenizer", "spaced otherwise"),
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
    assert f"tokens: {told}, from an earlier start" in capsys.readouterr().out
    model, data = load_model("runs/one")[0], recipe.load_tokens(read_recipe("runs/one"))[1]
    stories = [builtin_stories(60), builtin_stories(3, 1)]
    expected = TokenData.from_stories(stories[0], model.tokenizer, validation=stories[1])
    assert model.tokenizer.words == WordTokenizer.train(stories[0][:30]).words
    assert data.fingerprint() == expected.fingerprint() and data.n_bytes == expected.n_bytes


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
    torch.save(state, "runs/old/checkpoint.pt")
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
