"""Contrast as it is seen: every text of a report against what lies behind it, computed in the page."""

from __future__ import annotations

import base64
import io
from typing import Any

from PIL import Image

#: For each element with text of its own: the text, its colour with all opacities over the background, and their contrast.
_MEASURE = """root => {
const parse = c => { const m = c.match(/[\\d.]+/g).map(Number); return m.length < 4 ? [...m, 1] : m; };
const over = (a, b) => [0, 1, 2].map(i => a[i] * a[3] + b[i] * (1 - a[3]));
const luminance = c => { const [r, g, b] = c.map(v => (v /= 255) <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4); return .2126 * r + .7152 * g + .0722 * b; };
const ratio = (a, b) => { const [x, y] = [luminance(a), luminance(b)].sort((p, q) => q - p); return (x + .05) / (y + .05); };
const behind = e => { const all = []; for (let n = e; n; n = n.parentElement) all.push(parse(getComputedStyle(n).backgroundColor)); return all.reverse().reduce((under, c) => over(c, under), [255, 255, 255]); };
const found = [];
for (const e of root.querySelectorAll('*')) {
  const own = [...e.childNodes].filter(n => n.nodeType == 3 && n.textContent.trim());
  const box = e.getBoundingClientRect(), style = getComputedStyle(e);
  if (!own.length || !box.width || !box.height || style.visibility == 'hidden' || ['STYLE', 'SCRIPT', 'METADATA', 'metadata'].includes(e.tagName)) continue;
  const under = behind(e), paint = parse(e instanceof SVGElement ? style.fill : style.color);
  let alpha = paint[3];
  for (let n = e; n; n = n.parentElement) alpha *= +getComputedStyle(n).opacity;
  const seen = over([...paint.slice(0, 3), alpha], under);
  found.push([own[0].textContent.trim().slice(0, 40), Math.round(ratio(seen, under) * 100) / 100]);
}
return found;
}"""

#: The same for what is not text: areas of the timeline and swatches, against the page.
_GRAPHICS = """root => {
const parse = c => c.match(/[\\d.]+/g).map(Number);
const luminance = c => { const [r, g, b] = c.map(v => (v /= 255) <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4); return .2126 * r + .7152 * g + .0722 * b; };
let page = root; while (page && (parse(getComputedStyle(page).backgroundColor)[3] ?? 1) == 0) page = page.parentElement;
const under = luminance(page ? parse(getComputedStyle(page).backgroundColor).slice(0, 3) : [255, 255, 255]);
return [...root.querySelectorAll('path.a, .c th span, span[title]')].map(e => {
  const c = luminance(parse(e instanceof SVGElement ? getComputedStyle(e).fill : getComputedStyle(e).backgroundColor).slice(0, 3));
  return [e.textContent || e.getAttribute('fill') || '', Math.round((Math.max(c, under) + .05) / (Math.min(c, under) + .05) * 100) / 100];
});
}"""


def texts(root: Any) -> list[tuple[str, float]]:
    """Each visible text of a report with its contrast."""
    return [(text, ratio) for text, ratio in root.evaluate(_MEASURE)]


def paper(picture: Any) -> tuple[int, int, int]:
    """The colour in a corner of an image, as it is seen."""
    return Image.open(io.BytesIO(picture.screenshot())).convert("RGB").getpixel((3, 3))


def inside(
    browser: Any, picture: Any, scheme: str
) -> tuple[list[tuple[str, float]], list[tuple[str, float]], tuple[int, ...]]:
    """Texts and graphics within an SVG that is shown as an image, and its paper; ``scheme`` is what the image follows."""
    page = browser.new_page(color_scheme=scheme)
    page.set_content(base64.b64decode(picture.get_attribute("src").partition(",")[2]).decode("ascii"))
    svg = page.locator("svg").first
    colour = svg.evaluate("e => getComputedStyle(e).backgroundColor.match(/\\d+/g).map(Number)")
    found = texts(page.locator("body")), graphics(svg), tuple(colour)
    page.close()
    return found


def graphics(root: Any) -> list[tuple[str, float]]:
    """Each area and swatch with its contrast to the page."""
    return [(what, ratio) for what, ratio in root.evaluate(_GRAPHICS)]
