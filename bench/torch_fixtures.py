#!/usr/bin/env python3
"""Writes test/fixtures/torch_{f32,f16,bf16}.safetensors: state dicts, and what PyTorch makes of them.

    python3 bench/torch_fixtures.py

Each file holds the state dicts of the modules of `CASES` in one type, each under its name and a dot,
as `safetensors.torch.save_file` writes them, and for each

    golden.<case>.x    the input: {B, T, I} in the file's type, or {B, T} tokens
    golden.<case>.y    the output, f32

The weights and inputs are numbers of the file's type. PyTorch computes on them in float64 on the CPU,
from the zero state, and the result is rounded to f32 once. Needs torch and safetensors.

The Mamba modules are written from the formulas of the paper (Gu and Dao, 2023), step after step, with
the names of the package mamba_ssm, which does not run without a GPU.
"""

import math
import os

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

FIXTURES = os.path.join(
    os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "test/fixtures"
)
TYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
BATCH, LENGTH, INPUTS, HIDDEN = 2, 9, 5, 6


class Mamba(nn.Module):
    """mamba_ssm's `Mamba`: x {B, L, M} → {B, L, M}."""

    def __init__(self, model, states, taps=4, expand=2, rank=None, conv_bias=True, bias=False):
        super().__init__()
        channels = expand * model
        self.states, self.rank = states, rank or math.ceil(model / 16)
        self.in_proj = nn.Linear(model, 2 * channels, bias=bias)
        self.conv1d = nn.Conv1d(
            channels, channels, taps, groups=channels, padding=taps - 1, bias=conv_bias
        )
        self.x_proj = nn.Linear(channels, self.rank + 2 * states, bias=False)
        self.dt_proj = nn.Linear(self.rank, channels)
        self.A_log = nn.Parameter(torch.arange(1.0, states + 1).log().repeat(channels, 1))
        self.D = nn.Parameter(torch.ones(channels))
        self.out_proj = nn.Linear(channels, model, bias=bias)

    def forward(self, u):
        length = u.shape[1]
        x, z = self.in_proj(u).chunk(2, dim=-1)
        # The padding is on both sides; what the right one adds lies after the last frame.
        x = F.silu(self.conv1d(x.transpose(1, 2))[..., :length].transpose(1, 2))
        dt, b, c = self.x_proj(x).split([self.rank, self.states, self.states], dim=-1)
        dt = F.softplus(self.dt_proj(dt))
        a = -self.A_log.exp()
        h, ys = u.new_zeros(u.shape[0], *a.shape), []
        for t in range(length):
            decay = torch.exp(dt[:, t, :, None] * a)
            h = decay * h + (dt[:, t] * x[:, t])[:, :, None] * b[:, t, None, :]
            ys.append((h * c[:, t, None, :]).sum(-1) + self.D * x[:, t])
        return self.out_proj(torch.stack(ys, 1) * F.silu(z))


class Block(nn.Module):
    def __init__(self, model, states, rank):
        super().__init__()
        self.norm = nn.RMSNorm(model, eps=1e-5)
        self.mixer = Mamba(model, states, rank=rank)

    def forward(self, x):
        return x + self.mixer(self.norm(x))


class Backbone(nn.Module):
    def __init__(self, vocabulary, model, layers, states, rank):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, model)
        self.layers = nn.ModuleList(Block(model, states, rank) for _ in range(layers))
        self.norm_f = nn.RMSNorm(model, eps=1e-5)

    def forward(self, tokens):
        x = self.embedding(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.norm_f(x)


class MambaLMHeadModel(nn.Module):
    """mamba_ssm's language model: tokens {B, L} → logits {B, L, V}, the head tied to the embedding."""

    def __init__(self, vocabulary, model, layers, states, rank):
        super().__init__()
        self.backbone = Backbone(vocabulary, model, layers, states, rank)
        self.lm_head = nn.Linear(model, vocabulary, bias=False)
        self.lm_head.weight = self.backbone.embedding.weight

    def forward(self, tokens):
        return self.lm_head(self.backbone(tokens))


def recurrent(cell, **options):
    return cell(INPUTS, HIDDEN, num_layers=2, batch_first=True, **options)


CASES = {
    "lstm": lambda: recurrent(nn.LSTM),
    "lstm_both": lambda: recurrent(nn.LSTM, bidirectional=True),
    "lstm_bare": lambda: recurrent(nn.LSTM, bidirectional=True, bias=False),
    "gru": lambda: recurrent(nn.GRU),
    "gru_both": lambda: recurrent(nn.GRU, bidirectional=True),
    "gru_bare": lambda: recurrent(nn.GRU, bidirectional=True, bias=False),
    "mamba": lambda: Mamba(INPUTS, 4, rank=3),
    "mamba_bias": lambda: Mamba(INPUTS, 3, taps=3, rank=2, conv_bias=False, bias=True),
    "mamba_lm": lambda: MambaLMHeadModel(16, 8, layers=2, states=4, rank=3),
}


@torch.no_grad()
def draw(module):
    """Weights of deviation 1/√fan-in, so that no gate is stuck and no bias or norm can be left out."""
    for name, p in module.named_parameters():
        if name.endswith("A_log"):
            p += 0.2 * torch.randn_like(p)
        elif p.ndim > 1:
            p.copy_(torch.randn_like(p) / p[0].numel() ** 0.5)
        elif name.endswith("dt_proj.bias"):
            p.copy_(torch.randn_like(p) - 1)
        elif name.endswith(("norm.weight", "norm_f.weight", "D")):
            p.copy_(1 + 0.3 * torch.randn_like(p))
        else:
            p.copy_(0.3 * torch.randn_like(p))


@torch.no_grad()
def case(name, dtype):
    module = CASES[name]()
    draw(module)
    # A_log and D stay f32 in the bf16 file: many checkpoints mix the two so.
    for key, p in module.named_parameters():
        wide = dtype == torch.bfloat16 and key.split(".")[-1] in ("A_log", "D")
        p.data = p.data.to(torch.float32 if wide else dtype)
    state = {key: tensor.clone() for key, tensor in module.state_dict().items()}

    if name == "mamba_lm":
        x = torch.randint(16, (BATCH, LENGTH), dtype=torch.int32)
        # Tied weights are one tensor, of which safetensors takes one name.
        del state["lm_head.weight"]
    else:
        x = torch.randn(BATCH, LENGTH, INPUTS).to(dtype)

    y = module.double()(x.double() if x.is_floating_point() else x)
    y = y[0] if isinstance(y, tuple) else y
    tensors = {f"{name}.{key}": tensor.contiguous() for key, tensor in state.items()}
    return tensors | {f"golden.{name}.x": x, f"golden.{name}.y": y.float().contiguous()}


def main():
    torch.set_num_threads(1)
    for kind, dtype in TYPES.items():
        torch.manual_seed(1997)
        tensors = {}
        for name in CASES:
            tensors |= case(name, dtype)
        path = os.path.join(FIXTURES, f"torch_{kind}.safetensors")
        save_file(tensors, path)
        print(f"{os.path.relpath(path)}: {os.path.getsize(path):,} bytes")


if __name__ == "__main__":
    main()
