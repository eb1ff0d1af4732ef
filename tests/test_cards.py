"""`cards`: names and sizes to cards."""

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import ipyvram
from ipyvram.cards import CARDS, GIB, SUGGESTIONS, Card, find, named, of_size


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("RTX 4090", "NVIDIA GeForce RTX 4090"),
        ("rtx4090", "NVIDIA GeForce RTX 4090"),
        ("4090", "NVIDIA GeForce RTX 4090"),
        ("GeForce RTX 3090", "NVIDIA GeForce RTX 3090"),
        ("3090 ti", "NVIDIA GeForce RTX 3090 Ti"),
        ("T4", "Tesla T4"),
        ("tesla t4", "Tesla T4"),
        ("P100", "Tesla P100-PCIE-16GB"),
        ("A100 80GB", "NVIDIA A100-SXM4-80GB"),
        ("h100", "NVIDIA H100 80GB HBM3"),
        ("A10G", "NVIDIA A10G"),
        ("A10", "NVIDIA A10"),
        ("L40", "NVIDIA L40"),
        ("H20", "NVIDIA H20"),
        ("GH200", "NVIDIA GH200 480GB"),
        ("b300", "NVIDIA B300 SXM6 AC"),
        ("A100-80GB", "NVIDIA A100-SXM4-80GB"),
        ("A100 80 GB", "NVIDIA A100-SXM4-80GB"),
        ("H100 SXM5", "NVIDIA H100 80GB HBM3"),
        ("H100 NVL", "NVIDIA H100 NVL"),
        ("T4 16GB", "Tesla T4"),
        ("RTX 2080", "NVIDIA GeForce RTX 2080"),
        ("1080", "NVIDIA GeForce GTX 1080"),
        ("RTX 3060", "NVIDIA GeForce RTX 3060"),
        ("RTX 4070 SUPER", "NVIDIA GeForce RTX 4070 SUPER"),
        ("RTX 4070 Ti", "NVIDIA GeForce RTX 4070 Ti"),
        ("4070TiSuper", "NVIDIA GeForce RTX 4070 Ti SUPER"),
        ("RTX 4090D", "NVIDIA GeForce RTX 4090 D"),
        ("RTX 4060 laptop", "NVIDIA GeForce RTX 4060 Laptop GPU"),
        ("RTX 4060 Ti 16GB", "NVIDIA GeForce RTX 4060 Ti 16GB"),
        ("RTX 6000", "Quadro RTX 6000"),
        ("RTX 6000 Ada", "NVIDIA RTX 6000 Ada Generation"),
        ("A6000", "NVIDIA RTX A6000"),
        ("RTX PRO 6000", "NVIDIA RTX PRO 6000 Blackwell Server Edition"),
        ("titan rtx", "NVIDIA TITAN RTX"),
    ],
)
def test_a_name_as_people_write_it(text, name):
    assert find(text).name == name


@pytest.mark.parametrize("card", CARDS, ids=lambda c: c.name)
def test_every_card_is_found_by_its_own_name_and_says_where_its_memory_is_from(card):
    assert named(card.name) == card
    assert card.source
    assert card.total_bytes > GIB
    assert card.multiprocessors > 0
    assert card.capability >= (6, 0)
    assert 0.85 < card.total_bytes / (card.box_gb << 30) <= 1.02


@pytest.mark.parametrize("card", CARDS, ids=lambda c: c.name)
def test_a_name_without_its_maker_is_enough(card):
    name = card.name
    for maker in ("NVIDIA ", "GeForce ", "Tesla ", "Quadro ", " GPU", " Generation"):
        name = name.replace(maker, "")
    assert {named(form) for form in (name, name.lower(), name.upper())} == {card}


def test_names_are_unique():
    assert len({c.name for c in CARDS}) == len(CARDS) == len({frozenset((c.name, c.box_gb)) for c in CARDS})


VARIANTS = {"ti", "super", "laptop", "d", "ada", "pro", "max"}


@pytest.mark.parametrize("card", CARDS, ids=lambda c: c.name)
def test_a_variant_is_another_card(card):
    """The name with "Ti", "SUPER", "Laptop" or a letter more or less finds what is called so, or nothing."""
    words = card.name.lower().split()
    for word in VARIANTS:
        other = [w for w in words if w != word] if word in words else [*words, word]
        try:
            found = named(" ".join(other))
        except ValueError:
            continue
        assert VARIANTS & set(found.name.lower().split()) == VARIANTS & set(other)
    model = re.findall("[A-Za-z]*[0-9]+|TITAN", card.name)[0]
    for letters in ("gg", "ss"):
        with pytest.raises(ValueError, match="no card is known"):
            named(model + letters)


