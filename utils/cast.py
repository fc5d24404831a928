"""Who is in a story: the names, and whom "he" and "she" can mean, learned from the training stories."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import pairwise

PRONOUNS = {"he": "he", "him": "he", "his": "he", "himself": "he",
            "she": "she", "her": "she", "hers": "she", "herself": "she"}  # fmt: skip
EITHER = "either"
MEN = """boy boys man king prince dad daddy papa father grandpa uncle brother son"""
WOMEN = """girl girls woman lady queen princess mom mommy mum mummy mama mother grandma aunt sister daughter witch"""
PEOPLE = {**dict.fromkeys(MEN.split(), "he"), **dict.fromkeys(WOMEN.split(), "she")}
SPEECH = {"said", "asked", "replied", "shouted", "answered", "cried", "whispered", "thought"}
NOBODY = {*PRONOUNS, "i", "it", "they", "we", "you", "who", "and", "then", "but", "mr", "mrs", "dr", "tv"}

WORD = re.compile(r"[^\W\d_]+")
INNER = re.compile(r"(?<=[\w,;] )[^\W\d_]+")  # a word that begins no sentence
PIECE = re.compile(r'("[^"]*"|“[^”]*”)|([.!?]+)|([^\W\d_]+)')  # a quotation, the end of a sentence, a word


def words_of(text: str) -> list[str]:
    return WORD.findall(text.lower())


def learn_cast(stories: Sequence[str]) -> tuple[frozenset[str], dict[str, str]]:
    """(names, whom a pronoun can mean -> "he", "she" or "either").

    A name has its capital inside sentences too. Who "said" something is somebody. A name's gender is that of the first
    pronoun after it, in sentences that mention nobody else.
    """
    capital, written, having, speaks = Counter(), Counter(), Counter(), Counter()
    for story in stories:
        capital.update([word.lower() for word in INNER.findall(story) if word[0].isupper()])
        written.update(WORD.findall(story))
        words = words_of(story)
        having.update(set(words))
        speaks.update([word for word, verb in pairwise(words) if verb in SPEECH])
    names = {word for word, n in capital.items() if n >= 5 and n >= 9 * written[word]} - NOBODY - PEOPLE.keys()
    speakers = {word for word, n in speaks.items() if n >= 10 and n >= having[word] / 100} - NOBODY
    cast = {**dict.fromkeys(speakers | names, EITHER), **PEOPLE}
    follows = defaultdict(Counter)
    for story in stories:
        for sentence in re.split("[.!?]", story.lower()):
            words = WORD.findall(sentence)
            mentioned = cast.keys() & words
            if len(mentioned) == 1 and not PRONOUNS.keys().isdisjoint(words):
                (name,) = mentioned
                after = words[words.index(name) :]
                pronouns = [word for word in words if word in PRONOUNS]
                if pronouns == [word for word in after if word in PRONOUNS]:
                    follows[name][PRONOUNS[pronouns[0]]] += 1
    for name in names & follows.keys():
        gender, n = follows[name].most_common(1)[0]
        if 2 <= n >= 0.7 * follows[name].total():
            cast[name] = gender
    return frozenset(names), cast


def mentions(story: str, cast: dict[str, str]) -> list[list[tuple[str, str]]]:
    """Each sentence's people and pronouns in order, as (word, "he", "she" or "either").

    Quotations have people, but their pronouns may mean somebody whom only the speaker knows.
    """
    strangers = {word.lower() for word in INNER.findall(story) if word[0].isupper()} - NOBODY
    found = [[]]
    for quotation, end, word in PIECE.findall(story.lower()):
        if end:
            found.append([])
        for said in words_of(quotation or word):
            if said in cast or said in strangers:
                found[-1].append((said, cast.get(said, EITHER)))
            elif said in PRONOUNS and not quotation:
                found[-1].append((said, PRONOUNS[said]))
    return found
