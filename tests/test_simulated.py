"""The simulated card: what each of CUDA's ways allocates, operator by operator."""

import functools

import pytest
import torch
from torch import nn

from ipyvram import cards
from ipyvram.analysis import analyse
from ipyvram.options import Options
from ipyvram.simulated import ways
from ipyvram.simulated.estimation import Estimation
from ipyvram.simulated.reduction import reduction_scratch

MIB = 1 << 20


def run(source, card="A100", **namespace):
    """(operator, bytes) of every allocation that a piece of code asks for, and the estimation."""
    space = {"torch": torch, "nn": nn, "F": nn.functional, "__name__": "__main__", **namespace}
    estimation = Estimation(Options(), cards.find(card), space)
    code = compile(source, "<test>", "exec")
    recording = estimation.run(lambda: exec(code, space), code=code)
    return [(recording.origins[row.origin].op, row.size) for row in estimation.memory.rows if row.alloc], estimation


def sizes(made, *operators):
    return [size for op, size in made if op.removeprefix("aten.") in operators]


def live(estimation):
    """Bytes asked for and not given back at the end."""
    return sum(row.size if row.alloc else -row.size for row in estimation.memory.rows)


def test_dropout_keeps_a_mask_of_one_byte():
    made, _ = run("x = torch.empty(1000, device='cuda', requires_grad=True)\ny = F.dropout(x, 0.5)")
    assert sizes(made, "native_dropout") == [1000, 4000]  # the mask first, as Dropout.cu does
    made, _ = run("x = torch.empty(1000, device='cuda', requires_grad=True)\ny = F.dropout(x, 0.5, training=False)")
    assert sizes(made, "native_dropout") == []


ATTENTION = (
    "q, k, v = (torch.empty(2, 4, 512, 64, device='cuda', dtype={dtype}, requires_grad=True) for _ in range(3))\n"
)


@pytest.mark.parametrize(
    ("card", "dtype", "call", "operator"),
    [
        ("A100", "torch.float16", "F.scaled_dot_product_attention(q, k, v)", "_scaled_dot_product_flash_attention"),
        ("A100", "torch.bfloat16", "F.scaled_dot_product_attention(q, k, v, is_causal=True)", "_scaled_dot_product_flash_attention"),
        ("A100", "torch.float32", "F.scaled_dot_product_attention(q, k, v)", "_scaled_dot_product_efficient_attention"),
        ("T4", "torch.float16", "F.scaled_dot_product_attention(q, k, v)", "_scaled_dot_product_efficient_attention"),
        ("A100", "torch.float16", "F.scaled_dot_product_attention(q, k, v, torch.zeros(512, 512, device='cuda', dtype=torch.float16))",
         "_scaled_dot_product_efficient_attention"),
    ],
)  # fmt: skip
def test_attention_takes_the_kernel_of_the_card_and_never_keeps_the_matrix(card, dtype, call, operator):
    made, _ = run(ATTENTION.format(dtype=dtype) + f"out = {call}\nout.sum().backward()", card)
    item = 4 if dtype == "torch.float32" else 2
    assert max(sizes(made, operator)) == 2 * 4 * 512 * 64 * item
    assert max(size for _, size in made) < 2 * 4 * 512 * 512 * item
    assert sizes(made, operator + "_backward")


def test_attention_without_fused_kernels_keeps_the_matrix():
    source = "from torch.nn.attention import SDPBackend, sdpa_kernel\n" + ATTENTION.format(dtype="torch.float16")
    source += "with sdpa_kernel(SDPBackend.MATH): out = F.scaled_dot_product_attention(q, k, v)"
    made, _ = run(source)
    assert max(size for _, size in made) >= 2 * 4 * 512 * 512 * 2


def test_autocast_casts_a_weight_once_and_lets_go_of_it_at_the_end():
    source = """
layer = nn.Linear(256, 512, bias=False).cuda()
x = torch.empty(8, 256, device="cuda")
with torch.no_grad(), torch.autocast("cuda", dtype=torch.float16):
    for _ in range(3): y = layer(x)
    inside = y.dtype
after = torch.cuda.memory_allocated()
"""
    made, estimation = run(source)
    assert sizes(made, "_to_copy").count(256 * 512 * 2) == 1
    kept = [row.serial for row in estimation.memory.rows if row.alloc and row.size == 256 * 512 * 2]
    assert all(any(not row.alloc and row.serial == serial for row in estimation.memory.rows) for serial in kept)


