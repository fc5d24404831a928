"""Checkpoints: what is wrong is named, what is damaged is told, the one before is there, and nothing is executed."""

import dataclasses
import os
import re
import signal

import pytest
import torch

from tests.helpers import old_state, save_again, storyteller, tiny_k2_model, tiny_model, visible
from utils import convert as conversion
from utils.__main__ import main
from utils.checkpoint import (
    DAMAGED,
    FILE_NAME,
    OLD_NAME,
    PREVIOUS,
    load_checkpoint,
    load_model,
    restore_previous,
    save_checkpoint,
)
from utils.config import K2Config, NanoConfig, TrainConfig
from utils.convert import convert
from utils.data import TokenData
from utils.interrupt import StopRequest
from utils.sealed import Damaged
from utils.training import train

TEXT = "Once upon a time, Lily lost her red ball. She looked under a bench and found it. The end."
RUN = TrainConfig(steps=6, batch_size=2, block_size=16, eval_interval=3, eval_batches=1, number_format="fp32")


def job(architecture="k2", **changes):
    model = storyteller(TEXT, architecture, **changes)
    return model, TokenData.from_stories([TEXT] * 20, model.tokenizer)


def flip(file, place=-100):
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)


# The one before


def test_a_damaged_checkpoint_is_told_and_the_one_before_is_taken_if_the_reader_says_so(tmp_path, capsys):
    model = tiny_k2_model()
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, model, step)
    assert visible(tmp_path) == [PREVIOUS, FILE_NAME] and load_checkpoint(tmp_path / PREVIOUS)["step"] == 2
    flip(tmp_path / FILE_NAME)
    with pytest.raises(Damaged, match=rf"the tensor .* is not the one .*python -m utils restore --run {tmp_path}"):
        load_model(tmp_path)
    damaged = (tmp_path / FILE_NAME).read_bytes()
    assert main(["restore", "--run", str(tmp_path)]) == 0
    assert (
        f"is now at step 2: go on with --resume; the newer checkpoint is kept as {DAMAGED}" in capsys.readouterr().out
    )
    assert load_model(tmp_path)[1] == 2 and (tmp_path / DAMAGED).read_bytes() == damaged


def test_where_both_are_damaged_nothing_is_moved(tmp_path, capsys):
    for step in (1, 2):
        save_checkpoint(tmp_path, tiny_model(), step)
    flip(tmp_path / FILE_NAME)
    flip(tmp_path / PREVIOUS)
    before = {name: (tmp_path / name).read_bytes() for name in visible(tmp_path)}
    with pytest.raises(Damaged, match=PREVIOUS):
        restore_previous(tmp_path)
    assert {name: (tmp_path / name).read_bytes() for name in visible(tmp_path)} == before
    assert main(["restore", "--run", str(tmp_path / "gone")]) == 1
    assert "there is no checkpoint at" in capsys.readouterr().err


def test_a_run_goes_on_from_the_checkpoint_before_to_the_same_end(tmp_path):
    expected = train(*job(), RUN)
    train(*job(), dataclasses.replace(RUN, checkpoint_minutes=1e-9), tmp_path)
    flip(tmp_path / FILE_NAME)
    assert restore_previous(tmp_path) == 5
    assert train(*job(), RUN, tmp_path, resume=True).losses == expected.losses


def test_a_model_without_a_query_latent_comes_back_and_goes_on_to_the_last_bit(tmp_path):
    expected = train(*job(q_lora_rank=0), RUN)
    stop = StopRequest()
    stop_at_3 = lambda history: history.step >= 3 and setattr(stop, "number", signal.SIGINT)  # noqa: E731
    model, data = job(q_lora_rank=0)
    train(model, data, dataclasses.replace(RUN, eval_interval=1), tmp_path, show=stop_at_3, stop=stop)
    loaded, step = load_model(tmp_path)
    assert step == 3 and loaded.config == model.config and loaded.config.q_lora_rank == 0
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), loaded.parameters(), strict=True))
    assert not any("w_q_down" in name or "q_norm" in name for name in loaded.state_dict())
    assert (
        train(*job(q_lora_rank=0), dataclasses.replace(RUN, eval_interval=1), tmp_path, resume=True).losses
        == expected.losses
    )


# What is readable and wrong


