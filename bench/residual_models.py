"""The demo's networks of blocks on a residual stream: mamba, attention, jamba.

A `Residual` keeps its parameters under Nitrox's names and in its layout, so that storing one is
writing them down; only A is learnt by the logarithm of −A, as Mamba's authors do it.

    mamba       embedding 256 → 2 × Mamba block → RMS norm → head
    attention   embedding 256 → 2 × (attention over 60 frames, feed-forward 256) → RMS norm → head
    jamba       embedding 192 → Mamba, Mamba, attention, twice → RMS norm → head

Jamba is narrower than the shape that `bench/frame_time.exs` measures, so that its file stays small.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn
from training_scan import scan

EPSILON = 1e-5
BASE = 10_000.0  # of the rotary positions
CONTEXT = 60
STATES, EXPAND, CONV = 16, 2, 4
MODELS = {
    "mamba": {"width": 256, "layers": ["mamba"] * 2},
    "attention": {"width": 256, "layers": ["attention"] * 2, "heads": 4},
    "jamba": {"width": 192, "layers": ["mamba", "mamba", "attention"] * 2, "heads": 3},
}


def layout(backbone, vocabulary):
    """Name → shape and fan-in, or what the parameter begins as."""
    width = MODELS[backbone]["width"]
    inner, rank = EXPAND * width, math.ceil(width / 16)
    blocks = {
        "mamba": {
            "norm.gamma": ((width,), "ones"),
            "in.w": ((width, 2 * inner), width),
            "conv.w": ((CONV, inner), CONV),
            "conv.b": ((inner,), CONV),
            "x.w": ((inner, rank + 2 * STATES), inner),
            "dt.w": ((rank, inner), rank),
            "dt.b": ((inner,), "steps"),
            "a": ((inner, STATES), "decays"),
            "d": ((inner,), "ones"),
            "out.w": ((inner, width), inner),
        },
        "attention": {
            "norm.gamma": ((width,), "ones"),
            "qkv.w": ((width, 3 * width), width),
            "out.w": ((width, width), width),
            "ffn.norm.gamma": ((width,), "ones"),
            "up.w": ((width, width), width),
            "up.b": ((width,), width),
            "down.w": ((width, width), width),
            "down.b": ((width,), width),
        },
    }
    entries = {"embedding.table": ((vocabulary, width), 4)}
    for n, kind in enumerate(MODELS[backbone]["layers"]):
        entries |= {f"layers.{n}.{name}": entry for name, entry in blocks[kind].items()}
    return entries | {
        "norm.gamma": ((width,), "ones"),
        "head.w": ((width, vocabulary), width),
        "head.b": ((vocabulary,), width),
    }


def begin(shape, how):
    if how == "ones":
        return torch.ones(shape)
    if how == "decays":
        return torch.log(torch.arange(1.0, shape[1] + 1)).repeat(shape[0], 1)
    if how == "steps":  # From 0.001 to 0.1, evenly by their logarithm.
        return torch.log(torch.expm1(0.001 * 100 ** torch.rand(shape)))
    return (torch.rand(shape) * 2 - 1) * math.sqrt(3 / how)


def rms_norm(x, gamma):
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPSILON) * gamma


def rope(x, position):
    """x {B, T, H, D}, whose first frame has the number `position`; pairs are i and i + D/2."""
    half = x.shape[-1] // 2
    frequency = BASE ** (-torch.arange(half, dtype=torch.float64, device=x.device) / half)
    frames = position + torch.arange(x.shape[1], dtype=torch.float64, device=x.device)
    angle = (frames[:, None] * frequency)[:, None, :]
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)


class Residual(nn.Module):
    def __init__(self, backbone, vocabulary, dropout=0.0):
        super().__init__()
        self.backbone, self.dropout = backbone, dropout
        self.kinds = MODELS[backbone]["layers"]
        self.heads = MODELS[backbone].get("heads")
        self.names = list(layout(backbone, vocabulary))
        for name, (shape, how) in layout(backbone, vocabulary).items():
            value = begin(shape, how)
            if name.endswith(("out.w", "down.w")):
                value /= math.sqrt(2 * len(self.kinds))
            self.register_parameter(name.replace(".", "/"), nn.Parameter(value))

    def w(self, name):
        value = getattr(self, name.replace(".", "/"))
        return -torch.exp(value) if name.endswith(".a") else value

    def stored(self):
        return {name: self.w(name) for name in self.names}

    @torch.no_grad()
    def restore(self, tensors):
        for name, tensor in tensors.items():
            value = torch.log(-tensor) if name.endswith(".a") else tensor
            getattr(self, name.replace(".", "/")).copy_(value)
        return self

    def forward(self, tokens, states=None):
        """tokens {B, T} → logits {B, T, V} and the states after them, one a layer"""
        x = self.drop(self.w("embedding.table")[tokens])
        after = []
        for n, (kind, state) in enumerate(zip(self.kinds, states or [None] * len(self.kinds))):
            block = self.mamba if kind == "mamba" else self.attention
            x, state = block(lambda name, n=n: self.w(f"layers.{n}.{name}"), x, state)
            after.append(state)
        x = rms_norm(x, self.w("norm.gamma"))
        return x @ self.w("head.w") + self.w("head.b"), after

    def drop(self, x):
        return F.dropout(x, self.dropout, self.training)

    def mamba(self, w, x, state):
        inner, length = w("d").shape[0], x.shape[1]
        frames, h = state or (x.new_zeros(x.shape[0], CONV - 1, inner), None)
        v, z = (rms_norm(x, w("norm.gamma")) @ w("in.w")).to(x.dtype).split(inner, -1)
        v = torch.cat([frames, v], 1)
        frames = v[:, length:]
        kernel = w("conv.w").T[:, None, :]
        v = F.silu(F.conv1d(v.transpose(1, 2), kernel, w("conv.b"), groups=inner)).transpose(1, 2)
        v = v.to(x.dtype)
        rank = w("dt.w").shape[0]
        dt, b, c = (v @ w("x.w")).split([rank, STATES, STATES], -1)
        dt = F.softplus((dt @ w("dt.w")).to(x.dtype) + w("dt.b"))
        y, h = scan(v, dt, w("a"), b.to(x.dtype), c.to(x.dtype), h)
        y = (y + w("d") * v) * F.silu(z)
        return x + self.drop(y @ w("out.w")), (frames, h)

    def attention(self, w, x, state):
        """The state: keys, turned, and values {B, at most 59, H, D}, and the next frame's number."""
        batch, length, width = x.shape
        heads = (batch, length, self.heads, width // self.heads)
        parts = (rms_norm(x, w("norm.gamma")) @ w("qkv.w")).split(width, -1)
        q, k, v = (part.to(x.dtype).reshape(heads) for part in parts)
        position = state[2] if state else 0
        q, k = rope(q, position), rope(k, position)
        if state:
            k, v = torch.cat([state[0], k], 1), torch.cat([state[1], v], 1)
        back = k.shape[1] - length + torch.arange(length, device=x.device)[:, None]
        back = back - torch.arange(k.shape[1], device=x.device)
        q, keys, values = (part.transpose(1, 2) for part in (q, k, v))
        seen = (back >= 0) & (back < CONTEXT)
        y = F.scaled_dot_product_attention(q, keys, values, attn_mask=seen)
        x = x + self.drop(y.transpose(1, 2).reshape(batch, length, width) @ w("out.w"))
        y = F.gelu(rms_norm(x, w("ffn.norm.gamma")) @ w("up.w") + w("up.b"))
        x = x + self.drop(y @ w("down.w") + w("down.b"))
        return x, (k[:, 1 - CONTEXT :], v[:, 1 - CONTEXT :], position + length)

    def run(self, tokens):
        """The logits after each of `tokens` {T}, fed from the zero state → {T, V}"""
        logits, _ = self.follow(tokens)
        return logits

    def follow(self, tokens, piece=1024):
        """As `run`, in pieces, with the states after the last."""
        logits, states = [], None
        for part in tokens.split(piece):
            some, states = self(part[None], states)
            logits.append(some[0])
        return torch.cat(logits), states
