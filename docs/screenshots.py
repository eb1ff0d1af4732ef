#!/usr/bin/env python3
"""Run the gallery's cells in a real JupyterLab and write what they show, light and dark, to ``docs/images``.

Needs ``pip install -e ".[browser]"`` and Chromium. Everything stays on this machine:

    python docs/screenshots.py [--only report,estimate] [--out docs/images]
"""

from __future__ import annotations

import argparse
import io
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from PIL import Image  # noqa: E402
from playwright.sync_api import sync_playwright  # noqa: E402

from tests.browser.conftest import ARGUMENTS, CHROMIUM  # noqa: E402
from tests.browser.jupyter import Lab, Server, notebook  # noqa: E402

SETUP = """\
import time
import torch, torchvision
from torch.nn import functional as F
%load_ext ipyvram"""

TRAIN = """\
model = torchvision.models.resnet50(num_classes=10)
optimizer = torch.optim.AdamW(model.parameters())
for step in range(3):
    x, y = torch.randn({batch}, 3, {size}, {size}{device}), torch.randint(0, 10, ({batch},){device})
    optimizer.zero_grad()
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    optimizer.step()"""

#: Name of the picture → the cell that makes it.
CELLS = {
    "report": "%%vram ResNet-50\n" + TRAIN.format(batch=16, size=96, device=""),
    "estimate": "%%vram ResNet-50 on a card --estimate --card RTX 4090\n"
    + TRAIN.format(batch=64, size=224, device=", device='cuda'").replace(
        "resnet50(num_classes=10)", "resnet50(num_classes=10).cuda()"
    ),
    "meter": "%%vram keeps its outputs --card 4GiB\nmodel = torch.nn.Linear(4096, 4096)\n"
    "optimizer = torch.optim.Adam(model.parameters())\nkept = []\nfor step in range(60):\n    optimizer.zero_grad()\n"
    "    output = model(torch.randn(1024, 4096))\n    output.square().mean().backward()\n    optimizer.step()\n"
    "    kept.append(output)",
    "comparison": "%%vram --batch batch=2,4,8,16 --card 24GiB\nbatch = 8\n"
    + TRAIN.format(batch="batch", size=64, device="").replace("resnet50", "resnet18"),
}
SCALE = 1.5  # pixels for each of CSS
AROUND = 12  # pixels of CSS around what is shown, of its own colour


def shoot(lab: Lab, name: str, out: Path) -> None:
    """The last output of the notebook in both themes; the timeline of ``report`` with the cursor on it, too."""
    shown = lab.page.locator(".jp-Cell").last.locator(".jp-OutputArea-output:has(table)").last
    for theme in ("Light", "Dark"):
        lab.theme(theme)
        shown.scroll_into_view_if_needed()
        lab.page.mouse.move(5, 5)
        save(shown, out / f"{name}-{theme.lower()}.png")
        if name == "report":
            hover(lab, out / f"hover-{theme.lower()}.png")


def save(element: Any, path: Path) -> None:
    """A screenshot of an element with 256 colours: what is flat needs no more, and it goes into git."""
    shown = Image.open(io.BytesIO(element.screenshot())).convert("RGB")
    edge = round(AROUND * SCALE)
    image = Image.new(
        "RGB", (shown.width + 2 * edge, shown.height + 2 * edge), shown.getpixel((shown.width - 1, shown.height - 1))
    )
    image.paste(shown, (edge, edge))
    image.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


def hover(lab: Lab, path: Path) -> None:
    """The cursor at the peak."""
    timeline = lab.page.locator(".ipyvram .w").last
    timeline.focus()
    lab.page.keyboard.press("p")
    timeline.scroll_into_view_if_needed()
    save(lab.page.locator(".ipyvram .p").last, path)
    lab.page.keyboard.press("Escape")


def shoot_meter(lab: Lab, out: Path) -> None:
    """The meter while its cell runs."""
    lab.page.wait_for_function(
        "document.querySelector('.jp-Notebook').textContent.includes('to the limit')", timeout=120_000
    )
    lab.page.wait_for_timeout(3000)
    for theme in ("Light", "Dark"):
        lab.theme(theme)
        save(lab.page.locator(".jp-Cell").last, out / f"meter-{theme.lower()}.png")


def picture(browser: Any, server: Server, name: str, out: Path) -> None:
    """Run one cell in a notebook of its own and take its pictures."""
    server.write(f"{name}.ipynb", notebook(SETUP, CELLS[name]), trusted=True)
    page = browser.new_page(viewport={"width": 1100, "height": 1400}, device_scale_factor=SCALE)
    lab = Lab(page, server, f"{name}.ipynb")
    lab.run_all()
    if name == "meter":
        shoot_meter(lab, out)
    else:
        lab.wait_until_run()
        page.wait_for_timeout(1500)
        shoot(lab, name, out)
    page.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="names of pictures, separated by commas: " + ", ".join(CELLS))
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images")
    arguments = parser.parse_args()
    names = arguments.only.split(",") if arguments.only else list(CELLS)
    arguments.out.mkdir(parents=True, exist_ok=True)
    executable = next(filter(None, map(shutil.which, CHROMIUM)))
    server = Server(Path(tempfile.mkdtemp()))
    try:
        with sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=executable, args=ARGUMENTS)
            for name in names:
                picture(browser, server, name, arguments.out)
                print(
                    name, *(f"{p.name} {p.stat().st_size // 1024} KB" for p in sorted(arguments.out.glob(f"{name}-*")))
                )
            browser.close()
    finally:
        server.close()


if __name__ == "__main__":
    main()
