"""A run outlives its accessories, a disk that does not take it, and whoever stops it; its copy is whole or absent."""

import contextlib
import dataclasses
import errno
import io
import os
import re
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import pytest
import torch

from tests.helpers import storyteller, visible
from utils import keeping, memory, mirror, run_folder, sealed
from utils.bpe import BPETokenizer
from utils.checkpoint import FILE_NAME, load_checkpoint, load_model
from utils.config import TrainConfig
from utils.data import TokenData
from utils.history import History
from utils.interrupt import StopRequest
from utils.mirror import Mirror
from utils.run_folder import HISTORY, LOCK, REPLACED, held
from utils.stories import load_stories
from utils.tokenizer import WordTokenizer
from utils.training import train

TEXT = "Once upon a time, Lily lost her red ball. She looked under a bench and found it. The end."
RUN = TrainConfig(
    steps=6, batch_size=2, block_size=16, eval_interval=2, eval_batches=1, number_format="fp32", checkpoint_minutes=1e-9
)
ROOT = Path(__file__).resolve().parents[1]


def load_stories_from(path):
    return load_stories(9, "train", str(path))


def job(architecture="k2"):
    model = storyteller(TEXT, architecture)
    return model, TokenData.from_stories([TEXT] * 20, model.tokenizer)


# Accessories


def broken(*_):
    raise RuntimeError("no canvas\nand more")


@pytest.mark.parametrize("name, how", [("its figure", {"show": broken}), ("its watcher", {"watch": broken})])
def test_a_figure_or_a_watcher_that_fails_is_a_warning_said_again_at_the_end(tmp_path, capsys, name, how):
    expected = train(*job(), RUN)
    with pytest.warns(UserWarning, match=f"training goes on without {name}: no canvas$") as warned:
        history = train(*job(), RUN, tmp_path, **how)
    assert history.losses == expected.losses and load_checkpoint(tmp_path)["step"] == 6
    assert len(warned) == 1 and f"it was trained without {name}: no canvas\n" in capsys.readouterr().out


def test_what_a_watcher_finds_and_json_has_not_is_left_out(tmp_path):
    with pytest.warns(UserWarning, match="its watcher: Object of type Parameter is not JSON serializable"):
        history = train(*job(), RUN, tmp_path, watch=lambda model: {"weight": model.head.weight})
    assert "weight" not in history.rows[-1] and load_checkpoint(tmp_path)["step"] == 6


def test_a_history_that_cannot_be_written_is_a_warning(tmp_path):
    (tmp_path / HISTORY).mkdir(parents=True)
    with pytest.warns(UserWarning, match=r"training goes on without history\.json: .* could not be written"):
        train(*job(), RUN, tmp_path)
    assert load_checkpoint(tmp_path)["step"] == 6


class Closed(io.StringIO):
    """A pipe whose reader has gone."""

    def write(self, text):
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

    def flush(self):
        self.write("")


def test_a_closed_pipe_ends_no_run(tmp_path):
    with contextlib.redirect_stdout(Closed()), contextlib.redirect_stderr(Closed()):
        history = train(*job(), RUN, tmp_path)
    assert history.step == 6 and load_checkpoint(tmp_path)["step"] == 6


# The disk


def test_a_checkpoint_that_fails_is_tried_again_and_the_last_good_one_stays(tmp_path, monkeypatch):
    write, calls = sealed.write_atomically, []

    def sometimes_full(path, fill, keep=None):
        calls.append(path)
        if len(calls) in (2, 3):
            assert load_checkpoint(tmp_path)["step"] == 1
            raise OSError(errno.ENOSPC, f"{path} could not be written: No space left on device")
        write(path, fill, keep)

    monkeypatch.setattr(keeping.Keeper, "FIRST_SAVE_SECONDS", 0)
    monkeypatch.setattr(sealed, "write_atomically", sometimes_full)
    with pytest.warns(UserWarning, match="goes on without a checkpoint: .*No space left"):
        train(*job(), RUN, tmp_path)
    assert load_checkpoint(tmp_path)["step"] == 6 and not list(tmp_path.glob("*.partial"))


def test_a_last_save_that_fails_says_what_it_needs_and_where_the_run_still_is(tmp_path, monkeypatch):
    def full(path, fill, keep=None):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(sealed, "write_atomically", full)
    model, data = job()
    with warnings.catch_warnings(), pytest.raises(OSError, match="No space left") as caught:
        warnings.simplefilter("ignore")
        train(model, data, RUN, tmp_path)
    told = str(caught.value)
    assert re.search(r"needs \d+ MB .*, [\d,]+ MB are free; nothing is saved\. Make room .*--run; in a notebook", told)
    assert "\n" not in told
    monkeypatch.undo()
    from utils.checkpoint import save_checkpoint

    save_checkpoint(tmp_path / "elsewhere", model, 6)  # as it says
    assert torch.equal(load_model(tmp_path / "elsewhere")[0].head.weight, model.head.weight)