@pytest.mark.parametrize(
    ("expression", "dtype"),
    [
        ("torch.mm(a, a)", "float16"), ("a @ a", "float16"), ("F.softmax(h, -1)", "float32"), ("h.exp()", "float32"),
        ("F.layer_norm(h, [64])", "float32"), ("h.sum()", "float32"), ("h + a", "float32"), ("F.relu(h)", "float16"),
        ("torch.cat([h, a])", "float32"), ("F.mse_loss(h, h)", "float32"), ("h.norm()", "float32"),
        ("F.conv2d(a.view(1, 1, 64, 64), a[:3, :3].reshape(1, 1, 3, 3))", "float16"),
    ],
)  # fmt: skip
def test_autocast_follows_the_lists_of_cuda(expression, dtype):
    source = f"""
a = torch.empty(64, 64, device="cuda")
h = torch.empty(64, 64, device="cuda", dtype=torch.float16)
with torch.autocast("cuda", dtype=torch.float16): out = {expression}
assert out.dtype is torch.{dtype}, out.dtype
host = torch.ones(4, 4)
with torch.autocast("cuda", dtype=torch.float16): assert (host @ host).dtype is torch.float32
"""
    run(source)


def test_a_workspace_for_each_thread_at_its_first_product(monkeypatch):
    monkeypatch.setattr(ways, "keeps_workspaces", lambda: True)
    source = "w = torch.empty(64, 64, device='cuda', requires_grad=True)\nfor _ in range(2): (w @ w).sum().backward()"
    made, _ = run(source)
    assert sizes(made, "cuBLAS workspace") == [8_519_680] * 2
    made, _ = run(source, "H100")
    assert sizes(made, "cuBLAS workspace") == [32 * MIB] * 2
    made, _ = run("w = torch.empty(64, 64, device='cuda')\nw + w")
    assert sizes(made, "cuBLAS workspace") == []


def test_a_workspace_for_the_length_of_each_product(monkeypatch):
    """As torch 2.15 has it: of cuBLASLt's size where a bias is added at once."""
    monkeypatch.setattr(ways, "keeps_workspaces", lambda: False)
    source = "w = torch.empty(64, 64, device='cuda', requires_grad=True)\nfor _ in range(2): (w @ w).sum().backward()"
    made, estimation = run(source, "H100")
    assert sizes(made, "cuBLAS workspace") == [32 * MIB] * 6
    assert live(estimation) == 2 * 64 * 64 * 4
    made, _ = run("nn.Linear(64, 64).cuda()(torch.empty(8, 64, device='cuda'))")
    assert sizes(made, "cuBLAS workspace") == [MIB]


@pytest.mark.parametrize(
    ("product", "expected"),
    [
        ("torch.addmm(X(32), X(64, 48), X(48, 32), alpha=2)", MIB), ("torch.addmm(X(1, 32), X(64, 48), X(48, 32))", MIB),
        ("F.linear(X(1, 48), X(32, 48), X(32))", MIB), ("torch.addmm(X(32), X(64, 48), X(48, 32), beta=0.5)", 8_519_680),
        ("torch.addmm(X(1), X(64, 48), X(48, 32))", 8_519_680), ("torch.addmm(X(64)[::2], X(64, 48), X(48, 32))", 8_519_680),
        ("torch.addmm(X(64, 32), X(64, 48), X(48, 32))", 8_519_680), ("F.linear(X(64, 48), X(1, 48), X(1))", 8_519_680),
        ("F.linear(X(64, 1), X(32, 1), X(32))", 8_519_680), ("X(64, 32).addmm_(X(64, 48), X(48, 32))", 8_519_680),
        ("torch.addmm(H(64, 32), H(64, 48), H(48, 32), beta=0.5)", MIB), ("H(64, 32).addmm_(H(64, 48), H(48, 32))", 8_519_680),
        ("torch.addmm(H(32).expand(64, 32), H(64, 48), H(48, 32))", 8_519_680),
        ("torch.addmm(H(32, 64).t(), H(64, 48), H(48, 32))", 8_519_680), ("torch.addmm(H(64, 99)[:, 1:33], H(64, 48), H(48, 32))", MIB),
        ("torch._addmm_activation(X(64, 32), X(64, 48), X(48, 32))", MIB), ("torch.vdot(X(8), X(8))", 8_519_680),
        ("torch.dot(X(0), X(0))", 8_519_680), ("torch.addmm(X(32), X(64, 0), X(0, 32))", None), ("X(0, 8) @ X(8, 32)", None),
    ],
)  # fmt: skip
def test_which_library_makes_a_product(monkeypatch, product, expected):
    """As torch 2.15.0 asks over the stub."""
    monkeypatch.setattr(ways, "keeps_workspaces", lambda: False)
    made, _ = run(
        "X = lambda *shape: torch.empty(*shape, device='cuda')\nH = lambda *shape: X(*shape).half()\n" + product
    )
    assert sizes(made, "cuBLAS workspace") == ([expected] if expected else [])


