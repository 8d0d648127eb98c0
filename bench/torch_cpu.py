#!/usr/bin/env python3
"""How long PyTorch takes on the CPU for the frames of `bench/frame_time.exs`.

    python3 bench/torch_cpu.py --threads 1 --frames 1000 lstm-step lstm-window

The same networks (288 numbers in, 53 logits out, batch 1, f32, random weights) in the same two forms:

    step    one frame, the state kept between calls
    window  the last 60 frames from the zero state, logits of all, the answer to the last counts

Each in the ways that PyTorch offers for it: `nn.LSTM` and `nn.LSTMCell`, eager and through
`torch.compile` where it has something to compile. All in inference mode. Two times are taken of each, medians over the
frames: `frame`, from a host array to the action drawn on the host, which is what Nitrox's figures
count, and `net`, the network alone. `bench/cpu.py` runs this beside ours.
"""

import argparse
import functools
import json
import os
import sys
import time

os.environ["CUDA_VISIBLE_DEVICES"] = ""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

FEATURES, ACTIONS, WINDOW = 288, 53, 60
WIDTH, STATES, TAPS, RANK, HEADS, CONTEXT = 256, 16, 4, 16, 4, 60
POSITIONS = 65_536  # for which the sines and cosines are there


# A network is step(x {1, F}, state) → logits {1, A}, state and window(x {1, T, F}) → {1, T, A}.


class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(FEATURES, 512),
            nn.ReLU(),
            nn.Linear(512, 512),
            nn.ReLU(),
            nn.Linear(512, ACTIONS),
        )

    def start(self):
        return ()

    def step(self, x, state):
        return self.net(x), state

    def window(self, x):
        return self.net(x)


class Recurrent(nn.Module):
    """Layers with norms. The step by `nn.LSTM` and `nn.GRU`, as the window, or by their cells."""

    def __init__(self, kind, cells):
        super().__init__()
        whole = {"lstm": nn.LSTM, "gru": nn.GRU}[kind]
        cell = {"lstm": nn.LSTMCell, "gru": nn.GRUCell}[kind]
        self.kind, self.cells = kind, cells
        make = cell if cells else (lambda i, h: whole(i, h, batch_first=True))
        self.layers = nn.ModuleList([make(FEATURES, WIDTH), make(WIDTH, WIDTH)])
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in self.layers)
        self.head = nn.Linear(WIDTH, ACTIONS)

    def start(self):
        zeros = torch.zeros(1, WIDTH) if self.cells else torch.zeros(1, 1, WIDTH)
        return [(zeros, zeros) if self.kind == "lstm" else zeros for _ in self.layers]

    def step(self, x, states):
        after = []
        x = x if self.cells else x[None]
        for layer, norm, state in zip(self.layers, self.norms, states):
            if self.cells:
                state = layer(x, state)
                x = norm(state[0] if self.kind == "lstm" else state)
            else:
                x, state = layer(x, state)
                x = norm(x)
            after.append(state)
        return self.head(x if self.cells else x[0]), after

    def window(self, x):
        for layer, norm in zip(self.layers, self.norms):
            x = norm(layer(x)[0])
        return self.head(x)


