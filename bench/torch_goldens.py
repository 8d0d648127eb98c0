#!/usr/bin/env python3
"""Writes what the tests hold Nitrox's recurrences to, computed by torch in float64 on the CPU.

    python3 bench/torch_goldens.py [recurrent] [drift]

test/fixtures/recurrent.safetensors: what torch's own LSTM and GRU give. For each shape (B, T, I, H) of
`SHAPES`, case n holds in f32, in Nitrox's layout,

    lstm.n.x {B, T, I}  .h0 .c0 {B, H}  .wi {I, 4H}  .wh {H, 4H}  .b {4H}
         → .seq {B, T, H}  .h .c {B, H}
    gru.n.x {B, T, I}   .h0 {B, H}      .wi {I, 3H}  .wh {H, 3H}  .b {4H}
         → .seq {B, T, H}  .h {B, H}

The inputs are f32 numbers, and the results are rounded to f32 once: they are right to half a unit in
the last place.

test/fixtures/drift.safetensors: the states of the demo's networks after `FRAMES` frames from the zero
state, which are the first 2,000 of the goldens' tokens over and over; <model>.<layer>.<n> is part n of
a layer's state, as `Nitrox.Backbone.initial_state/2` has it. Of attention's rings it is the last
59 frames, the oldest first.

Needs torch, numpy and safetensors.
"""

import os
import sys

import numpy as np
import torch
from residual_models import MODELS
from torch import nn
from train_demo import ROOT, load, recurrent_stored, restored, save

SHAPES = [(1, 1, 3, 2), (3, 7, 5, 31), (2, 33, 17, 33), (1, 60, 8, 24)]
FRAMES = 28_800  # eight minutes at 60 a second
FIXTURES = os.path.join(ROOT, "test", "fixtures")
DEMO = os.path.join(ROOT, "priv", "demo")


def draw(*shape, scale=1.0):
    """Normal numbers that f32 holds exactly, as float64."""
    return (torch.randn(shape, dtype=torch.float64) * scale).float().double()


def f32(tensors):
    return {name: tensor.numpy().astype(np.float32) for name, tensor in tensors.items()}


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
    return f32(tensors)


def recurrent():
    torch.manual_seed(60)
    tensors = {}
    for name, cell in (("lstm", nn.LSTM), ("gru", nn.GRU)):
        for n, shape in enumerate(SHAPES):
            tensors |= {f"{name}.{n}.{key}": array for key, array in case(cell, *shape).items()}
    return tensors


@torch.no_grad()
def drift():
    golden, _ = load(os.path.join(DEMO, "golden.safetensors"))
    once = torch.from_numpy(golden["tokens"][:2000].astype(np.int64))
    tokens = once.repeat(-(-FRAMES // len(once)))[:FRAMES]
    tensors = {}
    for backbone in ("lstm", "gru", *MODELS):
        arrays, _ = load(os.path.join(DEMO, f"{backbone}.safetensors"))
        model = restored(backbone, arrays, torch.float64)
        states = model.follow(tokens)[1] if backbone in MODELS else model(tokens[None])[1]
        for n, state in enumerate(states):
            # Torch's LSTM has (h, c), Nitrox (c, h).
            parts = {"lstm": lambda s: (s[1][0], s[0][0]), "gru": lambda s: (s[0],)}
            parts = parts.get(backbone, lambda s: s[:2])(state)
            tensors |= {f"{backbone}.{n}.{k}": part for k, part in enumerate(parts)}
    return f32(tensors)


def main():
    for name in sys.argv[1:] or ["recurrent", "drift"]:
        tensors = {"recurrent": recurrent, "drift": drift}[name]()
        path = os.path.join(FIXTURES, f"{name}.safetensors")
        save(path, tensors, {"torch": torch.__version__.split("+")[0]})


if __name__ == "__main__":
    main()
