"""Our own endless supply of tiny stories: a small grammar that tells them and reads them back.

Every story has the same plot. A hero has a thing, loses it, looks for it, meets a helper, and the same
thing is found. Each plot stage is one sentence, filled in from one of the stage's templates, in which
``{hero}`` or ``{thing}`` is a slot. `builtin_stories` fills the slots; `judge_story` goes the other way:
it finds the template behind each sentence and asks whether the slots tell one and the same story.
"""

import random
import re
from collections.abc import Iterator
from functools import cache
from itertools import islice

# ---------------------------------------------------------------------------------------- words

GIRLS = ["Lily", "Anna", "Mia", "Emma", "Sara", "Lucy", "Ella", "Nora", "Zoe", "Ruby", "Molly", "Amy",
         "Kate", "Lena", "Sue", "Daisy", "Jane", "Mary", "Eva", "Clara"]  # fmt: skip
BOYS = ["Tom", "Tim", "Ben", "Max", "Sam", "Jack", "Leo", "Noah", "Finn", "Paul", "Peter", "Adam", "John",
        "Mark", "Luke", "Oscar", "Nick", "Jake", "Bob", "Theo"]  # fmt: skip
ADJECTIVES = ["red", "blue", "green", "yellow", "orange", "pink", "purple", "white", "big", "small",
              "shiny", "new"]  # fmt: skip
NOUNS = ["ball", "doll", "car", "boat", "kite", "drum", "truck", "train", "robot", "plane", "rocket",
         "puppet", "whistle", "hat", "scarf", "book", "bag", "cup", "bell", "key", "ring", "box", "crown",
         "flute"]  # fmt: skip

# An upper-case helper is a name and takes no article; the pronoun belongs to the helper for good.
HELPERS = {
    "old owl": "he", "brown dog": "he", "gray squirrel": "he", "wise turtle": "he", "jumpy frog": "he",
    "tiny ant": "he", "kind farmer": "he", "Grandpa Joe": "he", "Uncle Bill": "he",
    "little mouse": "she", "black cat": "she", "fluffy rabbit": "she", "clever fox": "she",
    "busy duck": "she", "gentle horse": "she", "nice teacher": "she", "Grandma May": "she",
    "Aunt Jill": "she",
}  # fmt: skip
PLACES = {
    "park": "in", "garden": "in", "forest": "in", "meadow": "in", "orchard": "in", "farm": "on",
    "hill": "on", "beach": "at", "lake": "at", "playground": "at", "zoo": "at", "river": "by",
}  # fmt: skip

# Slots on which nothing else in the story depends; most are named after their first word. The thing is looked for in
# one kind of spot and found in the other, never where it was not.
FREE = {
    "spot": [
        "under the bench",
        "behind the big tree",
        "in the tall grass",
        "next to the gate",
        "near the bridge",
        "beside the pond",
        "by the well",
    ],
    "found_spot": [
        "under some leaves",
        "behind a rock",
        "inside a hollow log",
        "between two stones",
        "under a bush",
        "behind the fence",
        "among the flowers",
    ],
    "kind": ["kind", "happy", "brave", "curious", "clever", "cheerful", "gentle", "friendly", "funny", "quiet"],
    "sunny": ["sunny", "warm", "bright", "windy", "cool", "lovely", "beautiful", "cloudy"],
    "sad": ["sad", "upset", "worried", "lonely", "unhappy"],
    "mom": ["mom", "dad", "grandma", "grandpa", "sister", "brother"],
    "coat": ["coat", "shoes", "boots", "jacket", "mittens", "sweater"],
    "birds": ["birds", "butterflies", "bees", "ladybugs", "squirrels", "ducks"],
    "leaf": ["a leaf", "an old shoe", "a feather", "some mud", "a snail", "an acorn"],
    "cookie": ["a cookie", "an apple", "some bread", "a piece of cake", "some cheese", "a sweet pear"],
}

# ------------------------------------------------------------------------------------- templates

OPTIONAL = ["treasure", "fun", "feeling", "thanks"]  # a story tells at most two of them