# One process at a time


def test_a_second_process_is_refused_by_the_name_of_the_first(tmp_path):
    train(*job(), RUN, tmp_path)
    before = (tmp_path / FILE_NAME).read_bytes()
    code = (
        f"from pathlib import Path; from utils.run_folder import held; import sys\nwith held(Path({str(tmp_path)!r})):"
    )
    code += "\n print('mine', flush=True); sys.stdin.read()"
    other = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert other.stdout.readline() == b"mine\n"
        for how in ({"resume": True}, {"overwrite": True}):
            with pytest.raises(
                BlockingIOError, match=rf"is in use by process {other.pid} on .*: wait for it, or train"
            ):
                train(*job(), dataclasses.replace(RUN, steps=9), tmp_path, **how)
        assert (tmp_path / FILE_NAME).read_bytes() == before
    finally:
        other.kill()
        other.wait()
    assert train(*job(), dataclasses.replace(RUN, steps=9), tmp_path, resume=True).step == 9  # the lock fell with it


def test_where_nothing_can_be_locked_a_line_says_so(tmp_path, monkeypatch, capsys):
    def cannot(*_, **__):
        raise NotImplementedError("no locks here")

    monkeypatch.setattr(run_folder.FileLock, "acquire", cannot)
    assert train(*job(), RUN, tmp_path).step == 6
    assert "cannot be locked (no locks here): see to it that no other process" in capsys.readouterr().out


def test_what_a_killed_process_left_half_written_is_removed(tmp_path):
    (tmp_path / f"{FILE_NAME}.123.partial").write_bytes(b"half")
    (tmp_path / "mine.txt").write_text("mine")
    with held(tmp_path):
        assert visible(tmp_path) == ["mine.txt"] and (tmp_path / LOCK).exists()


def test_a_replaced_run_lies_in_a_folder_beside(tmp_path, capsys):
    first = train(*job(), RUN, tmp_path)
    train(*job(), dataclasses.replace(RUN, steps=2), tmp_path, overwrite=True)
    assert f"the run that was in {tmp_path} is now in {tmp_path / REPLACED}" in capsys.readouterr().out
    assert load_checkpoint(tmp_path)["step"] == 2
    old = load_checkpoint(tmp_path / REPLACED)
    assert old["step"] == 6 and old["tensors"]["losses"].tolist() == first.losses


# Stop


def test_repeats_within_half_a_second_are_one_a_second_is_answered_and_a_third_ends(capsys, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("utils.interrupt.time.monotonic", lambda: clock[0])
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        clock[0] = 0.3
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.asked and stop.status == 143 and not capsys.readouterr().out
        clock[0], stop.saving = 1.0, True
        os.kill(os.getpid(), signal.SIGINT)
        assert "the checkpoint is being written; once more ends at once" in capsys.readouterr().out
        clock[0] = 2.0
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)


