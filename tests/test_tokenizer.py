"""The word tokenizer: nothing vanishes, everything reads back, and the text is readable English."""

import json
import re
import sys
import unicodedata

import pytest
import regex
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from utils.tokenizer import WordTokenizer

UNK, EOS = "<unk>", "<|endoftext|>"

# Signs and words with rules of their own stand close together here far more often than in arbitrary text.
TRICKY = (
    "\"'’‘“”.,!?;:-–—()[]{}<>|$%…«»_ \n\tabisßıİσςΣΟǆŉ\u0301\u0345😀\ud800²٣1234नि🏽🇩🇪\u200d\u200c\ufe0f",
    ["said", "she", "the", "her", "s", "t", "ll", "don", "dogs", "is", "o", "clock", "i", "endoftext", "unk"],
    [UNK, EOS, "< unk >", "< | endoftext | >", "<|ENDOFTEXT|>", "3.5", "1,000", "3:30", "...", '!" she said'],
)
# A word or one sign, in the words of another library: with the marks (M) that belong to it, and its joiners.
TOKEN = (
    r"[\p{L}\p{N}_][\p{L}\p{N}_\p{M}\u200c\u200d]*|\p{Regional_Indicator}{2}"
    r"|[^\p{L}\p{N}_\s\x1c-\x1f](?:[\p{M}\p{Emoji_Modifier}]|\u200d[^\p{L}\p{N}_\s\x1c-\x1f])*"
)
tricky_texts = st.lists(st.sampled_from([*TRICKY[0], *TRICKY[1], *TRICKY[2]]), max_size=30).flatmap(
    lambda parts: st.sampled_from(["", " "]).map(lambda space: space.join(parts))
)
any_text = st.text(st.characters(exclude_categories=())) | tricky_texts  # lone surrogates too


def tokenizer_for(*texts: str) -> WordTokenizer:
    return WordTokenizer.train([*texts, "a word"])


def pieces(detokenizer, ids) -> list[str]:
    return [detokenizer.push(i) for i in ids] + [detokenizer.flush()]


# --------------------------------------------------------------------------------------- the word list


def test_the_most_frequent_words_come_first_and_ties_are_alphabetical():
    tok = WordTokenizer.train(["b a c", "C c b a", "d"])
    assert tok.words == [UNK, EOS, "c", "a", "b", "d"]
    assert (len(tok), tok.unk_id, tok.eos_id) == (6, 0, 1)


def test_the_order_of_the_texts_does_not_matter():
    texts = ["zebra apple", "the moon, the sun", "apple pear .", "ä é z"]
    assert WordTokenizer.train(texts).words == WordTokenizer.train(reversed(texts)).words


def test_rare_words_are_left_out():
    assert WordTokenizer.train(["a a a b b c"], min_count=2).words == [UNK, EOS, "a", "b"]


def test_max_size_counts_the_specials():
    tok = WordTokenizer.train(["a a a b b c"], max_size=4)
    assert tok.words == [UNK, EOS, "a", "b"] and len(tok) == 4
    assert len(WordTokenizer.train(["a b"], max_size=3)) == 3
    assert len(WordTokenizer.train(["a b"], max_size=100)) == 4


def test_texts_may_be_a_generator():
    assert WordTokenizer.train(text for text in ["b b", "a"]).words == [UNK, EOS, "b", "a"]


@settings(max_examples=60, deadline=None)
@given(st.lists(any_text, min_size=1, max_size=4))
def test_the_vocabulary_holds_only_words_of_the_texts_given(texts):
    assume(all(unicodedata.category(c) != "Cn" for c in "".join(texts)))  # the other library has a newer Unicode
    tok = WordTokenizer.train([*texts, "a word"])
    expected = {"a", "word"}
    for text in texts:
        for part in re.split(r"<unk>|<\|endoftext\|>", text):
            expected.update(regex.findall(TOKEN, part.lower()))
    assert tok.words[:2] == [UNK, EOS]
    assert set(tok.words[2:]) == expected and len(tok) == len(expected) + 2