# {he}, {him}, {his} are the hero's pronouns, {helper_he} and {helper_him} the helper's. From the problem on,
# every template names the hero and the whole thing: so no stage can tell of another one unnoticed.
TEMPLATES = {
    "opening": [
        "Once upon a time, there was a {kind} {boy} named {hero}.",
        "Once upon a time, there was a little {boy} called {hero}.",
        "Once upon a time, a {kind} {boy} named {hero} lived by the sea.",
        "Once upon a time, in a tiny house, lived a {boy} named {hero}.",
        "Once upon a time, a {boy} named {hero} lived with {his} {mom}.",
        "Once upon a time, there lived a {kind} {boy} named {hero}.",
        "There once was a {kind} {boy} named {hero}.",
        "Long ago, a {boy} named {hero} lived in a town.",
        "In a village far away, there was a {boy} named {hero}.",
    ],
    "treasure": [
        "{He} had {a_thing} and loved it very much.",
        "{hero} had {a_thing} that {he} took everywhere.",
        "The best thing {he} had was {a_thing}.",
        "For {his} birthday, {he} got {a_thing} from {his} {mom}.",
        "{His} favorite thing in the whole world was {a_thing}.",
        "{He} had many toys, but {he} loved {his} {thing} most of all.",
        "Every night, {he} put {his} {thing} beside {his} pillow.",
        "{hero} was proud of {his} {thing}, because it was a gift.",
        "{He} owned {a_thing} and kept it on a wooden shelf.",
    ],
    "outing": [
        "One {sunny} day, {hero} went to {place} with {his} {thing}.",
        "One {sunny} morning, {he} took {his} {thing} to {place}.",
        "One day, {hero} played {at_place} with {his} {thing}.",
        '"Let\'s go to {place}!" {hero} said to {his} {thing}.',
        '"I\'ll take my {thing} to {place}," {hero} told {his} {mom}.',
        "{hero} put on {his} {coat} and carried {his} {thing} to {place}.",
        "One afternoon, {hero} showed {his} {thing} to the {birds} {at_place}.",
        "It was {sunny}, and {hero} was {at_place} with {his} {thing}.",
        "After the rain, {he} skipped to {place} with {his} {thing}.",
    ],
    "fun": [
        "{He} sang a song and jumped over the puddles.",
        "{He} chased the {birds} and danced in the sunshine.",
        "{He} picked some berries and forgot the time.",
        '"What fun!" {he} said with a big smile.',
        "The {birds} were everywhere, and {he} counted them.",
        "{He} built a castle out of sand and sticks.",
        "{He} lay on {his} back and watched the clouds.",
        "{He} climbed, ran and laughed until {he} was tired.",
    ],
    "problem": [
        "{hero} lost {his} {thing}.",
        "But then {hero} lost {his} {thing}.",
        "Suddenly, {hero} saw that {his} {thing} was gone.",
        '"Oh no, where is my {thing}?" cried {hero}.',
        "Then {hero} looked down, but {his} {thing} wasn't there.",
        "On the way home, {hero} couldn't find {his} {thing}.",
        "A strong wind blew, and {hero} lost {his} {thing}.",
        "{hero} tripped and dropped {his} {thing} somewhere.",
        "{hero} took a nap, and then the {thing} was missing.",
        '"I can\'t see my {thing}!" shouted {hero}.',
    ],
    "feeling": [
        "{hero} was very {sad} without {his} {thing}.",
        "{hero} sat down and cried, because {he} missed {his} {thing}.",
        '"I want my {thing} back," {hero} whispered.',
        "{hero} felt {sad}, for the {thing} meant much to {him}.",
        "{hero} had tears in {his} eyes and needed {his} {thing}.",
        '"I must search for my {thing}," said {hero}.',
        '{hero} was brave and said, "I won\'t give up my {thing}."',
        "{hero}'s heart was heavy without the {thing}.",
    ],
    "search": [
        "{hero} looked {spot}, but the {thing} wasn't there.",
        "First, {hero} searched {spot}, but did not find {his} {thing}.",
        "{hero} ran and looked {spot}, but there was no {thing}.",
        '"Is my {thing} {spot}?" {hero} asked {himself}, but it wasn\'t.',
        '"Maybe my {thing} is {spot}," thought {hero}, but {he} only found {leaf}.',
        "{hero} hunted for the {thing} {spot}, but {he} just saw {leaf}.",
        "{hero} crawled {spot}, but the {thing} stayed hidden.",
        "{hero} checked {spot} twice, but {he} couldn't spot the {thing}.",
    ],
    "helper": [
        "Then {hero} met {a_helper} and asked {helper_him} about the {thing}.",
        "Just then, {a_helper} saw {hero} looking for {a_thing}.",
        '{A_helper} heard {hero} and asked, "Did you lose {a_thing}?"',
        'Soon {a_helper} asked, "What\'s wrong, {hero}? Where is your {thing}?"',
        '"Hello, have you seen my {thing}?" {hero} asked {a_helper}.',
        '"Please help me find my {thing}," {hero} begged {a_helper}.',
        "After a while, {a_helper} asked {hero} about the {thing}.",
        '{hero} told {a_helper}, "I\'m looking for my {thing}."',
        "Luckily, {a_helper} was near, and {hero} told {helper_him} about the {thing}.",
    ],
    "offer": [
        "\"Don't worry, {hero}! I'll help you find your {thing},\" said {helper}.",
        "\"It's okay, {hero}! We'll find the {thing},\" {helper} replied.",
        "{Helper} promised {hero} that {helper_he} would find the {thing}.",
        "{Helper} nodded and said, \"Don't cry, {hero}, your {thing} can't be far.\"",
        '"Let\'s get your {thing}, {hero}," {helper} answered.',
        "{Helper} had an idea, and {helper_he} told {hero} where the {thing} might be.",
        "{hero} felt better when {helper} said, \"I'm sure we'll find your {thing}.\"",
        "{Helper} was clever, and {helper_he} knew how to find {hero}'s {thing}.",
    ],
    "solution": [
        "{Helper} and {hero} looked {found_spot}, and there was the {thing}!",
        "Together with {helper}, {hero} found the {thing} {found_spot}.",
        '"Look, {hero}, your {thing} is {found_spot}!" {helper} shouted.',
        "{Helper} peeked {found_spot}, and {helper_he} found {hero}'s {thing} there.",
        "At last, {helper} and {hero} discovered the {thing} {found_spot}.",
        '"Hooray, my {thing} is {found_spot}!" {hero} told {helper}.',
        "{hero} followed {helper} and found {his} {thing} {found_spot}.",
        "{Helper} saw something {found_spot} and gave it to {hero}: it was the {thing}.",
    ],
    "thanks": [
        '"Thank you, {helper_name}!" said {hero}, and {he} hugged {his} {thing}.',
        "{hero} kissed {his} {thing} and thanked {helper}.",
        '"You\'re a true friend, {helper_name}," said {hero}, holding {his} {thing}.',
        "{hero} smiled and let {helper_him} hold the {thing} too.",
        '"I\'m so glad to have my {thing} again!" {hero} told {helper}.',
        "{hero} gave {helper} {cookie} for finding the {thing}.",
        "{hero} shared {cookie} with {helper}, and the {thing} was safe.",
        "{hero} jumped for joy with {his} {thing}, and {helper} clapped.",
    ],
    "ending": [
        "{hero} went home and never lost {his} {thing} again.",
        "From that day on, {hero} took good care of {his} {thing}.",
        "{hero} and {helper} became friends and often shared the {thing}.",
        "That night, {hero} slept well with the {thing} in {his} arms.",
        "{hero} learned to ask for help, and {he} kept the {thing} close.",
        "And so {hero}, {helper} and the {thing} lived happily ever after.",
        "Then {hero} ran home and told {his} {mom} the story of the {thing}.",
        "In the end, {hero} was happy because {his} {thing} was back.",
        "When the sun went down, {hero} carried the {thing} home.",
        "Whenever {hero} saw the {thing}, {he} remembered {helper} and smiled.",
    ],
}
STAGES = list(TEMPLATES)

