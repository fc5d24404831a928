"""The panel, used as a reader uses it: what it shows is the story that `generate` tells, and no click breaks it."""

import base64
import json
import math
import re
import signal
import threading
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import ipywidgets as widgets
import pytest
import torch

from tests.helpers import storyteller
from tests.test_runner import QueueKernel
from utils.generation import generate
from utils.panel.column import GAP, MOST_HELD, margins, width_of
from utils.panel.demo import EXAMPLES, WIDGET_VIEW, StoryDemo, story_demo
from utils.panel.reading import Reading

TEXT = (
    "Once upon a time, there was a cat. \"Hello!\" her mom said. The dogs' ball isn't big - it is 3.5. "
    "One day, Tom & Lily saw <b>the</b> <script>alert(1)</script> in the park, and she was sad."
)
ATTACK = "a </textarea><script>alert('1')</script> 😀"
SECONDS = 30  # to wait for what comes at once: a limit, no delay


@pytest.fixture
def model():
    return storyteller(TEXT, block_size=24, ends=False)


@pytest.fixture
def other():
    return storyteller(TEXT, "k2", seed=1, block_size=24, ends=False)


@pytest.fixture
def here(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def no_error_in_a_callback(caplog):
    """ipywidgets catches what a callback raises, and logs it."""
    yield
    assert [record.getMessage() for record in caplog.get_records("call") if "callback" in record.getMessage()] == []


@pytest.fixture
def panel(model):
    panel = StoryDemo({"": model}, opening_words=6)
    panel.length.value = 20
    return panel


def press(button):
    """As a reader does, who cannot press what is disabled."""
    assert not button.disabled
    button.click()


def enter(panel):
    panel.prompt._handle_custom_msg({"event": "submit"}, [])


def text(panel, column=0) -> str:
    return panel.columns[column].reading.text


def told(model, panel, n=None, **changes) -> str:
    """What `generate` tells with the settings of the panel's controls."""
    settings = dict(
        temperature=panel.temperature.value, top_k=panel.top_k.value or None, top_p=panel.top_p.value,
        min_p=panel.min_p.value, repetition_penalty=panel.penalty.value, seed=panel.seed.value,
    )  # fmt: skip
    return generate(model, panel.prompt.value, n or panel.length.value, **{**settings, **changes})


def all_widgets(root) -> list[widgets.Widget]:
    return [root, *(w for child in getattr(root, "children", ()) for w in all_widgets(child))]


class Page(HTMLParser):
    """The tags and the text of a piece of HTML, as a browser reads it."""

    def __init__(self, source):
        super().__init__()
        self.tags, self.text, self._inside = [], "", []
        self.texts = {}  # by tag and class, of what stands inside
        self.feed(source)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag != "br":
            key = (tag, dict(attributes).get("class"))
            self.texts.setdefault(key, []).append("")
            self._inside.append(key)

    def handle_endtag(self, tag):
        assert self._inside.pop()[0] == tag

    def handle_data(self, data):
        for key in self._inside:
            self.texts[key][-1] += data
        if not self._inside or self._inside[-1][0] != "style":
            self.text += data

    def all(self, tag, kind=None) -> list[str]:
        return self.texts.get((tag, kind), [])


def table(source, kind) -> list[list[str]]:
    """The cells of the table's rows, as text."""
    page = Page(source)
    assert len(page.all("table", kind)) <= 1
    cells = [cell.strip() for cell in page.all("td")]
    return [cells[i : i + 3] for i in range(0, len(cells), 3)]


def watch(monkeypatch, step):
    """Call `step(number of the word)` after each word that is told."""
    tell = Reading.tell

    def watched(self, n):
        for i, word in enumerate(tell(self, n), start=1):
            step(i)
            yield word

    monkeypatch.setattr(Reading, "tell", watched)


def panel_that_says(model, title, prompt, story) -> StoryDemo:
    panel = StoryDemo({title: model}, opening_words=0)
    tokens = iter(model.tokenizer.encode(story))

    def say(_, __, logits):
        return torch.zeros_like(logits).index_fill(-1, torch.tensor([next(tokens)]), 5.0)

    panel.prompt.value, panel.temperature.value = prompt, 0.0
    panel.length.min = panel.length.value = len(model.tokenizer.encode(story))
    with model.head.register_forward_hook(say):
        press(panel.generate)
    return panel


# Stories


def test_the_panel_opens_with_a_story(model):
    panel = story_demo(model)
    assert text(panel) == generate(model, EXAMPLES[0], 250, seed=0)  # a whole one, for pages without a kernel
    assert panel.stop.disabled and not panel.generate.disabled


def test_generate_tells_the_story_that_the_controls_describe(model, panel):
    panel.prompt.value, panel.seed.value = "The Cat and", 5
    press(panel.generate)
    assert text(panel) == told(model, panel)
    panel.temperature.value, panel.top_k.value, panel.top_p.value = 1.5, 20, 0.9
    panel.min_p.value, panel.penalty.value, panel.length.value = 0.02, 1.3, 40
    press(panel.generate)
    assert text(panel) == told(model, panel)
    for control, value in (
        (panel.temperature, 0.5), (panel.top_k, 2), (panel.top_p, 0.3), (panel.min_p, 0.5), (panel.penalty, 2.0),
        (panel.seed, 6), (panel.length, 10), (panel.prompt, "Lily"),
    ):  # fmt: skip
        before, control.value = control.value, value
        press(panel.generate)
        assert text(panel) == told(model, panel), control.description
        control.value = before


def test_what_the_reader_sees_is_the_story(model, panel):
    press(panel.generate)
    (story,) = Page(panel.still()).all("div", "story")
    assert story == told(model, panel)
    column = panel.columns[0]
    assert panel.stories.children == (column.box,)
    assert {column.colours, column.words, column.details, column.load} < set(column.box.children)
    assert "".join(column.words._options_labels) == re.sub(r"\s", "", story)


def test_a_story_grows_while_it_is_told(model, panel, monkeypatch):
    monkeypatch.setattr("utils.panel.demo.EVERY", -1.0)
    pictures = []

    def look(i):
        (column,) = panel.columns
        if i > 1 and column.box.children == (column.heading, column.text):
            pictures.append(Page(column.text.value).text)

    watch(monkeypatch, look)
    press(panel.generate)
    press(panel.go_on)
    final = told(model, panel, 40)
    assert len(pictures) == 38 and len(set(pictures)) > 30
    assert all(final.startswith(picture) for picture in pictures) and pictures == sorted(pictures, key=len)


def test_pictures_come_no_faster_than_they_can_be_seen(panel, monkeypatch):
    monkeypatch.setattr("utils.panel.demo.time.monotonic", iter(range(100, 10_000)).__next__)  # a second for each look
    monkeypatch.setattr("utils.panel.demo.EVERY", 7.0)
    pictures = []
    watch(monkeypatch, lambda _: pictures.append(panel.columns[0].text.value))
    press(panel.generate)
    assert 2 < len(set(pictures)) < 8


def test_continue_goes_on(model, panel):
    press(panel.generate)
    column = panel.columns[0]
    column.words.value = 5
    panel.length.value = 10
    press(panel.go_on)
    assert text(panel) == told(model, panel, 30) and panel.columns == [column]
    assert len(column.words.options) == len(column.reading.words)
    assert column.words.value is None and column.details.value == ""  # no word is chosen now


def test_the_opening_story_can_be_continued(model, panel):
    press(panel.go_on)
    assert text(panel) == told(model, panel, 26)


def test_clear_empties_and_generate_fills_again(model, panel):
    press(panel.clear)
    assert panel.columns == [] and panel.stories.children == () and panel.status.value == ""
    assert "Once" not in Page(panel.still()).text
    assert switched_off(panel) == {"Stop", "Continue", "Save"}  # there is nothing to continue
    panel.go_on.click()
    assert panel.columns == [] and panel.status.value == ""
    press(panel.generate)
    assert text(panel) == told(model, panel)


def test_at_its_end_a_story_cannot_be_continued():
    model = storyteller(TEXT)
    panel = StoryDemo({"": model}, opening_words=0)
    panel.temperature.value, panel.length.value = 2.0, 500
    press(panel.generate)
    assert text(panel) == told(model, panel) == told(model, panel, 5000)  # it has an end
    assert panel.go_on.disabled and panel.status.value.startswith("the end: ")


def test_the_status_says_how_many_words_were_told(panel):
    assert "Generate" in panel.status.value
    press(panel.generate)
    assert re.fullmatch(r"done: 20 words, \d+ words/s", panel.status.value)
    panel.length.value, panel.also_at.value = 10, "1, 1.2"
    press(panel.generate)
    assert panel.status.value.startswith("done: 30 words")


def test_the_dice_changes_the_seed(panel):
    seeds = set()
    for _ in range(10):
        press(panel.dice)
        seeds.add(panel.seed.value)
    assert len(seeds) > 1


def test_an_example_becomes_the_prompt(panel):
    for example in EXAMPLES:
        panel.examples.value = example
        assert panel.prompt.value == example
    panel.prompt.value = "mine"
    panel.examples.value = "..."
    assert panel.prompt.value == "mine"


def test_enter_in_the_prompt_generates(model, panel):
    panel.prompt.value = "the cat"
    panel.prompt._handle_custom_msg({"event": "else"}, [])
    assert text(panel) != told(model, panel)
    enter(panel)
    assert text(panel) == told(model, panel)


# Side by side


def headings(panel) -> list[str]:
    return [Page(column.heading.value).text for column in panel.columns]


def test_one_story_needs_no_title(panel):
    assert headings(panel) == [""]


def test_several_temperatures_stand_side_by_side_and_do_not_disturb_each_other(model, panel):
    panel.also_at.value = "0.3, 1.2; 0 ,"
    for button, n in ((panel.generate, 20), (panel.go_on, 40)):
        press(button)
        assert headings(panel) == [f"temperature {t}" for t in ("0.8", "0.3", "1.2", "0")]
        for column, temperature in enumerate((0.8, 0.3, 1.2, 0)):
            assert text(panel, column) == told(model, panel, n, temperature=temperature)
    assert panel.stories.children == tuple(column.box for column in panel.columns)


def test_the_same_temperature_twice_is_one_story(model, panel):
    panel.also_at.value = "1.2, 1.20, 0.8"
    press(panel.generate)
    assert [reading.reading.sampling.temperature for reading in panel.columns] == [0.8, 1.2]


def test_several_models_stand_side_by_side_and_do_not_disturb_each_other(model, other):
    panel = story_demo(model, before=other)
    panel.length.value = 20
    press(panel.generate)
    assert headings(panel) == ["model", "before"]
    assert [text(panel, i) for i in (0, 1)] == [told(m, panel) for m in (model, other)]
    panel.also_at.value = "1.3"
    press(panel.generate)
    places = [("model", model, 0.8), ("model", model, 1.3), ("before", other, 0.8), ("before", other, 1.3)]
    assert headings(panel) == [f"{name}, temperature {t}" for name, _, t in places]
    assert [text(panel, i) for i in range(4)] == [told(m, panel, temperature=t) for _, m, t in places]
    assert Page(panel.still()).all("div", "story") == [text(panel, i) for i in range(4)]
    assert Page(panel.still()).all("b") == headings(panel)


def test_experts_of_stories_side_by_side_are_those_of_each_alone(model, panel):
    panel.also_at.value = "1.2"
    press(panel.generate)
    for column, temperature in zip(panel.columns, (0.8, 1.2), strict=True):
        alone = Reading(model, panel.prompt.value, 0, temperature=temperature)
        list(alone.tell(20))
        assert column.reading.words == alone.words


def test_a_story_that_ends_does_not_end_the_others(model):
    ending = storyteller(TEXT, seed=2)
    panel = story_demo(ending, endless=model)
    panel.temperature.value, panel.length.value = 2.0, 300
    press(panel.generate)
    assert [column.reading.ended for column in panel.columns] == [True, False]
    assert [text(panel, i) for i in (0, 1)] == [told(ending, panel), told(model, panel)]
    assert not panel.go_on.disabled and panel.status.value.startswith("done: ")


# What the model was thinking


def test_a_click_on_a_word_shows_its_rivals(panel):
    panel.temperature.value = 2.0
    press(panel.generate)
    column, outsiders = panel.columns[0], 0
    for place, word in enumerate(column.reading.words):
        column.words.index = place  # as the browser says it
        if place < column.reading.n_prompt:
            continue
        expected = [(column.reading.name(token), f"{p:.3f}") for token, p in word.rivals]
        me = (column.reading.name(word.token), f"{word.probability:.3f}")
        outsiders += me not in expected
        rows = table(column.details.value, "rivals")
        assert [tuple(row[:2]) for row in rows] == (expected if me in expected else [*expected, me])
        assert [tuple(row[:2]) for row in rows if "chosen" in row[2]] == [me]
        (chosen,) = Page(column.details.value).all("tr", "chosen")
        assert chosen.startswith("".join(me))
        assert Page(column.details.value).all("b") == [me[0]]
    assert outsiders > 0  # words that are not among the ten likeliest


def test_a_click_on_a_word_of_the_prompt_says_that_it_was_said(panel):
    panel.prompt.value = "A Zorblax cat"
    press(panel.generate)
    column = panel.columns[0]
    for place, name in enumerate(("a", "<unk>", "cat")):
        column.words.value = place
        assert Page(column.details.value).text.startswith(f"{name}: said by the prompt")
        assert table(column.details.value, "rivals") == []


def test_a_click_on_a_word_names_the_experts_that_read_it(panel):
    press(panel.generate)
    column = panel.columns[0]
    for place, word in enumerate(column.reading.words):
        column.words.value = place
        found = re.findall(r"layer (\d+): read by experts (\d+(?:, \d+)*)", Page(column.details.value).text)
        assert {int(n) - 1: [int(e) for e in experts.split(", ")] for n, experts in found} == word.experts


def test_the_load_of_the_experts_is_shown(panel):
    press(panel.generate)
    rows = table(panel.columns[0].load.value, "load")
    load = panel.columns[0].reading.expert_load()
    expected = [(e, count) for counts in load.values() for e, count in enumerate(counts)]
    assert [(int(name.removeprefix("expert ")), int(count)) for _, name, count in rows] == expected
    assert [layer for layer, _, _ in rows if layer] == [f"layer {i + 1}" for i in load]


def bars(source) -> list[int]:
    return [int(width) for width in re.findall(r'class="bar" style="width:(\d+)px', source)]


def test_bars_are_as_long_as_their_numbers(panel):
    press(panel.generate)
    column = panel.columns[0]
    place = max(range(4, 24), key=lambda place: column.reading.words[place].probability)
    column.words.value = place
    found = bars(column.details.value)
    chances = [p for _, p in column.reading.words[place].rivals]
    assert [width / max(found) for width in found] == pytest.approx([p / max(chances) for p in chances], abs=0.05)
    found = iter(bars(column.load.value))
    for load in column.reading.expert_load().values():
        widths = [next(found) for _ in load]
        assert [width / max(widths) for width in widths] == pytest.approx([n / max(load) for n in load], abs=0.05)


# Colours


def colours(panel) -> list[str]:
    """The background of each word's button."""
    rules = re.findall(r"nth-of-type\((\d+)\) \{.*?background:(.*?);", panel.columns[0].colours.value)
    assert [int(n) for n, _ in rules] == list(range(1, len(panel.columns[0].words.options) + 1))
    return [colour for _, colour in rules]


def test_colouring_changes_colours_and_nothing_else(panel):
    press(panel.generate)
    column = panel.columns[0]
    column.words.value = 7

    def rest():
        values = {w: w.value for w in all_widgets(column.box) if hasattr(w, "value") and w is not column.colours}
        return [[w.value for w in values if isinstance(w, widgets.HTML)], column.words, column.words.value, text(panel)]

    before, seen = rest(), []
    for option in panel.colouring._options_values:
        panel.colouring.value = option
        seen.append(colours(panel))
        assert rest() == before
        in_page = [a.get("style", "background:transparent") for t, a in Page(panel.still()).tags if t == "span"]
        assert in_page == [f"background:{colour}" for colour in seen[-1]]
    assert len(seen) == 4 and len(set(map(tuple, seen))) == 4
    assert set(seen[0]) == {"transparent"}


def test_a_growing_story_has_its_colours_already(panel, monkeypatch):
    monkeypatch.setattr("utils.panel.demo.EVERY", -1.0)
    for colouring in panel.colouring._options_values:
        panel.colouring.value = colouring
        press(panel.generate)
        growing = Page(panel.columns[0].text.value).tags
        whole = Page(panel.still()).tags
        spans = [[a for tag, a in tags if tag == "span"] for tags in (growing, whole)]
        assert spans[0][:20] == spans[1][:20]


def test_the_less_likely_a_word_the_redder_it_is(panel):
    press(panel.generate)
    panel.colouring.value = "by probability"
    reading = panel.columns[0].reading
    by_place = [float(c.rpartition(",")[2].rstrip(")")) if c != "transparent" else None for c in colours(panel)]
    assert by_place[: reading.n_prompt] == [None] * reading.n_prompt
    pairs = sorted(
        (w.probability, -a) for w, a in zip(reading.words, by_place, strict=True) if w.probability is not None
    )
    assert [a for _, a in pairs] == sorted(a for _, a in pairs) and pairs[0][1] < pairs[-1][1]


def test_words_of_one_expert_have_one_colour(panel):
    press(panel.generate)
    reading = panel.columns[0].reading
    for layer in reading.layers():
        panel.colouring.value = layer
        firsts = [word.experts[layer][0] if word.experts else None for word in reading.words]
        pairs = set(zip(firsts, colours(panel), strict=True))
        assert len(pairs) == len(dict(pairs)) == len({colour for _, colour in pairs}) > 2
        assert (None, "transparent") in pairs


def test_the_prompt_and_its_words_look_different(model):
    panel = panel_that_says(model, "", "The cat, the", " cat was a big cat, and the mom")
    expected = [*["prompt"] * 4, "again", "told", "told", "told", "again", "told", "told", "again", "told"]
    assert [a["class"] for t, a in Page(panel.still()).tags if t == "span"] == expected
    rules = panel.columns[0].colours.value.splitlines()
    looks = ["prompt" if "italic" in r else "again" if "underline" in r else "told" for r in rules[: len(expected)]]
    assert looks == expected


def test_words_stand_apart_where_the_story_has_a_space(panel):
    panel.prompt.value = 'One day, she said "the dogs\' big ball" and'
    press(panel.generate)
    column = panel.columns[0]
    rules = column.colours.value.splitlines()[: len(column.reading.words)]
    found = [re.search(r"margin:1px (\S+)em 1px (\S+)em", rule).groups() for rule in rules]
    right, left = ([float(pair[side]) for pair in found] for side in (0, 1))
    gaps = [round(after + before, 2) == GAP for after, before in zip(right, [*left[1:], 0.0], strict=True)]
    assert gaps == [word.text.startswith(" ") for word in column.reading.words[1:]] + [False]
    assert gaps[:7] == [True, False, True, True, True, False, True]


@pytest.mark.parametrize(
    "texts, lines",
    [
        (["The", " ball", ",", " red", "."], ["The", "ball,", "red."]),
        (["She", " said", ",", ' "', "Don", "'", "t", "!", '"'], ["She", "said,", '"Don\'t!"']),
        ([" yo", "-", "yo", " st", "ory"], ["yo-yo", "story"]),
        (
            ["我", "有", "球", "。", "你", "说", "：", "「", "好", "」"],
            ["我", "有", "球。", "你", "说：", "「好」"],
        ),
        (["a"] * 25, ["a" * MOST_HELD, "a" * MOST_HELD, "a" * (25 - 2 * MOST_HELD)]),
        ([], []),
    ],
)
def test_a_row_of_words_wraps_only_where_a_line_may_begin(texts, lines):
    """On every page that has room for the longest word. A row takes a button while all their widths and margins fit."""
    widest = max((sum(map(width_of, line)) for line in lines), default=0)
    starts = ["".join(lines[:n]) for n in range(len(lines))]
    for page in (widest + GAP + extra / 4 for extra in range(40)):
        rows, used = [], math.inf
        for text, (left, right) in zip(texts, margins(texts), strict=True):
            width = left + sum(map(width_of, text.strip())) + right
            used = used + width if used + width < page + 1e-9 else width
            rows = [*rows, ""] if used == width else rows
            rows[-1] += text.strip()
        assert all("".join(rows[:n]) in starts for n in range(len(rows))), rows


def test_colours_of_stories_side_by_side_do_not_mix(panel):
    panel.also_at.value = "1.2"
    press(panel.generate)
    for column in panel.columns:
        (mark,) = set(re.findall(r"\.(\S+) \.words", column.colours.value))
        assert [mark in c.box._dom_classes for c in panel.columns] == [c is column for c in panel.columns]


# While a story is told


def switched_off(panel) -> set[str]:
    buttons = [w for w in all_widgets(panel.box) if isinstance(w, widgets.Button)]
    return {button.description for button in buttons if button.disabled}


def test_while_a_story_is_told_only_stop_can_be_pressed(panel, monkeypatch):
    seen = []
    watch(monkeypatch, lambda _: seen.append(switched_off(panel)))
    assert switched_off(panel) == {"Stop"}
    for button in (panel.generate, panel.go_on):
        press(button)
        assert switched_off(panel) == {"Stop"}
    assert seen == [{"Generate", "Continue", "Clear", "Save"}] * 40


def test_nothing_disturbs_a_story_that_is_told(model, panel, monkeypatch, here, tmp_path):
    """Neither Enter nor what was pressed before the browser heard that it is disabled."""

    def disturb(_):
        enter(panel)
        for button in (panel.generate, panel.go_on, panel.clear, panel.save):
            button.click()
        panel.colouring.value = next(c for c in panel.colouring._options_values if c != panel.colouring.value)
        assert panel.columns[0].words is None  # no buttons before the end

    watch(monkeypatch, disturb)
    press(panel.generate)
    assert text(panel) == told(model, panel) and len(panel.columns) == 1
    assert list(tmp_path.iterdir()) == []


def test_stop_ends_a_story_and_continue_goes_on(model, panel, monkeypatch):
    watch(monkeypatch, lambda i: press(panel.stop) if i == 7 else None)
    press(panel.generate)
    assert len(panel.columns[0].reading.words) == panel.columns[0].reading.n_prompt + 7
    assert panel.status.value.startswith("stopped: 7 words") and switched_off(panel) == {"Stop"}
    (story,) = Page(panel.still()).all("div", "story")
    assert story == text(panel) and len(panel.columns[0].words.options) == len(panel.columns[0].reading.words)
    monkeypatch.undo()
    press(panel.go_on)
    assert text(panel) == told(model, panel, 27)


def test_beside_a_free_kernel_the_reader_gets_the_panel_back_at_once(model, monkeypatch):
    monkeypatch.setattr("IPython.get_ipython", lambda: SimpleNamespace(kernel=object()))
    panel = StoryDemo({"": model}, opening_words=6)
    reached, permit, finished = threading.Event(), threading.Event(), threading.Event()

    def wait(i):
        if i == 7:
            reached.set()
            assert permit.wait(SECONDS)

    watch(monkeypatch, wait)
    press(panel.generate)
    assert reached.wait(SECONDS) and panel.generate.disabled
    panel.status.observe(lambda change: finished.set() if "words/s" in change["new"] else None, names="value")
    press(panel.stop)
    permit.set()
    assert finished.wait(SECONDS)
    monkeypatch.undo()
    assert panel.status.value.startswith("stopped: 7 words") and text(panel) == told(model, panel, 7)


def test_in_the_queue_of_an_older_kernel_stop_is_heard_and_late_clicks_start_nothing(model, monkeypatch):
    kernel = QueueKernel()
    monkeypatch.setattr("IPython.get_ipython", lambda: SimpleNamespace(kernel=kernel))
    panel = StoryDemo({"": model}, opening_words=6)

    buttons = [panel.generate, panel.stop, panel.go_on]

    def click(i):
        if i == 7 and buttons:
            submit = {"event": "submit"}
            message = kernel.custom(panel.prompt, submit)
            kernel.arrive(message, handle=lambda _: panel.prompt._handle_custom_msg(submit, []))
        while i == 7 and buttons:
            kernel.click(buttons.pop(0))

    watch(monkeypatch, click)
    press(panel.generate)
    columns = panel.columns
    kernel.hand_out()
    assert panel.columns is columns and panel.status.value.startswith("stopped: 7 words")
    assert text(panel) == told(model, panel, 7)


def test_an_interrupt_ends_a_story_after_a_word_and_continue_goes_on(model, panel, monkeypatch):
    with monkeypatch.context() as patch:
        watch(patch, lambda i: i == 7 and signal.raise_signal(signal.SIGINT))
        press(panel.generate)
    assert panel.status.value.startswith("stopped: 7 words")
    press(panel.go_on)
    assert text(panel) == told(model, panel, 7 + panel.length.value)


# What goes wrong


def test_a_place_that_cannot_be_written_to_is_told(panel, here, tmp_path):
    (tmp_path / "stories").write_text("a file")
    press(panel.save)
    assert "stories" in Page(panel.status.value).text and panel.saved.value == ""
    assert (tmp_path / "stories").read_text() == "a file"


@pytest.mark.parametrize(
    "control, value, message",
    [
        ("also_at", "0.3, <b>warm", "'0.3, <b>warm' must be numbers with commas between, such as 0.3, 1.2"),
        ("also_at", "-1", "Sampling.temperature is -1.0, it must be 0 or more"),
        ("also_at", "nan", "Sampling.temperature is nan"),
    ],
)
@pytest.mark.parametrize("start", [lambda panel: press(panel.generate), enter])
def test_what_cannot_be_is_told_in_words_and_the_panel_stays_usable(model, panel, start, control, value, message):
    before, good = text(panel), getattr(panel, control).value
    getattr(panel, control).value = value
    start(panel)
    page = Page(panel.status.value)
    assert page.text.startswith(message) and [tag for tag, _ in page.tags] == ["div"]
    assert text(panel) == before and switched_off(panel) == {"Stop"}
    getattr(panel, control).value = good
    start(panel)
    assert text(panel) == told(model, panel) and "must be" not in panel.status.value


@pytest.mark.parametrize("error, message", [(RuntimeError("no <memory>"), "no <memory>"), (OSError(), "OSError")])
def test_an_error_in_the_middle_is_told_and_the_panel_stays_usable(model, panel, monkeypatch, error, message):
    def fail(i):
        if i == 5:
            raise error

    panel.also_at.value = "1.2"
    with monkeypatch.context() as patch:
        watch(patch, fail)
        press(panel.generate)
    page = Page(panel.status.value)
    assert page.text == message and [tag for tag, _ in page.tags] == ["div"]
    assert switched_off(panel) == {"Stop", "Continue"}
    for column, n in zip(panel.columns, (5, 4), strict=True):  # what there is, is shown
        assert len(column.words.options) == len(column.reading.words) == column.reading.n_prompt + n
        assert all(word.text for word in column.reading.words)
    press(panel.generate)
    assert text(panel) == told(model, panel) and panel.status.value.startswith("done")


@pytest.mark.parametrize("given", ["runs/x", Path("runs/x")])
def test_a_path_in_the_place_of_a_model_is_refused_with_the_line_that_loads_it(given, model):
    loads = re.escape("it must be a Kimi: model, step = load_model('runs/x'), from utils.checkpoint, gives one")
    with pytest.raises(ValueError, match=f"^the model is the path 'runs/x', {loads}$"):
        story_demo(given)
    with pytest.raises(ValueError, match=f"^the model 'before' is the path 'runs/x', {loads}$"):
        story_demo(model, before=given)


def test_all_that_load_model_returns_is_no_model(model):
    with pytest.raises(ValueError, match=r"the model is a tuple, it must be a Kimi: model, step = load_model\(path\)"):
        story_demo((model, 6))


def test_a_model_without_a_tokenizer_is_named(model, other):
    other.tokenizer = None
    with pytest.raises(ValueError, match="the model 'before' has no tokenizer"):
        story_demo(model, before=other)


# HTML


written = pytest.mark.parametrize(
    "prompt", [ATTACK, '"><img src=x onerror=alert(1)> a', "a &lt;b&gt; & 'c'", "<script>alert(1)"]
)
SAID = " <script>alert(1)</script> & <b>"  # by the model


@pytest.fixture
def attacked(model, prompt):
    """A panel whose title, prompt and story are full of HTML."""
    return panel_that_says(model, prompt, prompt, SAID)


def sources(root) -> list[str]:
    return [widget.value for widget in all_widgets(root) if isinstance(widget, widgets.HTML)]


def html_of(panel) -> set[tuple]:
    """All tags that a reader of the panel meets, with the names of their attributes and the scripts in these."""
    (column,), pages = panel.columns, [panel.still()]
    for place in range(len(column.words.options)):
        column.words.value = place
        pages.append(column.details.value)
    press(panel.save)
    pages += sources(panel.box)
    column.grow("by probability")
    pages += sources(panel.box)
    assert [re.findall(r"<(?!/?[a-z]).|&(?!#?\w+;).", page) for page in pages] == [[]] * len(pages)  # half escaped
    tags = (tag for page in pages for tag in Page(page).tags)
    return {(name, *a, *(value for key, value in a.items() if key.startswith("on"))) for name, a in tags}


@written
def test_nothing_that_was_written_becomes_html(model, attacked, here):
    harmless = panel_that_says(model, "a model", "a cat", ", and she was sad. The cat was in the park")
    assert html_of(attacked) == html_of(harmless)


@written
def test_all_that_was_written_can_be_read(attacked, prompt):
    (column,), page = attacked.columns, Page(attacked.still())
    (story,) = page.all("div", "story")
    assert story.startswith(prompt) and story.lower().replace(" ", "").endswith(SAID.replace(" ", ""))
    assert column.reading.text == story and headings(attacked) == page.all("b") == [prompt]
    column.grow("by probability")
    assert Page(column.text.value).text == story
    column.paint("by probability")
    (copied,) = (Page(source).all("textarea") for source in sources(column.box) if "<textarea" in source)
    assert copied == [story]
    column.words.value = column.reading.n_prompt  # the model's first word
    assert table(column.details.value, "rivals")[0][0] == Page(column.details.value).all("b")[0] == "<"


def test_in_every_place_a_page_has_something_to_show(panel):
    bundle = panel._repr_mimebundle_()
    assert set(bundle) == {"text/plain", "text/html", WIDGET_VIEW}
    assert bundle["text/plain"] == repr(panel) and "Jupyter or Colab" in repr(panel)
    assert bundle[WIDGET_VIEW]["model_id"] == panel.box.model_id
    assert Page(bundle["text/html"]).all("div", "story") == [text(panel)]
    press(panel.generate)
    assert Page(panel._repr_mimebundle_()["text/html"]).all("div", "story") == [text(panel)]


CORE = {
    "VBox", "HBox", "Box", "HTML", "Text", "Dropdown", "FloatSlider", "IntSlider", "BoundedIntText", "Button",
    "ToggleButtons", "Accordion",
}  # fmt: skip


def test_the_panel_is_made_of_widgets_that_every_notebook_has(panel):
    """Those of ipywidgets 7.7, which Colab has."""
    press(panel.generate)
    used = {type(widget) for widget in all_widgets(panel.box)}
    assert {kind.__name__ for kind in used} <= CORE
    assert all(getattr(widgets, kind.__name__) is kind for kind in used)


# Save


def links(panel) -> dict[str, bytes]:
    """By file name, what the links of the panel save."""
    found = [attributes for tag, attributes in Page(panel.saved.value).tags if tag == "a"]
    data = [re.fullmatch(r"data:(text/plain|application/json);base64,(\S+)", a["href"]) for a in found]
    return {a["download"]: base64.b64decode(match[2]) for a, match in zip(found, data, strict=True)}


def files() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(Path("stories").iterdir())}


