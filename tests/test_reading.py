"""A reading is the story that `generate` tells; what it says of each word is what a full forward says."""

import json
import math
import sys
from contextlib import contextmanager

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.helpers import TINY_MODELS, storyteller
from tests.test_tokenizer import any_text, tokenizer_for
from utils.generation import Sampling, generate, next_token_probabilities
from utils.moe import MoE
from utils.panel.reading import N_RIVALS, Reading
from utils.record import Record

TEXT = (
    "Once upon a time, there was a cat. \"Hello!\" her mom said. The dogs' ball isn't big - it is 3.5. "
    "\"I don't know,\" said the cat, and it sat on Lily's red mat. <script>alert(1)</script>"
)
PROMPT = "Once upon a time"
ALL_SETTINGS = dict(temperature=1.3, top_k=25, top_p=0.95, min_p=0.01, repetition_penalty=1.2)


@pytest.fixture(params=TINY_MODELS)
def model(request):
    return storyteller(TEXT, request.param, ends=False)


def read(model, prompt=PROMPT, n=12, seed=0, **settings) -> Reading:
    reading = Reading(model, prompt, seed, **{"temperature": 1.0, **settings})
    assert len(list(reading.tell(n))) == n
    return reading


def ids(reading) -> list[int]:
    return [word.token for word in reading.words]


@contextmanager
def saying(model, text):
    """What begins to read in here finds the tokens of `text` likeliest, one after the other."""
    tokens = iter(model.tokenizer.encode(text))

    def say(_, __, logits):
        return torch.zeros_like(logits).index_fill(-1, torch.tensor([next(tokens)]), 50.0)

    with model.head.register_forward_hook(say):
        yield


@torch.no_grad()
def logits_of(model, tokens):
    """Those of the next token at every position, (T, V), in one forward without a cache."""
    logits = model.eval()(torch.tensor([tokens]))[0]
    logits[:, model.tokenizer.unk_id] = -math.inf
    return logits


@torch.no_grad()
def experts_at_work(model, tokens):
    """By layer, the experts that compute for each token in one forward, T lists of K."""
    used, hooks = {}, []
    for layer, block in enumerate(model.blocks):
        if isinstance(block.ffn, MoE):
            note = lambda _, args, layer=layer: used.__setitem__(layer, args[2].tolist())  # noqa: E731
            hooks.append(block.ffn.experts.register_forward_pre_hook(note))
    model.eval()(torch.tensor([tokens]))
    for hook in hooks:
        hook.remove()
    return used


# The story


@pytest.mark.parametrize("settings", [{"temperature": 0.0}, {"temperature": 1.5}, ALL_SETTINGS])
@pytest.mark.parametrize("prompt", [PROMPT, "", 'the cat said, "', "Once Upon a   TIME, Zorblax ", "İ cat"])
def test_the_text_is_the_story_that_generate_tells(model, prompt, settings):
    told = generate(model, prompt, 24, seed=1, **settings)  # beyond the block of 16
    assert read(model, prompt, 24, seed=1, **settings).text == told


def test_the_default_settings_are_those_of_generate(model):
    reading = Reading(model)
    list(reading.tell(30))
    assert reading.text == generate(model, max_new_tokens=30, seed=0)


def test_it_tells_each_word_once_and_remembers_it(model):
    reading = Reading(model, PROMPT)
    told = [*reading.tell(3), *reading.tell(0), *reading.tell(4)]
    assert len(reading.words) == reading.n_prompt + 7
    assert all(word is kept for word, kept in zip(told, reading.words[reading.n_prompt :], strict=True))


def test_telling_in_portions_is_telling_at_once(model):
    at_once = read(model, n=20, temperature=1.5)
    for pause in range(21):
        reading = Reading(model, PROMPT, temperature=1.5)
        telling = reading.tell(20)
        for _ in range(pause):
            next(telling)
        telling.close()  # as Stop does
        list(reading.tell(20 - pause))
        assert reading.words == at_once.words and reading.text == at_once.text


STORY = ', the dogs\' ball - it is 3.5. "Hello!" her mom said. "I don\'t know," it said, "Mom.'


def test_a_pause_changes_no_space_and_no_capital(model):
    """What stands there in a pause is not yet what the words after it make of it."""
    n = len(model.tokenizer.encode(STORY))
    for pause in range(n):
        with saying(model, STORY):
            reading = Reading(model, PROMPT, temperature=0)
            list(reading.tell(pause))
            assert all(word.text for word in reading.words)
            list(reading.tell(n - pause))
        assert reading.text == PROMPT + STORY


