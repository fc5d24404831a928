"""A sealed file: every change of it is seen, nothing in it is executed, and what it claims takes no memory."""

import json
import random
import struct

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from utils.sealed import HEADER_LIMIT, Damaged, checksum, read_sealed, write_sealed

TENSORS = {
    "weights": torch.arange(12, dtype=torch.float32).view(3, 4),
    "half": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "step": torch.tensor(7),
    "empty": torch.zeros(0, 3),
    "bytes": torch.arange(5, dtype=torch.uint8),
}
PLAIN = {"name": "Peter é 🐸", "numbers": [0.1, 1e-300, 2**60, None, True], "inner": {"deep": []}}


@pytest.fixture
def file(tmp_path):
    write_sealed(tmp_path / "a.safetensors", "form 1", TENSORS, PLAIN)
    return tmp_path / "a.safetensors"


def test_what_is_written_is_read_to_the_bit(file):
    form, tensors, plain = read_sealed(file)
    assert form == "form 1" and plain == PLAIN and tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype and torch.equal(tensors[name], tensor)


def test_other_programs_read_the_tensors(file):
    assert torch.equal(load_file(file)["weights"], TENSORS["weights"])


def test_each_flipped_bit_is_seen(file):
    """The fault: of 200 flipped bits in the old form, 197 were loaded without a word."""
    content = file.read_bytes()
    chance = random.Random(0)
    for bit in chance.sample(range(8 * len(content)), 600):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        file.write_bytes(changed)
        with pytest.raises(Damaged, match="damaged"):
            read_sealed(file)
    file.write_bytes(content)
    read_sealed(file)


@pytest.mark.parametrize("keep", [0, 1, 7, 8, 9, 100, -1])
def test_a_file_that_is_cut_off_or_longer_is_seen(file, keep):
    content = file.read_bytes()
    for changed in (content[:keep], content + b"\0"):
        file.write_bytes(changed)
        with pytest.raises(Damaged, match="damaged"):
            read_sealed(file)


def test_tensors_that_changed_places_are_seen(tmp_path, file):
    """Both have the right bytes, under each other's name."""
    twins = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([3.0, 4.0])}
    write_sealed(file, "form", twins, {})
    content = file.read_bytes()
    one, other = (np.asarray(twins[name]).tobytes() for name in "ab")
    assert content.count(one + other) == 1
    file.write_bytes(content.replace(one + other, other + one))
    with pytest.raises(Damaged, match=r"the tensor [ab] is not the one that was written"):
        read_sealed(file)


def test_a_tensor_of_another_type_or_shape_has_another_checksum():
    same_bytes = [torch.zeros(4), torch.zeros(2, 2), torch.zeros(4, dtype=torch.int32), torch.zeros(8).bfloat16()]
    assert len({checksum(tensor) for tensor in same_bytes}) == 4
    assert checksum(torch.zeros(3, 4).T) == checksum(torch.zeros(4, 3))


def test_what_a_header_claims_takes_no_memory(tmp_path):
    file = tmp_path / "a.safetensors"
    file.write_bytes(struct.pack("<Q", 2**62) + b"{}")
    with pytest.raises(Damaged, match="its header would have 4,611,686,018,427,387,904 bytes"):
        read_sealed(file)
    header = json.dumps({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}).encode()
    file.write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(Damaged, match="damaged or something else"):
        read_sealed(file)
    assert HEADER_LIMIT < 100_000_000  # safetensors itself would parse so many


def test_another_file_of_tensors_is_not_taken_for_one(tmp_path):
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(3)}, tmp_path / "a.safetensors")
    with pytest.raises(Damaged, match="its settings are not those that were written"):
        read_sealed(tmp_path / "a.safetensors")


def test_tensors_that_share_memory_are_written_each_for_itself(tmp_path):
    shared = torch.arange(6.0)
    write_sealed(tmp_path / "a.safetensors", "form", {"all": shared, "view": shared[2:4], "same": shared}, {})
    _, tensors, _ = read_sealed(tmp_path / "a.safetensors")
    assert torch.equal(tensors["view"], shared[2:4]) and torch.equal(tensors["same"], shared)


def test_the_file_before_is_kept_under_another_name(tmp_path):
    for i in range(3):
        write_sealed(tmp_path / "a.safetensors", "form", {}, {"i": i}, keep=tmp_path / "before.safetensors")
    assert [read_sealed(tmp_path / name)[2]["i"] for name in ("a.safetensors", "before.safetensors")] == [2, 1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors", "before.safetensors"]
