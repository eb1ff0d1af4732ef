"""Further ways of training and inference, to hold the estimate against torch's CUDA operators; each is a cell's text.

`PROGRAMS` maps a name to lines that say ``"cuda"``; `text_of` gives the cell. Batches are small: sizes are real all the same.
"""

from __future__ import annotations

import textwrap

from benchmarks.gpt import BY_HAND, SDPA, gpt

_LOOP = """
for _ in range(3):
    x, y = batch()
    optimizer.zero_grad()
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    optimizer.step()
"""
_HEAD = """
import copy, math, torch, torchvision
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
torch.manual_seed(0)
def images(n=8, side=96):
    return torch.randn(n, 3, side, side).cuda(), torch.randint(0, 1000, (n,)).cuda()
def vectors(n=64, width=256, classes=10):
    return torch.randn(n, width).cuda(), torch.randint(0, classes, (n,)).cuda()
"""
PROGRAMS: dict[str, str] = {}


def text_of(name: str) -> str:
    """The notebook cell."""
    return _HEAD + textwrap.dedent(PROGRAMS[name])


# -- torchvision -----------------------------------------------------------------------------------------------------------

for _name, _side in {
    "alexnet": 96, "densenet121": 64, "googlenet": 96, "mnasnet1_0": 96, "mobilenet_v2": 96, "regnet_y_400mf": 96,
    "resnext50_32x4d": 96, "shufflenet_v2_x1_0": 96, "squeezenet1_1": 96, "wide_resnet50_2": 64, "maxvit_t": 224, "swin_v2_t": 128,
    "vgg11_bn": 96, "efficientnet_v2_s": 96,
}.items():  # fmt: skip
    PROGRAMS[f"vision-{_name}"] = f"""
model = torchvision.models.{_name}(weights=None, num_classes=1000).cuda().train()
optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
for _ in range(2):
    x, y = images(4, {_side})
    optimizer.zero_grad()
    out = model(x)
    out = out if isinstance(out, torch.Tensor) else out[0]
    F.cross_entropy(out, y).backward()
    optimizer.step()
"""
for _name in ("deeplabv3_resnet50", "lraspp_mobilenet_v3_large"):
    PROGRAMS[f"vision-{_name}"] = f"""
model = torchvision.models.segmentation.{_name}(weights=None, weights_backbone=None, num_classes=21).cuda().train()
optimizer = torch.optim.AdamW(model.parameters())
for _ in range(2):
    x, y = torch.randn(2, 3, 128, 128).cuda(), torch.randint(0, 21, (2, 128, 128)).cuda()
    optimizer.zero_grad()
    with torch.autocast("cuda", dtype=torch.bfloat16):
        loss = F.cross_entropy(model(x)["out"], y)
    loss.backward()
    optimizer.step()
"""
for _name in ("r3d_18", "mc3_18"):
    PROGRAMS[f"vision-{_name}"] = f"""
model = torchvision.models.video.{_name}(weights=None, num_classes=10).cuda().train()
optimizer = torch.optim.SGD(model.parameters(), 0.1)
for _ in range(2):
    optimizer.zero_grad()
    F.cross_entropy(model(torch.randn(2, 3, 8, 56, 56).cuda()), torch.randint(0, 10, (2,)).cuda()).backward()
    optimizer.step()
"""

# -- text ------------------------------------------------------------------------------------------------------------------

