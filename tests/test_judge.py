"""The judge of real stories: each rule finds its fault, and nothing in a whole story; what is usual is learned."""

import random
from itertools import pairwise

import pytest

from utils.detokenizer import UNK
from utils.grammar import BOYS, GIRLS, builtin_stories
from utils.judge import FAULTS, UNFIT, Judge

WHOLE = (
    "Once upon a time, there was a happy girl named Lena. It was cool, and Lena was in the park with her green "
    'ball. Then Lena looked down, but her green ball wasn\'t there. "Is my green ball behind the big tree?" Lena '
    "asked herself, but it wasn't. Just then, a nice teacher saw Lena looking for a green ball. The nice teacher "
    "had an idea, and she told Lena where the green ball might be. The nice teacher and Lena looked under a bush,"
    ' and there was the green ball! "Thank you, nice teacher!" said Lena, and she hugged her green ball. Lena '
    "went home and never lost her green ball again."
)
OTHER = (
    "Once upon a time, in a tiny house, lived a boy named Finn. It was beautiful, and Finn was in the meadow with"
    " his shiny hat. Finn lost his shiny hat. Finn crawled beside the pond, but the shiny hat stayed hidden. "
    'Luckily, a brown dog was near, and Finn told him about the shiny hat. "Look, Finn, your shiny hat is under a'
    ' bush!" the dog shouted. Finn learned to ask for help, and he kept the shiny hat close.'
)
MIDDLE = "Just then"


@pytest.fixture(scope="module")
def judge():
    return Judge.learn(builtin_stories(400, seed=0))


def found(judge, story):
    return {fault for fault, has in judge.faults(story).items() if has}


# ------------------------------------------------------------------------------------- the rules


def test_a_whole_story_has_no_fault(judge):
    assert judge.judged == tuple(FAULTS)
    assert found(judge, WHOLE) == found(judge, OTHER) == set()


def test_another_name_in_the_second_half_is_found(judge):
    first, second = WHOLE.split(MIDDLE)
    assert "names" in found(judge, first + MIDDLE + second.replace("Lena", "Emma"))


def test_a_name_that_turns_up_once_is_found_unless_it_is_introduced(judge):
    head, tail = WHOLE.split("Lena went home")
    assert found(judge, head + "Adam went home" + tail) == {"names"}
    assert found(judge, head + "Her brother Adam went home" + tail) == set()
    assert found(judge, head + "A boy went home, Adam, and Lena went home" + tail) == set()
    assert found(judge, head + "The boy was named Adam. Lena went home" + tail) == set()


@pytest.mark.parametrize(
    "end, blamed",
    [
        ("Emma ran. Emma fell. Emma sat. Emma slept.", True),
        ("Emma ran. Emma fell. Emma sat. Emma slept with Lena.", False),  # the hero is still there
        ("Finn ran. Finn fell. Finn sat. Finn slept.", False),  # the story was his as well
    ],
)
def test_a_story_may_not_become_that_of_somebody_new(judge, end, blamed):
    start = "Lena and Finn were here. Lena ran. Lena fell. Lena saw a girl named Emma. "
    new = start.replace("a girl named Emma", "a girl") + "She was named " + end
    assert judge.faults(new if "Emma" in end else start + end)["names"] == blamed


@pytest.mark.parametrize(
    "story, blamed",
    [
        ("Finn lost his hat. He was sad.", False),
        ("Finn lost his hat. She was sad.", True),
        ("Finn lost her hat.", True),
        ("Lena was sad. Finn lost her hat.", False),
        ("Finn met a girl. She was sad.", False),
        ("Finn saw a dog. She was sad.", True),  # the dog is one sentence too far
        ("Finn saw how a dog ran and she was sad.", False),
        ("Finn and Lena ran. Finn told her about it.", False),
        ("Finn saw how Zorbo ran and she was sad.", False),  # a name that nobody knows may be hers
        ("It was cool. She ran.", False),
        ('Finn said, "She is here."', False),
        ('"Lena, look!" said Finn. She looked.', False),
        ("Lena was here. Finn ran. Finn fell. Finn hugged her.", True),
        ("Lena was here. She sat. Finn ran. He hugged her.", False),
    ],
)
def test_a_pronoun_needs_somebody_near_whom_it_can_mean(judge, story, blamed):
    assert judge.faults(story)["pronouns"] == blamed


