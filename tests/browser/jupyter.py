"""A JupyterLab server for tests, and what one does in it: open a notebook, run it, save it, look at the reports."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
from nbformat.sign import NotebookNotary, SQLiteSignatureStore

ROOT = Path(__file__).resolve().parents[2]

#: What runs first in every test notebook.
LOAD = "import time, torch, pandas\n%load_ext ipyvram"

TRAIN = """\
%%vram three steps
model = torch.nn.Sequential(torch.nn.Linear(256, 512), torch.nn.ReLU(), torch.nn.Linear(512, 10))
optimizer = torch.optim.Adam(model.parameters())
for _ in range(3):
    optimizer.zero_grad()
    model(torch.randn(64, 256)).square().mean().backward()
    optimizer.step()
"""


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def notebook(*cells: str, outputs: list[dict[str, Any]] | None = None) -> nbformat.NotebookNode:
    """A notebook of code cells; ``outputs`` are MIME bundles, each under a cell of its own after the others."""
    node = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells])
    for data in outputs or []:
        output = nbformat.v4.new_output("display_data", data=data)
        node.cells.append(nbformat.v4.new_code_cell("pass", outputs=[output], execution_count=1))
    node.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return node


class Server:
    """JupyterLab, with Notebook 7 beside it, on the loopback interface and with settings of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.url = folder, f"http://127.0.0.1:{free_port()}"
        self._data = folder / ".data"
        (folder / "files").mkdir()
        command = [
            sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1",
            f"--port={self.url.rpartition(':')[2]}", "--IdentityProvider.token=", "--ServerApp.password=",
            "--LabApp.expose_app_in_browser=True", "--LabApp.news_url=None",
            "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
            f"--ServerApp.root_dir={folder / 'files'}",
        ]  # fmt: skip
        news = folder / ".settings" / "@jupyterlab" / "apputils-extension" / "notification.jupyterlab-settings"
        news.parent.mkdir(parents=True)
        news.write_text('{"fetchNews": "false"}')  # else JupyterLab asks, over what is to be seen
        env = os.environ | {
            "JUPYTER_CONFIG_DIR": str(folder / ".config"),
            "JUPYTER_DATA_DIR": str(self._data),
            "JUPYTERLAB_SETTINGS_DIR": str(folder / ".settings"),
            "JUPYTERLAB_WORKSPACES_DIR": str(folder / ".workspaces"),
            "IPYTHONDIR": str(folder / ".ipython"),
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")])),
            "OMP_NUM_THREADS": "1",
        }
        self._log = (folder / "server.log").open("w")
        self._process = subprocess.Popen(command, env=env, stdout=self._log, stderr=self._log)
        self._wait()

    def _wait(self) -> None:
        for _ in range(240):
            with contextlib.suppress(OSError), urllib.request.urlopen(self.url + "/api", timeout=1):
                return
            assert self._process.poll() is None, (self.folder / "server.log").read_text()[-2000:]
            time.sleep(0.5)
        raise TimeoutError("JupyterLab did not start")

    def write(self, name: str, node: nbformat.NotebookNode, *, trusted: bool) -> None:
        """Put a notebook into the server's folder; trusted means signed as this server signs."""
        node = nbformat.from_dict(json.loads(nbformat.writes(node)))
        if trusted:
            self._data.mkdir(exist_ok=True)
            notary = NotebookNotary(
                data_dir=str(self._data),
                secret_file=str(self._data / "notebook_secret"),
                store_factory=lambda: SQLiteSignatureStore(db_file=str(self._data / "nbsignatures.db")),
            )
            notary.sign(node)
        (self.folder / "files" / name).write_text(nbformat.writes(node), encoding="utf-8")

    def read(self, name: str) -> nbformat.NotebookNode:
        """A notebook as it was saved."""
        return nbformat.read(self.folder / "files" / name, as_version=4)

    def close(self) -> None:
        with contextlib.suppress(OSError), urllib.request.urlopen(self.url + "/api/kernels") as answer:
            for kernel in json.load(answer):
                request = urllib.request.Request(f"{self.url}/api/kernels/{kernel['id']}", method="DELETE")
                with contextlib.suppress(OSError):
                    urllib.request.urlopen(request, timeout=20)
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._log.close()


