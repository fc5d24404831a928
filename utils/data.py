"""Stories as one long array of token ids, cut into training and validation by story."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256

import numpy as np
import torch

SPLITS = ("train", "val")
ALL = slice(None)


def as_list(texts: Iterable[str]) -> list[str]:
    """The texts of any iterable, such as a generator or a column of a table. ValueError for one text alone."""
    if isinstance(texts, str):
        raise ValueError("stories is one str, it must be an iterable of them: put it in a list")
    return list(texts)


def split_stories(stories: Iterable[str], val_fraction: float = 0.1, seed: int = 0) -> tuple[list[str], list[str]]:
    """(training stories, validation stories): a seeded draw, at least one story on each side.

    A story lies on one side with all its copies.
    """
    if not 0 < val_fraction < 1:
        raise ValueError(f"val_fraction is {val_fraction}, it must be between 0 and 1")
    stories = as_list(stories)
    different = list(dict.fromkeys(stories))
    if len(different) < 2:
        raise ValueError(
            f"{len(different)} story cannot be split into training and validation, at least 2 are needed"
            " (a line <|endoftext|> ends a story)"
        )
    n_val = min(max(1, round(len(different) * val_fraction)), len(different) - 1)
    drawn = {different[i] for i in np.random.default_rng(seed).permutation(len(different))[:n_val]}
    return [story for story in stories if story not in drawn], [story for story in stories if story in drawn]


def split_text(text: str, val_fraction: float = 0.1) -> tuple[list[str], list[str]]:
    """(training text, validation text) of one long text: its last part validates, cut at a line's end if there is one.

    Raises ValueError for a text of less than 20 characters.
    """
    if len(text) < 20:
        raise ValueError(f"the text {text!r} cannot be split into training and validation: it is too short")
    cut = int(len(text) * (1 - val_fraction))
    for sign in ("\n", " ", ""):  # a tenth of Chinese may have neither
        end = text.rfind(sign, 1, cut) if sign else cut
        if end > cut // 2:
            break
    return [text[:end].strip()], [text[end:].strip()]


def split_texts(texts: Iterable[str], val_fraction: float = 0.1) -> tuple[list[str], list[str]]:
    """`split_stories`, or `split_text` where there is one text alone, if often."""
    texts = as_list(texts)
    if len(set(texts)) == 1:
        return split_text("\n".join(texts), val_fraction)
    return split_stories(texts, val_fraction)


class TokenData:
    """Training and validation tokens. Every story is followed by <|endoftext|> and lies in one split only.

    tokens: one integer array, uint16 where the vocabulary fits, training first; it may be a memory map.
    n_bytes: UTF-8 bytes of the stories of each split, for bits per byte.
    fingerprint: what `fingerprint()` returns, where it is known, so that the array need not be read.
    """

    def __init__(self, tokens: np.ndarray, n_train: int, n_bytes: dict[str, int], fingerprint: str | None = None):
        self.tokens, self.n_train, self.n_bytes = tokens, n_train, n_bytes
        self._parts = {"train": tokens[:n_train], "val": tokens[n_train:]}  # views
        self._fingerprint = fingerprint

    @classmethod
    def from_stories(cls, stories, tok, val_fraction: float = 0.1, validation=None) -> TokenData:
        """Encode `stories`; validation is `validation` (other stories) or a `val_fraction` of them."""
        given = (stories, validation) if validation is not None else split_texts(stories, val_fraction)
        train, val = map(as_list, given)
        dtype = np.uint16 if len(tok) <= 1 << 16 else np.int32
        arrays, n_bytes = {}, {}
        for split, texts in zip(SPLITS, (train, val), strict=True):
            ids = [np.array([*tok.encode(text), tok.eos_id], dtype=dtype) for text in texts]
            if not ids:
                raise ValueError(f"there are no stories for the {split} split, at least 1 is needed")
            arrays[split] = np.concatenate(ids)
            n_bytes[split] = sum(len(text.encode("utf-8", "surrogatepass")) for text in texts)
        return cls(np.concatenate([arrays["train"], arrays["val"]]), len(arrays["train"]), n_bytes)

    def split(self, split: str) -> np.ndarray:
        """The tokens of one split, (n,)."""
        if split not in SPLITS:
            raise ValueError(f"split is {split!r}, it must be one of {', '.join(SPLITS)}")
        return self._parts[split]

    def batch(
        self, split: str, batch_size: int, block_size: int, generator: torch.Generator, part: slice = ALL
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Random windows x (B, T) int64 and y (B, T), each token's successor.

        All chance comes from `generator`, so its `get_state()` is the place in the data. part: those of the B windows
        to read, where several processes share a batch.
        """
        tokens = self.split(split)
        if len(tokens) <= block_size:
            raise ValueError(
                f"the {split} split has {len(tokens)} tokens, a block of {block_size} needs at least {block_size + 1}"
            )
        starts = torch.randint(len(tokens) - block_size, (batch_size, 1), generator=generator).numpy()  # (B, 1)
        windows = torch.from_numpy(tokens[starts[part] + np.arange(block_size + 1)].astype(np.int64))  # (B, T+1)
        return windows[:, :-1], windows[:, 1:]

    def refuse_block(self, block_size: int) -> None:
        """Raise ValueError where the training tokens are too few for one window, or there is nothing to validate."""
        n_val = len(self.tokens) - self.n_train
        if self.n_train <= block_size or n_val < 2:
            few = f"{self.n_train} training and {n_val} validation tokens"
            at_most = (
                f" or a block of at most {self.n_train - 1} (--block-size)" if n_val > 1 and self.n_train > 1 else ""
            )
            raise ValueError(
                f"a block of {block_size} needs at least {block_size + 1} training tokens and 2 to validate,"
                f" there are {few}: take more text{at_most}"
            )

    def fingerprint(self) -> str:
        """Changes when any token or the split changes: a run is only continued on the data that it began with."""
        return self._fingerprint or fingerprint_of(sha256(self.tokens.tobytes()), self.tokens.dtype, self.n_train)


def fingerprint_of(tokens, dtype: np.dtype, n_train: int) -> str:
    """The fingerprint of data from the SHA-256 of all its tokens, which may have been fed piece by piece."""
    whole = tokens.copy()
    whole.update(str((dtype, n_train)).encode())
    return whole.hexdigest()
