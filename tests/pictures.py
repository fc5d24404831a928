"""The pictures of the README: python -m tests.pictures RUN

Draws docs/model.svg, and films the story demo with the model of a run, such as the one that notebook 06 leaves, into
docs/story_demo.webp. The film needs `chromium` (Debian: apt-get install chromium) and the tests' requirements.
"""

from __future__ import annotations

import io
import sys
import time
from itertools import pairwise
from pathlib import Path

from PIL import Image  # comes with matplotlib

from tests.browser import CHROMIUM, HOME, button, control, lab
from utils.course.drawings import the_model

CODE = """
from utils.checkpoint import load_model
from utils.panel.demo import story_demo

model, _ = load_model({run!r})
demo = story_demo(model)
demo
"""
PROMPT = "Lily lost her red ball."
# Of the told words the one with the deepest orange. The colours are veils: the fourth number says how deep.
LEAST_EXPECTED = """words => {
  const depth = words.map(word => Number(getComputedStyle(word).backgroundColor.match(/[\\d.]+/g)[3] ?? 1));
  return depth.indexOf(Math.max(...depth.slice(12)), 12);
}"""
EVERY = 0.25  # seconds between two pictures


def film_demo(run: str, target: Path) -> None:
    """A prompt is typed, the story told, one of its words looked at, and all coloured by their expert."""
    frames = []
    with lab(CODE.format(run=str(Path(run).resolve())), width=980) as page:
        panel = page.locator(".story-demo").first

        def film(seconds: float = 0) -> None:
            until = time.monotonic() + seconds
            while True:
                began = time.monotonic()
                shot = Image.open(io.BytesIO(panel.screenshot(animations="disabled"))).convert("RGB")
                frames.append((shot, time.monotonic()))
                if began + EVERY > until:
                    break
                time.sleep(max(0.0, began + EVERY - time.monotonic()))

        prompt = control(page, "Prompt")
        for end in (*range(0, len(PROMPT), 4), len(PROMPT)):
            prompt.fill(PROMPT[:end])
            film()
        button(page, "Generate").click()
        while page.locator("text=/words\\/s/").count() == 0:
            film()
        film(2)
        words = page.locator(".story-demo .words button")
        words.nth(words.evaluate_all(LEAST_EXPECTED)).click()
        page.locator(".story-demo table.rivals tr").first.wait_for()
        film(3)
        control(page, "Colour").select_option(index=2)
        film(4)
    height = max(shot.height for shot, _ in frames)
    pictures = []
    for shot, _ in frames:  # the panel grows: all pictures as tall as the last
        page = Image.new("RGB", (shot.width, height), "white")
        page.paste(shot)
        pictures.append(page)
    times = [when for _, when in frames]
    lasts = [round(1000 * (b - a)) for a, b in pairwise(times)] + [2500]
    pictures[0].save(target, save_all=True, append_images=pictures[1:], duration=lasts, loop=0, quality=60, method=6)
    print(f"{target}: {len(pictures)} pictures, {sum(lasts) / 1000:.0f} s, {target.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    if len(sys.argv) != 2 or CHROMIUM is None:
        sys.exit(__doc__)
    (HOME / "docs" / "model.svg").write_text(the_model()._repr_svg_(), encoding="utf-8")
    film_demo(sys.argv[1], HOME / "docs" / "story_demo.webp")
