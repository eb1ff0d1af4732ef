"""Operators that torch's C++ composes of others below the dispatch mode: an operator goes in, its composition comes out.

On the card such an operator (``CompositeExplicitAutograd``) runs as the others that it calls, and what they make on the way is
memory. ``meta`` often has a kernel of its own that makes the result only; run by their pieces, every one of them is seen.
Operators without an own derivative (``CompositeImplicitAutograd``) come apart above the mode, unless such a one calls them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

_WAYS = ("CompositeExplicitAutograd", "CompositeImplicitAutograd")
_has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
#: Make their result and nothing else, or nothing: not worth taking apart.
_PLAIN = {
    "_to_copy", "clone", "copy_", "lift", "convolution", "sum", "mean", "embedding", "stack", "add", "add_", "sub", "sub_", "mul",
    "mul_", "div", "div_", "fill", "scalar_tensor", "arange", "randperm", "eye", "linspace", "range", "abs", "abs_", "zeros",
    "ones", "full", "rand", "randn", "randint", "_reshape_copy", "_unsafe_view", "allclose", "cummax", "cummin", "logcumsumexp", "detach_",
    "repeat", "_unsafe_index", "normal_functional", "transpose_", "t_", "squeeze_", "unsqueeze_", "index_put", "index_put_",
    "_unsafe_index_put", "slice_backward", "diagonal_backward", "select_backward", "set", "uniform", "complex", "polar",
}  # fmt: skip
_PLAIN_PREFIXES = ("empty", "new_", "_foreach_", "_fused_", "_amp_", "sparse_", "_sparse", "resize", "is_", "_assert",
                   "sym_", "_functional_", "_print", "_pin_memory", "_philox", "_test", "fft_", "linalg_", "_convolution",
                   "_native_batch_norm", "_batch_norm", "_nested", "_scaled_dot", "mkldnn", "set_", "_coalesced")  # fmt: skip


@functools.cache
def taken_apart(func: Any) -> Callable[..., Any] | None:
    """C++'s own definition of an operator without a derivative, None for others. Python has definitions of its own for some."""
    if not _has_kernel(func.name(), _WAYS[1]):
        return None
    return functools.partial(func._op_dk, torch._C.DispatchKey.CompositeImplicitAutograd)


@functools.cache
def composition(func: Any) -> Callable[..., Any] | None:
    """C++'s own composition of an operator, None where there is none that makes anything of its own.

    An operator with a kernel for the CPU has one for CUDA too.
    """
    name: str = func._schema.name
    plain = name.removeprefix("aten::")
    if not name.startswith("aten::") or func.is_view or plain in _PLAIN or "Scalar" in func._overloadname:
        return None
    if plain.endswith(("_like", "_window", "out")) or plain.startswith(_PLAIN_PREFIXES):
        return None
    full = name if func._overloadname == "default" else f"{name}.{func._overloadname}"
    way = next((key for key in _WAYS if _has_kernel(full, key)), None)
    if way is None or _has_kernel(full, "CPU") or _has_kernel(full, "CUDA"):
        return None
    return functools.partial(func._op_dk, getattr(torch._C.DispatchKey, way))
