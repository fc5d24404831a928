"""The story demo in JupyterLab, in a real browser: what a reader clicks and types works as it should."""

import json
import time
from pathlib import Path

import pytest

from tests.browser import CHROMIUM, button, control, lab

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here (Debian: apt-get install chromium)")

# An untrained model ends a story by chance alone, and with this seed not for a thousand words: time to stop it.
CODE = """
from utils.config import KimiConfig
from utils.model import Kimi
from utils.panel.demo import story_demo
from utils.presets import PRESETS
from utils.stories import builtin_stories
from utils.tokenizer import WordTokenizer

tok = WordTokenizer.train(builtin_stories(300))
model = Kimi(KimiConfig.k2_mini(len(tok), **{**PRESETS["k2"]["laptop"].model, "n_layers": 6}))
model.tokenizer = tok
demo = story_demo(model)
demo.length.value, demo.seed.value = 500, 11
demo
"""
PROMPT = 'Lily <script>window.bad = 1</script> said "no" 🙂'
STORY = ".story-demo .story"


def test_a_reader_tells_stops_looks_and_saves(tmp_path: Path):
    with lab(CODE) as page:
        prompt = control(page, "Prompt")
        prompt.fill(PROMPT)
        button(page, "Generate").click()
        telling(page)
        lengths = [grown(page, more_than=len(PROMPT))]
        for _ in range(4):  # it grows under the reader's eyes
            lengths.append(grown(page, more_than=lengths[-1]))
        grown(page, more_than=len(PROMPT) + 200)
        waits = [stop(page, lambda: button(page, "Stop").click())]
        words = page.locator(".story-demo .words button")
        told = words.count()
        assert 20 < told < 500 and page.locator("text=/stopped: \\d+ words/").count() == 1
        assert "".join(words.all_inner_texts()).replace(" ", "").startswith(PROMPT.replace(" ", ""))
        assert page.evaluate("() => window.bad") is None

        words.nth(30).click()  # what did the model think of instead?
        rivals = page.locator(".story-demo table.rivals tr")
        rivals.first.wait_for()
        assert rivals.count() in (10, 11) and page.locator(".story-demo tr.chosen").count() == 1

        by_probability = colours(words)
        control(page, "Colour").select_option(label="by expert of layer 2")
        page.wait_for_function(f"() => {COLOUR_OF_30} !== {json.dumps(by_probability[30])}")
        assert 2 < len(set(colours(words))) <= 9  # eight experts, and none for what was not read

        button(page, "Continue").click()
        telling(page)
        grown(page, more_than=grown(page, more_than=0))
        waits.append(stop(page, lambda: page.keyboard.press("Escape")))
        assert words.count() > told

        prompt.press("Enter")
        telling(page)
        grown(page, more_than=len(PROMPT))
        waits.append(stop(page, lambda: page.keyboard.press("Escape")))
        assert min(waits) < 0.3, waits

        button(page, "Save").click()
        page.locator(".story-demo a[download]").nth(1).wait_for()
        for link in page.locator(".story-demo a[download]").all():
            with page.expect_download() as download:
                link.click()
            download.value.save_as(tmp_path / download.value.suggested_filename)
        (reading,) = json.loads((tmp_path / "story-001.json").read_text(encoding="utf-8"))
        assert reading["prompt"] == PROMPT and len(reading["words"]) == words.count()
        assert (tmp_path / "story-001.txt").read_text(encoding="utf-8").strip() == reading["text"]

        reached = set()  # everything by Tab alone
        prompt.focus()
        for _ in range(60):
            page.keyboard.press("Tab")
            reached.add(page.evaluate("() => document.activeElement.closest('.story-demo button')?.innerText"))
        assert {"Generate", "Continue", "Clear", "Roll a seed", words.nth(0).inner_text()} <= reached


def test_on_a_narrow_page_all_of_the_panel_can_be_seen():
    with lab(CODE, width=400) as page:
        page.locator(".story-demo .words button").nth(30).click()
        page.locator(".story-demo table.rivals tr").first.wait_for()
        page.locator(".story-demo summary").click()
        page.locator(".story-demo").get_by_text("More settings").click()
        page.wait_for_function(f"() => document.querySelector('{LAST_SLIDER}').offsetWidth > 0")
        assert page.evaluate(BEYOND) == []

        button(page, "Clear").click()
        page.locator(".story-demo .stories:empty").wait_for()
        hint = page.evaluate("() => getComputedStyle(document.querySelector('.stories'), '::before').content")
        assert "Generate" in hint


def test_no_line_begins_with_a_sign_that_belongs_to_the_word_before():
    """At every width of the page, and on two lines or more."""
    with lab(CODE) as page:
        control(page, "Prompt").fill(" ".join(["Lily said, \"Don't!\" She ran; the dogs' ball was (so) big."] * 6))
        button(page, "Generate").click()
        telling(page)
        stop(page, lambda: button(page, "Stop").click())
        rows = set()
        for width in range(420, 1200, 13):
            page.set_viewport_size({"width": width, "height": 1000})
            lines = page.evaluate(LINES)
            rows.add(len(lines))
            assert [line for line in lines if line[0] in ",.;!)"] == [] and [
                line for line in lines if line[-1] == "("
            ] == []
        assert len(rows) > 3


# The words of the story by line, as one text each.
LINES = """() => {
  const lines = {};
  for (const word of document.querySelectorAll('.story-demo .words button'))
    lines[word.offsetTop] = (lines[word.offsetTop] ?? '') + word.innerText;
  return Object.values(lines);
}"""
LAST_SLIDER = ".story-demo .widget-slider:last-child"
# What sticks out of the panel: what is written in it, and its class.
BEYOND = """() => {
  const panel = document.querySelector('.story-demo'), right = panel.getBoundingClientRect().right;
  const seen = [...panel.querySelectorAll('*')].filter(e => e.offsetWidth > 1 && getComputedStyle(e).opacity > 0);
  return seen.filter(e => e.getBoundingClientRect().right > right + 1).map(e => [e.innerText, e.className]);
}"""
COLOUR_OF_30 = "getComputedStyle(document.querySelectorAll('.story-demo .words button')[30]).backgroundColor"


def colours(words) -> list[str]:
    return words.evaluate_all("all => all.map(word => getComputedStyle(word).backgroundColor)")


def telling(page) -> None:
    """Wait until the page shows that a story is told: until then the status and the story are still those before."""
    page.wait_for_selector("text='telling ...'")


def grown(page, more_than: int) -> int:
    """Wait until the story on the page is longer; its length."""
    page.wait_for_function(f"() => document.querySelector('{STORY}')?.innerText.length > {more_than}")
    return len(page.locator(STORY).inner_text())


def stop(page, act) -> float:
    """Seconds from the reader's act to a stopped story."""
    start = time.monotonic()
    act()
    page.wait_for_selector("text=/stopped: \\d+ words/")
    return time.monotonic() - start
