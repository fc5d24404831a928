"""From logits to text: the settings do what they say, the cache changes nothing, pieces make the whole."""

import itertools
import math

import pytest
import torch

from tests.helpers import tiny_model
from utils.bpe import BPETokenizer
from utils.decoding import Decoder
from utils.generation import Sampling, generate, next_token_probabilities, sample, stream, tell_stories
from utils.tokenizer import WordTokenizer

TEXT = "Once upon a time, there was a cat. \"I don't know,\" said the cat, and it sat on Lily's red mat."


@pytest.fixture
def model():
    tok = WordTokenizer.train([TEXT])
    model = tiny_model(len(tok))
    model.tokenizer = tok
    return model


def after(logits, seen=(), **settings):
    logits = torch.tensor([logits])
    mask = torch.zeros_like(logits, dtype=torch.bool)
    mask[0, list(seen)] = True
    return Sampling(**{"temperature": 1.0, **settings}).probabilities(logits, mask)[0]


# Settings, on logits small enough to check by hand

LOGITS = [math.log(p) for p in (0.5, 0.25, 0.15, 0.1)]


@pytest.mark.parametrize(
    "settings, expected",
    [
        ({}, [0.5, 0.25, 0.15, 0.1]),
        ({"temperature": 0}, [1, 0, 0, 0]),
        ({"temperature": 1e-6}, [1, 0, 0, 0]),
        ({"temperature": 0.5}, [0.25 / 0.345, 0.0625 / 0.345, 0.0225 / 0.345, 0.01 / 0.345]),
        ({"top_k": 2}, [2 / 3, 1 / 3, 0, 0]),
        ({"top_k": 99}, [0.5, 0.25, 0.15, 0.1]),
        ({"top_p": 0.5}, [1, 0, 0, 0]),
        ({"top_p": 0.51}, [2 / 3, 1 / 3, 0, 0]),
        ({"top_p": 1e-6}, [1, 0, 0, 0]),
        ({"min_p": 0.3}, [0.5 / 0.9, 0.25 / 0.9, 0.15 / 0.9, 0]),
        ({"min_p": 1.0}, [1, 0, 0, 0]),
        ({"top_k": 3, "top_p": 0.8, "min_p": 0.4}, [2 / 3, 1 / 3, 0, 0]),
    ],
)
def test_each_setting_keeps_the_words_that_it_says(settings, expected):
    torch.testing.assert_close(after(LOGITS, **settings), torch.tensor(expected, dtype=torch.float32))