class MambaBlock(nn.Module):
    def __init__(self):
        super().__init__()
        inner = 2 * WIDTH
        self.norm = nn.RMSNorm(WIDTH, eps=1e-5)
        self.inward = nn.Linear(WIDTH, 2 * inner, bias=False)
        self.conv = nn.Conv1d(inner, inner, TAPS, groups=inner, padding=TAPS - 1)
        self.x = nn.Linear(inner, RANK + 2 * STATES, bias=False)
        self.dt = nn.Linear(RANK, inner)
        self.register_buffer("a", -torch.arange(1.0, STATES + 1).repeat(inner, 1))
        self.register_buffer("taps", self.conv.weight.detach()[:, 0].T.contiguous())
        self.d = nn.Parameter(torch.ones(inner))
        self.out = nn.Linear(inner, WIDTH, bias=False)

    def start(self):
        return torch.zeros(1, TAPS - 1, 2 * WIDTH), torch.zeros(1, 2 * WIDTH, STATES)

    def step(self, u, state, _position):
        frames, h = state
        x, z = self.inward(self.norm(u)).chunk(2, -1)
        frames = torch.cat([frames, x[:, None]], 1)
        x = F.silu((frames * self.taps).sum(1) + self.conv.bias)
        dt, b, c = self.x(x).split([RANK, STATES, STATES], -1)
        dt = F.softplus(self.dt(dt))
        h = torch.exp(dt[..., None] * self.a) * h + (dt * x)[..., None] * b[:, None]
        y = (h @ c[..., None])[..., 0] + self.d * x
        return u + self.out(y * F.silu(z)), (frames[:, 1:], h)

    def window(self, u):
        """All that can be done for many frames at once is; the recurrence is a loop, as in
        mamba_ssm's own reference."""
        length = u.shape[1]
        x, z = self.inward(self.norm(u)).chunk(2, -1)
        x = F.silu(self.conv(x.transpose(1, 2))[..., :length]).transpose(1, 2)
        dt, b, c = self.x(x).split([RANK, STATES, STATES], -1)
        dt = F.softplus(self.dt(dt))
        decay = torch.exp(dt[..., None] * self.a).unbind(1)
        driven = ((dt * x)[..., None] * b[:, :, None]).unbind(1)
        h, hs = driven[0], [driven[0]]
        for t in range(1, length):
            h = torch.addcmul(driven[t], decay[t], h)
            hs.append(h)
        y = torch.einsum("btdn,btn->btd", torch.stack(hs, 1), c) + self.d * x
        return u + self.out(y * F.silu(z))