PROGRAMS["nn.Transformer"] = """
model = nn.Transformer(256, 8, 3, 3, 512, batch_first=True).cuda()
optimizer = torch.optim.AdamW(model.parameters())
mask = nn.Transformer.generate_square_subsequent_mask(48, device="cuda")
for _ in range(3):
    source, target = torch.randn(8, 64, 256, device="cuda"), torch.randn(8, 48, 256, device="cuda")
    optimizer.zero_grad()
    F.mse_loss(model(source, target, tgt_mask=mask), target).backward()
    optimizer.step()
"""
PROGRAMS["nn.TransformerEncoder-padded-amp"] = """
layer = nn.TransformerEncoderLayer(256, 8, 1024, activation="gelu", norm_first=True, batch_first=True)
model = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False).cuda()
head = nn.Linear(256, 1000).cuda()
optimizer = torch.optim.Adam([*model.parameters(), *head.parameters()])
for _ in range(3):
    x, y = torch.randn(8, 128, 256, device="cuda"), torch.randint(0, 1000, (8, 128)).cuda()
    padded = torch.zeros(8, 128, dtype=torch.bool).cuda()
    optimizer.zero_grad()
    with torch.autocast("cuda", dtype=torch.float16):
        loss = F.cross_entropy(head(model(x, src_key_padding_mask=padded)).flatten(0, 1), y.flatten(), label_smoothing=0.1)
    loss.backward()
    torch.nn.utils.clip_grad_norm_([*model.parameters(), *head.parameters()], 1.0)
    optimizer.step()
"""
PROGRAMS["MultiheadAttention-weights"] = """
model = nn.MultiheadAttention(256, 8, dropout=0.1).cuda()
optimizer = torch.optim.SGD(model.parameters(), 0.1)
for _ in range(3):
    x = torch.randn(64, 8, 256, device="cuda", requires_grad=True)
    out, weights = model(x, x, x)
    (out.sum() + weights.mean()).backward()
    optimizer.step()
    optimizer.zero_grad()
"""
_TRAINED = """
model = GPT(words=5000, width=256, layers=4).cuda()
def batch():
    return torch.randint(0, 5000, (8, 256)).cuda(), torch.randint(0, 5000, (8 * 256,)).cuda()
def loss_of(out, y):
    return F.cross_entropy(out.flatten(0, 1), y)
"""


def _gpt(attention: str = SDPA, run: str = "block(x)") -> str:
    return gpt(attention, run) + _TRAINED


_TEXT_LOOP = """
for _ in range(3):
    x, y = batch()
    optimizer.zero_grad()
    with torch.autocast("cuda", dtype=torch.DTYPE, enabled=ENABLED):
        loss = loss_of(model(x), y)
    loss.backward()
    optimizer.step()
"""
_PLAIN_LOOP = _TEXT_LOOP.replace("DTYPE", "float16").replace("ENABLED", "False")
_ADAMW = "optimizer = torch.optim.AdamW(model.parameters())\n"
PROGRAMS["gpt2-fp32"] = _gpt() + _ADAMW + _PLAIN_LOOP
PROGRAMS["gpt2-bf16"] = _gpt() + _ADAMW + _TEXT_LOOP.replace("DTYPE", "bfloat16").replace("ENABLED", "True")
PROGRAMS["gpt2-by-hand-fp32"] = _gpt(BY_HAND) + _ADAMW + _PLAIN_LOOP
PROGRAMS["gpt2-by-hand-fp16"] = (
    _gpt(BY_HAND) + _ADAMW + _TEXT_LOOP.replace("DTYPE", "float16").replace("ENABLED", "True")
)
PROGRAMS["gpt2-bfloat16-weights"] = _gpt() + "model = model.bfloat16()\n" + _ADAMW + _PLAIN_LOOP
PROGRAMS["gpt2-checkpoint"] = _gpt(run="checkpoint(block, x, use_reentrant=False)") + _ADAMW + _PLAIN_LOOP
PROGRAMS["gpt2-checkpoint-reentrant-bf16"] = (
    _gpt(run="checkpoint(block, x, use_reentrant=True)")
    + _ADAMW
    + _TEXT_LOOP.replace("DTYPE", "bfloat16").replace("ENABLED", "True")
)
PROGRAMS["gpt2-generate"] = (
    _gpt()
    + """
model.eval()
tokens = torch.randint(0, 5000, (2, 16)).cuda()
with torch.inference_mode():
    for _ in range(8):
        logits = model(tokens)[:, -1] / 0.8
        kept, _ = torch.topk(logits, 50)
        logits[logits < kept[:, [-1]]] = -float("inf")
        tokens = torch.cat([tokens, torch.multinomial(F.softmax(logits, -1), 1)], 1)
"""
)
PROGRAMS["sdpa-kinds"] = """
for dtype in (torch.float32, torch.float16, torch.bfloat16):
    for width in (32, 60, 64, 100, 128):
        for mask in (None, torch.zeros(64, 64, dtype=torch.bool).cuda(), torch.zeros(1, 1, 64, 64, dtype=dtype).cuda()):
            q, k, v = (torch.randn(2, 4, 64, width, device="cuda", dtype=dtype, requires_grad=True) for _ in range(3))
            F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=0.1).sum().backward()
            with torch.no_grad():
                F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
"""
PROGRAMS["sdpa-grouped"] = """
for dtype in (torch.float32, torch.bfloat16):
    q = torch.randn(2, 8, 128, 64, device="cuda", dtype=dtype, requires_grad=True)
    k, v = (torch.randn(2, 2, 128, 64, device="cuda", dtype=dtype, requires_grad=True) for _ in range(2))
    F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).sum().backward()
"""

