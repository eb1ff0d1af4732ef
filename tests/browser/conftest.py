"""The browser and the server, each started once."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import pytest

CHROMIUM = ["chromium", "chromium-browser", "google-chrome"]
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.browser)
            item.add_marker(pytest.mark.timeout(400))


# Of the package and not of the session: while Playwright runs, so does its event loop, and tests elsewhere start their own.
@pytest.fixture(scope="package")
def browser():
    """Chromium, without a window."""
    executable = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if executable is None:
        pytest.skip("no Chromium: apt-get install chromium")
    playwright = pytest.importorskip("playwright.sync_api", reason="no Playwright: pip install ipyvram[browser]")
    with playwright.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=executable, args=ARGUMENTS)
        yield found
        found.close()


@pytest.fixture(scope="package")
def server(browser, tmp_path_factory):
    """JupyterLab with Notebook 7."""
    if importlib.util.find_spec("jupyterlab") is None:
        pytest.skip("no JupyterLab: pip install ipyvram[browser]")
    from tests.browser.jupyter import Server

    running = Server(tmp_path_factory.mktemp("jupyter"))
    yield running
    running.close()


@pytest.fixture
def file_page(browser, tmp_path):
    """``file_page(markup)``: a page of a file, with every request to anywhere refused and listed in ``page.refused``."""
    pages = []

    def show(markup: str, **options):
        path = tmp_path / f"page{len(pages)}.html"
        path.write_text(markup, encoding="utf-8")
        page = browser.new_page(viewport={"width": 1000, "height": 900}, **options)
        page.refused, page.errors = [], []
        page.on("pageerror", lambda error: page.errors.append(str(error)))

        def refuse(route):
            page.refused.append(route.request.url)
            route.abort()

        page.route(lambda url: not url.startswith(("file:", "data:")), refuse)
        page.goto(path.as_uri())
        pages.append(page)
        return page

    yield show
    for page in pages:
        assert page.errors == []
        page.close()
