"""`cards`: names and sizes to cards."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
        ("A100", "NVIDIA A100-PCIE-40GB"),
        ("RTX 4070 Ti", "NVIDIA GeForce RTX 4070 Ti"),
        ("4070 super", "NVIDIA GeForce RTX 4070 SUPER"),
        ("rtx4060ti", "NVIDIA GeForce RTX 4060 Ti"),
        ("RTX 3050 Laptop", "NVIDIA GeForce RTX 3050 Laptop GPU"),
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
        ("RTX 2080", "RTX 2080 Ti"),
        ("1080", "GTX 1080 Ti"),
        ("RTX 4080 SUPER", "RTX 4080"),
        ("H20", "H200"),
        ("A10", "A10G"),
        ("L40", "L40S"),
        ("RTX", "no card is known as 'RTX'"),
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