# -- recurrent -------------------------------------------------------------------------------------------------------------

for _name in ("LSTM", "GRU", "RNN"):
    PROGRAMS[f"recurrent-{_name}"] = f"""
model = nn.{_name}(64, 128, 2, batch_first=True, dropout=0.2).cuda()
head = nn.Linear(128, 10).cuda()
optimizer = torch.optim.Adam([*model.parameters(), *head.parameters()])
for _ in range(3):
    x, y = torch.randn(16, 50, 64).cuda(), torch.randint(0, 10, (16,)).cuda()
    optimizer.zero_grad()
    F.cross_entropy(head(model(x)[0][:, -1]), y).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
"""
PROGRAMS["recurrent-cells"] = """
cell, head = nn.LSTMCell(64, 128).cuda(), nn.Linear(128, 10).cuda()
optimizer = torch.optim.SGD([*cell.parameters(), *head.parameters()], 0.1)
for _ in range(3):
    x, y = torch.randn(20, 16, 64).cuda(), torch.randint(0, 10, (16,)).cuda()
    h = c = torch.zeros(16, 128, device="cuda")
    for t in range(20):
        h, c = cell(x[t], (h, c))
    optimizer.zero_grad()
    F.cross_entropy(head(h), y).backward()
    optimizer.step()
"""

# -- other kinds of training -------------------------------------------------------------------------------------------------

