#!/usr/bin/env python3
"""Writes test/fixtures/recurrent.safetensors: what torch's own LSTM and GRU give.

    python3 bench/torch_goldens.py

For each shape (B, T, I, H) of `SHAPES`, case n holds in f32, in Nitrox's layout,

    lstm.n.x {B, T, I}  .h0 .c0 {B, H}  .wi {I, 4H}  .wh {H, 4H}  .b {4H}
         → .seq {B, T, H}  .h .c {B, H}
    gru.n.x {B, T, I}   .h0 {B, H}      .wi {I, 3H}  .wh {H, 3H}  .b {4H}
         → .seq {B, T, H}  .h {B, H}

The inputs are f32 numbers, torch computes on them in float64 on the CPU, and the results are
rounded to f32 once: they are right to half a unit in the last place. Needs torch, numpy and
safetensors.
"""

import os

import numpy as np
import torch
from train_demo import ROOT, recurrent_stored, save
from torch import nn

SHAPES = [(1, 1, 3, 2), (3, 7, 5, 31), (2, 33, 17, 33), (1, 60, 8, 24)]
OUT = os.path.join(ROOT, "test", "fixtures", "recurrent.safetensors")


def draw(*shape, scale=1.0):
    """Normal numbers that f32 holds exactly, as float64."""
    return (torch.randn(shape, dtype=torch.float64) * scale).float().double()


@torch.no_grad()
def case(cell, batch, length, inputs, hidden):
    layer = cell(inputs, hidden, batch_first=True, dtype=torch.float64)
    rows = layer.bias_ih_l0.numel()
    layer.weight_ih_l0.copy_(draw(rows, inputs, scale=inputs**-0.5))
    layer.weight_hh_l0.copy_(draw(rows, hidden, scale=hidden**-0.5))

    # Torch has two biases where Nitrox has their sum. Both are non-zero and so coarse (multiples
    # of 2^-10) that the sum is exact in f32.
    for bias in (layer.bias_ih_l0, layer.bias_hh_l0):
        bias.copy_((draw(rows, scale=0.3) * 1024).round() / 1024)

    x, h0 = draw(batch, length, inputs), draw(batch, hidden, scale=0.5)
    tensors = {"x": x, "h0": h0, **recurrent_stored(layer)}
    if cell is nn.LSTM:
        c0 = draw(batch, hidden, scale=0.5)
        seq, (h, c) = layer(x, (h0[None], c0[None]))
        tensors |= {"c0": c0, "seq": seq, "h": h[0], "c": c[0]}
    else:
        seq, h = layer(x, h0[None])
        tensors |= {"seq": seq, "h": h[0]}
    return {name: tensor.numpy().astype(np.float32) for name, tensor in tensors.items()}


def main():
    torch.manual_seed(60)
    tensors = {}
    for name, cell in (("lstm", nn.LSTM), ("gru", nn.GRU)):
        for n, shape in enumerate(SHAPES):
            tensors |= {f"{name}.{n}.{key}": array for key, array in case(cell, *shape).items()}
    os.makedirs(os.path.dirname(OUT), exist_ok=True)
    save(OUT, tensors, {"torch": torch.__version__.split("+")[0]})


if __name__ == "__main__":
    main()
