"""Checks of chapter 7, telling: one prompt for many stories, and a rule that stops a stream of text."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from utils.attention import KVCache
from utils.config import KimiConfig
from utils.course.checks.verdict import check, close, expect
from utils.model import Kimi


def copies_of(cache: list[KVCache], n: int) -> list[KVCache]:
    """Our answer to `check_fan_out`."""
    copies = []
    for layer in cache:
        copy = KVCache(layer.capacity)
        filled = [buffer[..., : layer.length, :] for buffer in layer.buffers]
        copy.append(*[tensor.repeat_interleave(n, dim=0) for tensor in filled])
        copies.append(copy)
    return copies


@check(ours=copies_of)
def check_fan_out(answer) -> str:
    """answer(cache of one story, n): the cache of n stories that begin with it; the given one stays as it is."""
    n, prompt = 3, torch.tensor([[1, 2, 3, 4, 5]])  # (1, T)
    after = torch.tensor([[6, 7], [7, 8], [8, 6]])  # (B, T) another continuation of each story
    for architecture, sizes in (("nano", {}), ("k2", dict(kv_lora_rank=8, q_lora_rank=8, dense_ff=16))):
        config = KimiConfig.small(architecture, 10, block_size=12, d_model=16, n_heads=2, n_layers=2, d_ff=8,
                                  n_experts=2, top_k=1, **sizes)  # fmt: skip
        model = Kimi(config, seed=0).eval()
        with torch.no_grad():
            cache = model.new_cache()
            model(prompt, cache=cache)
            before = [[buffer.clone() for buffer in layer.buffers] for layer in cache]
            fan = answer(cache, n)
            _expect_fan(fan, cache, n)
            told = torch.cat([model(after[:, i : i + 1], cache=fan) for i in range(2)], dim=1)  # (B, 2, V)
            right = model(torch.cat([prompt.expand(n, -1), after], dim=1))[:, -2:]  # (B, 2, V)
        same = all(
            layer.length == prompt.shape[1] and len(layer.buffers) == len(kept)
            and all(torch.equal(now[..., : layer.length, :], then[..., : layer.length, :])
                    for now, then in zip(layer.buffers, kept, strict=True))
            for layer, kept in zip(cache, before, strict=True)
        )  # fmt: skip
        expect(same, "you changed the cache that was given to you: other stories may still begin from it.\n"
               "Fill new ones, KVCache(layer.capacity).")  # fmt: skip
        expect(close(told, right, 1e-4), "the stories do not go on as if each had read the prompt itself: what the "
               "copies hold\nis not what the prompt left behind.")  # fmt: skip
    return "one prompt was read once, and three stories go on from it, each by itself."


def _expect_fan(fan: object, cache: list[KVCache], n: int) -> None:
    expect(fan is not None, "your function returns None: does it end in `return`?")
    expect(isinstance(fan, list | tuple), f"a list of caches was asked for, you return {type(fan).__name__}.")
    expect(len(fan) == len(cache), f"the model has {len(cache)} layers, so it needs {len(cache)} caches, not "
           f"{len(fan)}: one for each layer,\neach with {n} stories in its first dimension.")  # fmt: skip
    for layer, copy in zip(cache, fan, strict=True):
        expect(isinstance(copy, KVCache), f"a KVCache for each layer was asked for, yours is {type(copy).__name__}.")
        expect(copy.buffers, "your caches are empty: append what the prompt left behind.")
        expect(copy.length == layer.length, f"each copy must hold {layer.length} positions, yours holds {copy.length}: "
               "only the first\n`layer.length` of a buffer are filled.")  # fmt: skip
        for buffer, given in zip(copy.buffers, layer.buffers, strict=False):
            told = f"the first dimension is that of stories: it must be {n}, yours is {buffer.shape[0]}"
            expect(buffer.shape[0] == n and buffer.shape[1:] == given.shape[1:], f"{told}.\nThe shape must be "
                   f"{(n, *given.shape[1:])}, yours is {tuple(buffer.shape)}.")  # fmt: skip
            expect(buffer.stride(0), "`expand` makes a view: all stories would write into the same memory.\n"
                   "Copy, for example with repeat_interleave.")  # fmt: skip


def before_stop(pieces: Iterator[str], stop: str) -> Iterator[str]:
    """Our answer to `check_until`."""
    held = ""
    for piece in pieces:
        held += piece
        if stop in held:
            yield held[: held.index(stop)]
            return
        safe = max(0, len(held) - len(stop) + 1)
        yield held[:safe]
        held = held[safe:]
    yield held


STORY = ["Tom ran", " home.", " The", " end", ". Then", " more", " and", " more"]


@check(ours=before_stop)
def check_until(answer) -> str:
    """answer(pieces, stop): pieces of the text before `stop`, as early as possible, and nothing asked for after it."""
    asked = []

    def pieces(texts):
        for text in texts:
            asked.append(text)
            yield text

    result = answer(pieces(STORY), "The end.")
    expect(result is not None, "your function returns None: it must yield pieces.")
    expect(
        not asked, "you read the stream before anybody asked for a piece: use `yield`, so that it stays\na generator."
    )
    first = next(iter(result))
    expect(
        len(asked) <= 3,
        f"{len(asked)} pieces were read before the first was shown: that is no stream any more.\n"
        "Show what can no longer belong to the stop text.",
    )
    text = first + "".join(result)
    before = "Tom ran home. "
    expect(text != "".join(STORY), 'the stop text came in three pieces, " The", " end" and ". Then", and was missed:\n'
           "look for it in what is joined, not in one piece.")  # fmt: skip
    expect("The end." not in text, "the stop text itself is shown: cut before it.")
    expect(
        not (text.startswith(before) and len(text) > len(before) and "more" not in text),
        f"{text[len(before) :]!r} was shown before the stop text was complete. Hold back the last\n"
        "len(stop) - 1 characters: they may be its beginning.",
    )
    expect("more" not in text, "you go on after the stop text: return there.")
    expect(text == before, f"the text must be {before!r}, yours is {text!r}.")
    expect(asked[-1] == ". Then", f"you read {len(asked)} pieces, 5 were enough: return when the stop text is there.")
    rest = "".join(answer(pieces(["no", " stop", " text"]), "The end."))
    expect(
        rest == "no stop text",
        f"a story without the stop text must be told whole: yours ends {rest[-12:]!r}.\n"
        "After the loop, show what you held back.",
    )
    one = "".join(answer(pieces(["x", "a.", "b"]), "."))
    expect(one == "xa", f"the stop text '.' and the pieces 'x', 'a.', 'b' must give 'xa', yours is {one!r}.")
    return "it shows early, stops at once, and computes no word that nobody will read."