PROGRAMS["vae"] = """
encoder = nn.Sequential(nn.Flatten(), nn.Linear(784, 400), nn.ReLU()).cuda()
mean, spread, decoder = nn.Linear(400, 20).cuda(), nn.Linear(400, 20).cuda(), nn.Sequential(nn.Linear(20, 400), nn.ReLU(), nn.Linear(400, 784), nn.Sigmoid()).cuda()
optimizer = torch.optim.Adam([*encoder.parameters(), *mean.parameters(), *spread.parameters(), *decoder.parameters()])
for _ in range(3):
    x = torch.rand(128, 1, 28, 28).cuda()
    h = encoder(x)
    m, s = mean(h), spread(h)
    out = decoder(m + torch.randn_like(s) * torch.exp(0.5 * s))
    loss = F.binary_cross_entropy(out, x.flatten(1), reduction="sum") - 0.5 * torch.sum(1 + s - m.pow(2) - s.exp())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
"""
PROGRAMS["diffusion"] = """
class Small(nn.Module):
    def __init__(self, width=64):
        super().__init__()
        self.time = nn.Sequential(nn.Linear(64, width), nn.SiLU(), nn.Linear(width, width))
        self.first, self.norm1, self.mid = nn.Conv2d(3, width, 3, padding=1), nn.GroupNorm(8, width), nn.Conv2d(width, width, 3, 2, 1)
        self.norm2, self.up, self.last = nn.GroupNorm(8, width), nn.Upsample(scale_factor=2, mode="nearest"), nn.Conv2d(2 * width, 3, 3, padding=1)
    def forward(self, x, t):
        freq = torch.exp(-math.log(10000) * torch.arange(32, device=t.device) / 32)
        emb = t[:, None].float() * freq[None]
        emb = self.time(torch.cat([emb.sin(), emb.cos()], -1))
        a = F.silu(self.norm1(self.first(x))) + emb[:, :, None, None]
        b = self.up(F.silu(self.norm2(self.mid(a))))
        return self.last(torch.cat([a, b], 1))
model = Small().cuda()
average = copy.deepcopy(model).requires_grad_(False)
optimizer = torch.optim.AdamW(model.parameters())
alphas = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), 0).cuda()
scaler = torch.amp.GradScaler("cuda")
for _ in range(3):
    x = torch.randn(8, 3, 64, 64).cuda()
    t = torch.randint(0, 1000, (8,), device="cuda")
    noise = torch.randn_like(x)
    a = alphas[t][:, None, None, None]
    with torch.autocast("cuda", dtype=torch.float16):
        loss = F.mse_loss(model(a.sqrt() * x + (1 - a).sqrt() * noise, t), noise)
    optimizer.zero_grad()
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    scaler.step(optimizer)
    scaler.update()
    with torch.no_grad():
        for p, q in zip(average.parameters(), model.parameters()):
            p.lerp_(q, 0.01)
"""
PROGRAMS["rl-policy-gradient"] = """
policy = nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 4)).cuda()
optimizer = torch.optim.Adam(policy.parameters(), 1e-3)
for _ in range(3):
    logs, rewards = [], []
    state = torch.randn(8)
    for _ in range(30):
        chosen = torch.distributions.Categorical(logits=policy(state.cuda()), validate_args=False)
        action = chosen.sample()
        logs.append(chosen.log_prob(action))
        rewards.append(1.0)
        state = torch.randn(8)
    gains = torch.tensor(rewards).flip(0).cumsum(0).flip(0).cuda()
    gains = (gains - gains.mean()) / (gains.std() + 1e-6)
    loss = -(torch.stack(logs) * gains).sum()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
"""
PROGRAMS["rl-dqn"] = """
net = nn.Sequential(nn.Conv2d(4, 32, 8, 4), nn.ReLU(), nn.Conv2d(32, 64, 4, 2), nn.ReLU(), nn.Flatten(), nn.Linear(5184, 512), nn.ReLU(), nn.Linear(512, 6)).cuda()
target = copy.deepcopy(net)
optimizer = torch.optim.RMSprop(net.parameters(), 1e-4)
memory = torch.randint(0, 255, (500, 4, 84, 84), dtype=torch.uint8, device="cuda")
for _ in range(3):
    index = torch.randperm(499, device="cuda")[:32]
    s, n = memory[index].float() / 255, memory[index + 1].float() / 255
    a, r = torch.randint(0, 6, (32, 1), device="cuda"), torch.rand(32, device="cuda")
    with torch.no_grad():
        goal = r + 0.99 * target(n).max(1).values
    loss = F.smooth_l1_loss(net(s).gather(1, a).squeeze(1), goal)
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_value_(net.parameters(), 1.0)
    optimizer.step()
    target.load_state_dict(net.state_dict())
"""
PROGRAMS["distillation-channels-last"] = """
student = torchvision.models.mobilenet_v2(weights=None).cuda().to(memory_format=torch.channels_last)
teacher = torchvision.models.resnet18(weights=None).cuda().to(memory_format=torch.channels_last).eval()
optimizer = torch.optim.SGD(student.parameters(), 0.1, momentum=0.9, nesterov=True)
for _ in range(3):
    x, y = images(8)
    x = x.to(memory_format=torch.channels_last)
    with torch.autocast("cuda", dtype=torch.float16):
        with torch.no_grad():
            wanted = teacher(x)
        out = student(x)
        loss = F.kl_div(F.log_softmax(out / 2, -1), F.softmax(wanted / 2, -1), reduction="batchmean") + F.cross_entropy(out, y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
"""
PROGRAMS["contrastive"] = """
model = torchvision.models.resnet18(weights=None, num_classes=128).cuda()
optimizer = torch.optim.AdamW(model.parameters())
for _ in range(3):
    x = images(8)[0]
    z = F.normalize(model(torch.cat([x, x.flip(-1)])), dim=1)
    close = z @ z.T / 0.1
    close.fill_diagonal_(float("-inf"))
    loss = F.cross_entropy(close, (torch.arange(16, device="cuda") + 8) % 16)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
"""
PROGRAMS["functional-gradients"] = """
model = nn.Sequential(nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 10)).cuda()
parameters = {n: p.detach().requires_grad_() for n, p in model.named_parameters()}
x, y = vectors()
for _ in range(3):
    loss = F.cross_entropy(torch.func.functional_call(model, parameters, (x,)), y)
    gradients = torch.autograd.grad(loss, list(parameters.values()))
    parameters = {n: (p - 0.1 * g).detach().requires_grad_() for (n, p), g in zip(parameters.items(), gradients)}
"""
PROGRAMS["gradient-penalty"] = """
critic = nn.Sequential(nn.Linear(256, 512), nn.LeakyReLU(0.2), nn.Linear(512, 1)).cuda()
optimizer = torch.optim.Adam(critic.parameters())
for _ in range(3):
    x = vectors()[0].requires_grad_()
    score = critic(x)
    g, = torch.autograd.grad(score.sum(), x, create_graph=True)
    loss = score.mean() + 10 * ((g.norm(2, dim=1) - 1) ** 2).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
"""
PROGRAMS["graph-convolution"] = """
nodes, edges = 2000, 10000
a, b = nn.Linear(128, 64).cuda(), nn.Linear(64, 7).cuda()
optimizer = torch.optim.Adam([*a.parameters(), *b.parameters()])
x, y = torch.randn(nodes, 128).cuda(), torch.randint(0, 7, (nodes,)).cuda()
source, target = torch.randint(0, nodes, (2, edges)).cuda()
def spread(h):
    return torch.zeros(nodes, h.shape[1], device="cuda").index_add_(0, target, h[source])
for _ in range(3):
    out = spread(b(F.relu(spread(a(x)))))
    optimizer.zero_grad()
    F.cross_entropy(out, y).backward()
    optimizer.step()
"""
PROGRAMS["recommender"] = """
users, items = nn.Embedding(20000, 64).cuda(), nn.Embedding(5000, 64).cuda()
bag = nn.EmbeddingBag(3000, 64, mode="mean").cuda()
optimizer = torch.optim.Adam([*users.parameters(), *items.parameters(), *bag.parameters()])
for _ in range(3):
    u, i = torch.randint(0, 20000, (4096,)).cuda(), torch.randint(0, 5000, (4096,)).cuda()
    words = torch.randint(0, 3000, (4096, 10)).cuda()
    loss = F.binary_cross_entropy_with_logits((users(u) * (items(i) + bag(words))).sum(-1), torch.rand(4096).cuda())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
"""
PROGRAMS["speech-ctc"] = """
model = nn.Sequential(nn.Conv1d(40, 128, 5, padding=2), nn.BatchNorm1d(128), nn.ReLU(), nn.Conv1d(128, 29, 1)).cuda()
optimizer = torch.optim.AdamW(model.parameters())
for _ in range(3):
    x = torch.randn(4, 40, 200).cuda()
    targets = torch.randint(1, 29, (4, 20)).cuda()
    logs = model(x).permute(2, 0, 1).log_softmax(-1)
    loss = F.ctc_loss(logs, targets, torch.full((4,), 200), torch.full((4,), 20))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
"""
PROGRAMS["super-resolution"] = """
model = nn.Sequential(nn.Conv2d(3, 64, 5, padding=2), nn.PReLU(), nn.Conv2d(64, 48, 3, padding=1), nn.PixelShuffle(4)).cuda()
optimizer = torch.optim.Adam(model.parameters())
for _ in range(3):
    x = torch.rand(4, 3, 128, 128).cuda()
    low = F.interpolate(x, scale_factor=0.25, mode="bicubic", antialias=True)
    loss = F.l1_loss(model(low) + F.interpolate(low, scale_factor=4, mode="bilinear"), x)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
"""
PROGRAMS["moe"] = """
gate, experts = nn.Linear(256, 4).cuda(), nn.ModuleList(nn.Sequential(nn.Linear(256, 512), nn.GELU(), nn.Linear(512, 256)) for _ in range(4)).cuda()
optimizer = torch.optim.AdamW([*gate.parameters(), *experts.parameters()])
for _ in range(3):
    x = torch.randn(256, 256, device="cuda")
    chance = gate(x).softmax(-1)
    weight, chosen = chance.topk(2, -1)
    out = sum((chance[:, i, None] * expert(x)) for i, expert in enumerate(experts)) + weight.sum()
    optimizer.zero_grad()
    out.pow(2).mean().backward()
    optimizer.step()
"""