def test_while_it_is_told_the_text_grows_and_lacks_three_words_at_most(model):
    final = generate(model, PROMPT, 30, seed=5, temperature=1.5)
    reading = Reading(model, PROMPT, 5, temperature=1.5)
    for _ in reading.tell(30):
        assert final.startswith(reading.text)
        assert all(word.text for word in reading.words[:-3])
    assert reading.text == final


@pytest.mark.parametrize("architecture", TINY_MODELS)
def test_after_the_end_nothing_is_told(architecture):
    model, settings = storyteller(TEXT, architecture), dict(temperature=2.0)
    reading = Reading(model, PROMPT, 0, **settings)
    first = list(reading.tell(1))
    assert first and not reading.ended
    told = list(reading.tell(1000))
    assert reading.ended and len(told) < 999 and model.tokenizer.eos_id not in ids(reading)
    assert reading.text == generate(model, PROMPT, 1000, seed=0, **settings)
    before = reading.to_dict()
    assert list(reading.tell(5)) == [] and reading.to_dict() == before


# The prompt


@pytest.mark.parametrize(
    "prompt",
    [
        PROMPT,
        "Once Upon a   TIME, Zorblax",
        "  <script>alert('A')</script>",
        '"I" & a <b>CAT</b>',
        "A\tCat 😀\n\nsat!\n",
        "the <unk> cat<|endoftext|> A",
        "a",
    ],
)
def test_the_prompt_keeps_the_spelling_of_the_reader(model, prompt):
    reading = Reading(model, prompt)
    assert ids(reading) == model.tokenizer.encode(prompt) and reading.n_prompt == len(reading.words)
    assert "".join(word.text for word in reading.words) == reading.text == prompt.rstrip()
    assert all(word.probability is None and word.rivals == [] for word in reading.words)
    list(reading.tell(8))
    assert reading.text.startswith(prompt.rstrip())
    assert reading.text == "".join(word.text for word in reading.words)


def test_a_prompt_is_shown_as_it_is_written_also_where_its_small_letters_are_more_characters(model):
    reading = read(model, "İ CAT", 5)
    assert reading.text.startswith("İ CAT") and reading.n_prompt == 2
    assert ids(reading)[:2] == model.tokenizer.encode("İ CAT")


def test_an_empty_prompt_starts_where_stories_start(model):
    reading = Reading(model, " \n", temperature=1.0)
    assert (reading.words, reading.n_prompt, reading.text) == ([], 0, "")
    (first,) = reading.tell(1)
    expected = next_token_probabilities(model, "<|endoftext|>")[first.token].item()
    assert first.probability == pytest.approx(expected)
    assert reading.text == first.text == first.text.strip()


def test_a_prompt_without_a_known_word_says_so_and_stands_before_a_new_story(model):
    with pytest.warns(UserWarning, match="no word of the prompt 'Zorblax blip ' is known"):
        reading = Reading(model, "Zorblax blip ", 3)
    assert (reading.words, reading.text) == ([], "Zorblax blip")
    list(reading.tell(9))
    new = Reading(model, "", 3)
    list(new.tell(9))
    assert reading.words == new.words and reading.text == f"Zorblax blip {new.text}"


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"temperature": -0.1}, "temperature is -0.1"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"top_k": 0}, "top_k is 0"),
        ({"top_p": 1.2}, "top_p is 1.2"),
        ({"min_p": -1}, "min_p is -1"),
        ({"repetition_penalty": 0.9}, "repetition_penalty is 0.9"),
        ({"seed": 2**64}, "seed is 18446744073709551616, it must be a whole number"),
    ],
)
def test_impossible_settings_are_named_before_any_word(model, arguments, message):
    with pytest.raises(ValueError, match=message):
        Reading(model, **arguments)


def test_of_a_prompt_beyond_the_block_every_word_is_shown_and_the_end_is_read(model):
    with pytest.warns(UserWarning, match="has 20 tokens, the model's block takes the last 16"):
        reading = Reading(model, "cat sat " * 10, seed=3, temperature=1.0)
    other = Reading(model, "cat sat " * 8, seed=3, temperature=1.0)
    assert (reading.n_prompt, other.n_prompt) == (20, 16)
    list(reading.tell(9)), list(other.tell(9))
    assert [word.token for word in reading.words[20:]] == [word.token for word in other.words[16:]]
    assert [word.experts for word in reading.words[4:]] == [word.experts for word in other.words]
    assert all(word.experts == {} for word in reading.words[:4])  # what the model has not read


