"""How often utils.judge blames real stories and finds damaged ones: python -m tests.bench.judge --source PATH

The judge learns from the training stories and judges the validation stories, whole and with one kind of damage each.
Of every damage only the stories that it changes count. Prints a table; 1 minute on a CPU core.
"""

from __future__ import annotations

import argparse
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence

from utils.cast import PRONOUNS, words_of
from utils.data import split_stories
from utils.judge import Judge
from utils.stories import NoValidationSplit, load_stories

OTHER = {"he": "she", "she": "he", "him": "her", "his": "her", "her": "his", "hers": "his", "himself": "herself",
         "herself": "himself"}  # fmt: skip
QUOTATION = re.compile(r'("[^"]*"|“[^”]*”)')


class Damage:
    """Ways to spoil a story; each returns it unchanged where there is nothing to spoil."""

    def __init__(self, judge: Judge, stories: Sequence[str], seed: int = 0):
        self.judge, self.stories, self.rng = judge, stories, random.Random(seed)
        counts = Counter(word for story in stories for word in words_of(story))
        self.names = [name for name, _ in counts.most_common() if name in judge.names][:50]
        self.common = [word for word, _ in counts.most_common(2000)]

    def cut(self, story: str) -> str:
        """The story stops within a sentence of its last third."""
        ends = [m.start() for m in re.finditer(r"(?<=\w) (?=\w)", story) if m.start() > len(story) * 2 / 3]
        return story[: self.rng.choice(ends)] if ends else story

    def rename(self, story: str, once: bool = False) -> str:
        """Another name in place of the one most told, throughout the second half or in one place of it."""
        first, second = halves(story)
        told = set(words_of(story))
        heroes = Counter(word for word in words_of(second) if word in self.judge.names and word in words_of(first))
        if not heroes:
            return story
        hero = heroes.most_common(1)[0][0]
        other = self.rng.choice([name for name in self.names if name not in told]).capitalize()
        places = list(re.finditer(rf"\b{hero}\b", second, re.IGNORECASE))
        for place in [self.rng.choice(places)] if once else places[::-1]:
            second = second[: place.start()] + other + second[place.end() :]
        return first + second

    def rename_once(self, story: str) -> str:
        return self.rename(story, once=True)

    def swap_pronouns(self, story: str) -> str:
        """She for he, and so on, in the second half; quotations stay as they are."""
        first, second = halves(story)
        parts = QUOTATION.split(second)
        pattern = re.compile(rf"\b(?:{'|'.join(PRONOUNS)})\b", re.IGNORECASE)
        parts[::2] = [pattern.sub(lambda m: like(m[0], OTHER[m[0].lower()]), part) for part in parts[::2]]
        return first + "".join(parts)

    def shuffle(self, story: str) -> str:
        parts = sentences(story)
        self.rng.shuffle(parts)
        return " ".join(parts)

    def repeat(self, story: str, n: int = 3) -> str:
        """`n` sentences stand once more, anywhere behind."""
        parts = sentences(story)
        if len(parts) <= n:
            return story
        at = self.rng.randrange(len(parts) - n)
        again = self.rng.randrange(at + n, len(parts) + 1)
        return " ".join(parts[:again] + parts[at : at + n] + parts[again:])

    def repeat_one(self, story: str) -> str:
        return self.repeat(story, 1)

    def misspell(self, story: str, n: int = 3) -> str:
        """`n` words in lower case become six letters that spell nothing."""
        return self.replace(
            story, n, lambda: "".join(self.rng.choice("bdfgklmnprst") + self.rng.choice("aeiou") for _ in "123")
        )

    def misspell_one(self, story: str) -> str:
        return self.misspell(story, 1)

    def mix_up(self, story: str) -> str:
        """Ten words in lower case become others that are often told."""
        return self.replace(story, 10, lambda: self.rng.choice(self.common))

    def replace(self, story: str, n: int, word: Callable[[], str]) -> str:
        places = list(re.finditer(r"(?<= )[a-z]{2,}\b", story))
        for place in sorted(self.rng.sample(places, min(n, len(places))), key=lambda m: -m.start()):
            story = story[: place.start()] + word() + story[place.end() :]
        return story

    def glue(self, story: str) -> str:
        """The second half is another story's."""
        return halves(story)[0] + halves(self.rng.choice(self.stories))[1]

    def drop_quote(self, story: str) -> str:
        marks = [m.start() for m in re.finditer('["“”]', story)]
        at = self.rng.choice(marks) if marks else len(story)
        return story[:at] + story[at + 1 :]

    def lower(self, story: str) -> str:
        return story.lower()


ROWS = {
    "cut within a sentence": Damage.cut,
    "another name in the second half": Damage.rename,
    "another name in one place": Damage.rename_once,
    "he for she in the second half": Damage.swap_pronouns,
    "sentences shuffled": Damage.shuffle,
    "one sentence once more": Damage.repeat_one,
    "three sentences once more": Damage.repeat,
    "one word misspelt": Damage.misspell_one,
    "three words misspelt": Damage.misspell,
    "ten words for others": Damage.mix_up,
    "two halves glued": Damage.glue,
    "a quotation mark dropped": Damage.drop_quote,
    "all in lower case (no damage)": Damage.lower,
}


def sentences(text: str) -> list[str]:
    return re.split(r"""(?<=[.!?])\s+|(?<=[.!?]["”])\s+""", text.strip())


def halves(story: str) -> tuple[str, str]:
    """Cut before the sentence that begins nearest to the middle."""
    starts = [m.end() for m in re.finditer(r"""[.!?]["”]?\s+""", story)] or [len(story)]
    at = min(starts, key=lambda start: abs(start - len(story) / 2))
    return story[:at], story[at:]


def like(pattern: str, word: str) -> str:
    return word.capitalize() if pattern[0].isupper() else word


def load(source: str | None) -> tuple[list[str], list[str]]:
    stories = load_stories(100_000, "train", source)
    try:
        return stories, load_stories(10_000, "validation", stories.source)
    except NoValidationSplit:
        return split_stories(stories)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.judge", description=__doc__.partition("\n")[0])
    parser.add_argument("--source", help="stories, as for python -m utils train (default: $TINYSTORIES_PATH, ...)")
    training, validation = load(parser.parse_args().source)
    start = time.perf_counter()
    judge = Judge.learn(training)
    seconds = time.perf_counter() - start
    print(f"{time.strftime('%Y-%m-%d')}: learned from {len(training):,} stories in {seconds:.1f} s")
    print(f"repeated {judge.repeated}, unknown {judge.unknown}, shared {judge.shared:.3f}, {len(judge.names)} names\n")
    print(f"| % of stories | stories | {' | '.join(judge.judged)} | any |\n|---|---|{'---|' * (len(judge.judged) + 1)}")
    damage = Damage(judge, validation)
    for name, spoil in {"real": None, **ROWS}.items():
        told = [spoil(damage, story) for story in validation] if spoil else validation
        changed = [new for new, old in zip(told, validation, strict=True) if new != old or not spoil]
        shares = judge.shares(changed)
        shares["any"] = 1 - shares.pop("none")
        print(
            f"| {name} | {len(changed)} | {' | '.join(f'{100 * share:.1f}' for share in shares.values())} |", flush=True
        )


if __name__ == "__main__":
    main()