def test_an_expanded_operand_is_copied_for_the_product():
    made, _ = run("a = torch.empty(1, 1, device='cuda').expand(64, 32)\na @ torch.empty(32, 16, device='cuda')")
    assert sizes(made, "gemm copy") == [64 * 32 * 4]
    made, _ = run("a = torch.empty(32, 64, device='cuda')\na.t() @ torch.empty(32, 16, device='cuda')")
    assert sizes(made, "gemm copy") == []


def test_gradients_are_summed_in_place():
    once, _ = run("w = torch.empty(4096, device='cuda', requires_grad=True)\n(w * 2).sum().backward()")
    source = "w = torch.empty(4096, device='cuda', requires_grad=True)\nfor _ in range(3): (w * 2).sum().backward()"
    made, estimation = run(source)
    of_weights = [size for _, size in once if size == 4096 * 4]
    assert len([size for _, size in made if size == 4096 * 4]) == 1 + 3 * (len(of_weights) - 1)
    assert live(estimation) == 2 * 4096 * 4


@pytest.mark.parametrize(
    ("kept", "sums"), [("gradient", 0), ("(gradient, kept.append(gradient))[0]", 1)], ids=["dropped", "kept"]
)
def test_a_gradient_that_python_keeps_is_not_summed_in_place(kept, sums):
    """How many references a tensor has that nobody keeps depends on Python: from 3.14 on, one fewer for each variable on the way."""
    source = f"""
kept = []
class Keep(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x): return x.clone()
    @staticmethod
    def backward(ctx, gradient):
        gradient = gradient * 1
        return {kept}
h = torch.empty(4096, device="cuda", requires_grad=True) * 2
total = h.sin().sum()
(total + Keep.apply(h).exp().sum()).backward()
"""
    made, _ = run(source)
    assert len([1 for name, size in made if name == "aten.add" and size == 4096 * 4]) == sums


def test_optimizers_take_their_foreach_way():
    source = """
model = nn.Sequential(*[nn.Linear(64, 64) for _ in range(4)]).cuda()
optimizer = torch.optim.{optimizer}
model(torch.empty(2, 64, device="cuda")).sum().backward()
optimizer.step()
"""
    made, _ = run(source.format(optimizer="Adam(model.parameters())"))
    assert len(sizes(made, "_foreach_sqrt")) == 8
    made, _ = run(source.format(optimizer="Adam(model.parameters(), foreach=False)"))
    assert sizes(made, "_foreach_sqrt") == []
    made, _ = run(source.format(optimizer="AdamW(model.parameters(), fused=True)"))
    assert sizes(made, "_foreach_sqrt") == []
    made, estimation = run(source.format(optimizer="SGD(model.parameters(), lr=1, momentum=0.9)"))
    weights = 4 * (64 * 64 + 64) * 4
    assert live(estimation) - (2 * 8_519_680 if ways.keeps_workspaces() else 0) == 3 * weights


def test_the_scaler_steps_and_skips_nothing():
    source = """
model = nn.Linear(64, 64).cuda()
optimizer = torch.optim.SGD(model.parameters(), lr=1, momentum=0.9)
scaler = torch.amp.GradScaler("cuda")
for _ in range(2):
    with torch.autocast("cuda", dtype=torch.float16): loss = model(torch.empty(2, 64, device="cuda")).sum()
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    scaler.step(optimizer)
    scaler.update()
assert len(optimizer.state) == 2
"""
    assert run(source)[1].steps == 2


def test_checkpointing_keeps_less():
    source = """
from torch.utils.checkpoint import checkpoint
blocks = nn.ModuleList(nn.Sequential(nn.Linear(256, 1024), nn.GELU(), nn.Linear(1024, 256)) for _ in range(6)).cuda()
x = torch.empty(8192, 256, device="cuda", requires_grad=True)
for block in blocks: x = {call}
x.sum().backward()
"""
    plain = run(source.format(call="block(x)"))[1].memory.peak
    saved = run(source.format(call="checkpoint(block, x, use_reentrant=False)"))[1].memory.peak
    older = run(source.format(call="checkpoint(block, x, use_reentrant=True)"))[1].memory.peak
    assert saved < 0.6 * plain
    assert older < 0.6 * plain


