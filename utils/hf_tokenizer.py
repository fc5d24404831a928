"""Our word tokenizer in the form of the tokenizers library, and back: the file tokenizer.json."""

from __future__ import annotations

from pathlib import Path

from utils.files import json_part, read_json
from utils.tokenizer import EOS, SPECIALS, UNK, WordTokenizer

TOKENIZER = "tokenizer.json"

# Python's \w and \s in the words of Oniguruma, the regex library of tokenizers, whose own \w holds accents and lacks
# fractions and whose \s lacks four separators.
_WORD, _SPACE = r"\p{L}\p{N}_", r"\s\x{1c}-\x{1f}"
_TOKEN = rf"[{_WORD}]+|[^{_WORD}{_SPACE}]"
# Lowercase there goes letter by letter; Python has another sigma for the end of a word (Unicode, Final_Sigma).
_LETTER, _PASSED_OVER = r"[\p{Cased}&&\P{Case_Ignorable}]", r"\p{Case_Ignorable}*"
_LAST_SIGMA = f"(?<={_LETTER}{_PASSED_OVER})Σ(?!{_PASSED_OVER}{_LETTER})"
_TAIL = r"(?=(?:s|t|m|d|re|ve|ll)(?: |\z))"
_NEEDLESS_SPACE = "|".join([
    r" (?=[,.!?;:…)\]}%”»])",
    r"(?<=[(\[{$“‘«]) ",
    rf"(?<=[{_WORD}]|{UNK}) (?=['’] {_TAIL})",  # it 's
    rf"(?<=[{_WORD}] ['’]|{UNK} ['’]) {_TAIL}",  # it' s
])  # fmt: skip


def tokenizer_files(tok: WordTokenizer, block_size: int) -> dict[str, dict]:
    """The JSON files, by name, with which transformers tokenizes and generates as we do."""
    return {
        TOKENIZER: tokenizer_json(tok.words),
        "tokenizer_config.json": dict(
            tokenizer_class="PreTrainedTokenizerFast", unk_token=UNK, bos_token=EOS, eos_token=EOS, pad_token=EOS,
            model_max_length=block_size, model_input_names=["input_ids", "attention_mask"], padding_side="left",
            clean_up_tokenization_spaces=False,
        ),
        # pad_token_id stands here and not in config.json, where it would keep <|endoftext|> from learning
        "generation_config.json": dict(
            bos_token_id=tok.eos_id, eos_token_id=tok.eos_id, pad_token_id=tok.eos_id, suppress_tokens=[tok.unk_id],
            do_sample=False,
        ),
    }  # fmt: skip


def tokenizer_json(words: list[str]) -> dict:
    """The tokenizer in the form of the tokenizers library, in full, so that one written elsewhere is told apart."""
    flags = dict(single_word=False, lstrip=False, rstrip=False, normalized=False, special=True)

    def replace(regex: str, content: str) -> dict:
        return {"type": "Replace", "pattern": {"Regex": regex}, "content": content}

    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": word, **flags} for i, word in enumerate(SPECIALS)],
        "normalizer": {"type": "Sequence", "normalizers": [replace(_LAST_SIGMA, "ς"), {"type": "Lowercase"}]},
        # what is not a token is removed
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": _TOKEN}, "behavior": "Removed", "invert": True},
        "post_processor": None,
        # each token begins with a space, the first too: pipelines put the text behind the prompt
        "decoder": {
            "type": "Sequence",
            "decoders": [replace(r"\A", " "), {"type": "Fuse"}, replace(_NEEDLESS_SPACE, "")],
        },
        "model": {"type": "WordLevel", "vocab": {word: i for i, word in enumerate(words)}, "unk_token": UNK},
    }


def read_tokenizer(file: Path) -> WordTokenizer | None:
    """The tokenizer that `export_hf` wrote to `file`, None where there is none or another one."""
    model = json_part(read_json(file), "model") if file.is_file() else {}
    if model.get("type") != "WordLevel":
        return None
    vocab = json_part(model, "vocab")
    if not all(isinstance(i, int) for i in vocab.values()):
        return None
    words = sorted(vocab, key=vocab.get)
    return WordTokenizer(words) if read_json(file) == tokenizer_json(words) else None