def test_specials_in_the_training_texts_are_no_words():
    assert WordTokenizer.train([f"a{EOS}b {UNK}"]).words == [UNK, EOS, "a", "b"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"texts": "one text"}, "texts is one str"),
        ({"texts": ["a", b"b"]}, "must be a str, not bytes"),
        ({"texts": []}, "no word"),
        ({"texts": ["", " \n", EOS]}, "no word"),
        ({"texts": ["a b"], "min_count": 2}, "at least 2 time"),
        ({"texts": ["a"], "min_count": 0}, "min_count is 0, it must be at least 1"),
        ({"texts": ["a"], "max_size": 2}, "max_size is 2, it must be at least 3"),
    ],
)
def test_training_names_what_is_wrong(arguments, message):
    with pytest.raises(ValueError, match=message):
        WordTokenizer.train(**arguments)


# ---------------------------------------------------------------------------------------------- encode


def test_encode_gives_one_id_per_word_and_sign_in_lower_case():
    tok = WordTokenizer([UNK, EOS, "once", "upon", "a", "time", ",", "don", "'", "t"])
    assert tok.encode("Once UPON a\ntime, don't") == [2, 3, 4, 5, 6, 7, 8, 9]


def test_unknown_words_become_unk_and_never_vanish():
    tok = WordTokenizer.train(["a cat sat"])
    ids = tok.encode("A purple cat; sat?")
    assert [tok.words[i] for i in ids] == ["a", UNK, "cat", UNK, "sat", UNK]
    assert tok.decode(ids) == "A <unk> cat <unk> sat <unk>"


@settings(max_examples=60, deadline=None)
@given(any_text)
def test_every_text_is_encoded_without_a_loss_by_any_vocabulary(text):
    small, full = WordTokenizer.train(["a word"]), tokenizer_for(text)
    few, all_ids = small.encode(text), full.encode(text)
    assert len(few) == len(all_ids)
    known = {UNK, EOS, "a", "word"}
    assert [small.words[i] for i in few] == [w if (w := full.words[i]) in known else UNK for i in all_ids]


def test_only_the_exact_literals_are_specials():
    tok = tokenizer_for("< | endoftext > unk")
    assert tok.encode(f"a{EOS}{UNK}word") == [*tok.encode("a"), 1, 0, *tok.encode("word")]
    for text in ["<|ENDOFTEXT|>", "< | endoftext | >", "<UNK>", "< unk >"]:
        assert not {0, 1} & set(tok.encode(text)), text


def test_empty_texts_lone_surrogates_and_endless_words_are_fine():
    endless = "x" * 1_000_000
    tok = WordTokenizer.train(["", endless, "\ud800\udc00 a."])
    assert tok.encode("") == tok.encode(" \n\t\u2003") == []
    assert tok.decode([]) == ""
    assert len(tok.encode("\udc00\ud800a")) == 3
    ids = tok.encode(endless + ". \udc00\ud800 " + endless)
    assert len(ids) == 5 and 0 not in ids
    assert tok.encode(tok.decode(ids)) == ids


def test_encode_takes_only_text():
    with pytest.raises(ValueError, match="must be a str, not list"):
        tokenizer_for("").encode(["a"])


# ---------------------------------------------------------------------------------------------- decode


