#!/usr/bin/env python3
"""Trains the character models of `mix nitrox.demo` and writes their goldens.

Six small models learn to write like the King James Bible, one character a frame:

    mlp    the last 16 characters → embedding 32 each → dense 512 relu → dense 512 relu → head
    lstm   embedding 128 → 2 × (LSTM 256 → layer norm) → head
    gru    embedding 128 → 2 × (GRU 256 → layer norm) → head
    mamba, attention, jamba: see residual_models.py

The text is public domain and comes from Debian's package `bible-kjv-text`, which keeps it in a
compressed form that the program of package `bible-kjv` reads:

    apt-get install bible-kjv bible-kjv-text
    bible -f ge1:1-rev22:21 > kjv.txt        # -f: one verse a line, "Ge1:1 In the beginning …"

or, without installing anything:

    apt-get download bible-kjv bible-kjv-text
    for deb in bible-kjv*.deb; do dpkg -x $deb kjv; done
    kjv/usr/bin/bible -p kjv/usr/lib -f ge1:1-rev22:21 > kjv.txt

`--text` takes that file; the references are dropped here, and each verse stays one line. The last
5 % are held out: no model sees them, and the goldens are computed on their first characters.

    python3 bench/train_demo.py --text kjv.txt       # train all six, then write the goldens
    python3 bench/train_demo.py --goldens-only       # the goldens again, from the stored weights
    python3 bench/train_demo.py --samples-only       # print what each stored model writes

Needs torch, numpy and safetensors. Training wants a GPU (five minutes on an H200) and Triton for
Mamba's scan; the rest runs on the CPU in seconds. Seeds are fixed; a GPU's cuDNN may still differ in
the last bits from one version to the next, so retraining gives models as good, not the same bytes.
The three of residual_models.py take about fifty seconds each.

What it writes into `--out` (priv/demo):

    <model>.safetensors        weights, f16, in Nitrox's names and layout (see `stored`), and as
                               metadata: charset (the characters in token order), backbone,
                               bits_per_character, and for attention heads and context
    golden.safetensors         tokens {2001} i32; <model>.logits {200, V} f32, after feeding
                               tokens[0..199] one by one from the zero state; as metadata,
                               charset and <model>.bits_per_character over the 2,000 predictions

The goldens come from torch on the CPU in float32, from the f16 weights as stored. Each run checks
them against a plain numpy float64 loop over the stored arrays, written from Nitrox's formulas.
"""

import argparse
import json
import math
import os
import re
import struct
import sys
import time

# One stream order for cuBLAS, so that a seed means something. Read when CUDA starts.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import numpy as np
import torch
import torch.nn.functional as F
from demo_oracle import Stepper
from residual_models import CONTEXT, MODELS, Residual
from safetensors import safe_open
from torch import nn

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SEED = 1611
HELD_OUT = 0.05
GOLDEN_LOGITS = 200
GOLDEN_PREDICTIONS = 2000

WINDOW = 16  # characters the MLP sees, the current one included
HIDDEN = 256  # of the LSTM and the GRU

BACKBONES = ("mlp", "lstm", "gru", *MODELS)
STEPS = {
    "mlp": 20_000,
    "lstm": 6_000,
    "gru": 6_000,
    "mamba": 7_000,
    "attention": 9_000,
    "jamba": 4_500,
}


DROPOUT = {"lstm": 0.15, "gru": 0.15, "mamba": 0.1, "attention": 0.05, "jamba": 0.1}


# --- text -----------------------------------------------------------------------------------------


def read_text(path):
    """The running text of a `bible -f` listing: one verse a line, no references."""
    with open(path, encoding="ascii") as file:
        lines = (re.sub(r"^[1-3]?[A-Za-z]+\d+:\d+ ", "", line) for line in file)
        verses = [" ".join(line.split()) for line in lines]
    return "\n".join(verse for verse in verses if verse) + "\n"


