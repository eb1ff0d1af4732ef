"""What others leave of an output: JupyterLab in a notebook that is not trusted, and GitHub in any.

`JUPYTERLAB` is the allow-list of ``packages/apputils/src/sanitizer.ts`` of JupyterLab 4 (BSD-3-Clause), as far as reports
touch it: tags, attributes, and for each inline style the values it takes. `GITHUB` is that of ``html-pipeline``'s
``SanitizationFilter`` (MIT), which GitHub published: no class, no style, no ``span``, no image that is not fetched. What is
not listed is removed; the text of a removed tag stays, but for scripts and styles.
"""

from __future__ import annotations

import re
from html import escape
from html.parser import HTMLParser
from typing import NamedTuple


class Rules(NamedTuple):
    """What is let through."""

    tags: frozenset[str]
    attributes: dict[str, set[str]]  #: of a tag, ``*`` for all
    styles: dict[str, str]  #: property → what its whole value has to match
    schemes: tuple[str, ...]  #: of images


TAGS = frozenset(
    [
        "a",
        "abbr",
        "b",
        "br",
        "button",
        "caption",
        "code",
        "col",
        "colgroup",
        "dd",
        "details",
        "div",
        "dl",
        "dt",
        "em",
        "h1",
        "h2",
        "h3",
        "h4",
        "hr",
        "i",
        "img",
        "kbd",
        "li",
        "meter",
        "ol",
        "p",
        "pre",
        "progress",
        "small",
        "span",
        "strong",
        "sub",
        "summary",
        "sup",
        "table",
        "tbody",
        "td",
        "tfoot",
        "th",
        "thead",
        "time",
        "tr",
        "u",
        "ul",
    ]
)
ATTRIBUTES = {
    "*": {"class", "dir", "hidden", "lang", "style", "title"},
    "img": {"align", "alt", "height", "src", "width"},
    "td": {"align", "colspan", "headers", "rowspan", "scope", "valign", "width"},
    "th": {"align", "colspan", "headers", "rowspan", "scope", "valign", "width"},
    "details": {"open"},
}
_NUMBER = r"[+-]?([0-9]*[.])?[0-9]+"
_LENGTH = rf"({_NUMBER}(px|em|rem|ex|in|cm|mm|pt|pc)|0)"
_LENGTH_OR_PERCENT = rf"(0|{_NUMBER}(px|em|rem|ex|in|cm|mm|pt|pc|%))"
_COLOUR = (
    r"(#(0x)?[0-9a-f]+|rgb\(\s*\d{1,3}\s*,\s*\d{1,3}\s*,\s*\d{1,3}\s*\)"
    r"|rgba\(\s*\d{1,3}\s*,\s*\d{1,3}\s*,\s*\d{1,3}\s*,\s*[01]?(\.\d+)?\s*\)|transparent|white|black|gray)"
)
_BORDER = rf"((thin|medium|thick|{_LENGTH}|none|hidden|dotted|dashed|solid|double|{_COLOUR})\s*){{1,3}}"
_FAMILY = r"((-?[_a-z][_a-z0-9-]*\s*)+|serif|sans-serif|monospace)"
STYLES = {
    "background": rf"(none|{_COLOUR})",
    "border": _BORDER,
    "border-bottom": _BORDER,
    "border-collapse": "collapse|separate",
    "border-left": _BORDER,
    "border-radius": rf"({_LENGTH_OR_PERCENT}\s*){{1,4}}",
    "border-top": _BORDER,
    "color": _COLOUR,
    "cursor": "auto|default|help|pointer|text",
    "display": "inline|block|inline-block|table|table-cell|flex|none",
    "float": "left|right|none",
    "font": rf"{_LENGTH_OR_PERCENT}\s*(/\s*(normal|{_NUMBER}|{_LENGTH_OR_PERCENT}))?\s+{_FAMILY}(,\s*{_FAMILY})*",
    "font-family": rf"{_FAMILY}(,\s*{_FAMILY})*",
    "font-size": rf"(small|medium|large|{_LENGTH_OR_PERCENT})",
    "font-weight": "normal|bold|[1-9]00",
    "height": rf"(auto|{_LENGTH_OR_PERCENT})",
    "line-height": rf"(normal|{_NUMBER}|{_LENGTH_OR_PERCENT})",
    "margin": rf"((auto|{_LENGTH_OR_PERCENT})\s*){{1,4}}",
    "margin-left": rf"(auto|{_LENGTH_OR_PERCENT})",
    "margin-right": rf"(auto|{_LENGTH_OR_PERCENT})",
    "margin-top": rf"(auto|{_LENGTH_OR_PERCENT})",
    "max-width": rf"(none|auto|{_LENGTH_OR_PERCENT})",
    "min-width": rf"(auto|{_LENGTH_OR_PERCENT})",
    "opacity": r"[01]?(\.\d+)?",
    "overflow": "visible|hidden|scroll|auto",
    "padding": rf"({_LENGTH_OR_PERCENT}\s*){{1,4}}",
    "padding-left": _LENGTH_OR_PERCENT,
    "padding-top": _LENGTH_OR_PERCENT,
    "text-align": "left|right|center|justify",
    "vertical-align": rf"(baseline|sub|super|top|middle|bottom|{_LENGTH_OR_PERCENT})",
    "white-space": "normal|pre|nowrap|pre-wrap|pre-line",
    "width": rf"(auto|{_LENGTH_OR_PERCENT})",
}
JUPYTERLAB = Rules(TAGS, ATTRIBUTES, STYLES, ("http:", "https:", "data:"))
GITHUB = Rules(
    frozenset(
        re.findall(
            r"\w+",
            """h1 h2 h3 h4 h5 h6 br b i strong em a pre code img tt div ins del sup sub p ol ul table thead
    tbody tfoot blockquote dl dt dd kbd q samp var hr ruby rt rp li tr td th s strike summary details""",
        )
    ),
    {
        "*": {"align", "alt", "border", "colspan", "dir", "height", "open", "rowspan", "scope", "title", "width"},
        "img": {"src"},
    },
    {},
    ("http:", "https:"),
)
_SILENT = ("script", "style")


