"""The playground as its user has it: the notebook in JupyterLab, in a browser.

Needs the extra `browser` (JupyterLab, Playwright) and a Chromium on PATH; skipped without them.
"""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

import pytest

pytest.importorskip("jupyterlab", reason="JupyterLab is not installed: pip install -e '.[browser]'")
from test_book_in_browser import CHROMIUM, browsers, opened, shoot  # which skips without Playwright

pytestmark = [
    pytest.mark.site,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH: apt-get install chromium"),
]
NOTEBOOK = Path(__file__).parent.parent / "notebooks/playground.ipynb"
PATIENCE = 180_000  # milliseconds: a kernel's first call compiles


@pytest.fixture
def page(tmp_path):
    """A tab of Chromium in which JupyterLab has the notebook open, its kernel connected."""
    shutil.copy(NOTEBOOK, tmp_path)
    settings = tmp_path / "config/lab/user-settings/@jupyterlab/apputils-extension"
    settings.mkdir(parents=True)  # a question about news would take the focus when it closes
    (settings / "notification.jupyterlab-settings").write_text('{"fetchNews": "false"}')
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    folders = {f"JUPYTER_{n}_DIR": str(tmp_path / n.lower()) for n in ("CONFIG", "DATA", "RUNTIME")}
    log = tmp_path / "lab.log"
    lab = subprocess.Popen(
        [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}",
         "--IdentityProvider.token=", f"--ServerApp.root_dir={tmp_path}"],
        env={**os.environ, **folders, "IPYTHONDIR": str(tmp_path / "ipython")},
        stdout=log.open("w"), stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"{address}/api")
                break
            except OSError:
                assert lab.poll() is None, log.read_text()
                time.sleep(0.2)
        with opened(viewport={"width": 1500, "height": 1100}) as page:
            page.set_default_timeout(PATIENCE)
            _open(page, f"{address}/lab/tree/{NOTEBOOK.name}", log)
            yield page
            shoot(page, "last")
    finally:
        lab.terminate()
        lab.wait(30)


def _open(page, address, log):
    """Open a notebook, and again if JupyterLab does not connect to its kernel: once it did not."""
    for _ in range(3):
        page.goto(address)
        with suppress(browsers.TimeoutError):
            page.get_by_text(re.compile(r"\| Idle")).wait_for(timeout=PATIENCE / 2)
            return
    pytest.fail(f"No kernel.\n{page.locator('body').inner_text()}\n{log.read_text()}")


def test_play_stop_change_and_go_on(page):
    page.locator(".jp-CodeCell .cm-content").first.click()
    page.keyboard.press("Shift+Enter")
    start = page.get_by_role("button", name="Start a new run")
    start.scroll_into_view_if_needed()
    shoot(page, "panel")

    def slider(name):
        row = page.locator(".widget-hslider", has_text=re.compile(rf"^{name}"))
        return row.locator(".widget-readout")

    def set_to(name, value):
        slider(name).fill(str(value))
        slider(name).press("Enter")

    set_to("epochs", 500)
    start.click()
    live = page.get_by_text(re.compile(r"run 1: training, epoch \d+ of 500"))
    live.wait_for()
    page.get_by_text(re.compile(r"run 1: training, epoch \d\d+ of 500")).wait_for()
    shoot(page, "live")
    page.get_by_role("button", name="Stop").click()
    stopped = page.get_by_text(re.compile(r"run 1: stopped, epoch \d+ of 500"))
    stopped.wait_for(timeout=10_000)
    done = int(re.search(r"epoch (\d+)", stopped.inner_text())[1])
    assert 10 <= done < 500

    set_to("alpha", 0.1)
    set_to("epochs", done + 5)
    page.get_by_role("button", name="Continue").click()
    page.get_by_text(f"run 1: finished, epoch {done + 5} of {done + 5}").wait_for()
    set_to("epochs", 20)
    set_to("zeta", 0)
    start.click()
    page.get_by_text("run 2: finished, epoch 20 of 20").wait_for()
    table = page.locator(".jp-RenderedHTMLCommon, .widget-html", has_text="alpha 0.1").last
    assert f"from epoch {done + 1} alpha 0.1" in table.inner_text()
    assert page.locator("img.widget-image").evaluate("i => i.naturalWidth") > 500
    shoot(page, "compared")

    set_to("workers", 2)
    set_to("epochs", 60)
    start.click()
    page.get_by_text(re.compile("run 3: (finished|failed)")).wait_for()
    assert page.get_by_text("run 3: finished, epoch 60 of 60").is_visible()
    shoot(page, "engines")