def test_a_third_request_in_the_middle_of_a_save_leaves_the_checkpoint_before(tmp_path, monkeypatch):
    """As `StopRequest` answers it: by KeyboardInterrupt, wherever the program is."""
    sync = os.fsync

    def cut(descriptor):
        if (tmp_path / FILE_NAME).exists() and load_checkpoint(tmp_path)["step"] == 3:
            raise KeyboardInterrupt
        sync(descriptor)

    monkeypatch.setattr(keeping.Keeper, "FIRST_SAVE_SECONDS", 0)
    monkeypatch.setattr("utils.files.os.fsync", cut)
    with pytest.raises(KeyboardInterrupt):
        train(*job(), RUN, tmp_path)
    monkeypatch.undo()
    assert load_checkpoint(tmp_path)["step"] == 3 and not list(tmp_path.glob("*.partial"))
    assert train(*job(), RUN, tmp_path, resume=True).losses == train(*job(), RUN).losses


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="there is none on Windows")
def test_a_signal_that_was_ignored_stays_so():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.asked
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.skipif(os.name == "nt", reason="signals of Unix")
@pytest.mark.parametrize("number, status", [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_each_signal_saves_says_how_to_go_on_and_has_its_exit_status(tmp_path, number, status):
    command = [sys.executable, "-m", "utils", "train", "--preset", "smoke", "--source", "builtin", "--stories", "200"]
    command += ["--steps", "100000", "--run", str(tmp_path / "run")]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    lines = []
    for line in process.stdout:
        lines.append(line)
        if "number format" in line:
            break
    time.sleep(2)
    process.send_signal(getattr(signal, number))
    lines += process.communicate(timeout=120)[0].splitlines()
    assert process.returncode == status, lines
    step = load_checkpoint(tmp_path / "run")["step"]
    assert any(line.startswith(f"stopped after step {step} of 100000: it is saved in") for line in lines)


def test_a_reader_who_has_enough_sees_no_traceback(tmp_path):
    train(*job(), RUN, tmp_path)
    command = f"{sys.executable} -m utils generate --run {tmp_path} --prompt Once | head -c 3"
    done = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "Onc" and "Traceback" not in done.stderr and "Exception" not in done.stderr


# The copy


def test_the_copy_is_the_run_and_a_lost_folder_is_taken_from_it(tmp_path, capsys):
    here, drive, longer = tmp_path / "here", tmp_path / "drive", dataclasses.replace(RUN, steps=9)
    train(*job(), RUN, here, copy_to=drive)
    assert (here / FILE_NAME).read_bytes() == (drive / FILE_NAME).read_bytes() and (drive / HISTORY).is_file()
    history = train(*job(), longer, tmp_path / "another machine", resume=True, copy_to=drive)
    assert f"the run goes on from its copy in {drive}" in capsys.readouterr().out
    assert history.losses == train(*job(), longer, here, resume=True).losses
    assert load_checkpoint(drive)["step"] == 9


def test_a_slow_place_does_not_hold_up_training(tmp_path, monkeypatch):
    """A stand-in that takes a second for each copy: 40 steps, each of them saved, do not wait for it."""
    copies, copy_run = [], mirror.copy_run
    may_go_on = threading.Event()

    def slow(folder, to):
        may_go_on.wait(60)
        copies.append(load_checkpoint(folder)["step"])
        copy_run(folder, to)

    monkeypatch.setattr(mirror, "copy_run", slow)
    monkeypatch.setattr(Mirror, "finish", finish_after(may_go_on, Mirror.finish))
    monkeypatch.setattr(keeping.Keeper, "FIRST_SAVE_SECONDS", 0)
    train(*job(), dataclasses.replace(RUN, steps=40), tmp_path / "here", copy_to=tmp_path / "drive")
    assert len(copies) <= 3 and copies[-1] == 40 == load_checkpoint(tmp_path / "drive")["step"]


def finish_after(event, finish):
    def late(self):
        event.set()
        finish(self)

    return late


def test_a_place_that_fails_now_and_then_gets_the_copy_in_the_end_or_none(tmp_path, monkeypatch):
    monkeypatch.setattr(Mirror, "PAUSES", (0, 0, 0))
    write, calls = mirror.write_atomically, []

    def now_and_then(path, fill):
        calls.append(path)
        if len(calls) % 3:
            raise OSError(errno.EIO, "Input/output error")
        write(path, fill)

    monkeypatch.setattr(mirror, "write_atomically", now_and_then)
    train(*job(), RUN, tmp_path / "here")
    copier = Mirror(tmp_path / "here", tmp_path / "drive")
    copier.copy()
    with pytest.raises(OSError, match=r"the newest checkpoint is not in .*drive \(.*Input/output error\); it is in"):
        copier.finish()
    names = visible(tmp_path / "drive")
    assert set(names) <= {FILE_NAME, HISTORY}
    for name in names:
        assert (tmp_path / "drive" / name).read_bytes() == (tmp_path / "here" / name).read_bytes()


def test_a_place_that_fails_for_good_is_a_warning_and_the_run_is_whole(tmp_path, monkeypatch, capsys):
    def gone(folder, to):
        raise OSError(errno.ENOTCONN, "Transport endpoint is not connected")

    monkeypatch.setattr(Mirror, "PAUSES", ())
    monkeypatch.setattr(mirror, "copy_run", gone)
    with pytest.warns(UserWarning, match="goes on without its newest copy: the newest checkpoint is not in .*drive"):
        history = train(*job(), RUN, tmp_path / "here", copy_to=tmp_path / "drive")
    assert history.step == 6 == load_checkpoint(tmp_path / "here")["step"]
    assert "it was trained without its newest copy" in capsys.readouterr().out


def test_a_copy_is_not_written_over_another_run(tmp_path):
    train(*job(), RUN, tmp_path / "drive")
    with pytest.raises(FileExistsError, match="drive holds another run"):
        train(*job(), RUN, tmp_path / "here", copy_to=tmp_path / "drive")
    with pytest.raises(ValueError, match="copy_to copies the checkpoints of out_dir, which is None"):
        train(*job(), RUN, copy_to=tmp_path / "drive2")


# Paths and names


NAMES = ["with space", "übung 日本 🐸", "n" * 200, "a/../b", "-x", "$HOME;`id`", ".hidden", "link/run", "two\nlines"]


@pytest.mark.skipif(os.name == "nt", reason="names of Unix")
@pytest.mark.parametrize("name", NAMES)
def test_a_run_lives_in_a_folder_of_any_name_and_writes_nowhere_else(tmp_path, name):
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (home / "a").mkdir(parents=True)
    (home / "link").symlink_to(elsewhere)
    folder = f"{home}/{name}"
    train(*job(), RUN, folder)
    assert train(*job(), dataclasses.replace(RUN, steps=8), folder, resume=True).step == 8
    assert load_model(folder)[1] == 8
    real = (elsewhere / "run") if name == "link/run" else Path(os.path.normpath(folder))
    found = {file.parent for top in (home, elsewhere) for file in top.rglob("*") if file.is_file()}
    assert found == {real}


def test_a_name_that_is_too_long_is_one_sentence(tmp_path):
    with pytest.raises(OSError, match="cannot be a folder to write to: File name too long"):
        train(*job(), RUN, tmp_path / ("n" * 300))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are none on Windows")
@pytest.mark.parametrize(
    "read",
    [load_model, WordTokenizer.load, BPETokenizer.load, BPETokenizer.load_ranks, History.load, load_stories_from],
)
def test_a_pipe_is_not_waited_for(tmp_path, read):
    pipe = tmp_path / "checkpoint.safetensors"
    os.mkfifo(pipe)
    with pytest.raises((FileNotFoundError, ValueError), match=r"checkpoint\.safetensors"):
        read(pipe)


# Memory


def test_a_run_that_will_not_fit_is_refused_with_the_batch_that_would(monkeypatch, tmp_path):
    model, data = job()
    config = dataclasses.replace(RUN, batch_size=64)
    always, per_window = memory.activations(model, config.block_size, "fp32")
    held_bytes = memory.plan(model, config).bytes - sum(p.nbytes for p in model.parameters()) + always
    monkeypatch.setattr(memory, "free_bytes", lambda device: held_bytes + 10 * per_window)
    with pytest.raises(MemoryError, match=r"training takes .* GB are free: a batch_size of 10 fits"):
        train(model, data, config, tmp_path)
    monkeypatch.setattr(memory, "free_bytes", lambda device: held_bytes)
    with pytest.raises(MemoryError, match="not even a batch_size of 1 fits: take a smaller model"):
        train(model, data, config, tmp_path)
    monkeypatch.setattr(memory, "free_bytes", lambda device: None)  # nobody says it
    assert train(model, data, RUN).step == 6


def test_processes_share_the_windows_and_the_memory_of_a_cpu(monkeypatch):
    model, _ = job()
    config = dataclasses.replace(RUN, batch_size=64)
    always, per_window = memory.activations(model, config.block_size, "fp32")
    held_bytes = memory.plan(model, config).bytes - sum(p.nbytes for p in model.parameters()) + always
    monkeypatch.setattr(memory, "free_bytes", lambda device: 2 * (held_bytes + 32 * per_window))
    memory.refuse_too_much(model, config, "fp32", n_ranks=2)
    monkeypatch.setattr(memory, "free_bytes", lambda device: 2 * (held_bytes + 31 * per_window))
    with pytest.raises(MemoryError, match=r"in each of 2 processes, .* for 32 windows .*: a batch_size of 62 fits"):
        memory.refuse_too_much(model, config, "fp32", n_ranks=2)


def test_a_device_that_is_full_in_mid_run_is_one_sentence_and_the_checkpoint_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(keeping.Keeper, "FIRST_SAVE_SECONDS", 0)
    monkeypatch.setattr("utils.training.refuse_too_much", lambda *_: None)  # it runs the model as well
    model, data = job()
    calls = []

    def full(module, args):
        calls.append(module.training)
        if calls.count(True) == 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    model.embedding.register_forward_pre_hook(full)
    with pytest.raises(
        MemoryError, match="the memory of cpu is full with 2 windows of 16 tokens: batch_size 1 with acc"
    ):
        train(model, data, RUN, tmp_path)
    assert load_checkpoint(tmp_path)["step"] == 3


@pytest.mark.parametrize("architecture", ["nano", "k2"])
def test_what_a_long_window_keeps_is_told_from_short_ones(architecture):
    model = storyteller(TEXT, architecture, block_size=1024)
    one, two = (memory.kept_bytes(model, n, 1024, "fp32") for n in (1, 2))
    _, per_window = memory.activations(model, 1024, "fp32")
    assert per_window == pytest.approx(memory.BACKWARD["cpu"] * (two - one), rel=0.05)


def test_the_free_memory_of_this_machine_is_a_number_or_unknown():
    free = memory.free_bytes(torch.device("cpu"))
    assert free is None or 2**20 < free < 2**50
    assert memory.free_bytes(torch.device("meta")) is None
