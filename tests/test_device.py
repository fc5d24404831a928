"""Number formats by device, with the GPU's answers played by a stand-in."""

import ctypes
import sys
from types import SimpleNamespace

import pytest
import torch

from utils import device
from utils.device import autocast, keep_freed_memory, pick_device, pick_number_format

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


# Freed memory, with the C library played by a stand-in


@pytest.mark.parametrize("platform", ["darwin", "win32", "cygwin", "freebsd14"])
def test_memory_is_left_to_other_systems(platform, monkeypatch):
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(ctypes, "CDLL", lambda *_: pytest.fail("loaded a C library"))
    keep_freed_memory()


@pytest.mark.parametrize("platform", ["linux", "linux2"])
def test_glibc_is_told_to_keep_freed_memory(platform, monkeypatch):
    told = {}
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(
        ctypes, "CDLL", lambda name: SimpleNamespace(mallopt=lambda option, value: told.update({option: value}) or 1)
    )
    keep_freed_memory()
    m_trim_threshold, m_mmap_threshold = -1, -3  # of glibc's malloc.h
    assert told.keys() == {m_trim_threshold, m_mmap_threshold}
    # both are a C int; a training step's largest blocks have hundreds of megabytes
    assert all(500_000_000 < value < 2**31 for value in told.values())


def test_a_glibc_that_refuses_large_thresholds_is_asked_for_less(monkeypatch):
    told = {}

    def mallopt(option, value):
        accepted = option != -3 or value <= 2**25
        if accepted:
            told[option] = value
        return int(accepted)

    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace(mallopt=mallopt))
    keep_freed_memory()
    assert told == {-3: 2**25, -1: 2**31 - 1}


def test_a_c_library_without_the_setting_is_left_alone(monkeypatch):
    """musl has no mallopt."""
    loaded = []
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: loaded.append(name) or SimpleNamespace())
    keep_freed_memory()
    assert loaded == [None]  # the process itself, whatever its C library is called


def test_one_matmul_that_was_held_up_does_not_choose_the_number_format(monkeypatch):
    clock = iter([0.0, 5.0, 5.0, 5.001, 5.001, 5.003])  # three matmuls, the first in a crowd
    monkeypatch.setattr(device.time, "perf_counter", lambda: next(clock))
    device._seconds.cache_clear()
    assert device._seconds(torch.float32) == pytest.approx(0.001)
    device._seconds.cache_clear()
