"""torch's times for the cases of native/engine/benches/products.rs, on the same machine.

    python3 bench/products.py nitrox.tsv > table.tsv

reads that bench's output and prints a line a case: name, Nitrox's µs eager and in a graph, torch's
µs eager and in a graph, how many times faster Nitrox is in both, and its variant. f32 is f32 in
torch too (no TF32), as it is here; a convolution is what cuDNN's own search finds the fastest.
"""

import sys
import time

import torch

torch.backends.cuda.matmul.allow_tf32 = False
torch.backends.cudnn.allow_tf32 = False
torch.backends.cudnn.benchmark = True
torch.set_grad_enabled(False)
TYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16, "f64": torch.float64}


def case(name):
    kind, *rest = name.split()
    if rest[0] not in TYPES:
        return None
    dtype = TYPES[rest[0]]

    def rand(*shape):
        return torch.randn(*shape, device="cuda", dtype=torch.float32).mul_(0.1).to(dtype)

    def sizes(text):
        return [int(n) for n in text.split("x")]

    if kind == "dot":
        if rest[1] == "nt":
            m, k, n = sizes(rest[2])
            a, b = rand(m, k), rand(n, k)
            return lambda: a @ b.T
        if rest[1] == "tn":
            m, k, n = sizes(rest[2])
            a, b = rand(k, m), rand(k, n)
            return lambda: a.T @ b
        if rest[1] == "mv":
            a, b = rand(4096, 4096), rand(4096)
            return lambda: a @ b
        if rest[1] == "batch":
            n, m, k, c = sizes(rest[2])
            a, b = rand(n, m, k), rand(n, k, c)
            return lambda: torch.bmm(a, b)
        m, k, n = sizes(rest[1])
        a, b = rand(m, k), rand(k, n)
        return lambda: a @ b
    if kind == "dense":
        m, k, n = sizes(rest[2])
        x, w, b = rand(m, k), rand(k, n), rand(n)
        if rest[1] == "none":
            return lambda: torch.addmm(b, x, w)
        return lambda: torch.nn.functional.gelu(torch.addmm(b, x, w))
    if kind == "mlp":
        m, k, n = sizes(rest[1])
        x, g, u, d = rand(m, k), rand(k, n), rand(k, n), rand(n, k)
        return lambda: (torch.nn.functional.silu(x @ g) * (x @ u)) @ d
    if kind == "lstm":
        b, steps, i, h = sizes(rest[1])
        x = rand(b, steps, i)
        lstm = torch.nn.LSTM(i, h, batch_first=True).to(device="cuda", dtype=dtype)
        lstm.flatten_parameters()
        return lambda: lstm(x)
    if kind == "conv":
        x, w = rand(*sizes(rest[1])), rand(*sizes(rest[2]))
        stride, pad, groups = (int(text[1:]) for text in rest[3:6])
        return lambda: torch.nn.functional.conv2d(x, w, None, stride, pad, 1, groups)
    return None


def round_of(f, count):
    start = time.perf_counter()
    for _ in range(count):
        f()
    torch.cuda.synchronize()
    return (time.perf_counter() - start) * 1e6 / count


def in_graph(f, eager):
    count = min(100, max(2, int(5_000 / eager)))
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            f()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for _ in range(count):
            f()
    return sorted(round_of(graph.replay, 1) for _ in range(7))[3] / count


for line in open(sys.argv[1]):
    fields = line.rstrip("\n").split("\t")
    if len(fields) < 5:
        continue
    name, eager, graph, variant = fields[0], float(fields[1]), float(fields[2]), fields[4]
    f = case(name)
    if f is None:
        print(f"{name}\t{eager:.1f}\t{graph:.1f}\t-\t-\t-\t-\t{variant}")
        continue
    round_of(f, 3)
    count = min(200, max(5, int(20_000 / round_of(f, 3))))
    theirs = sorted(round_of(f, count) for _ in range(5))[2]
    try:
        captured = in_graph(f, theirs)
    except RuntimeError:
        captured = float("nan")
    ratios = f"{theirs / eager:.2f}\t{captured / graph:.2f}"
    print(f"{name}\t{eager:.1f}\t{graph:.1f}\t{theirs:.1f}\t{captured:.1f}\t{ratios}\t{variant}", flush=True)