def charset_of(text):
    """The characters in token order. Token 0, which fills the MLP's window at first, is newline."""
    charset = "\n " + "".join(sorted(set(text) - set("\n ")))
    if len(charset) > 96:
        sys.exit(f"the text has {len(charset)} different characters; 96 is the limit")
    return charset


def encode(text, charset):
    ids = {char: token for token, char in enumerate(charset)}
    return np.array([ids[char] for char in text], dtype=np.int64)


def split(text):
    """The training part and the held-out part, cut at the start of a verse."""
    cut = text.index("\n", int(len(text) * (1 - HELD_OUT))) + 1
    return text[:cut], text[cut:]


def golden_tokens(text, charset):
    return encode(split(text)[1][: GOLDEN_PREDICTIONS + 1], charset).astype(np.int32)


# --- models ---------------------------------------------------------------------------------------


class Mlp(nn.Module):
    def __init__(self, vocabulary, dropout=0.0):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, 32)
        self.layers = nn.ModuleList([nn.Linear(32 * WINDOW, 512), nn.Linear(512, 512)])
        self.head = nn.Linear(512, vocabulary)
        self.dropout = dropout

    def forward(self, windows):
        """windows {N, 16}, oldest first → logits {N, V}"""
        x = self.embedding(windows).flatten(1)
        for layer in self.layers:
            x = F.dropout(F.relu(layer(x)), self.dropout, self.training)
        return self.head(x)

    def run(self, tokens):
        """The logits after each of `tokens` {T}, fed from the zero state → {T, V}"""
        return self(F.pad(tokens, (WINDOW - 1, 0)).unfold(0, WINDOW, 1))


class Recurrent(nn.Module):
    def __init__(self, backbone, vocabulary, dropout=0.0):
        super().__init__()
        cell = {"lstm": nn.LSTM, "gru": nn.GRU}[backbone]
        self.backbone = backbone
        self.embedding = nn.Embedding(vocabulary, 128)
        self.layers = nn.ModuleList(cell(size, HIDDEN, batch_first=True) for size in (128, HIDDEN))
        self.norms = nn.ModuleList(nn.LayerNorm(HIDDEN, eps=1e-5) for _ in self.layers)
        self.head = nn.Linear(HIDDEN, vocabulary)
        self.dropout = dropout

    def forward(self, tokens, states=None):
        """tokens {B, T} → logits {B, T, V} and the states after them, one a layer"""
        x, after = self.embedding(tokens), []
        for layer, norm, state in zip(self.layers, self.norms, states or [None] * len(self.layers)):
            x, state = layer(F.dropout(x, self.dropout, self.training), state)
            x = norm(x)
            after.append(state)
        return self.head(F.dropout(x, self.dropout, self.training)), after

    def run(self, tokens):
        return self(tokens[None])[0][0]


def build(backbone, vocabulary, dropout=0.0):
    if backbone == "mlp":
        return Mlp(vocabulary, dropout)
    if backbone in MODELS:
        return Residual(backbone, vocabulary, dropout)
    return Recurrent(backbone, vocabulary, dropout)


# --- stored layout --------------------------------------------------------------------------------


def recurrent_stored(layer):
    """wi {I, 4H or 3H}, wh {H, 4H or 3H}, b {4H} of a one-layer torch LSTM or GRU.

    Torch's gates already stand in Nitrox's order (i f g o; r z n). Its weights are transposed, and
    it has two biases: one is enough, except for the GRU's n, whose second half the reset gates.
    """
    bi, bh = layer.bias_ih_l0.detach(), layer.bias_hh_l0.detach()
    if isinstance(layer, nn.LSTM):
        b = bi + bh
    else:
        rz = 2 * layer.hidden_size
        b = torch.cat([bi[:rz] + bh[:rz], bi[rz:], bh[rz:]])
    return {"wi": layer.weight_ih_l0.detach().T, "wh": layer.weight_hh_l0.detach().T, "b": b}


