"""Who holds what earlier cells left, and whether the measured one uses it: rows and claims drawn by hand."""

from __future__ import annotations

import pytest

from ipyvram.earlier import Earlier, Unused, unused, used_in
from ipyvram.recording import Claim
from ipyvram.report_rows import TensorRow


def left(name: str, category: str = "inputs", size: int = 100, *claims: tuple[str, str], **more) -> Earlier:
    """A row, with claims of ``(category, module)``."""
    made = tuple(Claim(1, "cuda:0", 1, size, kind, name, module) for kind, module in claims)
    return Earlier(TensorRow(size, category, name, **more), made)


def test_what_a_variable_holds_counts_for_it():
    rows = [left("images[0]", size=10), left("images[1]", size=20), left("loader.dataset.tensors[0]", size=40)]
    assert unused(rows, used_in("train()", ())) == (Unused("loader", "data", 40), Unused("images", "data", 30))


def test_a_model_with_all_that_belongs_to_it():
    rows = [left("fc.weight", c, 10, (c, "net")) for c in ("parameters", "gradients", "optimizer_state", "buffers")]
    assert unused(rows, used_in("", ())) == (Unused("net", "model", 40),)
    assert unused(rows, used_in("", ["net"])) == ()  # its forward ran in a function of another cell
    assert unused(rows, used_in("net(x)", ())) == ()


def test_a_graph_and_the_variable_that_keeps_it():
    assert unused([left("graph of out", "activations", graph_of="out")], used_in("", ())) == (
        Unused("out", "graph", 100),
    )
    assert unused([left("graph of Out[3]", "activations", graph_of="Out[3]")], used_in("", ())) == ()


@pytest.mark.parametrize("name", ["", "Out[3]", "_", "cuBLAS workspace"])
def test_what_is_no_variable_is_not_to_be_deleted(name):
    assert unused([left(name), left(name, "activations")], used_in("", ())) == ()
    assert unused([left("x", in_error=True)], used_in("", ())) == ()


def test_what_the_cell_names_or_its_models_were_given_is_used():
    assert unused([left("x")], used_in("model(x)", ())) == ()
    assert unused([left("x", "inputs", 100, ("", ""), ("inputs", ""))], used_in("train()", ())) == ()
