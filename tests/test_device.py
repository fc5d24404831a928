"""Number formats by device, with the GPU's answers played by a stand-in."""

import pytest
import torch

from utils.device import autocast, pick_device, pick_number_format

CUDA = torch.device("cuda")


@pytest.mark.parametrize("capability, expected", [((7, 5), "fp16"), ((8, 0), "bf16"), ((9, 0), "bf16")])
def test_a_gpu_gets_bf16_from_compute_capability_8_on(monkeypatch, capability, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *a: True)  # a T4 says so too, and emulates it
    name, reason = pick_number_format(CUDA)
    assert name == expected and f"{capability[0]}.{capability[1]}" in reason


@pytest.mark.parametrize("speedup, expected", [(4.0, "bf16"), (1.0, "fp32"), (0.2, "fp32")])
def test_a_cpu_gets_bf16_only_where_it_is_measured_faster(monkeypatch, speedup, expected):
    seconds = {torch.float32: 1.0, torch.bfloat16: 1 / speedup}
    monkeypatch.setattr("utils.device._seconds", seconds.__getitem__)
    assert pick_number_format(torch.device("cpu"))[0] == expected


def test_what_is_asked_for_is_taken():
    assert pick_number_format(torch.device("cpu"), "bf16")[0] == "bf16"
    assert pick_number_format(torch.device("mps"))[0] == "fp32"
    with pytest.raises(ValueError, match="number_format is 'fp16', on a CPU it must be"):
        pick_number_format(torch.device("cpu"), "fp16")


@pytest.mark.parametrize("number_format, dtype", [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_matmuls_run_in_the_number_format(number_format, dtype):
    with autocast(torch.device("cpu"), number_format):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


def test_there_is_always_a_device():
    assert pick_device().type in ("cuda", "mps", "cpu")
