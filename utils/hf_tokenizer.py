"""Our tokenizers in the form of the tokenizers library, and back: the file tokenizer.json."""

from __future__ import annotations

from pathlib import Path

from utils.bpe import PATTERNS, BPETokenizer
from utils.files import json_part, read_json
from utils.merges import BYTES, N_PRINTABLE, halves
from utils.tokenizer import SPECIALS, UNK, WordTokenizer

TOKENIZER, SETTINGS = "tokenizer.json", "tokenizer_config.json"

# Python's \w and \s in the words of Oniguruma, the regex library of tokenizers, whose own \w holds accents and lacks
# fractions and whose \s lacks four separators.
_WORD, _SPACE = r"\p{L}\p{N}_", r"\s\x{1c}-\x{1f}"
_SIGN = rf"[^{_WORD}{_SPACE}]"
_TOKEN = (
    rf"[{_WORD}][{_WORD}\p{{M}}\x{{200c}}\x{{200d}}]*|[\x{{1f1e6}}-\x{{1f1ff}}]{{2}}"
    rf"|{_SIGN}(?:[\p{{M}}\x{{1f3fb}}-\x{{1f3ff}}]|\x{{200d}}{_SIGN})*"
)
# Lowercase there goes letter by letter; Python has another sigma for the end of a word (Unicode, Final_Sigma).
_LETTER, _PASSED_OVER = r"[\p{Cased}&&\P{Case_Ignorable}]", r"\p{Case_Ignorable}*"
_LAST_SIGMA = f"(?<={_LETTER}{_PASSED_OVER})Σ(?!{_PASSED_OVER}{_LETTER})"
_TAIL = r"(?=(?:s|t|m|d|re|ve|ll)(?: |\z))"
_NEEDLESS_SPACE = "|".join([
    r" (?=[,.!?;:…)\]}%”»।॥،؛؟۔])",
    r"(?<=[(\[{$“‘«]) ",
    rf"(?<=[{_WORD}]|{UNK}) (?=['’] {_TAIL})",  # it 's
    rf"(?<=[{_WORD}] ['’]|{UNK} ['’]) {_TAIL}",  # it' s
])  # fmt: skip


def tokenizer_files(tok: WordTokenizer | BPETokenizer, block_size: int) -> dict[str, dict]:
    """The JSON files, by name, with which transformers tokenizes and generates as we do."""
    of_words = isinstance(tok, WordTokenizer)
    end = tok.words[tok.eos_id]
    return {
        TOKENIZER: word_json(tok.words) if of_words else bpe_json(tok),
        SETTINGS: dict(
            tokenizer_class="PreTrainedTokenizerFast", bos_token=end,
            # capitals inside a sentence: no decoder of the library can put them, but `read_tokenizer` reads them
            **({"unk_token": UNK, "written": tok.written} if of_words else {}),
            eos_token=end, pad_token=end, model_max_length=block_size,
            model_input_names=["input_ids", "attention_mask"], padding_side="left", clean_up_tokenization_spaces=False,
        ),
        # pad_token_id stands here and not in config.json, where it would keep <|endoftext|> from learning
        "generation_config.json": dict(
            bos_token_id=tok.eos_id, eos_token_id=tok.eos_id, pad_token_id=tok.eos_id,
            **({"suppress_tokens": tok.never_told} if tok.never_told else {}), do_sample=False,
        ),
    }  # fmt: skip


def _json(added: dict[str, int], normalizer: dict | None, pre_tokenizer: dict, decoder: dict, model: dict) -> dict:
    """What stands in every tokenizer.json, in full, so that one written elsewhere is told apart."""
    flags = dict(single_word=False, lstrip=False, rstrip=False, normalized=False, special=True)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": name, **flags} for name, i in added.items()],
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": None,
        "decoder": decoder,
        "model": model,
    }


def word_json(words: list[str]) -> dict:
    """The word tokenizer in the form of the tokenizers library."""

    def replace(regex: str, content: str) -> dict:
        return {"type": "Replace", "pattern": {"Regex": regex}, "content": content}

    return _json(
        {word: i for i, word in enumerate(SPECIALS)},
        normalizer={"type": "Sequence", "normalizers": [replace(_LAST_SIGMA, "ς"), {"type": "Lowercase"}]},
        # what is not a token is removed
        pre_tokenizer={"type": "Split", "pattern": {"Regex": _TOKEN}, "behavior": "Removed", "invert": True},
        # each token begins with a space, the first too: pipelines put the text behind the prompt
        decoder={"type": "Sequence", "decoders": [replace(r"\A", " "), {"type": "Fuse"}, replace(_NEEDLESS_SPACE, "")]},
        model={"type": "WordLevel", "vocab": {word: i for i, word in enumerate(words)}, "unk_token": UNK},
    )


# Bytes in a text file: each has a sign, those that cannot be printed one from U+0100 on, in the order of their ids.
_SIGNS = {
    byte[0]: byte.decode("latin-1") if i < N_PRINTABLE else chr(256 + i - N_PRINTABLE) for i, byte in enumerate(BYTES)
}
_BYTES = {sign: byte for byte, sign in _SIGNS.items()}


def bpe_json(tok: BPETokenizer) -> dict:
    """Byte-pair encoding in the form of the tokenizers library, which wants the pair that each token was joined from.

    Raises ValueError where a published file of ranks has a token that no two others make.
    """
    merges = []
    for token in sorted(tok.ranks, key=tok.ranks.get):
        parts = halves(token, tok.ranks)
        if len(token) > 1 and len(parts) != 2:
            raise ValueError(f"the token {token!r} is not made of two others, which tokenizer.json wants")
        if len(token) > 1:
            merges.append([_signs(part) for part in parts])
    level = dict(type="ByteLevel", add_prefix_space=False, trim_offsets=True, use_regex=False)
    split = {"type": "Split", "pattern": {"Regex": PATTERNS[tok.pattern]}, "behavior": "Isolated", "invert": False}
    return _json(
        tok.specials,
        normalizer=None,
        pre_tokenizer={"type": "Sequence", "pretokenizers": [split, level]},
        decoder=level,
        model={"type": "BPE", "vocab": {_signs(token): i for token, i in tok.ranks.items()}, "merges": merges},
    )


def _signs(token: bytes) -> str:
    return "".join(_SIGNS[byte] for byte in token)


def read_tokenizer(folder: Path) -> WordTokenizer | BPETokenizer | None:
    """The tokenizer that `export_hf` wrote to `folder`, None where there is none or another one."""
    if not (folder / TOKENIZER).is_file():
        return None
    state = read_json(folder / TOKENIZER)
    model = json_part(state, "model")
    vocab = json_part(model, "vocab")
    if not all(isinstance(i, int) for i in vocab.values()):
        return None
    if model.get("type") == "WordLevel":
        words = sorted(vocab, key=vocab.get)
        written = read_json(folder / SETTINGS).get("written") if (folder / SETTINGS).is_file() else None
        return WordTokenizer(words, written) if state == word_json(words) else None
    if model.get("type") == "BPE":
        return _read_bpe(state, vocab)
    return None


def _read_bpe(state: dict, vocab: dict[str, int]) -> BPETokenizer | None:
    for pattern in PATTERNS:
        try:
            ranks = {bytes(_BYTES[sign] for sign in token): i for token, i in vocab.items()}
            tok = BPETokenizer(ranks, pattern, {special["content"]: special["id"] for special in state["added_tokens"]})
            if state == bpe_json(tok):
                return tok
        except (ValueError, KeyError, TypeError, AttributeError):  # whatever it is, it is none of ours
            continue
    return None