@pytest.mark.parametrize("settings", [{}, {"temperature": 0}, {"top_k": 2}, {"top_p": 0.6}, {"min_p": 0.5}])
def test_each_text_of_a_batch_is_treated_as_if_it_were_alone(settings):
    logits = torch.randn(3, 7, generator=torch.Generator().manual_seed(0))
    seen = torch.rand(3, 7, generator=torch.Generator().manual_seed(1)) < 0.4
    sampling = Sampling(**settings, repetition_penalty=1.5)
    together = sampling.probabilities(logits, seen)
    alone = [sampling.probabilities(logits[i : i + 1], seen[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(together, torch.cat(alone))
    torch.testing.assert_close(together.sum(dim=-1), torch.ones(3))


def test_top_k_keeps_k_words_even_when_some_are_equally_likely():
    assert after([1.0, 1.0, 1.0, 0.0], top_k=2).count_nonzero() == 2


@pytest.mark.parametrize("settings", [{"top_k": 1}, {"top_p": 1e-6}])
def test_one_word_that_is_kept_is_the_likeliest_even_where_a_softmax_sees_no_difference(settings):
    logits = [0.0] * 7 + [1e-8, 0.0]
    assert len(set(torch.tensor(logits).softmax(0).tolist())) == 1
    assert after(logits, **settings).nonzero().tolist() == [[7]]


@pytest.mark.parametrize("shift", [0.0, 5.0, -5.0])  # logits of any sign mean the same probabilities
def test_the_repetition_penalty_lowers_a_chance_whatever_the_sign_of_its_logit(shift):
    """Fault of the original notebook: its penalty raised the chance of tokens with negative logits."""
    logits = [x + shift for x in (2.0, -1.0, 0.0, -3.0)]
    free = after(logits)
    for seen in itertools.chain.from_iterable(itertools.combinations(range(4), n) for n in (1, 2, 3)):
        penalised = after(logits, seen, repetition_penalty=1.5)
        assert all(penalised[i] < free[i] if i in seen else penalised[i] > free[i] for i in range(4))
    one = after(logits, [1], repetition_penalty=1.5)
    torch.testing.assert_close(one[1] / one[0], free[1] / free[0] / 1.5)


def test_the_penalty_covers_the_prompt_and_what_was_told(model):
    greedy = dict(temperature=0.0, max_new_tokens=12, stop_at_eos=False)
    penalised = generate(model, "the cat", repetition_penalty=1e9, **greedy)
    words = model.tokenizer.encode(penalised)
    assert len(set(words)) == len(words) == 14


# The loop


def greedy_by_recomputing(model, prompt, n):
    """The published notebook's loop: the whole context again for each token."""
    ids = model.tokenizer.encode(prompt)
    for _ in range(n):
        logits = model(torch.tensor([ids]))[0, -1]
        logits[model.tokenizer.unk_id] = -math.inf
        ids.append(logits.argmax().item())
    return ids


def test_the_cache_tells_the_same_story_as_recomputing(model):
    """Fault of the original notebook: generation recomputed the whole context for each token."""
    n = model.config.block_size - 4
    read = []
    model.embedding.register_forward_hook(lambda _, args, __: read.append(args[0].shape[1]))
    told = generate(model, "Once upon a time", n, temperature=0, stop_at_eos=False)
    assert read == [4] + [1] * (n - 1)  # every position is read once
    assert model.tokenizer.encode(told) == greedy_by_recomputing(model.eval(), "Once upon a time", n)


def test_past_the_block_the_newer_half_is_read_again_and_the_story_goes_on(model):
    block, n = model.config.block_size, 60
    told = model.tokenizer.encode(generate(model, "Once upon a time", n, temperature=0, stop_at_eos=False))
    assert len(told) == 4 + n
    start = 0  # where the context begins
    for end in range(4, 4 + n):
        if end - start > block:
            start = end - block // 2
        logits = model(torch.tensor([told[start:end]]))[0, -1]
        logits[model.tokenizer.unk_id] = -math.inf
        assert told[end] == logits.argmax().item()


def test_a_seed_repeats_a_story_and_no_seed_does_not(model):
    settings = dict(max_new_tokens=30, temperature=2.0, stop_at_eos=False)
    assert generate(model, "a cat", seed=1, **settings) == generate(model, "a cat", seed=1, **settings)
    assert len({generate(model, "a cat", seed=s, **settings) for s in (1, 2, None, None)}) == 4


def test_the_draws_follow_the_probabilities(model):
    tokens = torch.tensor([model.tokenizer.encode("the cat")]).expand(4000, -1)
    drawn, p, _ = next(sample(Decoder(model), tokens, Sampling(1.0), torch.Generator().manual_seed(0)))
    share = torch.bincount(drawn, minlength=p.shape[1]) / len(drawn)
    assert (share - p[0]).abs().max() < 0.03
    torch.testing.assert_close(p[0], next_token_probabilities(model, "the cat"))


def test_a_decoder_that_was_used_before_makes_no_difference(model):
    tokens, decoder = torch.tensor([model.tokenizer.encode("the cat")]), Decoder(model)
    expected = generate(model, "the cat", 5, temperature=1.0, seed=0, stop_at_eos=False)
    for _ in range(2):
        choices = sample(decoder, tokens, Sampling(1.0), torch.Generator().manual_seed(0))
        told = [next(choices).tokens.item() for _ in range(5)]
        assert told == model.tokenizer.encode(expected)[2:]


def test_dropout_is_off_while_a_story_is_told():
    tok = WordTokenizer.train([TEXT])
    model = tiny_model(len(tok), dropout=0.9).train()
    model.tokenizer = tok
    torch.testing.assert_close(next_token_probabilities(model, "the"), next_token_probabilities(model, "the"))


# Text


@pytest.mark.parametrize("prompt", ["Once upon a time", "", 'the cat said, "'])
def test_the_pieces_of_a_stream_make_the_generated_text(model, prompt):
    for seed in range(5):
        settings = dict(max_new_tokens=40, temperature=1.5, seed=seed, stop_at_eos=False)
        pieces = list(stream(model, prompt, **settings))
        assert "".join(pieces) == generate(model, prompt, **settings)
        assert len(pieces) > 30  # it does come in pieces


def test_the_prompt_stays_as_it_was_written(model):
    told = generate(model, "Once Upon a   TIME, Zorblax", 5, seed=0)
    assert told.startswith("Once Upon a   TIME, Zorblax")


def test_no_word_more_than_the_prompt_can_be_asked_for(model):
    assert generate(model, "the cat", 0) == "the cat"
    assert generate(model, "the cat ", 0) == "the cat"  # words put the space before the next one themselves


def test_a_tokenizer_that_keeps_spaces_keeps_that_at_the_end_of_the_prompt():
    tok = BPETokenizer.train([TEXT] * 3, 300)
    model = tiny_model(len(tok))
    model.tokenizer = tok
    assert generate(model, "the cat ", 3, seed=0).startswith("the cat ")


def test_a_story_stops_at_end_of_text_unless_told_otherwise(model):
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.weight[model.tokenizer.eos_id] = model.norm.weight
        model.norm.bias.fill_(1.0)  # now <|endoftext|> is always the likeliest
    assert generate(model, "a cat", 5, temperature=0) == "a cat"
    assert generate(model, "a cat", 2, temperature=0, stop_at_eos=False).count("<|endoftext|>") == 2


def test_unknown_words_are_never_told(model):
    p = next_token_probabilities(model, "a zorblax cat")
    assert p[model.tokenizer.unk_id] == 0
    assert p.sum().item() == pytest.approx(1)


def test_an_empty_prompt_starts_where_stories_start(model):
    torch.testing.assert_close(next_token_probabilities(model, ""), next_token_probabilities(model, "<|endoftext|>"))
    assert generate(model, "", 3, seed=0)[0].strip()


def test_a_prompt_without_a_known_word_says_so_and_starts_a_story(model):
    with pytest.warns(UserWarning, match="no word of the prompt 'zorblax blip' is known"):
        told = generate(model, "zorblax blip", 5, seed=0)
    assert told == "zorblax blip " + generate(model, "", 5, seed=0)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"temperature": -0.1}, "temperature is -0.1, it must be 0 or more"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"top_k": 0}, "top_k is 0, it must be None or a whole number, 1 or more"),
        ({"top_p": 0}, r"top_p is 0, it must be in \[1e-6, 1\]"),
        ({"temperature": 1e-46}, r"temperature is 1e-46, it must be 0 or more \(from 1e-6 on\) and finite"),
        ({"top_p": 1.2}, "top_p is 1.2"),
        ({"min_p": -1}, "min_p is -1"),
        ({"repetition_penalty": 0.9}, "repetition_penalty is 0.9, it must be 1 or more"),
        ({"max_new_tokens": -1}, "max_new_tokens is -1"),
        ({"heat": 2.0}, "Sampling has no field 'heat', its fields are temperature, top_k"),
        ({"seed": 2**64}, r"seed is 18446744073709551616, it must be a whole number, 0 or more and below 2\^63"),
        ({"seed": -1}, "seed is -1, it must be a whole number, 0 or more"),
    ],
)
def test_impossible_settings_are_named_at_once(model, settings, message):
    with pytest.raises(ValueError, match=message):
        stream(model, **settings)  # before the first piece is asked for


