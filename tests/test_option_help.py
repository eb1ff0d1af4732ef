"""Help and completion tell what the table of options says."""

from __future__ import annotations

from ipyvram.option_help import complete, help_text
from ipyvram.options import OPTIONS


def test_help_tells_every_option_and_subcommand():
    text = help_text({"%vram last": "show it again"})
    for option in OPTIONS:
        assert option.flag in text
        assert option.help in " ".join(text.split())
    assert max(map(len, text.splitlines())) <= 100
    assert "%vram last" in text
    assert "show it again" in text


def test_completion_offers_values_after_an_option_and_options_not_yet_there():
    assert complete("--device") == ["cpu", "cuda", "cuda:0", "mps"]
    offered = complete("label --limit 80%")
    assert "--limit" not in offered
    assert {"--note", "--trace-steps", "--help"} <= set(offered)
