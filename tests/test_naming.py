"""What a row is called: the holder's name, else what made it; the line of the cell; the shape the holder sees."""

from __future__ import annotations

import pytest

from ipyvram.analysis import analyse
from ipyvram.grouping import by_line
from ipyvram.naming import Names
from ipyvram.recording import Action, Cell, Claim, Events, Frame, Mark, Origin, Recording, Trace
from ipyvram.report_rows import TensorRow


def row(
    *claims: tuple[str, str],
    origin: Origin | None = None,
    stack=(),
    size: int = 480,
    shape=(120,),
    model="net",
    **facts,
) -> TensorRow:
    """The only row of a recording with one allocation, claimed as (category, name) in order."""
    events = Events.from_rows([(Action.ALLOC, 1, size, 0, 10, 0, 0)])
    trace = Trace("cpu", "storages", 0, 100, events)
    made = tuple(Claim(11 + i, "cpu", 1, size, c, n, model, shape, "float32") for i, (c, n) in enumerate(claims))
    recording = Recording(0, 100, cell=Cell("a = 1\n  b = f(a)\n", "<cell>", 1), traces=(trace,), claims=made, stacks=(stack,),
                          origins=(origin or Origin("aten.mm", (1, 120), "float32"),), **facts)  # fmt: skip
    (found,) = analyse(recording).tensors_at_peak
    return found


def test_a_parameter_has_its_path_and_its_module():
    found = row(("parameters", "block.1.fc.weight"))
    assert (found.name, found.module) == ("block.1.fc.weight", "block.1.fc")


def test_what_belongs_to_a_parameter_lies_in_its_module():
    assert row(("gradients", "fc.bias.grad")).module == "fc"
    assert row(("optimizer_state", "fc.bias.exp_avg")).module == "fc"


def test_a_dot_within_a_key_parts_no_module():
    assert row(("optimizer_state", "params['fc.weight'].exp_avg"), model="Adam").module == ""
    assert row(("gradients", "params['fc.weight'].grad"), model="Adam").module == ""
    assert row(("optimizer_state", "nets['a'].fc.weight.exp_avg"), model="Adam").module == "nets['a'].fc"


def test_the_shape_is_the_holders():
    assert row(("gradients", "fc.bias.grad")).shape == (120,)


def test_a_holder_of_a_part_does_not_give_its_shape_to_the_whole():
    found = row(("inputs", "x"), origin=Origin("aten.randn", (1000, 120), "float32"), size=480_000)
    assert found.shape == (1000, 120)


def test_a_variable_says_more_than_an_argument():
    assert row(("inputs", "input"), ("", "batch")).name == "batch"


def test_what_nobody_named_is_called_by_what_made_it():
    assert row().name == "mm"


def test_an_activation_is_the_result_of_an_operator():
    assert (
        row(("activations", "ReluBackward0.result"), origin=Origin("aten.relu", (120,), "float32")).name
        == "relu output"
    )
    assert row(("activations", "Cube.square"), origin=Origin()).name == "kept for Cube backward"


@pytest.mark.parametrize(
    ("field", "told"),
    [
        ("ConvolutionBackward0.input", "convolution"),
        ("CudnnBatchNormBackward0.result1", "cudnn_batch_norm"),
        ("MaxPool2DWithIndicesBackward0.self", "max_pool2d_with_indices"),
        ("NllLoss2DBackward0.total_weight", "nll_loss2d"),
        ("AddmmBackward0.mat1", "addmm"),
    ],
)
def test_what_no_operator_is_known_of_is_called_by_the_backward_that_needs_it(field, told):
    assert row(("activations", field), origin=Origin()).name == f"kept for {told} backward"


def test_a_row_without_a_name_tells_where_it_was_made():
    assert TensorRow(1, "temporaries", "", "layer1.bn", phase="forward").called == "made in layer1.bn"
    assert TensorRow(1, "temporaries", phase="optimizer").called == "made in the optimizer step"
    assert TensorRow(1, "temporaries").called == "no name known"
    assert TensorRow(1, "other", phase="before").called == "there before"
    assert TensorRow(1, "outputs", "loss", "fc").called == "loss"


def test_the_scratch_memory_of_cublas_is_called_that():
    """Not by the module that happened to need it first."""
    found = row(origin=Origin(), environment={"cublas_workspace_bytes": "480"})
    assert (found.category, found.name) == ("workspaces", "cuBLAS workspace")