def test_of_a_prompt_beyond_the_block_the_model_reads_the_end_and_says_what_it_leaves_out(model):
    """It was refused, where a story that grows beyond the block goes on."""
    block = model.config.block_size
    prompt = "Once upon a time there was a cat and it sat on red mat and the cat sat on a cat on a mat"
    ids = model.tokenizer.encode(prompt)
    end = model.tokenizer.decode(ids[-block:])
    assert len(ids) == block + 8
    settings = dict(seed=1, stop_at_eos=False, temperature=2.0)
    with pytest.warns(
        UserWarning,
        match=r"24 tokens, the model's block takes the last 16: it does not read 'Once upon a time there was a cat'\Z",
    ):
        told = generate(model, prompt, 30, **settings)
    assert told == prompt + generate(model, end, 30, **settings)[len(end) :]
    with pytest.warns(UserWarning, match="does not read"):
        p = next_token_probabilities(model, prompt)
    assert torch.equal(p, next_token_probabilities(model, end))


def test_stories_of_a_prompt_beyond_the_block_keep_all_of_it(model):
    with pytest.warns(UserWarning, match="the prompt has 20 tokens") as noted:
        stories = tell_stories(model, 3, "cat " * 20, max_new_tokens=5, temperature=0)
    assert len(noted) == 1 and len(set(stories)) == 1 and stories[0].lower().startswith("cat " * 19 + "cat")


def test_less_than_one_story_cannot_be_told(model):
    for n in (0, -3):
        with pytest.raises(ValueError, match=f"n is {n}, the number of stories to tell must be 1 or more"):
            tell_stories(model, n)


def test_a_model_without_a_tokenizer_says_what_is_missing():
    with pytest.raises(ValueError, match="no tokenizer"):
        generate(tiny_model(), "a")
