"""What an estimate knows of values on the card: what the host sent, and what follows from it."""

from __future__ import annotations

import pytest
import torch

import ipyvram

LARGEST = "as large as it can be"


def estimated(source: str, **variables: object) -> ipyvram.Report:
    return ipyvram.estimate("import torch\n" + source, card="24GiB", namespace={"torch": torch, **variables})


def guessed(report: ipyvram.Report) -> list[str]:
    return [note for note in report.measurement.notes if "depends on values" in note or "placeholders" in note]


FOLLOWED = {
    "labels": "y = torch.tensor([3, -100, 2, -100, 5]).to('cuda'); assert torch.rand(5, 9, device='cuda')[y != -100].shape == (3, 9)",
    "made there": "assert torch.tensor([1, 0, 2], device='cuda').nonzero().tolist() == [[0], [2]]",
    "lengths": """
lengths = torch.tensor([3, 1, 4]).cuda()
mask = torch.arange(lengths.max(), device="cuda")[None] < lengths[:, None]
assert torch.rand(3, 4, 8, device="cuda")[mask].shape == (8, 8) and mask.sum().item() == 8
assert torch.rand(3, 4, device="cuda").masked_select(mask).shape == (8,)
""",
    "views": """
x = torch.arange(24, device="cuda").view(2, 3, 4)
x[:, 1] = -1; x.transpose(0, 1)[0].neg_(); x[0, 2, :2].fill_(7)
assert x.tolist() == [[[0, -1, -2, -3], [-1] * 4, [7, 7, 10, 11]], [[-12, -13, -14, -15], [-1] * 4, [20, 21, 22, 23]]]
""",
    "counts": """
i = torch.tensor([2, 0, 2, 5]).cuda()
assert i.unique().tolist() == [0, 2, 5] and i.bincount().tolist() == [1, 0, 2, 0, 0, 1]
assert i.repeat_interleave(torch.tensor([1, 2, 0, 1]).cuda()).tolist() == [2, 0, 0, 5]
assert torch.equal(i, i.clone()) and not torch.equal(i, i + 1)
""",
    "written in place": """
y = torch.zeros(4, dtype=torch.long, device="cuda"); y.copy_(torch.tensor([1, 2, 3, 4])); y[y > 2] = -1
assert y.tolist() == [1, 2, -1, -1]
e = torch.empty(3, dtype=torch.bool, device="cuda").fill_(True); assert e.all()
""",
    "inference": """
with torch.inference_mode():
    y = torch.tensor([1, 0, 1]).cuda(); y += 1
    assert y.nonzero().shape == (3, 1)
""",
}


@pytest.mark.parametrize("cell", FOLLOWED.values(), ids=FOLLOWED)
def test_values_from_the_host_are_followed(cell):
    assert not guessed(estimated(cell))


UNKNOWN = {
    "fractions": "assert torch.rand(5, device='cuda')[torch.rand(5, device='cuda') > 0.5].shape == (5,)",
    "written by something unknown": """
y = torch.tensor([1, 0, 1, 0]).cuda(); y.copy_(torch.rand(4, device="cuda") > 0.5); assert y.nonzero().shape == (4, 1)
""",
    "of a view": """
y = torch.zeros(6, dtype=torch.long, device="cuda"); y[2:].random_(5); assert y.nonzero().shape == (6, 1)
""",
}


@pytest.mark.parametrize("cell", UNKNOWN.values(), ids=UNKNOWN)
def test_where_nothing_is_known_a_result_is_as_large_as_it_can_be(cell):
    assert any(LARGEST in note for note in guessed(estimated(cell)))


def test_whole_numbers_of_earlier_cells_are_known_and_stay():
    y, other = torch.tensor([1, -100, 3, -100]), torch.nn.Embedding(4, 4)
    other.register_buffer("valid", torch.tensor([True, False, False, True]))
    report = estimated(
        "assert other.weight[other.valid].shape == (2, 4)\nassert other.weight[other.valid & (y > 0)].shape == (1, 4)\n"
        "other.valid[:] = True\ny.cuda().add_(1)",
        y=y,
        other=other,
    )
    assert not guessed(report)
    assert y.tolist() == [1, -100, 3, -100]
    assert other.valid.tolist() == [True, False, False, True]


def test_the_loss_of_masked_tokens_is_that_of_a_run():
    cell = """
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Embedding(500, 32), torch.nn.Linear(32, 500)).to(device)
for _ in range(2):
    x = torch.randint(500, (8, 128)); labels = torch.where(torch.rand(8, 128) < 0.15, x, -100).to(device)
    logits = model(x.to(device)); kept = labels != -100
    torch.nn.functional.cross_entropy(logits[kept], labels[kept]).backward()
"""
    with ipyvram.measure() as run:
        exec(cell, {"torch": torch, "device": "cpu"})
    report = estimated(cell, device="cuda")
    assert report.peak["activations"] == pytest.approx(run.report.peak["activations"], rel=0.005)
    assert not guessed(report)


@pytest.mark.parametrize(
    "mask", ["(torch.arange(4096) % 4 == 0).view(64, 64).cuda()", "torch.rand(64, 64, device='cuda') > 0.5"]
)
def test_the_backward_of_a_mask_works_in_what_that_of_its_places_does(mask):
    """A mask of two dimensions selects places of both, not rows of the first."""
    cell = f"""
x = torch.zeros(64, 64, 256, device="cuda", requires_grad=True)
mask = {mask}
rows, columns = torch.where(mask)
{{kept}}.square().sum().backward()
"""
    by_mask, by_places = (estimated(cell.replace("{kept}", kept)) for kept in ("x[mask]", "x[rows, columns]"))
    assert by_mask.peak_bytes == pytest.approx(by_places.peak_bytes, rel=0.05)


def test_a_mask_of_chosen_places_selects_no_more_than_were_chosen():
    """As the samplers of torchvision's detectors do, which choose so many of both kinds."""
    report = estimated(
        """
matched = torch.randn(2000, device="cuda").round().long()
def mask_of(places, most):
    mask = torch.zeros_like(matched, dtype=torch.uint8)
    mask[places[torch.randperm(places.numel(), device="cuda")[:most]]] = 1
    return mask
good, bad = (mask_of(torch.where(kind)[0], most) for kind, most in ((matched >= 1, 128), (matched == 0, 384)))
assert torch.where(good | bad)[0].shape == (512,)
assert matched[good.bool()].shape == (128,)
assert torch.where(good.bool() & (matched > 3))[0].shape == (128,)
assert (good.clone() | bad.to(torch.int64)).nonzero().shape == (512, 1)
good[:] = matched > 2
assert torch.where(good)[0].shape == (2000,)
"""
    )
    assert any("as large as it can be" in note for note in report.measurement.notes)
