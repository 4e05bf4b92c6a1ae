"""A notebook in JupyterLab, in a real browser: opened, run, and its explorers moved.

    with serve(folder) as server, open_lab(server, "lesson.ipynb", browser) as page:
        run_all(page, seconds=600)
        for explorer in explorers(page):
            for control in controls(explorer):
                move(explorer, control)

JupyterLab is started as `make lab` starts it, with throw-away settings. An *explorer* is any
widget with the CSS class `slam-explorer`; it holds sliders or menus, and one image (class
`slam-explorer-figure`) that is drawn anew when one of them moves. slam_course.widgets makes them.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from playwright.sync_api import Browser, Locator, Page, Playwright
from playwright.sync_api import Error as PlaywrightError

from tools.bootstrap import clean_environment, lab_command
from tools.notebooks import KERNEL_ENV, normalise

IS_ROOT = hasattr(os, "geteuid") and os.geteuid() == 0

# Settings of a fresh JupyterLab that would disturb a test.
SETTINGS = {
    # No "may we fetch news?" pop-up, and no look-up of newer versions over the network.
    "@jupyterlab/apputils-extension/notification": {
        "fetchNews": "false",
        "checkForUpdates": False,
    },
    # All cells in the page at once; by default only those in view are.
    "@jupyterlab/notebook-extension/tracker": {"windowingMode": "none"},
}

PATIENCE = 300  # seconds until something counts as hanging, on a machine that is busy too
PANEL = ".jp-NotebookPanel"
ERRORS = (
    f"{PANEL} .jp-OutputArea-output[data-mime-type='application/vnd.jupyter.error'], "
    f"{PANEL} .jp-OutputArea-output[data-mime-type='application/vnd.jupyter.stderr']"
)
PICTURE = "img.slam-explorer-figure"
CONTROL = ".noUi-handle, select"
ARROWS = ("ArrowRight", "ArrowLeft")


class LabError(AssertionError):
    """The notebook did in the browser what it must not do."""


@dataclass(frozen=True, kw_only=True)
class Server:
    """A running JupyterLab on a folder."""

    url: str
    token: str
    folder: Path


def copy_lesson(source: Path, server: Server) -> str:
    """A lesson in the server's folder, without outputs: what is seen later was made there."""
    nb = nbformat.read(source, as_version=4)
    nb.metadata.pop("widgets", None)
    for cell in nb.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    nbformat.write(nb, server.folder / source.name)
    if (source.parent / "img").is_dir():
        shutil.copytree(source.parent / "img", server.folder / "img", dirs_exist_ok=True)
    return source.name


@contextmanager
def serve(folder: Path) -> Iterator[Server]:
    """JupyterLab on `folder`, as `make lab` starts it, with settings that are thrown away.

    Raises:
        LabError: it ends, or does not answer; the message holds its log.
    """
    with tempfile.TemporaryDirectory(prefix="slam_edu_lab_", ignore_cleanup_errors=True) as name:
        home = Path(name)
        for setting, value in SETTINGS.items():
            path = home / "settings" / f"{setting}.jupyterlab-settings"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(value))
        environ = {
            **clean_environment(),
            # As where the outputs were made, but for the progress bars: they belong to the page.
            **{key: value for key, value in KERNEL_ENV.items() if key != "TQDM_DISABLE"},
            "JUPYTER_CONFIG_DIR": str(home / "config"),
            "JUPYTER_RUNTIME_DIR": str(home / "runtime"),
            "JUPYTERLAB_SETTINGS_DIR": str(home / "settings"),
            "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"),
            "IPYTHONDIR": str(home / "ipython"),
        }
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        extra = ["--no-browser", f"--ServerApp.port={port}"]
        command = lab_command(Path(sys.executable), folder, "", extra)
        with open(home / "log", "w+b") as log:
            process = subprocess.Popen(command, cwd=folder, env=environ, stdout=log, stderr=log)
            try:
                yield _wait_for_server(process, home, folder)
            finally:
                process.terminate()
                try:
                    process.wait(20)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()


