"""Files are written whole or not at all, and what a disk does not take is said in one sentence."""

import errno
import io
import os
import stat

import pytest
import torch

from tests.helpers import tiny_k2_model
from utils import files
from utils.checkpoint import load_model, save_checkpoint
from utils.files import refuse_unwritable, write_atomically, write_text


class FullDisk(io.FileIO):
    """A file on a disk that has room for some bytes."""

    room = 0

    def write(self, data):
        if self.tell() + len(data) > self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(data)


@pytest.fixture
def full_disk(monkeypatch):
    def after(room):
        monkeypatch.setattr(FullDisk, "room", room)
        monkeypatch.setattr(files, "open", lambda path, mode: io.BufferedWriter(FullDisk(path, "w")), raising=False)

    return after


@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.9, 0.999])
def test_a_full_disk_is_one_sentence_and_the_old_checkpoint_stays(tmp_path, full_disk, share):
    """torch's zip writer hides the error of the disk behind one of its own, "unexpected pos"."""
    model = tiny_k2_model()
    save_checkpoint(tmp_path, model, 1)
    full_disk(share * (tmp_path / "checkpoint.safetensors").stat().st_size)
    with pytest.raises(
        OSError, match=r"checkpoint\.safetensors could not be written: No space left on device"
    ) as caught:
        save_checkpoint(tmp_path, model, 2)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.safetensors"] and load_model(tmp_path)[1] == 1


def test_a_text_on_a_full_disk_is_the_same_sentence(tmp_path, full_disk):
    full_disk(5)
    with pytest.raises(OSError, match=r"a\.json could not be written: No space left"):
        write_text(tmp_path / "a.json", "{}" * 9)
    assert not list(tmp_path.iterdir())


def test_an_error_that_is_not_the_disks_stays_what_it_is(tmp_path):
    for error in (RuntimeError("of the model"), ValueError("of a value")):

        def fail(file, error=error):
            raise error

        with pytest.raises(type(error), match=str(error)):
            write_atomically(tmp_path / "a", fail)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_can_be_written_to_is_left_as_it_was(tmp_path):
    (tmp_path / "old").write_text("old")
    for folder in (tmp_path, tmp_path / "new", tmp_path / "a" / "b" / "c"):
        refuse_unwritable(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


def test_a_folder_that_cannot_be_written_to_is_named_with_the_reason(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("a file")
    with pytest.raises(OSError, match=r"file cannot be a folder to write to: it is a file"):
        refuse_unwritable(tmp_path / "file")
    with pytest.raises(OSError, match=r"below cannot be a folder to write to: \w"):
        refuse_unwritable(tmp_path / "file" / "below")
    (tmp_path / "to nowhere").symlink_to(tmp_path / "gone")
    with pytest.raises(OSError, match="nowhere cannot be a folder to write to"):
        refuse_unwritable(tmp_path / "to nowhere")

    def read_only(dir):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(files.tempfile, "TemporaryFile", read_only)
    with pytest.raises(OSError, match="new cannot be a folder to write to: Read-only file system"):
        refuse_unwritable(tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "to nowhere"]


@pytest.mark.skipif(os.name == "nt" or getattr(os, "geteuid", int)() == 0, reason="root may write everywhere")
def test_a_folder_of_somebody_else_is_named(tmp_path):
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    for folder in (tmp_path, tmp_path / "new"):
        with pytest.raises(OSError, match="cannot be a folder to write to: Permission denied"):
            refuse_unwritable(folder)
    tmp_path.chmod(stat.S_IRWXU)


def test_nothing_is_exported_into_a_file(tmp_path):
    from utils.hf import export_hf

    (tmp_path / "hf").write_text("a file")
    with pytest.raises(OSError, match="hf cannot be a folder to write to: it is a file"):
        export_hf(tiny_k2_model(), tmp_path / "hf")


def test_a_model_is_saved_where_its_folder_is_missing(tmp_path):
    save_checkpoint(tmp_path / "a" / "b", tiny_k2_model(), 3)
    model, step = load_model(tmp_path / "a" / "b")
    assert step == 3 and torch.equal(model.head.weight, tiny_k2_model().head.weight)
