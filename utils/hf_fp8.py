"""Weights in eight bits, as Kimi K2 and DeepSeek-V3 are published: one factor for each block of 128 x 128 numbers.

A matrix lies in the files as float8_e4m3fn (4 bits of exponent, 3 of fraction, at most 448) under its name, and beside
it under `<name>_scale_inv` the factor of each block: fp8 times factor is the weight. Vectors, the embedding, the head
and the routers stay in bf16 or fp32. Source: github.com/deepseek-ai/DeepSeek-V3, README_WEIGHTS.md and
inference/fp8_cast_bf16.py.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch

from utils.files import json_part

E4M3 = torch.float8_e4m3fn
SCALE = "_scale_inv"  # ends the name of a matrix's factors
FLOATS = (torch.float32, torch.bfloat16, torch.float16)
# What `quantization_config` may say of how it was done. Missing is as the first; "activation_scheme" concerns what
# servers multiply the weights with, and "scale_fmt" that the factors are powers of two: neither changes the weights.
WAYS = {"quant_method": ("fp8",), "fmt": ("e4m3", None), "activation_scheme": ("dynamic", None)}


def fp8_block(state: dict, file: Path) -> tuple[int, int] | None:
    """Rows and columns of a block in the fp8 weights that config.json's `state` describes; None without fp8.

    Raises ValueError naming the field for any other quantization (int4 of compressed-tensors, mxfp4, ...); `file` is
    where `state` was read.
    """
    given = json_part(state, "quantization_config")
    if state.get("quantization_config") is None:
        return None
    for name, allowed in WAYS.items():
        if given.get(name) not in allowed:
            raise ValueError(f"quantization_config.{name} is {given.get(name)!r:.100} in {file}, it must be "
                             f"{allowed[0]!r}: other quantized weights are not read")  # fmt: skip
    block = given.get("weight_block_size")
    whole = isinstance(block, list) and all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in block)
    if not whole or len(block) != 2:
        raise ValueError(f"quantization_config.weight_block_size is {block!r:.100} in {file}, it must be two whole "
                         "numbers, 1 or more")  # fmt: skip
    return tuple(block)


def dequantised(weight: torch.Tensor, scale_inv: torch.Tensor, block: tuple[int, int] = (128, 128)) -> torch.Tensor:
    """The matrix (n, m) in fp32 that `weight` (n, m), float8_e4m3fn, stands for: each block times its own factor.

    scale_inv: (ceil(n / rows), ceil(m / columns)) for a block of (rows, columns); blocks at the right and the lower
    edge may be cut. Raises ValueError for another dtype or shape.
    """
    if weight.dtype != E4M3 or weight.ndim != 2:
        raise ValueError(f"weight is {weight.dtype} of shape {list(weight.shape)}, it must be a matrix of {E4M3}")
    right = [math.ceil(size / edge) for size, edge in zip(weight.shape, block, strict=True)]
    if list(scale_inv.shape) != right:
        raise ValueError(f"scale_inv has the shape {list(scale_inv.shape)}, a weight of {list(weight.shape)} in blocks "
                         f"of {list(block)} must have {right}")  # fmt: skip
    factors = scale_inv.float().repeat_interleave(block[1], dim=1)[:, : weight.shape[1]]  # (ceil(n / rows), m)
    matrix = weight.float()  # (n, m)
    for rows, factor in zip(matrix.split(block[0]), factors, strict=False):  # in place: no second matrix of factors
        rows.mul_(factor)
    return matrix


def take_scales(weights: dict[str, torch.Tensor], block: tuple[int, int] | None, folder: Path) -> dict:
    """Take the factors out of `weights`, all tensors of a folder by name: {name of the fp8 matrix: its factors}.

    block: what `fp8_block` says. Raises ValueError naming the tensor where a matrix and its factors do not belong
    together, a factor is not above 0 or not finite, or config.json says nothing of fp8.
    """
    scales = {}
    for name in [name for name in weights if name.endswith(SCALE)]:
        matrix, scale = name.removesuffix(SCALE), weights.pop(name)
        if block is None:
            raise ValueError(f"{folder} has the tensor {name}, but its config.json has no quantization_config")
        if matrix not in weights or weights[matrix].dtype != E4M3:
            raise ValueError(f"{folder} has the tensor {name}, but no {matrix} of {E4M3} that it could be for")
        right = [math.ceil(size / edge) for size, edge in zip(weights[matrix].shape, block, strict=False)]
        if list(scale.shape) != right or weights[matrix].ndim != 2:
            size = list(weights[matrix].shape)
            raise ValueError(f"{name} in {folder} has the shape {list(scale.shape)}, for a matrix of {size} in blocks "
                             f"of {list(block)} it must be {right}")  # fmt: skip
        if scale.dtype not in FLOATS:
            raise ValueError(f"{name} in {folder} is {scale.dtype}, it must be {' or '.join(map(str, FLOATS))}")
        if not ((scale > 0) & (scale.float() * torch.finfo(E4M3).max < math.inf)).all():
            raise ValueError(f"{name} in {folder} holds factors that are not above 0 and finite")
        scales[matrix] = scale
    for name, tensor in weights.items():
        if tensor.dtype == E4M3 and block is not None and name not in scales:
            raise ValueError(f"{name} in {folder} is {E4M3}, but there is no tensor {name}{SCALE} with its factors")
    return scales
