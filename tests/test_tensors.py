"""Tensors in anything, and the storages below them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from ipyvram.probes.tensors import dtype_name, plain_tensors, shape_of, storage_key, storage_of, tensors_in


@dataclass
class Output:
    loss: torch.Tensor
    hidden: tuple[torch.Tensor, ...]


def test_tensors_come_in_order_from_nested_containers():
    a, b, c, d = (torch.tensor(i) for i in range(4))
    found = list(tensors_in({"x": [a, (b, None)], "y": Output(c, (d,)), "z": "text"}))
    assert [t.item() for t in found] == [0, 1, 2, 3]


def test_a_long_list_of_numbers_is_not_searched():
    assert list(tensors_in([0] * 100 + [torch.ones(1)])) == []
    assert len(list(tensors_in([torch.ones(1)] * 100))) == 100


def test_no_more_than_asked_for():
    assert len(list(tensors_in([torch.ones(1)] * 10, limit=4))) == 4


def test_a_sparse_tensor_is_its_parts():
    coo = torch.sparse_coo_tensor(torch.tensor([[0, 2]]), torch.ones(2), (3,), check_invariants=False)
    assert [tuple(t.shape) for t in plain_tensors(coo)] == [(1, 2), (2,)]
    csr = torch.eye(3).to_sparse_csr()
    assert sum(t.numel() for t in plain_tensors(csr)) == 4 + 3 + 3


def test_reading_the_parts_changes_no_version():
    coo = torch.sparse_coo_tensor(torch.tensor([[0]]), torch.ones(1), (3,), check_invariants=False)
    before = coo._version
    list(plain_tensors(coo))
    assert coo._version == before


def test_a_transforms_tensor_is_the_one_below_it():
    seen = []
    torch.func.grad(lambda x: (seen.extend(plain_tensors(x)), x.sum())[1])(torch.ones(7))
    assert storage_of(seen[0]).nbytes() == 28


def test_without_a_storage_there_is_none():
    assert storage_of(nn.LazyLinear(3).weight) is None
    assert storage_of(torch.eye(2).to_sparse()) is None
    assert storage_of(torch.ones(3)).nbytes() == 12


def test_dtypes_by_their_name():
    assert (dtype_name(torch.bfloat16), dtype_name(torch.int64)) == ("bfloat16", "int64")


def test_a_sparse_tensor_is_known_by_the_storage_of_its_first_part():
    coo = torch.sparse_coo_tensor(torch.tensor([[0, 2]]), torch.ones(2), (3,), check_invariants=False)
    assert storage_key(coo) == coo._indices().untyped_storage()._cdata
    plain = torch.ones(3)
    assert storage_key(plain) == plain.untyped_storage()._cdata
    assert storage_key(nn.LazyLinear(3).weight) is None


class Meshed(torch.Tensor):
    """Names what is no tensor among its parts, as torch's distributed tensors do."""

    mesh = object()

    def __tensor_flatten__(self):
        return ["local", "mesh"], None


def test_what_a_wrapper_names_beside_its_tensors_is_passed_over():
    wrapper = torch.ones(3).as_subclass(Meshed)
    wrapper.local = torch.ones(5)
    assert list(plain_tensors(wrapper)) == [wrapper.local]


def test_rows_of_several_sizes_have_no_shape():
    assert shape_of(torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])) == ()
