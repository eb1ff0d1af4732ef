"""A snapshot loads nothing that the program did not."""

from __future__ import annotations

import sys

import pytest
import torch

from ipyvram.probes import snapshots


@pytest.fixture
def without_compiler(monkeypatch):
    monkeypatch.delitem(sys.modules, "torch._inductor", raising=False)
    monkeypatch.delitem(vars(torch), "_inductor", raising=False)


def test_torch_finds_no_compiler_while_it_makes_one(monkeypatch, without_compiler):
    seen = []
    monkeypatch.setattr(
        torch.cuda.memory, "_snapshot", lambda: seen.append(hasattr(torch._inductor, "codecache")) or {}
    )
    assert snapshots.whole() == {}
    assert seen == [False]
    assert "_inductor" not in vars(torch)
    assert "torch._inductor" not in sys.modules


def test_a_compiler_that_is_there_stays(monkeypatch):
    there = object()
    monkeypatch.setitem(vars(torch), "_inductor", there)
    monkeypatch.setattr(torch.cuda, "memory_snapshot", lambda include_traces=True: [torch._inductor, include_traces])
    assert snapshots.segments() == [there, False]
    assert vars(torch)["_inductor"] is there


def test_one_that_is_loaded_meanwhile_stays(monkeypatch, without_compiler):
    there = object()
    monkeypatch.setattr(torch.cuda, "memory_snapshot", lambda: vars(torch).update(_inductor=there) or [])
    assert not snapshots.segments_alone()
    assert snapshots.segments() == []
    assert vars(torch).pop("_inductor") is there
