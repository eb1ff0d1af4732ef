"""``torch.autocast("cuda")`` for tensors on ``meta``: the lists and the cache of casts of `aten/src/ATen/autocast_mode.h`.

Autocast is a dispatch key, and only CUDA tensors carry it. While `Autocast` is entered, every tensor carries the key (a
thread-local inclusion; `torch.autocast` still decides whether it counts) and the key's kernels are ours: they cast tensors
on the card and leave host tensors alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ipyvram.patches import Patches
from ipyvram.simulated.arguments import HALVES, argument
from ipyvram.simulated.recurrent import numbers, views

_KEY = "AutocastCUDA"
_SET = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCUDA)

#: AT_FORALL_FP32: run in float32.
_FLOAT32 = {
    "acos", "asin", "cosh", "erfinv", "exp", "expm1", "log", "log10", "log2", "log1p", "reciprocal", "rsqrt", "sinh", "tan",
    "pow", "softplus", "layer_norm", "native_layer_norm", "rms_norm", "group_norm", "frobenius_norm", "nuclear_norm",
    "cosine_similarity", "poisson_nll_loss", "cosine_embedding_loss", "nll_loss", "nll_loss2d", "hinge_embedding_loss",
    "kl_div", "l1_loss", "smooth_l1_loss", "huber_loss", "mse_loss", "margin_ranking_loss", "multilabel_margin_loss",
    "soft_margin_loss", "triplet_margin_loss", "multi_margin_loss", "binary_cross_entropy_with_logits", "dist", "pdist",
    "cdist", "renorm", "logsumexp", "upsample_nearest1d", "_upsample_nearest_exact1d", "upsample_nearest2d",
    "_upsample_nearest_exact2d", "upsample_nearest3d", "_upsample_nearest_exact3d", "upsample_linear1d", "upsample_bilinear2d",
    "_upsample_bilinear2d_aa", "upsample_trilinear3d", "upsample_bicubic2d", "_upsample_bicubic2d_aa",
    "binary_cross_entropy",
}  # fmt: skip
#: AT_FORALL_FP32_SET_OPT_DTYPE: the result is float32, the input is not cast beforehand.
_FLOAT32_RESULT = {
    "prod", "softmax", "log_softmax", "cumprod", "cumsum", "linalg_vector_norm", "linalg_matrix_norm", "sum",
}  # fmt: skip
#: AT_FORALL_DIFFERENT_REDISPATCH_SIGNATURE: likewise, through an overload with a dtype.
_FLOAT32_APPENDED = {"norm"}
#: AT_FORALL_PROMOTE: run in the widest type among the inputs.
_PROMOTE = {
    "addcdiv", "addcmul", "atan2", "bilinear", "cross", "dot", "vdot", "grid_sampler", "index_put", "tensordot",
    "scatter_add", "cat", "stack",
}  # fmt: skip


class Autocast:
    """Context: autocast for ``cuda`` acts on tensors on ``meta``."""

    def __init__(self) -> None:
        self._casts: dict[int, tuple[Tensor, Tensor]] = {}  # parameter → (itself, its cast), until autocast ends
        self._patches = Patches()
        self._guard: Any = None

    def __enter__(self) -> Autocast:
        library = torch.library.Library("aten", "IMPL")
        self._patches.later(library._destroy)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # these kernels replace existing ones, on purpose
            for name in torch._C._dispatch_get_registrations_for_dispatch_key(_KEY):
                operator = _operator(name)
                if operator is not None:
                    _register(library, name.removeprefix("aten::"), self._kernel(operator))
        clear = torch.clear_autocast_cache

        def clear_both() -> None:
            self._casts.clear()
            clear()

        self._patches.set(torch, "clear_autocast_cache", clear_both)
        self._guard = torch._C._IncludeDispatchKeyGuard(torch._C.DispatchKey.AutocastCUDA)
        self._guard.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        if self._guard is not None:
            self._guard.__exit__(None, None, None)
        self._casts.clear()
        self._patches.undo()

    # -- kernels -----------------------------------------------------------------------------------------------------

    def _kernel(self, operator: Any) -> Callable[..., Any]:
        policy = self._policy(operator)

        def kernel(*args: Any, **kwargs: Any) -> Any:
            with torch._C._ExcludeDispatchKeyGuard(_SET):
                with torch._C.DisableTorchFunction():
                    args, kwargs, target = policy(args, kwargs)
                return target(*args, **kwargs)

        return kernel

    def _policy(self, operator: Any) -> Callable[[Any, Any], tuple[Any, Any, Any]]:
        name = operator._schema.name.removeprefix("aten::")
        takes_dtype = any(a.name == "dtype" for a in operator._schema.arguments)

        def cast_to(dtype: torch.dtype, args: Any, kwargs: Any) -> tuple[Any, Any, Any]:
            # C++ casts them as arguments of one call, which the compiler of torch's builds (gcc) evaluates from the last to
            # the first.
            named = [(k, self._cast(v, dtype)) for k, v in reversed(kwargs.items())]
            placed = [self._cast(v, dtype) for v in reversed(args)]
            return tuple(reversed(placed)), dict(named), operator

        def lower(args: Any, kwargs: Any) -> tuple[Any, Any, Any]:
            return cast_to(torch.get_autocast_dtype("cuda"), args, kwargs)

        def full(args: Any, kwargs: Any) -> tuple[Any, Any, Any]:
            return cast_to(torch.float32, args, kwargs)

        def full_result(args: Any, kwargs: Any) -> tuple[Any, Any, Any]:
            given = kwargs.get("dtype")
            if given is None and takes_dtype and args and _eligible(args[0]) and not _positional_dtype(operator, args):
                kwargs = {**kwargs, "dtype": torch.float32}
            return args, kwargs, operator

        def widest(args: Any, kwargs: Any) -> tuple[Any, Any, Any]:
            wide = any(_eligible(t) and t.dtype is torch.float32 for t in _flat(args))
            return cast_to(torch.float32 if wide else torch.get_autocast_dtype("cuda"), args, kwargs)

        def flat_weights(args: Any, kwargs: Any) -> tuple[Any, Any, Any]:
            """`_cudnn_rnn_cast_reflatten` (AutocastRNN.cpp): always float16, and the weights as parts of one tensor."""
            source, weights, stride, flat = args[:4]
            if _eligible(weights[0]) and weights[0].dtype is not torch.float16:
                flat = torch.empty(numbers(weights), dtype=torch.float16, device=source.device)
                parts = views(flat, weights)
                weights = [part.copy_(weight) for part, weight in zip(parts, weights, strict=True)]
            (first, *rest), kwargs, _ = cast_to(torch.float16, (source, *args[4:]), kwargs)
            return (first, weights, stride, flat, *rest), kwargs, operator

        if name == "_cudnn_rnn":
            return flat_weights
        if name in _FLOAT32:
            return full
        if name in _FLOAT32_RESULT:
            return full_result
        if name in _FLOAT32_APPENDED:
            return _append_dtype(operator)
        return widest if name in _PROMOTE else lower

    def _cast(self, value: Any, dtype: torch.dtype) -> Any:
        if isinstance(value, Tensor):
            return self._cast_tensor(value, dtype)
        if isinstance(value, (list, tuple)):
            return type(value)(self._cast(v, dtype) for v in value)
        return value

    def _cast_tensor(self, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        """`cached_cast`: casts of float32 leaves that want gradients (weights) are kept until autocast ends."""
        if not _eligible(tensor) or tensor.dtype is dtype:
            return tensor
        keep = (
            dtype in HALVES
            and tensor.dtype is torch.float32
            and tensor.requires_grad
            and tensor.is_leaf
            and not tensor._is_view()
            and torch.is_autocast_cache_enabled()
            and not torch.is_inference_mode_enabled()
        )
        if not keep:
            return tensor.to(dtype)
        found = self._casts.get(tensor._cdata)
        if found is None:
            with torch.enable_grad():  # made without gradients, the cast may be used with them
                found = self._casts[tensor._cdata] = (tensor, tensor.to(dtype))
        return found[1]


def _eligible(value: Any) -> bool:
    return (
        isinstance(value, Tensor)
        and value.device.type == "meta"
        and value.is_floating_point()
        and value.dtype is not torch.float64
    )


def _flat(args: Any) -> list[Any]:
    found: list[Any] = []
    for value in args:
        found.extend(value if isinstance(value, (list, tuple)) else [value])
    return found


def _positional_dtype(operator: Any, args: Any) -> bool:
    place = next(i for i, a in enumerate(operator._schema.arguments) if a.name == "dtype")
    return len(args) > place and args[place] is not None


def _append_dtype(operator: Any) -> Callable[[Any, Any], tuple[Any, Any, Any]]:
    packet = torch.ops.aten.norm
    typed = {"Scalar": packet.ScalarOpt_dtype, "ScalarOpt_dim": packet.ScalarOpt_dim_dtype}.get(operator._overloadname)

    def policy(args: Any, kwargs: Any) -> tuple[Any, Any, Any]:
        if typed is None or not _eligible(args[0]):
            return args, kwargs, operator
        if operator._overloadname != "Scalar":
            kwargs = {"keepdim": argument(args, kwargs, 3, "keepdim", False), **kwargs}
        return args[:3], {**kwargs, "dtype": torch.float32}, typed

    return policy


def _operator(name: str) -> Any:
    """The operator overload that a registration names, None for the catch-all and for other libraries."""
    if not name.startswith("aten::"):
        return None
    packet, _, overload = name.removeprefix("aten::").partition(".")
    found = getattr(torch.ops.aten, packet, None)
    return None if found is None else getattr(found, overload or "default", None)


def _register(library: torch.library.Library, name: str, kernel: Callable[..., Any]) -> None:
    try:
        library.impl(name, kernel, _KEY, allow_override=True)
    except TypeError:  # torch before 2.8 overrides without being asked
        library.impl(name, kernel, _KEY)
