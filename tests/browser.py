"""JupyterLab with the story demo in a headless Chromium, on this machine alone.

python -m tests.browser RUN FOLDER takes pictures of the demo's states with the model of a run: light and dark, wide and
narrow. It needs `chromium` (Debian: apt-get install chromium) and the tests' requirements.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import nbformat

HOME = Path(__file__).resolve().parents[1]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip
# Running the cells before the kernel is connected and idle would run nothing, without an error.
RUN_ALL = """async () => {
  const app = window.jupyterapp, wait = ms => new Promise(done => setTimeout(done, ms));
  await app.restored;
  let panel;
  while (!((panel = app.shell.currentWidget) && panel.context)) await wait(50);
  await panel.context.ready;
  const session = panel.context.sessionContext;
  await session.ready;
  const kernel = session.session.kernel;
  await kernel.info;
  while (kernel.connectionStatus !== 'connected' || kernel.status !== 'idle') await wait(50);
  app.shell.collapseLeft();
  return await app.commands.execute('notebook:run-all-cells');
}"""
SETTINGS = {
    "apputils-extension/notification": '{"fetchNews": "false", "checkForUpdates": false}',
    "notebook-extension/tracker": '{"windowingMode": "none"}',
}


@contextlib.contextmanager
def lab(code: str, theme: str = "JupyterLab Light", width: int = 1200) -> Iterator:
    """A Playwright page with a notebook of one cell, `code`, that has been run. Everything is removed afterwards."""
    from playwright.sync_api import sync_playwright

    with contextlib.ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lab-", ignore_cleanup_errors=True)))
        cell = nbformat.v4.new_code_cell(code, metadata={"jupyter": {"source_hidden": True}})
        (home / "work").mkdir()
        kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}  # else JupyterLab asks for one
        notebook = nbformat.v4.new_notebook(cells=[cell], metadata={"kernelspec": kernel})
        nbformat.write(notebook, home / "work" / "demo.ipynb")
        address = stack.enter_context(_server(home, theme))
        playwright = stack.enter_context(sync_playwright())
        browser = playwright.chromium.launch_persistent_context(
            str(home / "profile"), executable_path=CHROMIUM, headless=True, args=FLAGS,
            viewport={"width": width, "height": 1000},
        )  # fmt: skip
        stack.callback(browser.close)
        page = browser.pages[0]
        page.set_default_timeout(20_000)
        page.goto(address, wait_until="domcontentloaded")
        page.wait_for_function("() => !!window.jupyterapp")
        assert page.evaluate(RUN_ALL), "the cells did not run"
        page.locator(".story-demo .words").first.wait_for()
        yield page


@contextlib.contextmanager
def _server(home: Path, theme: str) -> Iterator[str]:
    """The address of the notebook in a JupyterLab that knows nothing of the user's own settings."""
    themes = {"apputils-extension/themes": f'{{"theme": "{theme}"}}'}
    for setting, value in {**SETTINGS, **themes}.items():
        path = home / "settings" / "@jupyterlab" / f"{setting}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(value)
    folders = ("CONFIG", "RUNTIME", "DATA")
    environment = {
        **os.environ, "HOME": str(home), "IPYTHONDIR": str(home / "ipython"), "PYTHONPATH": str(HOME),
        "JUPYTERLAB_SETTINGS_DIR": str(home / "settings"), "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"),
        **{f"JUPYTER_{folder}_DIR": str(home / folder.lower()) for folder in folders},
    }  # fmt: skip
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    token, base = secrets.token_hex(12), f"http://127.0.0.1:{port}"
    options = ["--no-browser", "--allow-root", "--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}",
               f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={home / 'work'}",
               "--LabApp.expose_app_in_browser=True", "--LabApp.extension_manager=readonly"]  # fmt: skip
    with open(home / "server.log", "w") as log:
        server = subprocess.Popen([sys.executable, "-m", "jupyterlab", *options], env=environment, cwd=home / "work",
                                  stdout=log, stderr=log, start_new_session=True)  # fmt: skip
    try:
        while not _answers(f"{base}/api"):
            if server.poll() is not None:
                raise RuntimeError(f"JupyterLab did not start:\n{(home / 'server.log').read_text()}")
            time.sleep(0.1)
        yield f"{base}/lab/tree/demo.ipynb?token={token}&reset"
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)


def _answers(address: str) -> bool:
    try:
        urllib.request.urlopen(address, timeout=10)
    except OSError:
        return False
    return True


def control(page, label: str):
    """The text field, slider or choice of the demo with this label."""
    row = page.locator(".story-demo .widget-inline-hbox", has=page.locator("label", has_text=label))
    return row.locator("input, select").first


def button(page, name: str):
    return page.locator(".story-demo").get_by_role("button", name=name, exact=True)


def take_pictures(run: str, folder: str) -> None:
    """Every state of the demo as PNG files."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    code = f"""
from utils.checkpoint import load_model
from utils.model import Kimi
from utils.panel.demo import story_demo

model, _ = load_model({str(Path(run).resolve())!r})
newborn = Kimi(model.config)
newborn.tokenizer = model.tokenizer
demo = story_demo(model)
pair = story_demo(model, untrained=newborn)
demo
"""
    for theme, width in (("Light", 1200), ("Dark", 1200), ("Light", 600), ("Dark", 400)):
        with lab(code, f"JupyterLab {theme}", width) as page:

            def picture(state: str, page=page, theme=theme, width=width) -> None:
                name = f"{state}-{theme.lower()}-{width}.png"
                page.locator(".story-demo").first.screenshot(path=f"{folder}/{name}", animations="disabled")

            picture("1-opened")
            control(page, "Prompt").fill("Lily lost her red ball. She")
            button(page, "Generate").click()
            page.wait_for_function("() => document.querySelector('.story-demo .story')?.innerText.length > 150")
            picture("2-telling")
            page.wait_for_selector("text=/words\\/s/")
            page.locator(".story-demo .words button").nth(12).click()
            picture("3-word")
            control(page, "Colour").select_option(index=2)
            page.locator(".story-demo summary").first.click()
            picture("4-experts")
            control(page, "and at").fill("0.3, 1.5")
            page.keyboard.press("Tab")
            button(page, "Generate").click()
            page.wait_for_selector("text='telling ...'")  # until then the status is that of the story before
            page.wait_for_selector("text=/words\\/s/")
            button(page, "Save").click()
            page.wait_for_selector("text=/download/")
            picture("5-side-by-side")
            control(page, "and at").fill("warm")
            page.keyboard.press("Tab")
            button(page, "Generate").click()
            page.wait_for_selector("text=/must be numbers/")
            picture("6-error")
            button(page, "Clear").click()
            page.wait_for_selector(".story-demo .words", state="detached")
            picture("7-empty")


if __name__ == "__main__":
    if CHROMIUM is None or len(sys.argv) != 3:
        sys.exit(__doc__)
    take_pictures(*sys.argv[1:])
