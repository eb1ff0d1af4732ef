"""The box around every form in HTML."""

from __future__ import annotations

import re

import pytest

from ipyvram.render.framing import asset, framed


def test_a_box_without_assets_has_no_id_and_keeps_its_body():
    assert framed("<b>x</b>").endswith('padding:6px 0"><b>x</b></div>')
    assert "id=" not in framed("<b>x</b>")


def test_assets_speak_of_this_box_alone():
    markup = framed("<b>x</b>", sheets=["theme.css", "report.css"], scripts=["report.js"])
    (root,) = re.findall(r'^<div id="(ipyvram-[0-9a-f]{10})"', markup)
    assert "ROOT" not in markup
    assert markup.count("<style>#" + root) == 2
    assert f"""querySelectorAll('[id="{root}"]""" in markup
    assert markup.index("</style>") < markup.index("<b>x</b>") < markup.index("<script>")


def test_equal_bodies_have_equal_ids_and_others_have_others():
    one, same, other = (framed(body, sheets=["theme.css"]) for body in ("a", "a", "b"))
    assert one == same
    assert one.split(">")[0] != other.split(">")[0]


@pytest.mark.parametrize("name", ["theme.css", "report.css", "report.js"])
def test_an_asset_is_delivered_without_comments_and_indentation(name):
    lines = asset(name).splitlines()
    assert lines
    assert not [line for line in lines if line != line.strip() or line.startswith(("//", "/*")) or not line]
    assert "</" not in asset(name)  # would end the element it stands in