@pytest.mark.parametrize(("count", "sorted_"), [(1000, False), (5000, True)])
def test_the_gradient_of_an_embedding_sorts_many_indices(count, sorted_):
    source = (
        f"table = nn.Embedding(100, 16).cuda()\ntable(torch.zeros({count}, dtype=int, device='cuda')).sum().backward()"
    )
    assert bool(sizes(run(source)[0], "embedding sort")) is sorted_


@pytest.mark.parametrize("layer", ["LSTM", "GRU", "RNN"])
def test_recurrent_layers_have_flat_weights_and_gradients(layer):
    source = f"""
model = nn.{layer}(32, 64, num_layers=2, batch_first=True, bidirectional=True, dropout=0.5).cuda()
assert len({{p.untyped_storage()._cdata for p in model.parameters()}}) == 1
out, _ = model(torch.empty(4, 7, 32, device="cuda"))
assert out.shape == (4, 7, 128) and out.is_cuda
out.sum().backward()
assert all(p.grad is not None and p.grad.shape == p.shape for p in model.parameters())
optimizer = torch.optim.SGD(model.parameters(), lr=1)
optimizer.step()
"""
    _, estimation = run(source)
    assert estimation.ways.recurrent_bound > 0


def test_channels_last_is_kept():
    source = """
model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()).cuda().to(memory_format=torch.channels_last)
x = torch.empty(2, 3, 16, 16, device="cuda").to(memory_format=torch.channels_last)
y = model(x)
assert y.is_contiguous(memory_format=torch.channels_last)
y.sum().backward()
assert model[0].weight.grad.is_contiguous(memory_format=torch.channels_last)
"""
    run(source)


def test_compiled_models_run_as_they_are_and_it_is_said():
    _, estimation = run("model = torch.compile(nn.Linear(4, 4).cuda())\nmodel(torch.empty(2, 4, device='cuda'))")
    assert any("torch.compile" in note for note in estimation.notes)


def test_host_tensors_that_meet_the_card_are_moved_and_it_is_said():
    made, estimation = run("torch.empty(8, device='cuda') + torch.ones(8)")
    assert made[:2] == [("aten.empty", 32), ("aten.add", 32)]
    assert estimation._host.left == {(8,): "add"}


def test_a_frozen_part_makes_no_gradients():
    source = """
model = nn.Sequential(nn.Linear(256, 256), nn.Linear(256, 256)).cuda()
model[0].requires_grad_(False)
model(torch.empty(2, 256, device="cuda")).sum().backward()
assert model[0].weight.grad is None and model[1].weight.grad is not None
"""
    run(source)


@pytest.mark.parametrize(
    ("shape", "dims", "expected"),
    [
        ((10, 200, 512), (0, 1), (8_388_608, 16)),  # these three in public traces of real runs
        ((10, 100, 512), (0, 1), ()),
        ((8, 4096, 16), (0, 1, 2), (256, 4)),
        ((8, 16), (1,), ()),  # each output has a warp of its own
    ],
)
def test_scratch_of_reductions_follows_the_launch_configuration(shape, dims, expected):
    source = torch.empty(shape, device="meta")
    assert reduction_scratch("sum", source, source.sum(dims), dims, cards.find("RTX 3090")) == expected


def test_a_log_of_a_sum_has_its_differences_beside_its_result():
    made, _ = run("y = torch.logsumexp(torch.empty(4096, 512, device='cuda'), 1)")
    largest = absolute = result = 16_384
    infinite, differences = 4096, 8_388_608
    assert sizes(made, "logsumexp") == [largest, absolute, infinite, differences, result]


def test_a_storage_that_is_resized_is_another_allocation():
    source = "x = torch.empty(1000, device='cuda'); x.resize_(2000)\nx.untyped_storage().resize_(0); x.add_(1) if x.untyped_storage().nbytes() else x.view(-1)"
    made, estimation = run(source)
    assert [size for _, size in made] == [4000, 8000]
    assert live(estimation) == 0


def test_an_emptied_cache_is_not_reserved_any_more():
    source = "a = torch.empty(30 << 20, device='cuda'); del a\n{}\nb = torch.empty(70 << 20, device='cuda')"
    reserved = []
    for between in ("", "torch.cuda.empty_cache()", "torch.cuda.memory.empty_cache()"):
        code = compile(source.format(between), "<test>", "exec")
        estimation = Estimation(Options(), cards.find("A100"), {"torch": torch})
        report = analyse(estimation.run(functools.partial(exec, code, {"torch": torch}), code=code))
        reserved.append(report.peak_reserved_bytes)
    assert reserved == [400 * MIB, 280 * MIB, 280 * MIB]