# -- ways with an optimizer --------------------------------------------------------------------------------------------------

_MLP = """
model = nn.Sequential(nn.Linear(256, 2048), nn.ReLU(), nn.Dropout(0.2), nn.Linear(2048, 2048), nn.ReLU(), nn.Linear(2048, 10)).cuda()
batch = vectors
"""
for _name, _made in {
    "sgd-fused": "SGD(model.parameters(), 0.1, momentum=0.9, fused=True)", "sgd-loop": "SGD(model.parameters(), 0.1, momentum=0.9, foreach=False)",
    "sgd-decay": "SGD(model.parameters(), 0.1, weight_decay=0.01, nesterov=True, momentum=0.9)",
    "adam-decay": "Adam(model.parameters(), weight_decay=0.01)", "adamw-loop": "AdamW(model.parameters(), foreach=False)",
    "adamw-fused": "AdamW(model.parameters(), fused=True)", "adamw-capturable": "AdamW(model.parameters(), capturable=True)",
    "adagrad-loop": "Adagrad(model.parameters(), foreach=False)", "adagrad-fused": "Adagrad(model.parameters(), fused=True)",
    "rmsprop-centred": "RMSprop(model.parameters(), centered=True)", "adadelta": "Adadelta(model.parameters())",
    "adamax": "Adamax(model.parameters())", "nadam": "NAdam(model.parameters())", "radam": "RAdam(model.parameters())",
    "rprop": "Rprop(model.parameters())", "asgd": "ASGD(model.parameters())", "adafactor": "Adafactor(model.parameters())",
}.items():  # fmt: skip
    PROGRAMS[f"mlp-{_name}"] = f"{_MLP}optimizer = torch.optim.{_made}\n{_LOOP}"