def test_a_model_without_a_tokenizer_says_what_is_missing(model):
    model.tokenizer = None
    with pytest.raises(ValueError, match="no tokenizer"):
        Reading(model)


# What the model was thinking


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.0}, {"temperature": 0.4}, ALL_SETTINGS])
def test_probabilities_and_rivals_are_those_of_a_full_forward(model, settings):
    settings = {"temperature": 1.0, **settings}
    reading = read(model, "a cat sat", 13, **settings)  # up to the end of the block
    tokens = ids(reading)
    logits = logits_of(model, tokens)
    for place in range(reading.n_prompt, len(tokens)):
        seen = torch.zeros(1, logits.shape[1], dtype=torch.bool)
        seen[0, tokens[:place]] = True
        p = Sampling(**settings).probabilities(logits[place - 1 : place], seen)[0]
        word = reading.words[place]
        assert word.probability == pytest.approx(p[tokens[place]].item(), abs=1e-5)
        rivals, chances = zip(*word.rivals, strict=True)
        assert len(set(rivals)) == N_RIVALS == 10
        assert chances == pytest.approx(p[list(rivals)].tolist(), abs=1e-5)  # each has its own
        assert chances == pytest.approx(p.sort(descending=True).values[:10].tolist(), abs=1e-5)
        assert list(chances) == sorted(chances, reverse=True)


def test_a_small_vocabulary_has_as_many_rivals_as_words():
    model = storyteller("a cat sat")
    (word,) = read(model, "a", 1).words[1:]
    assert sorted(token for token, _ in word.rivals) == list(range(len(model.tokenizer)))


@pytest.mark.parametrize("prompt", [PROMPT, "a"])
def test_experts_are_those_of_one_full_forward(model, prompt):
    reading = read(model, prompt, 12)
    expected = experts_at_work(model, ids(reading)[:-1])
    assert list(expected) == reading.layers() == ([0, 1] if model.config.architecture == "nano" else [1, 2])
    for place, word in enumerate(reading.words[:-1]):
        assert word.experts == {layer: chosen[place] for layer, chosen in expected.items()}
    assert reading.words[-1].experts == {}  # not read yet


def test_the_last_word_is_read_when_the_story_goes_on(model):
    reading = read(model, n=3)
    last = reading.words[-1]
    assert last.experts == {}
    list(reading.tell(1))
    assert last.experts == {layer: chosen[-1] for layer, chosen in experts_at_work(model, ids(reading)[:-1]).items()}


@pytest.mark.parametrize("prompt", [PROMPT, ""])
def test_beyond_the_block_experts_are_those_of_the_context_that_the_model_had(model, prompt):
    reading = read(model, prompt, 60)
    begin = [] if prompt else [model.tokenizer.eos_id]
    tokens, block = begin + ids(reading), model.config.block_size
    start, at_work = 0, []  # where the context begins, the experts of its last token
    for end in range(1, len(tokens)):
        if end - start > block:
            start = end - block // 2
        at_work.append({layer: c[-1] for layer, c in experts_at_work(model, tokens[start:end]).items()})
    assert [word.experts for word in reading.words[:-1]] == at_work[len(begin) :]


@pytest.mark.parametrize("architecture", TINY_MODELS)
def test_a_record_holds_the_experts_that_each_token_was_sent_to(architecture):
    model = storyteller(TEXT, architecture)
    tokens = model.tokenizer.encode(TEXT)[:16]
    for read in (tokens, tokens[:3]):  # of the last forward alone
        record = Record()
        with torch.no_grad():
            model(torch.tensor([tokens[::-1]]), record=record)
            model(torch.tensor([read]), record=record)
        at_work = experts_at_work(model, read)
        assert list(at_work) == model.layers_with_experts()
        assert {i: record.layers[i].chosen.tolist() for i in at_work} == {
            i: [e] for i, e in at_work.items()
        }  # (1, T, K)


def test_the_load_of_the_experts_is_that_of_one_full_forward(model):
    reading, n_experts = read(model), model.config.n_experts
    at_work = experts_at_work(model, ids(reading)[:-1])
    expected = {i: torch.tensor(chosen).flatten().bincount(minlength=n_experts) for i, chosen in at_work.items()}
    assert reading.expert_load() == {layer: counts.tolist() for layer, counts in expected.items()}
    assert reading.n_experts == n_experts