ENGLISH = [
    # sentences
    "Once upon a time, there was a cat.",
    "One day. Two days! Three days? Four; five: six.",
    "She ran. She sat! Why? Because.",
    "I think I can, said the cat; then I ran.",
    "You and I ran, I said.",
    "Wait... What was that?",
    "Hmm… Yes.",
    "He had a dog (a big one). It was 50% fur, and $5 in [gold].",
    "(The end.) Then it began.",
    "{A set} of things - a cat, and a dog – or not — who knows.",
    "The yo-yo and the merry-go-round. A t-shirt, a hide-and-seek.",
    "It was something special - a microscope - it shone.",
    # numbers
    "Pi is 3.14 and ten is 10. A year has 365 days.",
    "It cost 1,000,000 coins at 3:30 or 12:05.",
    "He counted 1, 2, 3, and 4.",
    # apostrophes
    "I'm sure I'll go; he'd say we've won, they're glad, it's so.",
    "Don't stop. Lily's cat can't stop.",
    "It is five o'clock, ma'am.",
    "The dogs' ball is the cats' toy. It is the dogs'.",
    "It’s the dogs’ ball, and I don’t care.",
    "The word is 'repeat' and not 'match'.",
    "She wrote 'yes' and 'no', then 'I don't know'.",
    "What does 'doll' mean?",
    "She read ‘the cat’ aloud.",
    # dialogues
    '"Hello," said the cat. "I am big."',
    'She said, "Come here." The cat came.',
    'He asked: "Why?"',
    'He said "Go" and left.',
    '"Hello!" said tom. "Go!" he said. "Why?" she asked.',
    '"Hello!" her mom said. "Stop!" the man shouted.',
    '"Hello!" Her mom said, "You are late."',
    '"Hello!" Lily said. "Bye!" The cat ran.',
    '"I see." She said no more.',
    '"Yes!" she shouted. "No?" They all ran.',
    '"Stop!" yelled the cat. "Why?" laughed the dog.',
    "\"The sign says 'Keep out'!\" said ben.",
    '"The dogs\' ball!" she cried. "It\'s lost."',
    "“Come,” said the cat. “Why?” she asked. “Go.” The end.",
    'He called it "the big one", and it was.',
    '"Hello," said mom. "How are you?" "Fine," said tom.',
    'She said, "Hello". Then she left.',
    # other scripts
    "राम घर गया। वह खुश था। श्लोक॥",
    "ذهب الولد، ثم ضحك؛ لماذا؟ نعم.",
    "یہ کتاب ہے۔ وہ گھر ہے۔",
    # specials
    f"The end.\n{EOS}\nOnce upon a time, I ran.",
    f'She said, "Hello.\n{EOS}\n"Yes," said the cat.',  # a new story starts without open quotes
    f"It's\n{EOS}\n{EOS}\nIt.\n{EOS}",
    f"{EOS}\nA {UNK} and {UNK}, the {UNK}'s toy.",
]


@pytest.mark.parametrize("text", ENGLISH)
def test_english_comes_back_as_it_was_written(text):
    tok = tokenizer_for(text)
    assert tok.decode(tok.encode(text)) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("once  Upon\na upon time", "Once Upon a Upon time"),
        ("don ' t stop ,", "Don't stop,"),
        ("Tom said, hi", "Tom said, hi"),
        ("a_b _ c", "A_b _ c"),
        ("ßa. ΣΑΣ. ıa. éa", "ßa. σας. ıa. Éa"),
        ("a < | endoftext | > b", "A < | endoftext | > b"),
        ("a<|ENDOFTEXT|>b <UNK>", "A < | endoftext | > b < unk >"),
        ("a😀b & c/d", "A 😀 b & c / d"),
        ('the"end', 'The "end'),
        ('he left". so', 'He left". So'),  # nothing was open, and yet it can only close
        ('"Hi, he said, "yes."', '"Hi, he said, "Yes."'),  # a closing quote was forgotten
        ('he said, "', 'He said, "'),
        ("yo-", "Yo-"),
        (f"yo-{EOS}", f"Yo-\n{EOS}"),
        ("the end. - once", "The end. - Once"),
        ("well -- ok", "Well - - ok"),
        ("_a b", "_a b"),
        ('stop! "said the sign"', 'Stop! "Said the sign"'),  # an opening quote: nobody is reported
        ('"hi!", the cat ran', '"Hi!", the cat ran'),
    ],
)
def test_text_is_put_in_order(text, expected):
    tok = tokenizer_for(text)
    assert tok.decode(tok.encode(text)) == expected