PROGRAMS["mlp-lbfgs"] = (
    _MLP
    + """
optimizer = torch.optim.LBFGS(model.parameters(), max_iter=4)
x, y = batch()
def closure():
    optimizer.zero_grad()
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    return loss
for _ in range(2):
    optimizer.step(closure)
"""
)
PROGRAMS["mlp-muon"] = (
    _MLP + "optimizer = torch.optim.Muon([p for p in model.parameters() if p.dim() == 2], 1e-3)\n" + _LOOP
)
PROGRAMS["mlp-swa-scheduled"] = (
    _MLP
    + """
optimizer = torch.optim.AdamW(model.parameters())
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=10)
average = torch.optim.swa_utils.AveragedModel(model)
for _ in range(3):
    x, y = batch()
    optimizer.zero_grad()
    F.cross_entropy(model(x), y).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    schedule.step()
    average.update_parameters(model)
"""
)
PROGRAMS["mlp-accumulate-amp"] = (
    _MLP
    + """
optimizer, scaler = torch.optim.AdamW(model.parameters()), torch.amp.GradScaler("cuda")
for step in range(6):
    x, y = batch()
    with torch.autocast("cuda", dtype=torch.float16):
        loss = F.cross_entropy(model(x), y) / 2
    scaler.scale(loss).backward()
    if step % 2:
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
"""
)
PROGRAMS["evaluate"] = """
model = torchvision.models.resnet50(weights=None).cuda().eval()
right, kept = 0, []
with torch.inference_mode():
    for _ in range(3):
        x, y = images(16)
        out = model(x)
        right += (out.argmax(1) == y).sum().item()
        kept.append(out.softmax(-1))
kept = torch.cat(kept)
"""
PROGRAMS["evaluate-half-channels-last"] = """
model = torchvision.models.resnet50(weights=None).cuda().eval().half().to(memory_format=torch.channels_last)
with torch.no_grad():
    for _ in range(3):
        out = model(images(16)[0].half().contiguous(memory_format=torch.channels_last))
        top = out.topk(5, dim=1).indices
"""