# ------------------------------------------------------------------------------------------ cast

PRONOUNS = {"he": ("he", "him", "his"), "she": ("she", "her", "her")}


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _article(text: str) -> str:
    return ("an " if text[0] in "aeiou" else "a ") + text


def _hero(name: str, pronoun: str) -> dict[str, str]:
    he, him, his = PRONOUNS[pronoun]
    return {"hero": name, "boy": "boy" if he == "he" else "girl", "himself": him + "self",
            "he": he, "He": _capital(he), "him": him, "his": his, "His": _capital(his)}  # fmt: skip


def _helper(name: str, pronoun: str) -> dict[str, str]:
    the, a = (name, name) if name[0].isupper() else ("the " + name, _article(name))
    he, him, _ = PRONOUNS[pronoun]
    return {"helper": the, "Helper": _capital(the), "a_helper": a, "A_helper": _capital(a),
            "helper_name": name, "helper_he": he, "helper_him": him}  # fmt: skip


# Everyone and everything that can play a role, as the slots that it fills.
CAST = {
    "hero": [_hero(name, "she") for name in GIRLS] + [_hero(name, "he") for name in BOYS],
    "thing": [
        {"thing": f"{adjective} {noun}", "a_thing": _article(f"{adjective} {noun}")}
        for adjective in ADJECTIVES
        for noun in NOUNS
    ],
    "helper": [_helper(name, pronoun) for name, pronoun in HELPERS.items()],
    "place": [{"place": f"the {name}", "at_place": f"{at} the {name}"} for name, at in PLACES.items()],
}