# Spellings are learned from what stands inside sentences, and the most frequent one counts.
TOLD = (
    "Then Lily saw a TV, and Peter ran. Big dogs saw Lily, but Lily and I saw no TV's cat. The lily saw dogs, said Tom"
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("peter saw lily, and i saw a tv.", "Peter saw Lily, and I saw a TV."),
        ("LILY ran. BIG DOGS ran.", "Lily ran. Big dogs ran."),  # Big began its sentence
        ("tom's tv's cat", "Tom's TV's cat"),
        ("i'm peter. i'd said", "I'm Peter. I'd said"),
        ('"lily!" peter said', '"Lily!" Peter said'),
    ],
)
def test_names_are_written_as_the_texts_write_them_inside_a_sentence(text, expected):
    tok = WordTokenizer.train([TOLD, text])
    assert tok.decode(tok.encode(text)) == expected
    assert WordTokenizer.from_dict(tok.to_dict()).decode(tok.encode(text)) == expected


def test_capitals_change_no_id():
    tok, small = WordTokenizer.train([TOLD]), WordTokenizer.train([TOLD.lower()])
    assert tok.words == small.words and tok.encode(TOLD) == small.encode(TOLD)
    assert tok.written == {"i": "I", "lily": "Lily", "peter": "Peter", "tom": "Tom", "tv": "TV"}
    assert small.written == {"i": "I"}  # as English has it


def test_the_beginning_of_a_sentence_or_a_speech_tells_nothing_about_a_word():
    tok = WordTokenizer.train(['The dog ran. "Now," said Tom. Now what? Go!\nGo: Ran; “Go” (Ran) - Ran <unk> Ran'])
    assert tok.written == {"tom": "Tom"}


def test_a_word_whose_capitals_would_read_back_otherwise_keeps_small_letters():
    tok = WordTokenizer.train(["a ΟΔΟΣ a"])  # the small letter of its Σ depends on what follows
    assert tok.written == {}
    assert tok.decode(tok.encode("a ΟΔΟΣ a")) == "A οδος a"


@pytest.mark.parametrize(
    "text",
    [
        "नमस्ते दुनिया, किताब", "বাংলা ভাষা", "தமிழ் மொழி", "ภาษาไทย ที่นี่", "مُحَمَّد كِتَاب", "שָׁלוֹם עוֹלָם", "می‌خواهم",
        "cafe\u0301 na\u0308ive", "👍🏽 👨‍👩‍👧 🇩🇪 🇫🇷 ❤️ 1️⃣ 🏳️‍🌈", "क्‍ष श्री",
    ],
)  # fmt: skip
def test_a_word_keeps_its_marks_and_an_emoji_its_parts(text):
    tok = WordTokenizer.train([text])
    assert [tok.words[i] for i in tok.encode(text)] == text.replace(",", " ,").split()
    assert tok.decode(tok.encode(text)) == text[0].upper() + text[1:]


@settings(max_examples=400, deadline=None)
@given(any_text)
def test_decoded_text_reads_back_as_the_same_ids(text):
    tok = tokenizer_for(text)
    ids = tok.encode(text)
    assert tok.encode(tok.decode(ids)) == ids


@settings(max_examples=300, deadline=None)
@given(tricky_texts, st.data())
def test_any_ids_read_back_in_any_order(text, data):
    tok = tokenizer_for(text)
    ids = data.draw(st.lists(st.integers(0, len(tok) - 1), max_size=40))
    assert tok.encode(tok.decode(ids)) == ids


def test_every_code_point_reads_back_as_a_word_and_within_words():
    # Code points without a character (Cn) or a meaning (Co) are all alike, and a million.
    signs = [c for c in map(chr, range(sys.maxunicode + 1)) if unicodedata.category(c) not in ("Cn", "Co")]
    letters = [c for c in signs if c.isalnum() and (c.lower(), c.upper()) != (c, c)]
    text = ". ".join(signs) + ". ".join(f"{c}a a{c}. {c}{c}" for c in letters)  # each begins a sentence
    tok = WordTokenizer.train([text])
    ids = tok.encode(text)
    assert 0 not in ids and tok.encode(tok.decode(ids)) == ids