@pytest.mark.parametrize(
    ("text", "size", "other"),
    [
        ("A100", 40, "write A100 80GB for"),
        ("v100", 16, "write v100 32GB for"),
        ("RTX 3080", 10, "write RTX 3080 12GB for"),
        ("RTX 4060 Ti", 8, "write RTX 4060 Ti 16GB for"),
        ("RTX 3050 Laptop", 4, "write RTX 3050 Laptop 6GB for"),
        ("H100", 80, "write H100 94GB for"),
    ],
)
def test_where_a_name_has_cards_of_different_memory_the_smallest_is_taken_and_that_is_said(text, size, other):
    found = find(text)
    assert found.box_gb == size
    assert f"{text} is taken as the card of {size} GB" in found.note
    assert other in found.note
    written = found.note.partition("write ")[2].partition(" for")[0]
    assert named(written).box_gb > size
    assert not named(written).note


@pytest.mark.parametrize("text", ["RTX 4090", "A100 40GB", "A100 SXM4 80GB", "H100 PCIe", "T4", "24GiB"])
def test_nothing_is_said_where_a_name_leaves_nothing_open(text):
    assert not find(text).note


@pytest.mark.parametrize("card", {c.capability: c for c in CARDS}.values(), ids=lambda c: c.name)
def test_every_generation_has_estimates(card):
    code = """
def train(model, *shape):
    optimizer, scaler = torch.optim.AdamW(model.parameters()), torch.amp.GradScaler("cuda")
    with torch.autocast("cuda", torch.float16):
        loss = model(torch.randn(*shape, device="cuda")).float().square().mean()
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()

train(nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.LazyLinear(10)).cuda(), 8, 3, 16, 16)
train(nn.TransformerEncoderLayer(64, 4, 128, batch_first=True).cuda(), 4, 32, 64)
torch.rand(4096, device="cuda").sort()
"""
    report = ipyvram.estimate(code, card=card.name, namespace={"torch": torch, "nn": torch.nn}, steps=2)
    assert report.steps == 2
    assert (report.device_name, report.card_bytes) == (card.name, card.total_bytes)


@pytest.mark.parametrize("text", SUGGESTIONS)
def test_what_tab_offers_is_understood(text):
    assert isinstance(find(text.strip('"')), Card)


@given(st.integers(1, 4096))
def test_a_size_is_a_card_with_that_much(mib):
    assert find(f"{mib}MiB").total_bytes == mib << 20
    assert find(mib << 20) == of_size(mib << 20)


def test_a_size_is_called_as_a_person_would_write_it():
    names = [find(text).name for text in ("24GiB", "8GB", "256MiB", "1.5GiB")]
    assert names == ["a card of 24 GiB", "a card of 7.45 GiB", "a card of 256 MiB", "a card of 1.50 GiB"]


@pytest.mark.parametrize(
    ("text", "offered"),
    [
        ("RTX 4099", "RTX 4090"),
        ("A1000", "A100"),
        ("H1000", "H100"),
        ("H10O", "H100"),
        ("RTX4900", "like NVIDIA GeForce RTX 4090"),
        ("RTX 4090 SUPER", "RTX 4090"),
        ("A2", "A2000"),
        ("TITAN", "TITAN RTX|TITAN X"),
        ("RTX 3090 12GB", "RTX 3080 12GB"),
        ("NVIDIA", "Tesla T4"),
    ],
)
def test_an_unknown_card_is_an_error_that_offers_the_nearest(text, offered):
    with pytest.raises(ValueError, match=offered):
        find(text)


@pytest.mark.parametrize("text", ["24", "0GiB", "-8GiB", "12 bytes"])
def test_a_size_that_is_no_card_says_what_would_be_right(text):
    with pytest.raises(ValueError, match="24GiB"):
        find(text)


def test_workspaces_and_threads_follow_the_architecture():
    assert named("T4").cublas_workspace_bytes == named("A100").cublas_workspace_bytes == 8_519_680
    assert named("H100").cublas_workspace_bytes == 32 << 20
    assert (named("T4").threads_per_multiprocessor, named("RTX 4090").threads_per_multiprocessor) == (1024, 1536)