class AttentionBlock(nn.Module):
    def __init__(self):
        super().__init__()
        size = WIDTH // HEADS
        self.norm, self.inner_norm = nn.RMSNorm(WIDTH, eps=1e-5), nn.RMSNorm(WIDTH, eps=1e-5)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.out = nn.Linear(WIDTH, WIDTH, bias=False)
        self.up, self.down = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        turns = torch.arange(POSITIONS)[:, None] * 1e4 ** (-torch.arange(0, size, 2) / size)
        self.register_buffer("cos", turns.cos().repeat(1, 2))
        self.register_buffer("sin", torch.cat([-turns.sin(), turns.sin()], -1))

    def start(self):
        ring = torch.zeros(1, HEADS, CONTEXT, WIDTH // HEADS)
        return ring, ring.clone()

    def heads(self, u):
        """{B, T, …} → q, k, v {B, H, T, D}"""
        qkv = self.qkv(self.norm(u)).unflatten(-1, (3, HEADS, WIDTH // HEADS))
        return qkv.permute(2, 0, 3, 1, 4).unbind(0)

    def turn(self, x, at):
        return x * self.cos[at] + x.roll(WIDTH // HEADS // 2, -1) * self.sin[at]

    def rest(self, u, seen):
        u = u + self.out(seen.transpose(1, 2).flatten(2))
        return u + self.down(F.gelu(self.up(self.inner_norm(u))))

    def step(self, u, rings, position):
        """The rings are written to where they lie. They are full: what is measured comes after."""
        keys, values = rings
        q, k, v = self.heads(u[:, None])
        place = position % CONTEXT
        keys.index_copy_(2, place, self.turn(k, position))
        values.index_copy_(2, place, v)
        seen = F.scaled_dot_product_attention(self.turn(q, position), keys, values)
        return self.rest(u[:, None], seen)[:, 0], rings

    def window(self, u):
        q, k, v = self.heads(u)
        at = slice(0, u.shape[1])
        seen = F.scaled_dot_product_attention(self.turn(q, at), self.turn(k, at), v, is_causal=True)
        return self.rest(u, seen)


class Residual(nn.Module):
    def __init__(self, blocks):
        super().__init__()
        self.input = nn.Linear(FEATURES, WIDTH)
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.RMSNorm(WIDTH, eps=1e-5)
        self.head = nn.Linear(WIDTH, ACTIONS)

    def start(self):
        return torch.zeros(1, dtype=torch.int64), [block.start() for block in self.blocks]

    def step(self, x, state):
        (position, states), after = state, []
        x = self.input(x)
        for block, state in zip(self.blocks, states):
            x, state = block.step(x, state, position)
            after.append(state)
        return self.head(self.norm(x)), (position + 1, after)

    def window(self, x):
        x = self.input(x)
        for block in self.blocks:
            x = block.window(x)
        return self.head(self.norm(x))


# Backbone → the ways of writing it.
BACKBONES = {
    "mlp": {"": Mlp},
    "lstm": {
        "nn.LSTM": lambda: Recurrent("lstm", False),
        "LSTMCell": lambda: Recurrent("lstm", True),
    },
    "gru": {"nn.GRU": lambda: Recurrent("gru", False), "GRUCell": lambda: Recurrent("gru", True)},
    "mamba": {"": lambda: Residual(MambaBlock() for _ in range(2))},
    "attention": {"": lambda: Residual(AttentionBlock() for _ in range(2))},
    "jamba": {
        "": lambda: Residual(AttentionBlock() if n % 3 == 0 else MambaBlock() for n in range(1, 7))
    },
}


UNROLLED = ("mamba-window", "jamba-window")


def median_us(frames, call):
    for _ in range(max(frames // 10, CONTEXT + 10)):
        call()
    times = []
    for _ in range(frames):
        started = time.perf_counter_ns()
        call()
        times.append(time.perf_counter_ns() - started)
    return float(np.median(times)) / 1e3


@functools.cache
def ways(name, form):
    """Every way of running it: what it is called, a network, and its function of this form."""
    found = []
    for way, build in BACKBONES[name].items():
        # A cell has no window of its own.
        if form == "window" and "Cell" in way:
            continue
        for compile in [False, True]:
            # There is nothing to compile in a recurrent layer, which is one op (tried: 196 µs instead
            # of 191 for the LSTM's step, 154 instead of 158 for the GRU's). A scan of 60 frames becomes
            # one graph of all its steps, which takes minutes.
            if compile and (name in ("lstm", "gru") or f"{name}-{form}" in UNROLLED):
                continue
            torch.manual_seed(1)
            net = build().eval()
            call = net.step if form == "step" else net.window
            call = torch.compile(call, dynamic=False) if compile else call
            how = "torch.compile" if compile else "eager"
            found.append((f"{way}, {how}" if way else how, net, call))
    return found


def measure(net, form, call, frames):
    seen = (1, FEATURES) if form == "step" else (1, WINDOW, FEATURES)
    host = np.random.default_rng(1).standard_normal(seen, dtype=np.float32)
    state = [net.start()]

    def network(x):
        if form == "window":
            return call(x)[:, -1]
        logits, state[0] = call(x, state[0])
        return logits

    def frame():
        logits = network(torch.from_numpy(host))
        action = torch.multinomial(torch.softmax(logits, -1), 1).item()
        return action, logits.numpy()

    given = torch.from_numpy(host)
    return {"net": median_us(frames, lambda: network(given)), "frame": median_us(frames, frame)}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("cases", nargs="*", help="lstm-step …; without any they come on stdin")
    parser.add_argument("--frames", type=int, default=1000)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch._dynamo.config.recompile_limit = 64
    with torch.inference_mode():
        for case in args.cases or map(str.strip, sys.stdin):
            name, form = case.split("-")
            for way, net, call in ways(name, form):
                # A window is sixty frames.
                frames = args.frames if form == "step" else max(args.frames // 5, 20)
                us = measure(net, form, call, frames)
                line = {
                    "case": f"frame/{case}",
                    "torch": torch.__version__,
                    "way": way,
                    "threads": args.threads,
                    "frames": frames,
                    "us": {k: round(v, 1) for k, v in us.items()},
                }
                print(json.dumps(line))
            # The end of a case's answer.
            print(flush=True)


if __name__ == "__main__":
    main()