@pytest.mark.parametrize("wrong", [-1, 4, 10**30])
def test_an_id_out_of_range_is_named(wrong):
    tok = tokenizer_for("")
    assert len(tok) == 4
    for call in (tok.decode, tok.detokenizer, lambda ids: tok.detokenizer().push(ids[1])):
        with pytest.raises(ValueError, match=f"id {wrong} is out of range, it must be 0 to 3"):
            call([2, wrong])


def test_ids_may_be_any_iterable_of_integers():
    torch = pytest.importorskip("torch")
    tok = tokenizer_for("the cat")
    ids = tok.encode("the cat, a word")
    text = tok.decode(ids)
    assert text == tok.decode(torch.tensor(ids)) == tok.decode(iter(ids)) == tok.decode(tuple(ids))
    with pytest.raises(ValueError, match="id 99 is out of range"):
        tok.decode(torch.tensor([2, 99]))
    with pytest.raises(TypeError):
        tok.decode([2.0])


# -------------------------------------------------------------------------------------- piece by piece


@settings(max_examples=300, deadline=None)
@given(tricky_texts, st.data())
def test_pieces_join_to_the_decoded_text(text, data):
    tok = tokenizer_for(text)
    ids = data.draw(st.lists(st.integers(0, len(tok) - 1), max_size=40))
    assert "".join(pieces(tok.detokenizer(), ids)) == tok.decode(ids)


def test_text_appears_while_ids_arrive():
    tok = tokenizer_for("the cat sat on")
    arrived = pieces(tok.detokenizer(), tok.encode("the cat sat on the cat sat on the cat"))
    assert arrived == ["", "", "", "The", " cat", " sat", " on", " the", " cat", " sat", " on the cat"]


@pytest.mark.parametrize(
    ("before", "then", "expected"),
    [
        ("", "there", "There"),
        ("Once upon a time", ",", ","),
        ("Once upon a time", "there", " there"),
        ("Once upon a time, there was a", "cat. the", " cat. The"),
        ("The end.", "once", " Once"),
        ("She said,", '"', ' "'),
        ("She said,", '"yes."', ' "Yes."'),
        ('She said, "', "yes", "Yes"),
        ('She said, "Yes.', '" he', '" He'),
        ('She said, "Yes!"', "he said", " he said"),
        ("The (", "cat)", "cat)"),
        ("He don'", "t", "t"),
        ("It is 3.", "5", "5"),
        ("The yo-", "yo", "yo"),
        (f"The end. {EOS}", "once", "\nOnce"),
        ("The end.", EOS, f"\n{EOS}"),
        (f'She said, "Yes. {EOS}', 'said, "', '\nSaid, "'),
    ],
)
def test_a_stream_continues_the_text_before_it(before, then, expected):
    tok = tokenizer_for(before, then)
    assert "".join(pieces(tok.detokenizer(after=tok.encode(before)), tok.encode(then))) == expected


@settings(max_examples=200, deadline=None)
@given(tricky_texts, st.data())
def test_nothing_of_the_text_before_leaks_and_all_ids_that_follow_read_back(text, data):
    tok = tokenizer_for(text)
    many = st.lists(st.integers(0, len(tok) - 1), max_size=20)
    before, then = data.draw(many), data.draw(many)
    text = "".join(pieces(tok.detokenizer(after=before), then))
    assert tok.encode(text) == then
    assert tok.encode(tok.decode(before) + text) == before + then


# --------------------------------------------------------------------------------------- save and load


def test_a_saved_tokenizer_loads_as_it_was(tmp_path):
    tok = WordTokenizer.train(['b "b" a é 😀 \ud800 ß'])
    path = tmp_path / "tok.json"
    path.write_text("an older file")
    tok.save(str(path))
    assert WordTokenizer.load(path).words == tok.words
    assert WordTokenizer.load(path).encode("A é?") == tok.encode("A é?")
    assert json.loads(path.read_text(encoding="utf-8"))["type"] == "WordTokenizer"
    assert [file.name for file in tmp_path.iterdir()] == ["tok.json"]  # no temporary file stays


