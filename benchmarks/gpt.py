"""A small GPT as a cell's text: how it attends and how it runs its blocks come in, its classes go out."""

from __future__ import annotations

SDPA = "F.scaled_dot_product_attention(q, k, v, is_causal=True)"
BY_HAND = (
    "(q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])).masked_fill(torch.ones(length, length, dtype=torch.bool, device=q.device)"
    ".triu(1), float('-inf')).softmax(-1) @ v"
)
_CLASSES = """
class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.a, self.b, self.heads = nn.LayerNorm(width), nn.LayerNorm(width), heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
    def forward(self, x):
        n, length, width = x.shape
        q, k, v = (t.view(n, length, self.heads, -1).transpose(1, 2) for t in self.qkv(self.a(x)).split(width, -1))
        y = ATTENTION
        x = x + F.dropout(self.out(y.transpose(1, 2).reshape(n, length, width)), 0.1, self.training)
        return x + self.down(F.gelu(self.up(self.b(x))))
class GPT(nn.Module):
    def __init__(self, words=20000, width=512, layers=6, heads=8):
        super().__init__()
        self.words, self.places = nn.Embedding(words, width), nn.Embedding(512, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, words)
    def forward(self, tokens):
        x = self.words(tokens) + self.places(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.blocks:
            x = RUN
        return self.head(self.norm(x))
"""


def gpt(attention: str = SDPA, run: str = "block(x)") -> str:
    """The text of `Block` and `GPT`; ``run`` is how ``x`` goes through ``block``."""
    return _CLASSES.replace("ATTENTION", attention).replace("RUN", run)