def _wait_for_server(process: subprocess.Popen, home: Path, folder: Path) -> Server:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and process.poll() is None:
        # Jupyter writes its address and its token into this file once it listens.
        for path in (home / "runtime").glob("jpserver-*.json"):
            try:
                record = json.loads(path.read_text())
                urllib.request.urlopen(record["url"] + "login", timeout=5).close()
            except (ValueError, OSError):  # half written; not yet listening
                continue
            return Server(url=record["url"], token=record["token"], folder=folder)
        time.sleep(0.1)
    log = (home / "log").read_text(errors="replace")[-3000:]
    raise LabError(f"JupyterLab did not start:\n{log}")


def refuses_strangers(server: Server) -> bool:
    """Whether the server turns a request without its token away."""
    try:
        urllib.request.urlopen(f"{server.url}api/contents", timeout=10).close()
    except urllib.error.HTTPError as error:
        return error.code == 403
    return False


def end_kernels(server: Server) -> None:
    """Shut the kernels down, so that their memory is free for the next lesson."""

    def ask(path: str, method: str) -> bytes:
        headers = {"Authorization": f"token {server.token}"}
        request = urllib.request.Request(server.url + path, method=method, headers=headers)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.read()

    for kernel in json.loads(ask("api/kernels", "GET")):
        ask(f"api/kernels/{kernel['id']}", "DELETE")


def launch(playwright: Playwright, executable: str) -> Browser:
    """A headless Chromium that makes no connection of its own."""
    return playwright.chromium.launch(
        executable_path=executable,
        # Chromium has no sandbox for root, and does not start without being told so.
        chromium_sandbox=not IS_ROOT,
        args=[
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-gpu",
            "--disable-quic",
            "--disable-sync",
            "--no-first-run",
        ],
    )


@contextmanager
def open_lab(server: Server, notebook: str, browser: Browser) -> Iterator[Page]:
    """A page with a notebook open in JupyterLab and its kernel ready; a failure on it leaves a
    screenshot."""
    context = browser.new_context(viewport={"width": 1280, "height": 1000})
    page = context.new_page()
    page.slam_faults = []  # errors that JavaScript did not catch
    page.on("pageerror", lambda error: page.slam_faults.append(str(error)))
    try:
        page.goto(f"{server.url}lab/tree/{notebook}?reset&token={server.token}")
        page.locator(f"{PANEL} .jp-Cell").first.wait_for(timeout=1000 * PATIENCE)
        # The status bar's word counts: the toolbar's circle says idle before a kernel exists,
        # and "Run All" would then ask which kernel to use.
        page.locator("#jp-bottom-panel", has_text="| Idle").wait_for(timeout=1000 * PATIENCE)
        yield page
    except Exception:
        with suppress(PlaywrightError):  # a crashed page has nothing to show
            save_shot(page, f"{Path(notebook).stem}-failed")
        raise
    finally:
        context.close()
        end_kernels(server)


def run_all(page: Page, seconds: float) -> None:
    """Run > Run All Cells, until every code cell has finished.

    Raises:
        LabError: a cell shows an error or writes to stderr, or time is up; names what and where.
    """
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    deadline = time.monotonic() + seconds
    prompts = page.locator(f"{PANEL} .jp-CodeCell .jp-InputArea-prompt")
    while True:
        _check_outputs(page)
        texts = [text.strip() for text in prompts.all_text_contents()]
        left = [number for number, text in enumerate(texts, 1) if not text.strip("[]:").isdigit()]
        if texts and not left:
            break
        if time.monotonic() > deadline:
            raise LabError(f"after {seconds:g} s code cells {left} of {len(texts)} have not run")
        page.wait_for_timeout(200)
    page.wait_for_timeout(500)  # for the last outputs to be drawn
    _check_outputs(page)
    if page.locator(f"{PANEL} .jupyter-widgets-error-widget").count():
        raise LabError("a widget could not be drawn")
    for text in ("Error displaying widget", "Loading widget"):
        if page.locator(f"{PANEL} .jp-OutputArea", has_text=text).count():
            raise LabError(f"the page says {text!r}")
    if page.slam_faults:
        raise LabError(f"JavaScript failed: {page.slam_faults[0]}")