def builtin_stories(n: int, seed: int = 0) -> list[str]:
    """Tell `n` stories; the same `seed` tells the same ones, and a larger `n` only adds to them.

    Errors: ValueError for a negative `n`. Source: the templates of this file.
    """
    if n < 0:
        raise ValueError(f"n is {n}, but the number of stories must be 0 or more")
    return list(islice(endless_stories(seed), n))


def endless_stories(seed: int = 0) -> Iterator[str]:
    """The same stories one after another, as many as one takes."""
    rng = random.Random(seed)
    while True:
        yield _story(rng)


def _story(rng: random.Random) -> str:
    words = {slot: rng.choice(options) for slot, options in FREE.items()}
    for players in CAST.values():
        words.update(rng.choice(players))
    extra = rng.sample(OPTIONAL, rng.randint(0, 2))
    told = [stage for stage in STAGES if stage not in OPTIONAL or stage in extra]
    return " ".join(rng.choice(TEMPLATES[stage]).format_map(words) for stage in told)


# ----------------------------------------------------------------------------------------- judge

TOKEN = re.compile(r"\w+|[^\w\s]")
MAX_TOKENS = 300  # no story is that long, so the rest of a longer text need not be read
MAX_FAULTS = 10


def _spaced(text: str) -> str:
    """The text as a word tokenizer leaves it: lower case, one space after every token."""
    return "".join(match[0] + " " for match in islice(TOKEN.finditer(text.lower()), MAX_TOKENS))


# Slot -> wording -> the players (numbers in CAST) that the wording can mean: "she " may be any of the girls.
ROLES, READINGS = {}, {}
for _role, _players in CAST.items():
    for _number, _forms in enumerate(_players):
        for _slot, _wording in _forms.items():
            ROLES[_slot] = _role
            READINGS.setdefault(_slot, {}).setdefault(_spaced(_wording), set()).add(_number)
for _slot, _options in FREE.items():
    READINGS[_slot] = {_spaced(option): set() for option in _options}


def _pattern(template: str) -> re.Pattern:
    """A template as a regular expression over spaced text, with one group `slot__number` per slot."""
    parts = []
    for number, token in enumerate(re.findall(r"\{\w+\}|\w+|[^\w\s]", template)):
        if token.startswith("{"):
            wordings = "|".join(map(re.escape, READINGS[token[1:-1]]))
            parts.append(f"(?P<{token[1:-1]}__{number}>{wordings})")
        else:
            parts.append(re.escape(token.lower() + " "))
    return re.compile("".join(parts))


