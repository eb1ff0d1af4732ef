"""The documented schema names every field that is written, and none that is not."""

from __future__ import annotations

import re

from ipyvram.report import Report
from tests import reports
from tests.conftest import ROOT


def documented() -> set[str]:
    text = (ROOT / "docs" / "report-schema.md").read_text(encoding="utf-8")
    top = text.split("## Top level")[1].split("\n## ")[0]
    return {name for row in re.findall(r"^\| (.*?) \|", top, re.M) for name in re.findall(r"`(\w+)`", row)}


def test_the_top_level_is_documented():
    assert documented() == {"schema", *Report.__dataclass_fields__} == set(reports.training().to_dict())
