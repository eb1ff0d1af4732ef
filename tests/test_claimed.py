"""Rules 1 to 4 on allocations drawn by hand: who claimed one, when it was born, when it died."""

from __future__ import annotations

import pytest

from ipyvram.attribution import attribute
from ipyvram.ledger import build
from ipyvram.recording import Claim
from tests.test_unclaimed import MARKS, categories, recording


def claim(time_ns: int, category: str, name: str = "x", module: str = "", address: int = 1) -> Claim:
    return Claim(time_ns, "cpu", address, 4096, category, name, module)


def course(found) -> list[str]:
    """The categories that the first allocation has one after the other."""
    ledger = build(found.traces[0])
    attribution = attribute(found, ledger, "cpu")
    instants = range(int(ledger.born[0]), int(ledger.died[0]))
    return list(dict.fromkeys(attribution.category_at(k)[0] for k in instants))


@pytest.mark.parametrize(
    ("claims", "category"),
    [
        ([claim(6, "parameters", module="net"), claim(11, "inputs")], "parameters"),
        ([claim(6, "parameters"), claim(11, "inputs")], "inputs"),  # a leaf that is only a module's argument
        ([claim(11, "inputs"), claim(35, "gradients")], "inputs"),  # the indices of a sparse gradient
        ([claim(8, "gradients"), claim(11, "inputs")], "gradients"),
        ([claim(6, "attribute"), claim(14, "activations", "AddmmBackward0.tensors")], "buffers"),
        ([claim(14, "activations", "AddmmBackward0.tensors")], "inputs"),  # made before the forward that saved it
        ([claim(14, "data", "AddmmBackward0.self")], "inputs"),
        ([claim(14, "activations", "ExpBackward0.result")], "activations"),
        ([claim(6, "copy")], "parameters"),
        ([claim(6, "result")], "outputs"),
        ([claim(6, "")], "inputs"),  # a name alone leaves it open
    ],
)
def test_made_before_the_forward(claims, category):
    assert categories(recording((5, 999), claims=claims)) == [category]


@pytest.mark.parametrize(
    ("born", "died", "claims", "category"),
    [
        (13, 150, [claim(21, "outputs")], "outputs"),
        (13, 15, [claim(14, "outputs")], "temporaries"),  # only another module's input
        (13, 15, [claim(14, "outputs"), claim(14, "")], "outputs"),
        (13, 35, [claim(19, "outputs")], "activations"),  # where a checkpoint begins
        (13, 35, [claim(19, "outputs"), claim(19, "")], "outputs"),
        (13, 150, [claim(14, "inputs"), claim(15, "activations", "AddmmBackward0.tensors")], "activations"),
        (33, 150, [claim(34, "copy")], "gradients"),
        (45, 150, [claim(46, "copy")], "gradients"),  # made while gradients wait for their step
    ],
)
def test_made_by_the_program(born, died, claims, category):
    assert categories(recording((born, died), claims=claims)) == [category]


@pytest.mark.parametrize("stepping", [True, False])
def test_what_is_written_in_place_is_an_optimizers_where_none_of_torch_steps(stepping):
    marks = MARKS if stepping else tuple(m for m in MARKS if m.kind != "optimizer")
    claims = [claim(6, "state"), claim(35, "gradients", address=2)]
    found = recording((5, 999), (34, 999), claims=claims, marks=marks)
    assert categories(found)[0] == ("parameters" if stepping else "optimizer_state")


def test_what_is_written_in_place_is_trained_where_a_backward_leaves_no_gradient():
    marks = tuple(m for m in MARKS if m.kind != "optimizer")
    assert categories(recording((5, 999), claims=[claim(6, "state")], marks=marks)) == ["parameters"]


def test_an_activation_is_a_result_once_its_graph_let_go():
    saved, released = claim(14, "activations", "ExpBackward0.result"), claim(38, "released", "")
    others = [(39, 45), (46, 48)]  # instants after it
    assert course(recording((13, 150), *others, claims=[saved, released])) == ["activations", "outputs"]
    again = claim(42, "activations", "ExpBackward0.result")
    assert course(recording((13, 150), *others, claims=[saved, released, again])) == ["activations"]
