"""What is wrong with a story, by eight rules whose figures are counted in the training stories; no model judges.

Each rule looks for one fault that shows without understanding the story. What differs from text to text (its words, its
names and which of them are a he or a she, how much repetition is usual) is learned from the stories that a model was
trained on. A rule that more than 5 % of those break does not fit such texts and is not judged, as happens with verse,
code and other languages.

    judge = Judge.learn(training_stories)
    judge.faults("Once upon a time, Tim lost his")     # {"names": False, ..., "ending": True, "words": False}
    judge.shares(stories)                              # {"names": 0.01, ..., "words": 0.02, "none": 0.9}

docs/judge.md has measured how often each rule blames real stories and what it finds in damaged ones. No rule knows
whether a story makes sense: known words in a wrong place, or a found thing that nobody lost, pass them all.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain, pairwise

from utils.cast import EITHER, PEOPLE, PRONOUNS, WORD, learn_cast, mentions, words_of
from utils.detokenizer import UNK

FAULTS = {
    "names": "a name turns up late without being introduced, or the hero's gives way to another",
    "pronouns": "a he or she, and nobody near can be meant",
    "order": "an opening in the middle, an end before the end, a pronoun first, or named after being told of",
    "cohesion": "the second half takes up hardly any words of the first",
    "repetition": "a long sequence of words stands twice, or a sentence twice in a row",
    "quotes": "a quotation mark has no partner",
    "ending": "the last sentence has no end",
    "words": "several words that no training story has, or <unk>",
}
FAULT_LABELS = {**{fault: f"fault of {fault}" for fault in FAULTS}, "none": "none of these faults"}  # of a share
USUAL = 0.03  # what at most this share of the training stories exceeds is usual
UNFIT = 0.05  # a rule that a larger share of them breaks is not for such texts
FEW = 50  # with fewer training stories nobody knows what is usual

OBJECTS = {"him", "her", "himself", "herself"}  # they reach a sentence farther back than subjects do
INTRODUCES = {*PEOPLE, "named", "called", "name", "is", "was", "were", "i'm", "am", "friend", "friends", "dog", "cat",
              "mr.", "mrs.", "a", "an", "the", "her", "his", "their", "and", "of", "with", "like"}  # fmt: skip
OPENING = re.compile(r"\W*(once upon|once,? there|long ago|there was once|one day,? there was)\b")
NAMED = re.compile(r"\b(?:named|called)\s+([^\W\d_]+)")

SENTENCE_END = re.compile(r"""(?<=[.!?…。！？])["'”’)]*\s+|\n+""")
STORY_END = re.compile(r"""[.!?…。！？]["'”’»)\]*_]*\s*\Z""")
QUOTATION_MARKS = '"“”„«»'


