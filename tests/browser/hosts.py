"""Pages as other programs put them around an output, as far as they touch it: what VS Code and Colab do to style and theme.

Written from public sources, not run there. VS Code (MIT): ``webview/browser/pre/index.html`` for the theme, which is classes
and ``--vscode-…`` variables, and ``notebook/browser/view/renderers/backLayerWebView.ts`` for tables. Colab: an iframe for
each output, the theme as an attribute of its root, as libraries for both tell them apart.
"""

from __future__ import annotations

import html

#: Theme → the class of the body, the editor's background and foreground.
VSCODE = {
    "Dark Modern": ("vscode-dark", "#1f1f1f", "#cccccc"),
    "Light Modern": ("vscode-light", "#ffffff", "#3b3b3b"),
    "High Contrast": ("vscode-high-contrast", "#000000", "#ffffff"),
    "High Contrast Light": ("vscode-high-contrast vscode-high-contrast-light", "#ffffff", "#292929"),
}

#: Theme → what stands behind the outputs and their text.
COLAB = {"light": ("#ffffff", "#1f1f1f"), "dark": ("#1e1e1e", "#e3e3e3")}


def vscode(output: str, theme: str) -> str:
    """An output in the webview of a VS Code notebook."""
    kind, background, foreground = VSCODE[theme]
    return f"""<!DOCTYPE html><html lang="en" style="--vscode-editor-background:{background};--vscode-editor-foreground:{foreground};
--vscode-textPreformat-foreground:#d16969;--vscode-textPreformat-background:#8883"><head><meta charset="utf-8"><style>
html {{ background: var(--vscode-editor-background) }}
body {{ background-color: transparent; color: var(--vscode-editor-foreground); font-size: 13px; margin: 0; padding: 0 20px }}
img {{ max-width: 100%; max-height: 100% }}
code {{ color: var(--vscode-textPreformat-foreground); background-color: var(--vscode-textPreformat-background); padding: 1px 3px }}
table, thead, tr, th, td, tbody {{ border: none !important; border-color: transparent; border-spacing: 0; border-collapse: collapse }}
table, th, tr {{ vertical-align: middle; text-align: right }}
thead {{ font-weight: bold; background-color: rgba(130, 130, 130, 0.16) }}
th, td {{ padding: 4px 8px }}
tr:nth-child(even) {{ background-color: rgba(130, 130, 130, 0.08) }}
tbody th {{ font-weight: normal }}
</style></head><body class="{kind}" data-vscode-theme-kind="{kind.split()[-1]}"><div id="container"><div class="output">
{output}</div></div></body></html>"""


def colab(output: str, theme: str) -> str:
    """A notebook's page with an output in its frame."""
    background, foreground = COLAB[theme]
    frame = f"""<!DOCTYPE html><html theme="{theme}"><head><meta charset="utf-8"><style>
html {{ background: {background} }} body {{ color: {foreground}; margin: 0; font: 14px Roboto, sans-serif }}
table {{ border-collapse: collapse; font-size: 14px }} td, th {{ text-align: right; padding: 0.5em 0.5em }}
tr:nth-child(odd) {{ background: #8882 }}
</style></head><body>{output}</body></html>"""
    return f"""<!DOCTYPE html><body style="background:{background}"><iframe sandbox="allow-scripts allow-same-origin"
style="width:900px;height:1200px;border:0" srcdoc="{html.escape(frame)}"></iframe></body>"""
