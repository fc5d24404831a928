"""The tensors of published files by their names: found in the files' headers, read one by one.

A safetensors file begins with the length of its header (8 bytes, little-endian), then the header: JSON that says of
each tensor its dtype, its shape and where it begins and ends in what follows
(https://github.com/huggingface/safetensors, "Format"). Nothing else is in it, and nothing of it runs.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import torch

from utils.files import json_part, read_json
from utils.hf_fp8 import E4M3, SCALE, dequantised
from utils.hf_weights import INDEX, WEIGHTS, plain_name
from utils.published.keeping import Kept
from utils.published.source import Folder, Repository

DTYPES = {
    "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F8_E4M3": E4M3,
}  # fmt: skip
AT_ONCE = 8  # requests
LONGEST_HEADER = 100_000_000  # bytes; the safetensors library takes no longer one either


class Place(NamedTuple):
    """Where a tensor lies."""

    file: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int  # in the file
    end: int

    @property
    def bytes(self) -> int:
        return self.end - self.start


class Tensors:
    """The tensors of a published model: `tensors[name]` reads one.

    source: where the files are. block: that of the scales of fp8, (128, 128) in Kimi K2's files; None where no tensor
    has them. kept: where what is fetched is kept; None reads it again each time.
    """

    def __init__(self, source: Folder | Repository, block: tuple[int, int] | None = None, kept: Kept | None = None):
        self.source, self.block, self.kept = source, block, kept
        self._headers: dict[str, dict[str, Place]] = {}
        self.bytes_read, self._lock = 0, threading.Lock()  # of tensors, from wherever they came
        if WEIGHTS in source:
            self._files = dict.fromkeys(self._header(WEIGHTS), WEIGHTS)
        elif INDEX in source:
            files = json_part(read_json(source.local(INDEX)), "weight_map")
            self._files = {name: plain_name(file, INDEX) for name, file in files.items()}
        else:
            raise FileNotFoundError(f"{source.name} has neither {WEIGHTS} nor {INDEX}")

    def __deepcopy__(self, memo: dict) -> Tensors:
        return self  # a copy of a model reads the same files

    def names(self) -> list[str]:
        """Of all tensors, those of fp8's scales left out."""
        return [name for name in self._files if not name.endswith(SCALE)]

    def place(self, name: str) -> Place:
        """Where a tensor lies; its file's header is read. Raises ValueError where there is none of that name."""
        file = self._files.get(name)
        if file is None or name not in (header := self._header(file)):
            raise ValueError(f"{self.source.name} has no tensor {name}")
        return header[name]

    def places(self, name: str) -> list[Place]:
        """All that is read for a tensor: itself and, in fp8, its scales."""
        place = self.place(name)
        return [place, self.place(name + SCALE)] if place.dtype == E4M3 else [place]

    def __getitem__(self, name: str) -> torch.Tensor:
        """The tensor in the dtype that it was published in, fp8 as fp32. ValueError for numbers that are not finite."""
        tensor, *scales = (self._read(place) for place in self.places(name))
        if scales:
            if self.block is None:
                raise ValueError(f"{name} of {self.source.name} is in fp8, of which its config.json says nothing")
            if not (scales[0] > 0).all():
                raise ValueError(f"{name}{SCALE} of {self.source.name} holds factors that are not above 0")
            tensor = dequantised(tensor, scales[0], self.block)
        return self._finite(tensor, name)

    def many(self, names: Iterable[str]) -> Iterator[torch.Tensor]:
        """Several tensors in their order. From the hub a few at once: an answer takes long to begin."""
        if not self.source.is_remote:
            yield from map(self.__getitem__, names)
            return
        with ThreadPoolExecutor(AT_ONCE) as pool:
            yield from pool.map(self.__getitem__, names)

    def rows(self, name: str, start: int, end: int) -> torch.Tensor:
        """The rows from start on and before end of a matrix. Raises ValueError for one in fp8."""
        return self._finite(self._read(self.rows_place(name, start, end)), name)

    def rows_place(self, name: str, start: int, end: int) -> Place:
        """Where they lie."""
        place = self.place(name)
        if place.dtype == E4M3:
            raise ValueError(f"{name} of {self.source.name} is in fp8: it is read whole")
        if not 0 <= start <= end <= place.shape[0]:
            raise ValueError(f"{name} of {self.source.name} has {place.shape[0]} rows, asked for were {start} to {end}")
        row = place.bytes // max(1, place.shape[0])
        return place._replace(
            shape=(end - start, *place.shape[1:]), start=place.start + start * row, end=place.start + end * row
        )

    def is_kept(self, place: Place) -> bool:
        """Whether reading it fetches nothing."""
        return not self.source.is_remote or (self.kept is not None and self._key(place) in self.kept)

    def _key(self, place: Place) -> str:
        return f"{self.source.name} {place.file} {place.start} {place.end}"

    def _read(self, place: Place) -> torch.Tensor:
        data = self.kept.get(self._key(place)) if self.kept is not None else None
        if data is None:
            data = self.source.read(place.file, place.start, place.end)
            if len(data) != place.bytes:
                raise ValueError(
                    f"{place.file} of {self.source.name} is cut off: {len(data):,} bytes of {place.bytes:,}"
                )
            if self.kept is not None:
                self.kept.put(self._key(place), data)
        with self._lock:
            self.bytes_read += place.bytes
        if not data:
            return torch.empty(place.shape, dtype=place.dtype)
        return torch.frombuffer(bytearray(data), dtype=place.dtype).view(place.shape)

    def _finite(self, tensor: torch.Tensor, name: str) -> torch.Tensor:
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{name} of {self.source.name} holds numbers that are not finite")
        return tensor

    def _header(self, file: str) -> dict[str, Place]:
        if file not in self._headers:
            self._headers[file] = read_header(self.source, file)
        return self._headers[file]


def read_header(source: Folder | Repository, file: str) -> dict[str, Place]:
    """Where each tensor of a safetensors file lies. Raises ValueError for a file that is none, or is cut off."""
    size = source.size(file)
    length = int.from_bytes(source.read(file, 0, min(8, size)), "little")
    if size < 8 or not 2 <= length <= min(size - 8, LONGEST_HEADER):
        raise ValueError(f"{file} of {source.name} is no safetensors file, or is cut off")
    try:
        header = json.loads(source.read(file, 8, 8 + length))
        header.pop("__metadata__", None)
        places = {name: _place(file, 8 + length, **entry) for name, entry in header.items()}
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        raise ValueError(f"{file} of {source.name} has a header that cannot be read ({error!r:.200})") from None
    end = max((place.end for place in places.values()), default=8 + length)
    if end != size:
        raise ValueError(f"{file} of {source.name} has {size:,} bytes, by its header it must have {end:,}")
    return places


def _place(file: str, first: int, dtype: str, shape: list[int], data_offsets: list[int]) -> Place:
    start, end = data_offsets
    if dtype not in DTYPES:
        raise ValueError(f"a tensor of dtype {dtype!r:.40}, it must be one of {', '.join(DTYPES)}")
    if not all(isinstance(n, int) and n >= 0 for n in (*shape, start, end)):
        raise ValueError(f"a tensor of shape {shape!r:.60} at {data_offsets!r:.60}")
    if end - start != math.prod(shape) * DTYPES[dtype].itemsize:
        raise ValueError(f"a tensor of shape {shape!r:.60} in {end - start:,} bytes")
    return Place(file, DTYPES[dtype], tuple(shape), first + start, first + end)