def test_girls_and_boys_are_told_apart_by_what_follows_their_names(judge):
    """The tables of the grammar are the reference; the judge has seen only its stories."""
    told = {name: judge.cast[name.lower()] for name in GIRLS + BOYS}
    assert told == {**dict.fromkeys(GIRLS, "she"), **dict.fromkeys(BOYS, "he")}


def test_a_name_is_what_keeps_its_capital_and_has_the_gender_of_most_pronouns_after_it():
    told = [
        "He saw Spot and a spot.",
        "Today Tom lost his hat.",
        "Today Kim lost his hat.",
        "Today Kim lost her hat.",
        "Her dog saw Alex.",
    ]
    judge = Judge.learn(told * 20)
    assert judge.names == {"tom", "kim", "alex"}
    assert [judge.cast[name] for name in ("tom", "kim", "alex")] == ["he", "either", "either"]


@pytest.mark.parametrize(
    "old, new",
    [
        ("It was cool", "She ran. Once upon a time, it was cool"),
        ("Just then, a", "The end. Just then, a"),
        ("Once upon a time, there was", "She was glad. There was"),
        ("Lena went home", "The girl named Lena went home"),
    ],
)
def test_what_stands_at_a_wrong_place_is_found(judge, old, new):
    assert "order" in found(judge, WHOLE.replace(old, new, 1))


def test_halves_of_two_stories_do_not_hold_together(judge):
    glued = WHOLE.partition(MIDDLE)[0] + OTHER[OTHER.index("Luckily") :]
    assert {"cohesion", "names"} <= found(judge, glued)
    nameless = glued.replace("Lena", "the girl").replace("Finn", "the boy").replace("named the girl", "here")
    assert "cohesion" in found(judge, nameless) and "names" not in found(judge, nameless)


def test_sentences_that_stand_again_are_found(judge):
    again = WHOLE[WHOLE.index("Then Lena") : WHOLE.index('"Is my')]
    assert found(judge, WHOLE.replace("Lena went home", again + "Lena went home")) == {"repetition"}
    assert found(judge, WHOLE + " Lena was happy. Lena was happy.") == {"repetition"}
    assert found(judge, WHOLE + " Lena was happy. Lena was home.") == set()
    assert found(judge, WHOLE + " Lena looked. Lena looked. The end.") == set()  # two words are said again


@pytest.mark.parametrize("marks", ['""', "“”"])
def test_each_quotation_mark_that_is_dropped_is_found(judge, marks):
    story = "".join(marks[WHOLE[:i].count('"') % 2] if sign == '"' else sign for i, sign in enumerate(WHOLE))
    places = [i for i, sign in enumerate(story) if sign in marks]
    assert len(places) == 4 and not judge.faults(story)["quotes"]
    assert all(judge.faults(story[:i] + story[i + 1 :])["quotes"] for i in places)


def test_a_story_that_is_cut_off_anywhere_between_two_words_has_no_ending(judge):
    places = [i for i, sign in enumerate(WHOLE) if sign == " " and WHOLE[i - 1].isalpha()]
    assert len(places) > 50 and all(judge.faults(WHOLE[:i])["ending"] for i in places)


@pytest.mark.parametrize("end", [".", "!", "?", '."', "!”", ".\n", "…", "。"])
def test_a_sentence_can_end_in_many_ways(judge, end):
    assert not judge.faults("Lena was home" + end)["ending"]


def test_words_that_no_training_story_has_are_found(judge):
    assert found(judge, WHOLE.replace("hugged", "blorfed")) == {"words"}
    assert found(judge, WHOLE.replace("hugged", UNK)) == {"words"}


