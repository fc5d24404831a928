"""Words a second of the story demo against `generate` alone, in one kernel, in a browser: python -m tests.bench.demo

JupyterLab runs with a headless Chromium on this machine. Stories of the panel and of `generate`, of the same words, are
told in turn (A B A B ...) in the same kernel; the first pairs are left out. The panel tells with one thread of torch;
with OMP_NUM_THREADS=1 `generate` does so too, which for this small model is its fastest. The browser needs a core of
its own: on a busy machine the ratio is lower. It needs `chromium` (Debian: apt-get install chromium). Two minutes.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import sys

from tests.bench.measure import HEADER, Row, machine
from tests.browser import CHROMIUM, button, lab

# An untrained model tells at the speed of a trained one, and with this seed a story ends only after a thousand words.
CODE = """
import time
import ipywidgets as widgets
from utils.config import KimiConfig
from utils.generation import generate
from utils.model import Kimi
from utils.panel.demo import story_demo
from utils.presets import PRESETS
from utils.stories import builtin_stories
from utils.tokenizer import WordTokenizer

tok = WordTokenizer.train(builtin_stories(300))
model = Kimi(KimiConfig.k2_mini(len(tok), **PRESETS["k2"]["laptop"].model))
model.tokenizer = tok
demo = story_demo(model)
demo.length.value, demo.seed.value = {words}, 11
alone, answer = widgets.Button(description="Alone"), widgets.HTML()

def tell(_):
    answer.value, began = "", time.monotonic()
    generate(model, demo.prompt.value, demo.length.value, seed=demo.seed.value)
    answer.value = f"alone: {{demo.length.value / (time.monotonic() - began):.1f}} words/s"

alone.on_click(tell)
demo.box.children = [*demo.box.children, alone, answer]
demo
"""


def told(page, name: str, before: str) -> float:
    """Words a second of a story that a button starts; its answer begins with `before`."""
    button(page, name).click()
    found = page.locator(f"text=/^{before}: .* words/")
    found.wait_for(state="detached")  # that of the story before
    found.wait_for()
    return float(re.search(r"([\d.]+) words/s", found.inner_text())[1])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.demo", description=__doc__)
    parser.add_argument("--pairs", type=int, default=15, help="of stories (default: 15)")
    parser.add_argument("--words", type=int, default=300, help="of a story (default: 300)")
    args = parser.parse_args()
    if CHROMIUM is None:
        sys.exit(__doc__)
    with lab(CODE.format(words=args.words)) as page:
        page.set_default_timeout(120_000)
        pairs = [(told(page, "Generate", "done"), told(page, "Alone", "alone")) for _ in range(2 + args.pairs)][2:]
    ours, alone = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(a / b for a, b in pairs)
    row = Row(f"the demo in JupyterLab, laptop, {args.words} words", "generate alone in its kernel", "words/s", ours,
              alone, ratio, "0.9 x")  # fmt: skip
    load = ", ".join(f"{load:.1f}" for load in os.getloadavg())
    print(f"{machine('fp32')}; load {load}\n\n{HEADER}\n{row.line()}")
    print("pairs:", ", ".join(f"{a / b:.2f}" for a, b in pairs))


if __name__ == "__main__":
    main()