def stored(model):
    """The model's weights as Nitrox names and lays them out, as f16 numpy arrays."""
    if isinstance(model, Residual):
        tensors = model.stored()
    else:
        tensors = {
            "embedding.table": model.embedding.weight,
            "head.w": model.head.weight.T,
            "head.b": model.head.bias,
        }
    for n, layer in enumerate(getattr(model, "layers", [])):
        if isinstance(layer, nn.Linear):
            tensors |= {f"layers.{n}.w": layer.weight.T, f"layers.{n}.b": layer.bias}
        else:
            tensors |= {f"layers.{n}.{name}": t for name, t in recurrent_stored(layer).items()}
            tensors[f"layers.{n}.norm.gamma"] = model.norms[n].weight
            tensors[f"layers.{n}.norm.beta"] = model.norms[n].bias

    arrays = {
        name: np.ascontiguousarray(t.detach().cpu().numpy().astype(np.float16))
        for name, t in tensors.items()
    }
    assert all(np.isfinite(array).all() for array in arrays.values()), "a weight overflows f16"
    return arrays


@torch.no_grad()
def restored(backbone, arrays, dtype=torch.float32):
    """The torch model, on the CPU, of stored weights."""
    w = {name: torch.from_numpy(array).to(dtype) for name, array in arrays.items()}
    model = build(backbone, len(w["head.b"])).to(dtype).eval()
    if backbone in MODELS:
        return model.restore(w)
    model.embedding.weight.copy_(w["embedding.table"])
    model.head.weight.copy_(w["head.w"].T)
    model.head.bias.copy_(w["head.b"])
    for n, layer in enumerate(model.layers):
        if backbone == "mlp":
            layer.weight.copy_(w[f"layers.{n}.w"].T)
            layer.bias.copy_(w[f"layers.{n}.b"])
            continue
        b = w[f"layers.{n}.b"]
        rows = layer.bias_ih_l0.numel()
        layer.weight_ih_l0.copy_(w[f"layers.{n}.wi"].T)
        layer.weight_hh_l0.copy_(w[f"layers.{n}.wh"].T)
        layer.bias_ih_l0.copy_(b[:rows])
        layer.bias_hh_l0.zero_()
        if backbone == "gru":
            layer.bias_hh_l0[2 * HIDDEN :] = b[3 * HIDDEN :]
        model.norms[n].weight.copy_(w[f"layers.{n}.norm.gamma"])
        model.norms[n].bias.copy_(w[f"layers.{n}.norm.beta"])
    return model


def save(path, tensors, metadata):
    """A safetensors file whose bytes depend on its contents alone.

    The library's own writer orders the metadata differently from run to run.
    """
    header, data = {"__metadata__": dict(sorted(metadata.items()))}, b""
    types = {"float16": "F16", "float32": "F32", "int32": "I32"}
    # Wide types first, so that every tensor is aligned to its own size.
    for name, array in sorted(tensors.items(), key=lambda item: (-item[1].itemsize, item[0])):
        offsets = [len(data), len(data) + array.nbytes]
        data += np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<")).tobytes()
        header[name] = {
            "dtype": types[array.dtype.name],
            "shape": array.shape,
            "data_offsets": offsets,
        }
    header = json.dumps(header, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(header)) + header + data)
    print(f"{os.path.relpath(path)}: {os.path.getsize(path):,} bytes")


def load(path):
    with safe_open(path, "numpy") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()


# --- training -------------------------------------------------------------------------------------


def optimizer_of(model, rate, steps, decay):
    """AdamW, a short warm-up, then a cosine down to nothing. Only matrices decay."""
    # Mamba's A is a vector of decays a channel, whatever its shape.
    decays = {name: p.ndim > 1 and not name.endswith("/a") for name, p in model.named_parameters()}
    matrices = [p for name, p in model.named_parameters() if decays[name]]
    vectors = [p for name, p in model.named_parameters() if not decays[name]]
    groups = [{"params": matrices, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}]
    fused = next(model.parameters()).is_cuda
    # On the GPU the rate is there too, where a captured step reads it.
    rate = torch.tensor(rate, device="cuda") if fused else rate
    optimizer = torch.optim.AdamW(
        groups, lr=rate, betas=(0.9, 0.99), fused=fused, capturable=fused
    )
    warm = min(300, steps // 10 + 1)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda s: min(1, (s + 1) / warm) * 0.5 * (1 + math.cos(math.pi * min(1, s / steps))),
    )
    return optimizer, schedule