WRONG = {
    "step": (lambda s: s.update(step=-1), "step is -1, it must be 0 or more"),
    "step that is a list": (lambda s: s.update(step=[1]), r"step is \[1\]"),
    "step that is true": (lambda s: s.update(step=True), "step is True"),
    "no config": (lambda s: s.update(config=None), "config is None"),
    "field": (lambda s: s["config"].update(colour=1), "has no field 'colour'"),
    "size": (lambda s: s["config"].update(top_k=99), "top_k is 99, it must be at most n_experts"),
    "giant width": (lambda s: s["config"].update(d_ff=2**40), "has the shape .*, by its config it must be"),
    "giant product": (lambda s: s["config"].update(d_ff=2**62), "its sizes are too large"),
    "giant depth": (lambda s: s["config"].update(n_layers=10**9), "n_layers is 1000000000, it must be a whole number"),
    "great depth": (lambda s: s["config"].update(n_layers=900), "n_layers is 900, and there are .* tensors"),
    "shape": (lambda s: s["model"].update({"norm.weight": torch.ones(3)}), r"norm.weight has the shape \[3\]"),
    "missing": (lambda s: s["model"].pop("norm.weight"), "there is no tensor norm.weight"),
    "too much": (lambda s: s["model"].update(more=torch.ones(3)), "it has a tensor more"),
    "bool": (lambda s: cast(s, torch.bool), "is torch.bool, it must be one of torch.float32"),
    "int32": (lambda s: cast(s, torch.int32), "is torch.int32, it must be one of torch.float32"),
    "nan": (lambda s: s["model"]["norm.weight"].fill_(torch.nan), "norm.weight holds numbers that are not finite"),
    "long vocabulary": (lambda s: s["tokenizer"]["words"].extend(f"w{i}" for i in range(999)), "the tokenizer has"),
    "tokenizer": (lambda s: s.update(tokenizer={"type": "Pickle"}), "a tokenizer's type is 'Pickle'"),
    "training": (lambda s: s.update(training=3), "training is 3"),
}


def cast(state, dtype):
    state["model"]["norm.weight"] = state["model"]["norm.weight"].to(dtype)


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_in_a_readable_checkpoint_is_named(tmp_path, name):
    change, message = WRONG[name]
    train(*job(), RUN, tmp_path)
    state = load_checkpoint(tmp_path)
    change(state)
    save_again(tmp_path, state)
    with pytest.raises(ValueError, match=rf"holds no model of this project: .*{message}"):
        load_model(tmp_path)


WRONG_RUN = {
    "momentum of another shape": (
        "optimizer.0.",
        lambda t: torch.zeros(3),
        r"has the shape \[3\], for this run it must",
    ),
    "momentum that is nan": ("optimizer.0.", lambda t: t * torch.nan, "holds numbers that are not finite"),
    "a loss too few": (
        "losses",
        lambda t: t[:-1],
        r"the tensor losses is torch.float64 of shape \[5\], it must be torch.float64 of shape \[6\]",
    ),
    "random numbers cut off": ("rng", lambda t: t[:9], r"the tensor rng is torch.uint8 of shape \[9\]"),
}


@pytest.mark.parametrize("name", WRONG_RUN)
def test_what_is_wrong_in_a_run_to_continue_is_named(tmp_path, name):
    start, change, message = WRONG_RUN[name]
    train(*job(), RUN, tmp_path)
    state = load_checkpoint(tmp_path)
    tensor = next(key for key in state["tensors"] if key.startswith(start))
    state["tensors"][tensor] = change(state["tensors"][tensor])
    save_again(tmp_path, state)
    with pytest.raises(ValueError, match=message):
        train(*job(), dataclasses.replace(RUN, steps=8), tmp_path, resume=True)


@pytest.mark.parametrize("name", ["rows", "scaler", "seconds", "data", "number_format", "config"])
@pytest.mark.parametrize("value", [None, "x y", [3], {"a": []}, True])
def test_whatever_stands_in_a_part_of_a_run_it_is_named(tmp_path, name, value):
    train(*job(), RUN, tmp_path)
    state = load_checkpoint(tmp_path)
    state["training"][name] = value
    save_again(tmp_path, state)
    with pytest.raises(ValueError) as caught:
        train(*job(), dataclasses.replace(RUN, steps=8), tmp_path, resume=True)
    assert "\n" not in str(caught.value)


def test_a_run_without_its_random_numbers_is_named(tmp_path):
    train(*job(), RUN, tmp_path)
    state = load_checkpoint(tmp_path)
    del state["tensors"]["batches"]
    save_again(tmp_path, state)
    with pytest.raises(ValueError, match="the tensor batches is not there"):
        train(*job(), dataclasses.replace(RUN, steps=8), tmp_path, resume=True)