@pytest.mark.parametrize("prompt, n", [(PROMPT, 0), (PROMPT, 1), (PROMPT, 40), ("", 1), ("", 40)])
def test_every_word_read_counts_once_for_each_of_its_experts(model, prompt, n):
    reading = read(model, prompt, n)
    n_read = max(len(reading.words) - 1, 0) if n else 0  # the last is not read yet
    assert {sum(counts) for counts in reading.expert_load().values()} == {model.config.top_k * n_read}


def test_words_of_the_prompt_are_known_again_and_signs_are_not(model):
    with saying(model, ' her mat, A Cat." 3.'):
        reading = Reading(model, 'The cat, "A mat 3', temperature=0)
        told = {reading.name(word.token): reading.repeats_prompt(word) for word in reading.tell(8)}
    assert told == {"her": False, "mat": True, ",": False, "a": True, "cat": True, ".": False, '"': False, "3": True}


# As JSON


def test_a_reading_can_be_told_again_from_its_json(model):
    reading = read(model, 'Once upon a "Zorblax"', 20, seed=3, **ALL_SETTINGS)
    kept = json.loads(json.dumps(reading.to_dict()))
    again = Reading(model, kept["prompt"], **kept["settings"])
    list(again.tell(sum(not word["from_prompt"] for word in kept["words"])))
    assert again.words == reading.words and kept["text"] == again.text
    assert json.loads(json.dumps(again.to_dict())) == kept


def test_json_names_every_word_and_what_was_thought_of_it(model):
    reading = read(model, "Once upon a Zorblax", 6)
    kept = json.loads(json.dumps(reading.to_dict()))
    names = model.tokenizer.words
    assert kept["format"] == "kimi-k2-from-scratch reading 1" and kept["ended"] is False
    assert [(w["word"], w["text"]) for w in kept["words"][:4]] == [
        ("once", "Once"), ("upon", " upon"), ("a", " a"), ("<unk>", " Zorblax"),
    ]  # fmt: skip
    assert [word["from_prompt"] for word in kept["words"]] == [True] * 4 + [False] * 6
    assert {int(layer): load for layer, load in kept["expert_load"].items()} == reading.expert_load()
    for entry, word in zip(kept["words"], reading.words, strict=True):
        assert (entry["word"], entry["text"], entry["probability"]) == (names[word.token], word.text, word.probability)
        likeliest = [(names.index(rival["word"]), rival["probability"]) for rival in entry["likeliest"]]
        assert likeliest == word.rivals
        assert {int(layer): experts for layer, experts in entry["experts"].items()} == word.experts


# Text cut into tokens

PIECES = tokenizer_for("")


@settings(max_examples=300, deadline=None)
@given(any_text)
@example("a: \u200d <unk>x :\u200d<eos> :\u200d<unk>")
def test_pieces_are_the_text_cut_before_each_token(text):
    tok = tokenizer_for(text)
    found, tokens = tok.pieces(text), tok.encode(text)
    assert "".join(found) == text.rstrip()
    sigma = str.maketrans("ς", "σ")  # which of the two Σ becomes depends on its neighbours
    names = [tok.words[i].translate(sigma) for i in tokens]
    assert [piece.lstrip().lower().translate(sigma) for piece in found] == names


def test_every_character_leaves_as_many_tokens_when_it_is_written_small():
    for c in map(chr, range(sys.maxunicode + 1)):
        text = f"x{c}y {c} .{c}. {c}\u0301"
        assert len(PIECES.pieces(text)) == len(PIECES.encode(text)), ascii(c)


@settings(max_examples=200, deadline=None)
@given(st.text("\"'.,-! sdi35", max_size=12), st.integers(0, 20))
def test_the_rest_of_a_detokenizer_is_what_its_flush_returns_token_by_token(text, n):
    tok = tokenizer_for(text)
    tokens = tok.encode(text)
    one, other = tok.detokenizer(after=tokens[:n]), tok.detokenizer(after=tokens[:n])
    certain = [one.push(i) for i in tokens[n:]]
    rest = one.rest()
    assert len(list(filter(None, certain + rest))) == len(tokens[n:]) and len(rest) <= 3
    assert certain == [other.push(i) for i in tokens[n:]] and "".join(rest) == other.flush()
    assert one.rest() == []