def test_a_changed_word_in_a_saved_tokenizer_is_seen(tmp_path):
    path = tmp_path / "tok.json"
    tokenizer_for("the cat").save(path)
    path.write_text(path.read_text().replace('"cat"', '"bat"'))
    with pytest.raises(ValueError, match=r"tok\.json is damaged: its values are not those that were written"):
        WordTokenizer.load(path)


def test_a_save_that_fails_leaves_the_older_file(tmp_path, monkeypatch):
    tok, path = tokenizer_for("old"), tmp_path / "tok.json"
    tok.save(path)

    def full(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="disk full"):
        tokenizer_for("new").save(path)
    assert WordTokenizer.load(path).words == tok.words
    assert [file.name for file in tmp_path.iterdir()] == ["tok.json"]


def test_a_tokenizer_fits_into_a_checkpoint_as_plain_values():
    tok = tokenizer_for("the cat")
    state = json.loads(json.dumps(tok.to_dict()))
    state_words = state["words"]
    assert state == tok.to_dict() and WordTokenizer.from_dict(state).words == tok.words
    state_words.append("more")
    tok.to_dict()["words"].append("more")
    assert "more" not in tok.words


def test_a_file_in_plain_utf_8_loads_too(tmp_path):
    words = [UNK, EOS, "é"]
    tok = WordTokenizer(words)
    words.append("more")
    assert tok.words == [UNK, EOS, "é"]
    (tmp_path / "tok.json").write_text(json.dumps(tok.to_dict(), ensure_ascii=False), encoding="utf-8")
    assert WordTokenizer.load(tmp_path / "tok.json").words == tok.words


def test_a_missing_file_is_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        WordTokenizer.load(tmp_path / "none.json")


GOOD = {"type": "WordTokenizer", "version": 1, "words": [UNK, EOS, "a"]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", ""),
        (json.dumps(GOOD)[:-5].encode(), ""),  # truncated
        (b"\xff\xfe\x00", ""),
        (b"[" * 100_000, ""),
        (b"[1, 2]", "must be a JSON object"),
        (b'{"words": []}', "type 'WordTokenizer'"),
        (json.dumps({**GOOD, "version": 3}).encode(), "version is 3, it must be 1 or 2"),
        (json.dumps({**GOOD, "written": ["A"]}).encode(), "written must be a dict"),
        (json.dumps({**GOOD, "written": {"b": "B"}}).encode(), r"written\['b'\] is 'B'"),
        (json.dumps({**GOOD, "written": {"a": "B"}}).encode(), r"written\['a'\] is 'B', it must be that word"),
        (json.dumps({**GOOD, "written": {"a": 7}}).encode(), r"written\['a'\] is 7"),
        (b'{"type": "WordTokenizer", "version": 1}', "words must be a list"),
        (json.dumps({**GOOD, "words": {UNK: 0, EOS: 1}}).encode(), "words must be a list"),
        (json.dumps({**GOOD, "words": [EOS, UNK, "a"]}).encode(), "begins with"),
        (json.dumps({**GOOD, "words": [UNK]}).encode(), "begins with"),
        (json.dumps({**GOOD, "words": [UNK, EOS, "a", "b", "a"]}).encode(), "'a' stands twice"),
        (json.dumps({**GOOD, "words": [UNK, EOS, 7]}).encode(), r"words\[2\] is 7"),
        (json.dumps({**GOOD, "words": [UNK, EOS, ["a"]]}).encode(), r"words\[2\] is \['a'\]"),
        (json.dumps({**GOOD, "words": [UNK, EOS, "a", ""]}).encode(), r"words\[3\] is ''"),
        (json.dumps({**GOOD, "words": [UNK, EOS, "Big"]}).encode(), r"words\[2\] is 'Big'"),
        (json.dumps({**GOOD, "words": [UNK, EOS, "two words"]}).encode(), "one lower-case word or one sign"),
        (json.dumps({**GOOD, "words": [UNK, EOS, EOS]}).encode(), r"words\[2\]"),
    ],
)
def test_another_file_is_refused_by_its_name(tmp_path, content, message):
    path = tmp_path / "tok.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"tok.json is not a saved WordTokenizer: .*{message}"):
        WordTokenizer.load(path)