# Old files


class Harmful:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


def test_no_command_but_convert_opens_an_old_file(tmp_path, monkeypatch):
    torch.save({"format": conversion.FORMAT_3, "model": Harmful(tmp_path / "executed")}, tmp_path / OLD_NAME)
    with monkeypatch.context() as watched:
        watched.setattr(torch, "load", lambda *_, **__: pytest.fail("it was opened"))
        for path in (tmp_path, tmp_path / OLD_NAME):
            with pytest.raises(ValueError, match=rf"has an older form: python -m utils convert --run {tmp_path}"):
                load_model(path)
        with pytest.raises(FileExistsError, match="holds another run"):
            train(*job(), RUN, tmp_path)
    with pytest.raises(ValueError, match="holds something else than tensors and plain values, and is not read"):
        convert(tmp_path)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04 not really", "cut", "other"])
def test_an_old_file_that_is_no_checkpoint_or_is_cut_off_is_named(tmp_path, content):
    file = tmp_path / OLD_NAME
    torch.save({"weights": torch.zeros(3)}, file)
    if content != "other":
        file.write_bytes(file.read_bytes()[:-300] if content == "cut" else content)
    with pytest.raises(ValueError, match=r"checkpoint\.pt (is not a checkpoint|holds something else)"):
        convert(tmp_path)
    assert visible(tmp_path) == [OLD_NAME]


def test_an_old_torch_converts_nothing(tmp_path, monkeypatch):
    torch.save({}, tmp_path / OLD_NAME)
    monkeypatch.setattr(torch, "__version__", "2.9.1+cpu")
    with pytest.raises(ValueError, match=r"torch is 2\.9\.1\+cpu, to convert .* safely it must be 2\.10 or newer"):
        convert(tmp_path)


@pytest.mark.parametrize("number", [2, 3])
@pytest.mark.parametrize("architecture, changes", [("nano", {"dropout": 0.3}), ("k2", {})])
def test_an_old_run_is_converted_and_continued_to_the_last_bit(tmp_path, architecture, changes, number, capsys):
    """In the second format a configuration had the fields of both architectures, and the recipe the settings again."""
    recipe = {"architecture": architecture, "model": {"d_model": 32}, "training": vars(RUN)}
    config = dataclasses.replace(RUN, accumulation=2, eval_interval=2)
    expected = train(*job(architecture, **changes), config)
    stop = StopRequest()
    stop_at_4 = lambda history: history.step >= 4 and setattr(stop, "number", signal.SIGINT)  # noqa: E731
    train(*job(architecture, **changes), config, tmp_path, recipe=recipe, show=stop_at_4, stop=stop)
    assert load_checkpoint(tmp_path)["step"] == 4
    state = old_state(tmp_path, number)
    if number == 2:
        both = {field.name: field.default for cls in (NanoConfig, K2Config) for field in dataclasses.fields(cls)}
        state["config"] = both | {"dropout": 0.0} | state["config"]
        training = state["training"]
        training["notes"] = {**training.pop("recipe"), "model": {"d_model": 32, "dropout": 0.0, "v_head_dim": 6}}
        training["cuda_rng"] = training.pop("device_rng")
    for file in tmp_path.iterdir():
        file.unlink()
    torch.save(state, tmp_path / OLD_NAME)

    assert main(["convert", "--run", str(tmp_path)]) == 0
    assert "the old file is still there" in capsys.readouterr().out and (tmp_path / OLD_NAME).is_file()
    read = load_checkpoint(tmp_path)
    assert read["config"] == dataclasses.asdict(job(architecture, **changes)[0].config)
    own = {"dropout"} if architecture == "nano" else {"v_head_dim"}
    assert read["training"]["recipe"]["model"].keys() == {"d_model"} | (own if number == 2 else set())
    assert train(*job(architecture, **changes), config, tmp_path, resume=True).losses == expected.losses
    with pytest.raises(FileExistsError, match="is there already"):
        convert(tmp_path)


def test_an_old_model_without_a_run_is_converted(tmp_path):
    model = tiny_model()
    save_checkpoint(tmp_path, model, 4)
    state = load_checkpoint(tmp_path)
    state.pop("tensors")
    torch.save({"format": conversion.FORMAT_3, **state}, tmp_path / "mine.pt")
    file = convert(tmp_path / "mine.pt")
    loaded, step = load_model(file)
    assert step == 4 and re.fullmatch(r"mine\.safetensors", file.name)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), loaded.parameters(), strict=True))
