"""Checks of the exercises of 09_inside_kimi_k2."""

from __future__ import annotations

import io
import math
from collections import Counter

import torch
import torch.nn.functional as F

from utils.course.checks.verdict import check, close, expect, expect_tensor
from utils.hf_fp8 import dequantised
from utils.published.tensors import DTYPES


def _read_rows(file, entry, data_start, first, end):
    dtype, one_row = DTYPES[entry["dtype"]], entry["shape"][1:]
    row_bytes = math.prod(one_row) * dtype.itemsize
    file.seek(data_start + entry["data_offsets"][0] + first * row_bytes)
    return torch.frombuffer(bytearray(file.read((end - first) * row_bytes)), dtype=dtype).view(end - first, *one_row)


class _Counted(io.BytesIO):
    """A file that counts the bytes that are read from it."""

    n_read = 0

    def read(self, *size):
        data = super().read(*size)
        self.n_read += len(data)
        return data

    def readinto(self, buffer):
        n = super().readinto(buffer)
        self.n_read += n
        return n


@check(ours=_read_rows)
def check_read_rows(read_rows) -> str:
    """Rows of tensors of three dtypes, one and two dimensions, behind a header; not a byte more than needed is read."""
    tensors = {
        "a": torch.arange(12.0).view(4, 3),
        "b": torch.arange(1.0, 11.0).view(5, 2).bfloat16(),
        "c": torch.arange(6.0).bfloat16(),
        "d": torch.arange(8.0).view(2, 4).to(torch.float8_e4m3fn),
    }
    start, data, entries = 40, b"", {}
    for name, tensor in tensors.items():
        raw = bytes(tensor.view(torch.uint8).flatten().tolist())
        dtype = next(key for key, value in DTYPES.items() if value == tensor.dtype)
        offsets = [len(data), len(data) + len(raw)]
        entries[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": offsets}
        data += raw
    content = b"\1" * start + data
    for name, first, end in (("a", 0, 4), ("a", 1, 2), ("b", 0, 5), ("b", 3, 5), ("c", 2, 4), ("d", 1, 2)):
        wanted, entry, file = tensors[name][first:end], entries[name], _Counted(content)
        told = f"rows {first} to {end} of a tensor of shape {entry['shape']}"
        got = read_rows(file, dict(entry), start, first, end)
        if isinstance(got, torch.Tensor) and got.dtype == wanted.dtype and got.numel() == wanted.numel():
            expect(got.shape == wanted.shape, f"the numbers come as {list(got.shape)}, they must be rows again: "
                   f"{list(wanted.shape)}")  # fmt: skip
            got_bytes = bytes(got.contiguous().view(torch.uint8).flatten().tolist())
            begin = entry["data_offsets"][0]
            forgotten = {
                start: "the data begins behind the header: add data_start",
                begin: "each tensor begins at its own data_offsets[0]",
            }
            for missing, words in forgotten.items():
                row = wanted[:1].numel() * wanted.element_size()
                wrong = start + begin + first * row - missing
                if missing and got_bytes == content[wrong : wrong + len(got_bytes)] != data_of(wanted):
                    expect(False, f"{told}: {words}")
            if first and got_bytes == data_of(tensors[name])[: len(got_bytes)] != data_of(wanted):
                expect(False, f"{told}: you return its first rows; row `first` begins `first` rows later")
        expect(isinstance(got, torch.Tensor), "your function returns None: does it end in `return`?" if got is None else
               f"a tensor was asked for, your function returns {type(got).__name__}")  # fmt: skip
        expect(got.dtype == wanted.dtype, f"{told}: the dtype must be {wanted.dtype}, yours is {got.dtype}")
        to_end = first and got.numel() == tensors[name][:end].numel()
        expect(not to_end or wanted.numel() == got.numel(), f"{told}: you return {end} rows; there are end - first")
        short = wanted.element_size() > 1 and got.numel() * wanted.element_size() == wanted.numel()
        expect(not short, f"{told}: too few numbers; one has dtype.itemsize bytes, and `read` counts bytes")
        expect_tensor(got, tuple(wanted.shape))
        expect(data_of(got) == data_of(wanted), f"{told}: other numbers than those that stand there")
        expect(
            file.n_read <= len(data_of(wanted)),
            f"{told}: right, but you read {file.n_read} bytes, {len(data_of(wanted))} are enough: seek to the first "
            "row",
        )
    return "any rows of any tensor, and not one byte more"


def data_of(tensor: torch.Tensor) -> bytes:
    """A tensor's bytes as they lie in a file."""
    return bytes(tensor.contiguous().view(torch.uint8).flatten().tolist()) if tensor.numel() else b""


def _dequantise(eight, factors, block):
    return dequantised(eight, factors, (block, block))


@check(ours=_dequantise)
def check_dequantise(dequantise) -> str:
    """Each block times its factor, whole blocks and cut ones, a matrix that is not square."""
    generator = torch.Generator().manual_seed(0)
    for (n, m), block in (((4, 4), 2), ((4, 6), 2), ((5, 3), 2), ((7, 10), 4), ((3, 3), 8)):
        eight = torch.randn(n, m, generator=generator).to(torch.float8_e4m3fn)
        factors = 1 + torch.rand(math.ceil(n / block), math.ceil(m / block), generator=generator)
        wanted, told = dequantised(eight, factors, (block, block)), f"{n} x {m} in blocks of {block}"
        try:
            got = dequantise(eight.clone(), factors.clone(), block)
        except RuntimeError as error:
            cut = "must match the size" in str(error) and (n % block or m % block)
            expect(not cut, f"{told}: blocks at the edge are cut, so the spread factors are too many:\n"
                   "keep only the first n rows and m columns")  # fmt: skip
            raise
        expect_tensor(got, (n, m))
        expect(got.dtype == torch.float32, f"the result must be fp32, yours is {got.dtype}")
        expect(not close(got, eight.float()), f"{told}: these are the eight-bit numbers without their factors")
        spread = factors.repeat_interleave(block, 0).repeat_interleave(block, 1)[:n, :m]
        expect(not close(got, eight.float() / spread), f"{told}: you divide by the factors; that was the way there")
        tiled = factors.repeat(block, block)[:n, :m]
        if not close(tiled, spread):
            expect(not close(got, eight.float() * tiled), f"{told}: `repeat` puts whole copies side by side; each "
                   "factor must\nbe repeated next to itself")  # fmt: skip
        if factors.numel() > 1:
            expect(not close(got, eight.float() * factors[0, 0]), f"{told}: every block has a factor of its own")
        expect(close(got, wanted), f"{told}: at row {n - 1}, column {m - 1} it must be {wanted[-1, -1]:.4f}, you have "
               f"{got[-1, -1]:.4f}")  # fmt: skip
    return "each block times its own factor, the cut ones too"


def _run_chosen(x, weights, chosen, read_expert):
    y = torch.zeros_like(x)
    for e in chosen.unique().tolist():
        w_up, w_down = read_expert(e)
        token, slot = (chosen == e).nonzero(as_tuple=True)
        hidden = F.linear(x[token], w_up[0]) * F.silu(F.linear(x[token], w_up[1]))
        y[token] += weights[token, slot, None] * F.linear(hidden, w_down)
    return y


@check(ours=_run_chosen)
def check_run_chosen(run_chosen) -> str:
    """The weighted sum of each token's experts; each chosen expert is read once, no other."""
    generator = torch.Generator().manual_seed(0)
    n_experts, width, hidden = 6, 4, 3
    w_up = torch.randn(n_experts, 2, hidden, width, generator=generator)
    w_down = torch.randn(n_experts, width, hidden, generator=generator)
    for n_tokens, top_k in ((1, 1), (3, 2), (5, 3), (2, 4)):
        x = torch.randn(n_tokens, width, generator=generator)
        weights = torch.rand(n_tokens, top_k, generator=generator)
        scores = torch.rand(n_tokens, n_experts - 1, generator=generator)
        chosen, read = scores.topk(top_k).indices + 1, []  # expert 0 is never chosen

        def read_expert(e, read=read):
            read.append(int(e))
            return w_up[int(e)].clone(), w_down[int(e)].clone()

        before = x.clone()
        y = run_chosen(x, weights.clone(), chosen.clone(), read_expert)
        expect(y is not None, "your function returns None: does it end in `return`?")
        expect(torch.equal(x, before), "your function changes x: collect the results in a tensor of your own")
        expect_tensor(y, (n_tokens, width))
        value, gate = (torch.einsum("efd,nd->nef", w_up[:, i], x) for i in (0, 1))

        def mixed(value, gate, weights=weights, chosen=chosen):
            every = torch.einsum("edf,nef->ned", w_down, value * F.silu(gate))
            picked = every.gather(1, chosen[..., None].expand(-1, -1, width))
            return (weights[..., None] * picked).sum(dim=1)

        wanted = mixed(value, gate)
        expect(not close(y, mixed(gate, value), 1e-4), "value and gate are exchanged: w_up[0] is the value, SiLU is of "
               "w_up[1]")  # fmt: skip
        ones = mixed(value, gate, weights=torch.ones_like(weights))
        expect(not close(y, ones, 1e-4), "each expert's result must be multiplied by the token's weight for it")
        first = mixed(value, gate, weights=weights[:, :1].expand_as(weights))
        if top_k > 1:
            expect(not close(y, first, 1e-4), "the weight is that of the slot in which the token chose the expert, not "
                   "of the first")  # fmt: skip
            last = chosen[:, -1:].expand_as(chosen)
            only = [mixed(value, gate, weights=weights * (chosen == last))]
            expect(not any(close(y, one, 1e-4) for one in only), "only a token's last expert is left: add up (+=) the "
                   "results of all K")  # fmt: skip
        expect(close(y, wanted, 1e-4), f"token 0 of {n_tokens}, with {top_k} experts: it must begin with "
               f"{wanted[0, 0]:.4f}, yours with {y[0, 0]:.4f}")  # fmt: skip
        unwanted = sorted(set(read) - set(chosen.flatten().tolist()))
        expect(not unwanted, f"right, but you read expert {unwanted[0] if unwanted else 0}, which no token has chosen: "
               "loop over chosen.unique()")  # fmt: skip
        most, times = Counter(read).most_common(1)[0]
        expect(times == 1, f"right, but expert {most} is read {times} times: read it once, for all its tokens")
    return "the layer's result, and each chosen expert read once"


def _effective_number(load):
    shares = load[load > 0] / load.sum()
    return torch.exp(-(shares * shares.log()).sum())


@check(ours=_effective_number)
def check_effective_number(effective_number) -> str:
    """e to the entropy of the shares: counts or other weights, zeros among them."""
    even = effective_number(torch.tensor([5, 5, 5, 5]))
    expect(even is not None, "your function returns None: does it end in `return`?")
    even = float(even)
    expect(not close(even, math.log(4)), "that is the entropy: take e to its power")
    expect(not close(even, 2 ** math.log(4)), "that is 2 to the power of an entropy in nats: take e to its power")
    expect(not close(even, 0.25), "the sign: the entropy is minus the sum of p ln p, yours gives 1/4 for 4 even ones")
    expect(close(even, 4), f"four equally busy experts must give 4, you give {even:.4f}; are the shares of sum 1?")
    for load in ([1, 1, 2], [3, 1, 0, 0], [7, 0], [0.5, 0.25, 0.25], [9, 4, 1, 0, 2]):
        wanted, got = float(_effective_number(torch.tensor(load))), float(effective_number(torch.tensor(load)))
        expect(not math.isnan(got), f"for {load} you get nan: 0 * log(0) is no number, leave out the experts without")
        squares = 1 / sum((value / sum(load)) ** 2 for value in load)
        expect(not close(got, squares) or close(squares, wanted), f"for {load} you give 1 / sum p^2, another measure; "
               "here e to the entropy is asked for")  # fmt: skip
        busy = sum(value > 0 for value in load)
        expect(not close(got, busy) or close(busy, wanted), f"for {load} you count the experts that have any token")
        expect(close(got, wanted, 1e-4), f"for {load} it must be {wanted:.4f}, you give {got:.4f}")
    return "1 where one expert has everything, E where all have the same"