@dataclass(frozen=True)
class Judge:
    """The rules, and what they know of the training stories; made by `learn`.

    rarity: each of their words in lower case -> log(stories / stories that have it).
    names: words whose capital does not come from the sentence. cast: whom a pronoun can mean -> "he", "she", "either".
    shared, repeated, unknown: cohesion below `shared`, a sequence of `repeated` words that stands twice, and `unknown`
    unknown words are unusual.
    judged: the faults that are looked for, of FAULTS.
    """

    rarity: dict[str, float]
    names: frozenset[str]
    cast: dict[str, str]
    shared: float = 0.0
    repeated: int = 0
    unknown: int = 0
    judged: tuple[str, ...] = tuple(FAULTS)

    @classmethod
    def learn(cls, stories: Sequence[str]) -> Judge:
        """Count in `stories` what the rules need: 2 to 3 seconds for 15,000. Of fewer than 50, nothing is judged.

        Raises ValueError if `stories` is a single string.
        """
        if isinstance(stories, str):
            raise ValueError("stories is one str, it must be a sequence of them: put it in a list")
        having = Counter(chain.from_iterable(set(words_of(story)) for story in stories))
        rarity = {word: math.log(len(stories) / n) for word, n in having.items()}
        names, cast = learn_cast(stories[:: 1 + len(stories) // 5000])
        judge = cls(rarity, names, cast)
        if len(stories) < FEW:
            return replace(judge, judged=())
        sample = stories[:: 1 + len(stories) // 1000]
        cohesion = sorted(map(judge.cohesion, sample))
        repeats = sorted(_longest_repeat(words_of(story)) for story in sample)
        # A word of one story alone would be unknown if that story had not been learned from.
        unknown = sorted(sum(having[word] == 1 for word in _without_capital(story)) for story in sample)
        unusual = int(USUAL * len(sample))
        judge = replace(judge, shared=cohesion[unusual], repeated=1 + repeats[-1 - unusual],
                        unknown=1 + unknown[-1 - unusual])  # fmt: skip
        broken = judge.shares(sample)
        return replace(judge, judged=tuple(fault for fault in FAULTS if broken[fault] <= UNFIT))

    def faults(self, story: str) -> dict[str, bool]:
        """Each fault of `judged` -> whether the story has it."""
        rules = {
            "names": lambda: self._newcomer(story) or self._hero_changes(story),
            "pronouns": lambda: self._means_nobody(story),
            "order": lambda: self._out_of_order(story),
            "cohesion": lambda: self.cohesion(story) < self.shared,
            "repetition": lambda: self._repeats(story),
            "quotes": lambda: sum(map(story.count, QUOTATION_MARKS)) % 2 == 1,
            "ending": lambda: not STORY_END.search(story),
            "words": lambda: UNK in story or len(_without_capital(story) - self.rarity.keys()) >= self.unknown,
        }
        return {fault: rules[fault]() for fault in self.judged}

    def shares(self, stories: Iterable[str]) -> dict[str, float]:
        """Each fault of `judged` -> the share of stories that have it, and "none" -> of those without any.

        0 where there are no stories, {} where nothing is judged.
        """
        found = [self.faults(story) for story in stories]
        counts = {fault: sum(faults[fault] for faults in found) for fault in self.judged}
        if counts:
            counts["none"] = sum(not any(faults.values()) for faults in found)
        return {fault: n / max(1, len(found)) for fault, n in counts.items()}

    def cohesion(self, story: str) -> float:
        """Share of the second half's different words that the first half has too, weighted by rarity, from 0 to 1.

        Lexical cohesion: Halliday and Hasan, "Cohesion in English", 1976. Words of every fourth story do not count.
        """
        words = words_of(story)
        first, second = set(words[: len(words) // 2]), set(words[len(words) // 2 :])
        weights = {word: self.rarity[word] for word in second if self.rarity.get(word, 0.0) > math.log(4)}
        return sum(weights[word] for word in first & weights.keys()) / sum(weights.values()) if weights else 1.0

    def _newcomer(self, story: str) -> bool:
        """Does a name appear after the first third as if known? Others may, where nobody was named before them."""
        story, seen = story.lower(), set()
        for match in WORD.finditer(story):
            name = match[0]
            if name in self.names and name not in seen:
                before = story[max(0, match.start() - 20) : match.start()].split()
                known = before and before[-1].strip('"“') not in INTRODUCES and not before[-1].endswith(",")
                if known and seen and match.start() > len(story) / 3:
                    return True
                seen.add(name)
        return False

    def _hero_changes(self, story: str) -> bool:
        """Is there a place in the middle half where one name's story ends, and that of a new one begins?"""
        told = [[word for word in words_of(sentence) if word in self.names] for sentence in _sentences(story)]
        before, after = Counter(), Counter(chain.from_iterable(told))
        for i, names in enumerate(told, start=1):
            before.update(names)
            after.subtract(names)
            if len(told) < 4 * i <= 3 * len(told) and before and after:
                hero, (other, times) = before.most_common(1)[0][0], after.most_common(1)[0]
                if not after[hero] and times and not before[other]:
                    return True
        return False

    def _means_nobody(self, story: str) -> bool:
        """Is there a pronoun after people of the other gender alone, in its sentence and the one before?"""
        sentences = mentions(story, self.cast)
        for i, sentence in enumerate(sentences):
            for j, (word, gender) in enumerate(sentence):
                if word in PRONOUNS:

                    def told(back: int, i=i, here=sentence[:j]) -> set[str]:
                        return {g for _, g in chain(here, *sentences[max(0, i - back) : i])}

                    far = word in OBJECTS
                    if EITHER not in told(far) and gender not in told(1 + far) and told(1) - {EITHER, gender}:
                        return True
        return False

    def _out_of_order(self, story: str) -> bool:
        story = story.lower()
        sentences = _sentences(story)
        return (
            any(OPENING.match(sentence) for sentence in sentences[2:])
            or any(words_of(sentence) == ["the", "end"] for sentence in sentences[:-2])
            or any(words_of(sentence)[0] in PRONOUNS for sentence in sentences[:1])
            or any(m[1] in self.names and m[1] in words_of(story[: m.start()]) for m in NAMED.finditer(story))
        )  # fmt: skip

    def _repeats(self, story: str) -> bool:
        sentences = [words_of(sentence) for sentence in _sentences(story)]
        in_a_row = any(one == other and len(one) > 2 for one, other in pairwise(sentences))
        return in_a_row or _told_twice(words_of(story), self.repeated)


def _sentences(text: str) -> list[str]:
    return [part for part in SENTENCE_END.split(text) if WORD.search(part)]


def _without_capital(story: str) -> set[str]:
    """Its different words in lower case; one with a capital may be a name."""
    return {word for word in WORD.findall(story) if word == word.lower()}


def _told_twice(words: list[str], length: int) -> bool:
    sequences = [tuple(words[i : i + length]) for i in range(len(words) - length + 1)]
    return len(set(sequences)) < len(sequences)


def _longest_repeat(words: list[str], most: int = 50) -> int:
    """The length of the longest sequence of `words` that stands twice, at most `most`."""
    return next((n for n in range(most) if not _told_twice(words, n + 1)), most)