@pytest.mark.parametrize(
    ("freed_at", "requested", "name"), [(1, 8192, "cuBLAS workspace"), (2, 8192, ""), (1, 8200, "")]
)
def test_the_scratch_memory_of_one_product_is_called_that(freed_at, requested, name):
    """Of that size, and with nothing asked for before it was freed."""
    rows = [(Action.ALLOC, 1, requested, 0, 10, -1, -1), (Action.ALLOC, 10**6, 512, 0, 12, -1, -1)]
    rows.insert(freed_at, (Action.FREE_REQUESTED, 1, requested, 0, 11 if freed_at == 1 else 13, -1, -1))
    trace = Trace("cuda:0", "history", 0, 100, Events.from_rows(rows))
    recording = Recording(0, 100, traces=(trace,), environment={"product_workspace_bytes": "8192"})
    found = analyse(recording).tensors_at_peak[0]
    assert (found.category, found.name) == ("temporaries", name)


def test_data_that_was_saved_has_the_name_of_its_part_in_the_formula():
    assert row(("data", "NllLossBackward0.target")).name == "target"
    assert row(("data", "MmBackward0.self")).name == "mm"


def test_the_innermost_line_of_the_cell_is_shown_with_its_text():
    stack = (Frame("helpers.py", 80, "f"), Frame("<cell>", 2, "<module>"))
    found = row(stack=stack)
    assert (found.line, found.source, found.file) == (2, "b = f(a)", "")


def test_outside_the_cell_the_file_is_named():
    found = row(stack=(Frame("/home/me/helpers.py", 80, "f"),))
    assert (found.line, found.source, found.file) == (80, "", "helpers.py")


def test_several_models_are_told_apart():
    events = Events.from_rows([(Action.ALLOC, i, 480, 0, 10 + i, -1, -1) for i in (1, 2)])
    marks = tuple(
        Mark(t, "forward", begin, 1, name)
        for t, begin, name in ((20, True, "G"), (21, False, "G"), (22, True, "D"), (23, False, "D"))
    )
    claims = tuple(Claim(15, "cpu", i, 480, "parameters", "0.weight", model) for i, model in ((1, "G"), (2, "D")))
    recording = Recording(0, 100, traces=(Trace("cpu", "storages", 0, 100, events),), marks=marks, claims=claims)
    assert {(t.name, t.module) for t in analyse(recording).tensors_at_peak} == {
        ("G.0.weight", "G.0"),
        ("D.0.weight", "D.0"),
    }


def _place(source: str, *stack: Frame):
    return Names(Recording(0, 100, cell=Cell(source, "<cell>", 1))).place(stack)


TYPED = "/tmp/ipykernel_123/968499994.py"


def test_a_body_that_another_magic_runs_has_the_lines_of_the_cell():
    source = "%%vram a\n%%capture out\nx = 1\ny = f(x)\n"
    frame, text, file = _place(source, Frame("/home/me/lib.py", 7, "f"), Frame(TYPED, 2, "<module>"))
    assert (frame.line, text, file) == (4, "y = f(x)", "")
    frame, text, _ = _place("%%vram\n%%time\n\nx = 1", Frame("<timed exec>", 2, "<module>"))
    assert (frame.line, text) == (4, "x = 1")


def test_a_line_of_some_other_cell_is_called_that():
    frame, text, file = _place("%%vram\nx = 1\n", Frame(TYPED, 1, "<module>"))
    assert (frame.line, text, file) == (1, "", "another cell")
    assert _place("%%vram\n%%capture\nx\n", Frame(TYPED, 9, "<module>"))[2] == "another cell"  # longer than the cell
    assert _place("%%vram\nx = 1\n", Frame("/home/me/train.py", 3, "main"))[2] == "train.py"


def test_another_cell_is_called_by_its_number():
    numbered = Recording(0, 1, cell=Cell("%%vram\nx = 1\n", "<cell>", numbers={TYPED: 7}))
    assert Names(numbered).place((Frame(TYPED, 3, "<module>"),))[2] == "In[7]"
    assert _place("%%vram\nx = 1\n", Frame("<ipython-input-12-0a1b>", 3, "<module>"))[2] == "In[12]"
    found = TensorRow(1, "other", line=3, file="In[7]")
    assert (found.place, by_line(found)[0]) == ("In[7], line 3", "In[7], line 3")
    assert TensorRow(1, "other", line=3, file="another cell").place == "another cell, line 3"
    assert TensorRow(1, "other", line=3, file="train.py").place == "train.py:3"