class Progress:
    """Prints training and held-out bits per character now and then."""

    def __init__(self, name, steps, held_out_bits):
        self.name, self.steps, self.held_out_bits = name, steps, held_out_bits
        self.every, self.losses, self.start = max(1, steps // 12), [], time.monotonic()

    def step(self, n, loss):
        self.losses.append(loss.detach())
        if (n + 1) % self.every and n + 1 != self.steps:
            return
        train = torch.stack(self.losses).mean().item() / math.log(2)
        self.losses = []
        seconds = time.monotonic() - self.start
        print(
            f"{self.name} {n + 1:6}/{self.steps} {seconds:6.1f} s  "
            f"train {train:.4f}  held out {self.held_out_bits():.4f} bits per character",
            flush=True,
        )


def train_mlp(train, held_out, vocabulary, steps, device, batch=8192):
    model = Mlp(vocabulary, dropout=0.1).to(device)
    optimizer, schedule = optimizer_of(model, rate=2e-3, steps=steps, decay=0.02)
    span = torch.arange(WINDOW + 1, device=device)
    oldest = torch.arange(WINDOW, device=device)

    @torch.no_grad()
    def held_out_bits():
        model.eval()
        loss = F.cross_entropy(model.run(held_out[:-1]), held_out[1:])
        model.train()
        return loss.item() / math.log(2)

    progress = Progress("mlp", steps, held_out_bits)
    for n in range(steps):
        start = torch.randint(len(train) - WINDOW, (batch, 1), device=device)
        chunk = train[start + span]
        windows, targets = chunk[:, :-1], chunk[:, -1]
        # One window in sixteen is cut short, as at the start of a run: token 0 before the cut.
        cut = torch.randint(16 * WINDOW, (batch, 1), device=device)
        windows = torch.where((oldest < cut) & (cut < WINDOW), 0, windows)
        logits = model(windows)
        loss = F.cross_entropy(logits, targets)
        # Without this the logits of characters never seen after a window sink below -200, and
        # their rounding with them. It costs no bits worth naming.
        restraint = 1e-4 * logits.square().mean()
        optimizer.zero_grad(set_to_none=True)
        (loss + restraint).backward()
        optimizer.step()
        schedule.step()
        progress.step(n, loss)
    return model.eval()


def carried(state, keep):
    """A layer's state, kept or zeroed by stream: `keep` {B}.

    The LSTM has two tensors {1, B, H}, the GRU one, Mamba two {B, …}. Attention begins each time
    with nothing: its past is keys, and a key of zeros is one that is looked at.
    """
    if torch.is_tensor(state):
        return state * keep[None, :, None]
    if len(state) == 3:
        return None
    shape = (1, -1, 1) if state[0].shape[0] == 1 else (-1, 1, 1)
    return tuple(part * keep.view(shape) for part in state)


def train_sequence(backbone, train, held_out, vocabulary, steps, device):
    """Truncated backpropagation over parallel streams, whose states are carried on."""
    residual = backbone in MODELS
    batch, length = (64, 256) if residual else (256, 128)
    model = build(backbone, vocabulary, dropout=DROPOUT[backbone]).to(device)
    rate, decay = (3e-3, 0.05) if residual else (4e-3, 0.02)
    optimizer, schedule = optimizer_of(model, rate, steps, decay)
    stream = len(train) // batch
    lanes = torch.arange(batch, device=device)[:, None] * stream
    span = torch.arange(length + 1, device=device)

    @torch.no_grad()
    def held_out_bits(streams=32, piece=512):
        model.eval()
        size = (len(held_out) - 1) // streams
        inputs = held_out[: streams * size].view(streams, size)
        targets = held_out[1 : streams * size + 1].view(streams, size)
        logits, states = [], None
        for part in inputs.split(piece, 1):
            some, states = model(part, states)
            logits.append(some)
        loss = F.cross_entropy(torch.cat(logits, 1).flatten(0, 1), targets.flatten())
        model.train()
        return loss.item() / math.log(2)

    # What a step reads and writes stays where it is, so that it can be captured.
    chunk = torch.zeros(batch, length + 1, dtype=torch.long, device=device)
    keep = torch.zeros(batch, device=device)
    with torch.no_grad():
        states = model(chunk[:, :-1])[1]

    def step():
        with torch.autocast(device, torch.bfloat16, enabled=residual, cache_enabled=False):
            logits, after = model(chunk[:, :-1], [carried(state, keep) for state in states])
        loss = F.cross_entropy(logits.float().flatten(0, 1), chunk[:, 1:].flatten())
        # The gradients are the graph's own: there are none before.
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        for old, new in zip(tensors_of(states), tensors_of(after)):
            old.copy_(new.detach())
        return loss.detach()

    # Dozens of small kernels a layer, launched one by one, take three times as long as they run.
    if residual and device != "cpu":
        step = captured(step, optimizer)

    progress = Progress(backbone, steps, held_out_bits)
    position = 0
    for n in range(steps):
        # One stream in 64 starts afresh, so that the zero state is a state like others.
        keep.copy_(torch.rand(batch, device=device) >= 1 / 64)
        if n * length % stream < length:
            # A new pass over the text, with the streams and windows cut at new places.
            position = torch.randint(len(train), (1,), device=device)
            keep.zero_()
        chunk.copy_(train[(lanes + position + span) % len(train)])
        position = position + length
        loss = step()
        schedule.step()
        progress.step(n, loss.clone())
    return model.eval()


def tensors_of(states):
    for state in states:
        yield from filter(torch.is_tensor, state if isinstance(state, tuple) else (state,))


def captured(step, optimizer):
    """A step as one CUDA graph. The three steps before it count as training."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = step()

    def replay():
        graph.replay()
        return loss

    return replay


def train(backbone, text, charset, steps, device):
    torch.manual_seed(SEED)
    parts = [torch.from_numpy(encode(part, charset)).to(device) for part in split(text)]
    if backbone == "mlp":
        return train_mlp(*parts, len(charset), steps, device)
    return train_sequence(backbone, *parts, len(charset), steps, device)


# --- goldens --------------------------------------------------------------------------------------


def bits_per_character(logits, targets):
    """Of logits {T, V} for the targets {T}, in float64."""
    logits = np.asarray(logits, dtype=np.float64)
    top = logits.max(axis=1, keepdims=True)
    normaliser = top[:, 0] + np.log(np.exp(logits - top).sum(axis=1))
    return float(np.mean(normaliser - logits[np.arange(len(targets)), targets]) / math.log(2))


@torch.no_grad()
def torch_logits(backbone, arrays, tokens):
    """The logits {T, V} after each token from the zero state, in float32 on the CPU."""
    model = restored(backbone, arrays)
    return model.run(torch.from_numpy(tokens.astype(np.int64))).numpy()


def reference(backbone, arrays, tokens):
    """The logits {2000, V} and the bits per character over `tokens` {2001}, checked."""
    inputs, targets = tokens[:-1], tokens[1:]
    logits = torch_logits(backbone, arrays, inputs)
    bits = bits_per_character(logits, targets)

    stepper = Stepper(backbone, arrays)
    oracle = np.stack([stepper.step(token) for token in inputs])
    largest = np.abs(logits - oracle).max()
    relative = np.linalg.norm(logits - oracle) / np.linalg.norm(oracle)
    print(
        f"{backbone}: {bits:.4f} bits per character; torch f32 and numpy f64 differ by "
        f"{largest:.1e} at most, {relative:.1e} relative"
    )
    if not (relative < 1e-5 and abs(bits - bits_per_character(oracle, targets)) < 1e-5):
        sys.exit(f"{backbone}: torch and the formulas over the stored layout disagree")
    return logits, bits


def write_goldens(out, tokens):
    """golden.safetensors from the model files in `out`."""
    tensors, metadata = {"tokens": tokens}, {}
    for backbone in BACKBONES:
        arrays, about = load(os.path.join(out, f"{backbone}.safetensors"))
        logits, bits = reference(backbone, arrays, tokens)
        if metadata.setdefault("charset", about["charset"]) != about["charset"]:
            sys.exit(f"{backbone}: its charset is not the other models'")
        if abs(bits - float(about["bits_per_character"])) > 1e-4:
            sys.exit(f"{backbone}: its metadata says {about['bits_per_character']}, not {bits:.6f}")
        tensors[f"{backbone}.logits"] = logits[:GOLDEN_LOGITS]
        metadata[f"{backbone}.bits_per_character"] = f"{bits:.6f}"
    save(os.path.join(out, "golden.safetensors"), tensors, metadata)


def sample(backbone, arrays, charset, length, temperature):
    """What the model writes from the zero state after a newline."""
    random, stepper, written, token = np.random.default_rng(SEED), Stepper(backbone, arrays), [], 0
    for _ in range(length):
        logits = stepper.step(token) / temperature
        weights = np.exp(logits - logits.max())
        token = random.choice(len(charset), p=weights / weights.sum())
        written.append(charset[token])
    return "".join(written)


def print_samples(out, backbones, length=300, temperature=0.8):
    for backbone in backbones:
        arrays, about = load(os.path.join(out, f"{backbone}.safetensors"))
        print(f"\n--- {backbone}, {about['bits_per_character']} bits per character")
        print(sample(backbone, arrays, about["charset"], length, temperature))


# --- command line ---------------------------------------------------------------------------------


def arguments():
    parser = argparse.ArgumentParser(
        description="Trains the demo's character models and writes their goldens.",
        epilog="The head of this file says how to make the text.",
    )
    parser.add_argument("--text", metavar="FILE", help="the listing of `bible -f`")
    parser.add_argument("--out", metavar="DIR", default=os.path.join(ROOT, "priv", "demo"))
    parser.add_argument("--models", nargs="+", choices=BACKBONES, default=BACKBONES)
    parser.add_argument("--steps", type=int, help=f"optimiser steps of each (default {STEPS})")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--no-goldens", action="store_true", help="train, but leave the goldens")
    only.add_argument(
        "--goldens-only",
        action="store_true",
        help="train nothing; without --text, over the tokens of the goldens already there",
    )
    only.add_argument(
        "--samples-only", action="store_true", help="only print what the models write"
    )
    args = parser.parse_args()
    if not (args.text or args.goldens_only or args.samples_only):
        parser.error("--text is needed to train")
    return args


def main():
    args = arguments()
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True

    if args.samples_only:
        return print_samples(args.out, args.models)

    os.makedirs(args.out, exist_ok=True)
    if args.text:
        text = read_text(args.text)
        charset = charset_of(text)
        tokens = golden_tokens(text, charset)
        print(f"{len(text):,} characters, {len(charset)} different, on {args.device}")
    else:
        tokens = load(os.path.join(args.out, "golden.safetensors"))[0]["tokens"]

    if not args.goldens_only:
        for backbone in args.models:
            model = train(backbone, text, charset, args.steps or STEPS[backbone], args.device)
            arrays = stored(model)
            _, bits = reference(backbone, arrays, tokens)
            about = {
                "backbone": backbone,
                "bits_per_character": f"{bits:.6f}",
                "charset": charset,
            }
            if heads := MODELS.get(backbone, {}).get("heads"):
                about |= {"heads": str(heads), "context": str(CONTEXT)}
            save(os.path.join(args.out, f"{backbone}.safetensors"), arrays, about)

    if not args.no_goldens:
        write_goldens(args.out, tokens)
    print_samples(args.out, args.models)


if __name__ == "__main__":
    main()