def test_save_keeps_the_story_and_its_reading(panel, here):
    panel.prompt.value = ATTACK
    press(panel.generate)
    press(panel.save)
    saved = files()
    assert list(saved) == ["story-001.json", "story-001.txt"]
    assert saved["story-001.txt"].decode("utf-8") == text(panel) + "\n"
    (kept,) = json.loads(saved["story-001.json"])
    reading = json.loads(json.dumps(panel.columns[0].reading.to_dict()))
    assert kept == {"title": "", **reading} and kept["prompt"] == ATTACK
    assert links(panel) == saved


def test_save_keeps_all_stories_that_stand_side_by_side(panel, here):
    panel.also_at.value = "1.2"
    press(panel.generate)
    press(panel.save)
    saved = files()
    kept = json.loads(saved["story-001.json"])
    assert [(k["title"], k["text"]) for k in kept] == [
        (f"temperature {t}", text(panel, i)) for i, t in ((0, 0.8), (1, 1.2))
    ]
    expected = "".join(f"{k['title']}\n{k['text']}\n\n" for k in kept)
    assert saved["story-001.txt"].decode("utf-8").strip() == expected.strip()


def test_save_never_overwrites(panel, here):
    Path("stories").mkdir()
    Path("stories/story-002.txt").write_text("mine")
    saved = {}
    for number in (1, 3, 4):
        press(panel.generate)
        press(panel.save)
        assert set(links(panel)) == {f"story-{number:03d}.txt", f"story-{number:03d}.json"}
        saved |= links(panel)
        panel.seed.value += 1
    assert files() == {**saved, "story-002.txt": b"mine"}
    assert len(set(saved.values())) == 6


def test_a_new_story_takes_the_links_of_the_old_one_away(panel, here):
    press(panel.save)
    assert links(panel)
    press(panel.generate)
    assert links(panel) == {}


def test_where_nothing_is_told_nothing_is_saved(panel, here, tmp_path):
    press(panel.clear)
    panel.save.click()
    assert list(tmp_path.iterdir()) == [] and panel.saved.value == ""