class Lab:
    """One notebook open in JupyterLab."""

    def __init__(self, page: Any, server: Server, name: str, *, kernel: bool = True) -> None:
        self.page, self.server, self.name = page, server, name
        self.errors: list[str] = []
        page.on("pageerror", self._note)
        if not kernel:
            page.route("**/api/sessions*", lambda r: r.abort() if r.request.method == "POST" else r.continue_())
            page.route("**/api/kernels*", lambda r: r.abort() if r.request.method == "POST" else r.continue_())
        page.goto(f"{server.url}/lab/tree/{name}?reset")
        page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=90_000)
        page.evaluate("() => { void jupyterapp.commands.execute('application:toggle-left-area') }")
        if kernel:
            status = "document.querySelector('.jp-Notebook-ExecutionIndicator')?.dataset.status === 'idle'"
            page.wait_for_function(status, timeout=90_000)
        else:
            self.close_dialog()

    def command(self, name: str, arguments: dict[str, Any] | None = None) -> None:
        """Run a command of JupyterLab; does not wait for its end, which may be that of a dialog."""
        self.page.evaluate(f"() => {{ void jupyterapp.commands.execute('{name}', {json.dumps(arguments or {})}) }}")

    def _note(self, error: Any) -> None:
        """An error of the page, unless an extension that happens to be installed has made it."""
        if "/lab/extensions/" not in (error.stack or ""):
            self.errors.append(str(error))

    def close_dialog(self) -> None:
        """JupyterLab says that there is no kernel, as soon as it finds out."""
        with contextlib.suppress(Exception):
            self.page.locator("dialog .jp-Dialog-footer button").first.click(timeout=5_000)  # No Kernel

    def run_all(self) -> None:
        """Begin to run all cells; does not wait."""
        self._wait_for_answers()
        self.page.evaluate("() => { void jupyterapp.commands.execute('notebook:run-all-cells') }")

    def _wait_for_answers(self) -> None:
        """Ask the kernel until it answers: one that has just started may drop its first requests."""
        ask = """() => { const kernel = jupyterapp.shell.currentWidget.sessionContext.session.kernel;
            window.answered = false;
            void kernel.requestExecute({code: '', silent: true}).done.then(() => { window.answered = true; }); }"""
        for _ in range(8):
            with contextlib.suppress(Exception):  # no session yet, or no answer
                self.page.evaluate(ask)
                self.page.wait_for_function("window.answered", timeout=10_000)
                return
            self.page.wait_for_timeout(1000)
        raise TimeoutError("the kernel answers to nothing")

    def wait_until_run(self) -> None:
        """Wait for the last cell."""
        waiting = "[...document.querySelectorAll('.jp-InputPrompt')].some(e => e.textContent.includes('*'))"
        self.page.wait_for_function("!" + waiting, timeout=180_000)

    def theme(self, name: str) -> None:
        """``Light`` or ``Dark``."""
        self.command("apputils:change-theme", {"theme": f"JupyterLab {name}"})
        light = json.dumps(name == "Light")
        self.page.wait_for_function(f"document.body.dataset.jpThemeLight === '{light}'")
        self.page.wait_for_timeout(500)


@contextlib.contextmanager
def opened(browser: Any, server: Server, name: str, **options: Any) -> Iterator[Lab]:
    """A notebook in a page of its own; in the end nothing may have gone wrong in that page."""
    page = browser.new_page(viewport={"width": 1200, "height": 1000})
    try:
        lab = Lab(page, server, name, **options)
        yield lab
        assert lab.errors == []
    finally:
        page.close()