class Sanitizer(HTMLParser):
    """Parses markup; ``kept`` is what is left and ``removed`` lists what is gone, but for scripts, styles and ids."""

    def __init__(self, markup: str, rules: Rules = JUPYTERLAB) -> None:
        super().__init__()
        self.rules = rules
        self.kept, self.removed, self._silent = "", list[str](), False
        self.feed(markup)
        self.close()

    def handle_starttag(self, tag, attributes):
        self._silent = tag in _SILENT
        if tag not in self.rules.tags:
            if not self._silent:
                self.removed.append(tag)
            return
        left = []
        for name, value in attributes:
            if name == "style" and self.rules.styles:
                value = self._style(value)
            elif name not in self.rules.attributes["*"] | self.rules.attributes.get(tag, set()) or (
                name == "src" and not value.startswith(self.rules.schemes)
            ):
                if name != "id":
                    self.removed.append(f"{tag} {name}")
                continue
            left.append(f'{name}="{escape(value)}"')
        self.kept += f"<{' '.join([tag, *left])}>"

    def _style(self, value):
        left = []
        for declaration in filter(None, value.split(";")):
            name, _, setting = declaration.partition(":")
            pattern = self.rules.styles.get(name.strip())
            if pattern and re.fullmatch(pattern, setting.strip(), re.I):
                left.append(declaration)
            else:
                self.removed.append(declaration)
        return ";".join(left)

    def handle_endtag(self, tag):
        if tag in self.rules.tags:
            self.kept += f"</{tag}>"
        self._silent = False

    def handle_data(self, data):
        if not self._silent:
            self.kept += escape(data, quote=False)