def test_a_story_in_lower_case_has_the_same_faults(judge):
    stories = builtin_stories(100, seed=2)
    swapped = [" ".join(a.split()[:50] + b.split()[50:]) for a, b in pairwise(stories)]
    assert len({frozenset(found(judge, story)) for story in swapped}) > 3
    for story in stories + swapped:
        assert judge.faults(story.lower()) == judge.faults(story)


# ---------------------------------------------------------------------------- what is usual, and shares


def test_other_stories_of_the_same_kind_are_seldom_blamed(judge):
    shares = judge.shares(builtin_stories(300, seed=1))
    assert all(shares[fault] < 2 * UNFIT for fault in FAULTS) and shares["none"] > 0.8


def test_a_share_is_the_mean_of_what_the_stories_have(judge):
    stories = [WHOLE, OTHER, WHOLE[:200], OTHER + " She"]
    shares = judge.shares(stories)
    for fault in FAULTS:
        assert shares[fault] == sum(judge.faults(story)[fault] for story in stories) / 4
    assert shares["none"] == 0.5


def text(i, extra=""):
    return f"Number{i} is a story of its own{extra}."


def test_as_many_unknown_words_are_usual_as_training_stories_have_for_themselves():
    letters = [chr(97 + i // 26) + chr(97 + i % 26) for i in range(100)]
    judge = Judge.learn([f"It is called q{a} and not z{a}." for a in letters])
    assert judge.unknown == 3
    assert not judge.faults("It is xa and xb.")["words"] and judge.faults("It is xa and xb and xc.")["words"]
    assert judge.faults(f"It is {UNK}.")["words"]


@pytest.mark.parametrize("n, length", [(100, 9), (4, 9), (1, 6)])
def test_a_refrain_is_usual_if_enough_training_stories_have_one(n, length):
    refrain = " one two three four five six seven eight. Then one two three four five six seven eight."
    once = " one two three four five. But one two three four five."
    judge = Judge.learn([text(i, refrain if i < n else once) for i in range(100)])
    assert judge.repeated == length


@pytest.mark.parametrize("n, judged", [(0, True), (5, True), (6, False), (100, False)])
def test_a_rule_that_many_training_stories_break_is_not_judged(n, judged):
    judge = Judge.learn([text(i).rstrip("." if i < n else "") for i in range(100)])
    assert ("ending" in judge.judged) == ("ending" in judge.faults("no end")) == judged


def test_of_few_stories_nothing_is_judged():
    judge = Judge.learn([text(i) for i in range(49)])
    assert judge.faults("no end") == judge.shares(["no end"]) == {}
    assert Judge.learn([text(i) for i in range(50)]).faults("no end")["ending"]
    assert Judge.learn([]).shares([]) == {}


def test_one_string_is_no_list_of_stories():
    with pytest.raises(ValueError, match="put it in a list"):
        Judge.learn(WHOLE)


def test_an_empty_story_has_no_ending_and_no_stories_have_no_shares(judge):
    assert found(judge, "") == found(judge, " \n") == {"ending"}
    assert judge.shares([]) == dict.fromkeys([*FAULTS, "none"], 0.0)


def test_english_rules_blame_no_other_language():
    rng = random.Random(0)
    signs = "小猫去公园看见一只红色的鸟它很高兴回家了"
    stories = ["".join(rng.sample(signs, 12)) + "。" + "".join(rng.sample(signs, 9)) + "！" for _ in range(200)]
    judge = Judge.learn(stories[:100])
    shares = judge.shares(stories[100:])
    assert not any(shares.get(fault) for fault in ("names", "pronouns", "order", "quotes", "ending"))
    assert judge.faults(stories[0][:8])["ending"]


def test_any_text_can_be_judged(judge):
    rng = random.Random(0)
    signs = "aB éßİ中\u0301\u200b😀\ud800\n\t.!?\"'“”’<>0_"
    for _ in range(300):
        story = "".join(rng.choice(signs) for _ in range(rng.randrange(60)))
        assert judge.faults(story).keys() == FAULTS.keys()