def saved(page: Page, path: Path) -> NotebookNode:
    """The notebook as JupyterLab saves it at `path`, its outputs made canonical.

    Raises:
        LabError: it is not saved with all its outputs.
    """
    page.keyboard.press("Control+s")
    read: list[NotebookNode] = []

    def written() -> bool:
        with suppress(ValueError):  # half written
            nb = nbformat.read(path, as_version=4)
            if all(c.execution_count for c in nb.cells if c.cell_type == "code" and c.source):
                read.append(nb)
        return bool(read)

    _wait_until(written, PATIENCE, f"{path.name} to be saved with its outputs")
    return normalise(read[0])


def _check_outputs(page: Page) -> None:
    wrong = page.locator(ERRORS)
    if wrong.count():
        text = wrong.first.inner_text()
        raise LabError(f"a cell shows an error or writes to stderr:\n{text[-1500:]}")


def explorers(page: Page) -> list[Locator]:
    """The explorers on the page, each with its picture loaded."""
    found = page.locator(".slam-explorer").all()
    for explorer in found:
        _wait_until(
            lambda box=explorer: _picture(box)["width"] > 0, PATIENCE, "an explorer's picture"
        )
    return found


def controls(explorer: Locator) -> list[Locator]:
    """The handles of an explorer's sliders, and its menus, in the order of the page."""
    return explorer.locator(CONTROL).all()


def move(explorer: Locator, control: Locator, seconds: float = PATIENCE) -> None:
    """Move a control by one step and wait for another picture.

    A slider is moved with a key, as by a learner without a mouse: to the left if it stands at its
    right end already.

    Raises:
        LabError: the control does not move, or the picture stays the same.
    """
    control.scroll_into_view_if_needed()
    before = _picture(explorer)["src"]
    if control.evaluate("node => node.tagName") == "SELECT":
        chosen = control.evaluate("node => node.selectedIndex")
        count = control.evaluate("node => node.options.length")
        if count < 2:
            raise LabError("a menu offers no second choice")
        control.select_option(index=(chosen + 1) % count)
    else:
        place = control.get_attribute("aria-valuenow")
        control.focus()
        for key in ARROWS:
            control.press(key)
            if control.get_attribute("aria-valuenow") != place:
                break
        else:
            raise LabError(f"a slider does not move from {place}")

    def drawn() -> bool:
        now = _picture(explorer)
        return now["src"] != before and now["width"] > 0

    _wait_until(drawn, seconds, "another picture after a control was moved")


def _picture(explorer: Locator) -> dict:
    """Address and width of an explorer's image; the width is 0 until it is loaded."""
    image = explorer.locator(PICTURE).first
    return image.evaluate(
        "node => ({src: node.src, width: node.complete ? node.naturalWidth : 0})"
    )


def _wait_until(condition, seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise LabError(f"waited {seconds:g} s in vain for {what}")
        time.sleep(0.05)  # asking costs the browser time, which the kernel's plot could use


def save_shot(target: Page | Locator, name: str) -> None:
    """A screenshot as NAME.png in $SLAM_EDU_SHOTS, or below the system's temporary folder."""
    named = os.environ.get("SLAM_EDU_SHOTS")
    folder = Path(named) if named else Path(tempfile.gettempdir()) / "slam_edu_shots"
    folder.mkdir(parents=True, exist_ok=True)
    target.screenshot(path=folder / f"{name}.png")
    print(f"screenshot: {folder / name}.png")
