"""``torch.func`` over tensors that earlier cells made on a machine without a GPU, in an estimate."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import ipyvram
from ipyvram.devices import since

HEAD = """
import functools, torch
from torch import nn
from torch.nn import functional as F
from torch.func import functional_call, grad, jacfwd, jacrev, hessian, stack_module_state, vjp, vmap
"""

CELLS = {
    "gradients of each sample": """
params = {k: v.detach() for k, v in model.named_parameters()}
def loss(params, a, b): return F.cross_entropy(functional_call(model, params, (a[None],)), b[None])
gradients = vmap(grad(loss), in_dims=(None, 0, 0))(params, x, y)
assert gradients["0.weight"].shape == (64, 16, 8) and gradients["0.weight"].is_cuda
""",
    "an ensemble that trains": """
params, buffers = stack_module_state(models)
optimizer = torch.optim.Adam(params.values())
for _ in range(3):
    out = vmap(lambda p, b: functional_call(base, (p, b), (x,)))(params, buffers)
    F.cross_entropy(out.mean(0), y).backward(); optimizer.step(); optimizer.zero_grad()
""",
    "gradients of the input": "assert vmap(grad(lambda a: model(a).sum()))(x).is_cuda",
    "gradients of the input, without vmap": "assert grad(lambda a: model(a).sum())(x).is_cuda",
    "jacobians": "assert vmap(jacrev(model))(x).is_cuda and vmap(jacfwd(model))(x).is_cuda",
    "a product with the jacobian": "out, back = vjp(model, x); assert back(torch.ones_like(out))[0].is_cuda",
    "second derivatives": """
def u(params, a): return functional_call(model, params, (a,)).sum()
vmap(hessian(u, argnums=1), (None, 0))(dict(model.named_parameters()), x).square().mean().backward()
""",
    "what the function names": "assert torch.vmap(lambda i: model(x[i]))(torch.arange(64)).is_cuda",
    "in parts, by a partial": "assert vmap(functools.partial(functional_call, model, dict(model.named_parameters())), chunk_size=16)(x).is_cuda",
    "steps within steps": """
def inner(params, a, b): return F.cross_entropy(functional_call(model, params, (a,)), b)
def outer(a, b):
    params = dict(model.named_parameters()); gradients = grad(inner)(params, a, b)
    return inner({k: params[k] - 0.1 * gradients[k] for k in params}, a, b)
vmap(outer)(x.view(4, 16, 8), y.view(4, 16)).mean().backward()
""",
}


def made() -> dict[str, object]:
    models = [nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4)) for _ in range(3)]
    x, y = torch.randn(64, 8), torch.randint(4, (64,))
    return {"model": models[0], "models": models, "base": copy.deepcopy(models[0]).to("meta"), "x": x, "y": y}


@pytest.mark.parametrize("cell", CELLS.values(), ids=CELLS)
def test_what_a_transform_is_given_is_on_the_card(cell):
    if cell == CELLS["what the function names"] and not since(2, 12):
        pytest.skip("torch up to 2.9 takes no element of a tensor by an index that vmap made")
    variables = made()
    x, y = variables["x"], variables["y"]
    values = x.clone(), y.clone()
    report = ipyvram.estimate(HEAD + cell, card="T4", namespace=dict(variables))
    assert "left_on_host" not in {f.kind for f in report.findings}
    assert torch.equal(x, values[0])
    assert torch.equal(y, values[1])
    moved = HEAD + ("x, y = x.cuda(), y.cuda()\n" if "y)" in cell or "y." in cell else "x = x.cuda()\n") + cell
    other = ipyvram.estimate(moved, card="T4", namespace=made())
    assert report.peak_bytes == other.peak_bytes


def test_a_transform_within_another_after_the_host_made_something():
    cell = (
        HEAD
        + """
third = x[:3] + 1  # it might meet the card as well, so it is followed
vmap(grad(lambda a: model(a).sum()))(x)
"""
    )
    report = ipyvram.estimate(cell, card="T4", namespace={**made(), "device": torch.device("cpu")})
    assert report.peak["activations"] + report.peak["temporaries"] > 0


def test_a_transform_on_the_host_stays_there():
    x = torch.randn(64, 8)
    cell = HEAD + "z = vmap(lambda a: a * 2)(x); assert not z.is_cuda; out = model(z.cuda())"
    report = ipyvram.estimate(cell, card="T4", namespace={**made(), "x": x})
    assert report.peak["inputs"] == x.nbytes


def test_torch_is_as_before():
    before = torch._functorch.apis.vmap_impl
    ipyvram.estimate(HEAD + "vmap(model)(x)", card="T4", namespace=made())
    assert torch._functorch.apis.vmap_impl is before
    assert F.relu(torch.vmap(lambda a: -a)(torch.ones(3))).sum() == 0