@cache  # compiled only when the first story is judged, so that the import stays quick
def _patterns() -> list[tuple[str, re.Pattern]]:
    return [(stage, _pattern(template)) for stage, templates in TEMPLATES.items() for template in templates]


# The next sentence may start before or after a quotation mark, which can open it or close this one.
SENTENCE_END = re.compile(r'[.!?] |(?<=[.!?] )" ')


def judge_story(text: str) -> bool:
    """True for a coherent story in the words of the grammar, in upper or lower case and in any spacing.

    Coherent: one hero, helper and place, with their own pronouns; the thing that is found is the thing that
    was lost; all stages in order up to the ending (the OPTIONAL ones may be left out).
    Never raises on a string. Source: the templates of `builtin_stories`, read backwards.
    """
    return not story_faults(text)


def story_faults(text: str) -> list[str]:
    """What is wrong with a story, one plain sentence per fault; an empty list for a coherent story.

    Never raises on a string: it reads at most MAX_TOKENS words and marks and names at most MAX_FAULTS faults.
    """
    line = _spaced(text).removesuffix(_spaced("<|endoftext|>"))
    if not line:
        return ["the story is empty"]
    faults = []
    if line.count(" ") >= MAX_TOKENS:
        faults.append(f"the story has {MAX_TOKENS} words and marks or more, too many for this grammar")
    sentences = list(_sentences(line))
    faults += _plot_faults(sentences) + _cast_faults(sentences)
    return list(dict.fromkeys(faults))[:MAX_FAULTS]


def _sentences(line: str) -> Iterator[tuple[str | None, dict[str, str], str]]:
    """Each sentence's stage, slots and words; where no template fits: None, no slots, its words."""
    at = 0
    while at < len(line):
        fits = [(stage, fit) for stage, pattern in _patterns() if (fit := pattern.match(line, at))]
        if fits:
            stage, fit = max(fits, key=lambda pair: pair[1].end())
            yield stage, fit.groupdict(), fit[0]
            at = fit.end()
        else:
            end = SENTENCE_END.search(line, at)
            start, at = at, end.end() if end else len(line)
            yield None, {}, line[start:at]


def _plot_faults(sentences: list) -> list[str]:
    """Sentences that the grammar cannot say, and stages that are missing or out of order."""
    faults, last, unknown = [], -1, False
    for stage, _, words in sentences:
        if stage is None:
            if not unknown:
                beginning = " ".join(words.split()[:8])
                beginning = "with a lone quotation mark" if beginning == '"' else f'"{beginning}"'
                faults.append(f"no sentence of the grammar begins {beginning}")
            unknown = True
            continue
        number = STAGES.index(stage)
        if number <= last:
            faults.append(f"the {stage} comes " + ("twice" if number == last else f"after the {STAGES[last]}"))
        elif not unknown:  # an unknown sentence may have been meant as one of the missing stages
            missing = [name for name in STAGES[last + 1 : number] if name not in OPTIONAL]
            faults += [f"the {name} is missing before the {stage}" for name in missing]
        last, unknown = max(last, number), False
    if last < len(STAGES) - 1:
        faults.append("the story stops before its ending")
    return faults


def _cast_faults(sentences: list) -> list[str]:
    """Slots that contradict each other: each wording of a role narrows down who or what can be meant."""
    faults, lost = [], None
    known = {}  # role -> the clearest wording so far, and the players that all wordings so far can mean
    for stage, slots, _ in sentences:
        for group, wording in slots.items():
            slot = group.partition("__")[0]
            role, players, wording = ROLES.get(slot), READINGS[slot][wording], wording.strip()
            if stage == "problem" and slot == "thing":
                lost = wording
            if role is None:
                continue
            clearest, possible = known.get(role, (wording, players))
            if possible & players:
                known[role] = wording if len(players) < len(possible) else clearest, possible & players
            elif role == "thing" and stage == "solution" and lost and lost != wording:
                faults.append(f"{_article(lost)} was lost, but {_article(wording)} was found")
            else:
                faults.append(f"the {role} is {clearest}, later {wording}")
    return faults
