#!/usr/bin/env python3
"""Times what a user would pick instead of Nitrox, on the GPU at hand.

    python3 bench/peers.py attention|rnn|scan|norm|gemm|unary|solve|xla [part of a name …]

prints one JSON line a case, {"case", "peer", "us", "graph" or "wall"}, under the names that
`cargo bench --bench gpu` has; `bench/table.py` joins the two. Needs PyTorch and Triton, `xla` JAX,
and `scan` mamba_ssm's extension (`selective_scan_cuda`); a group that misses something says so.

`us` is the median of replays of a CUDA graph of the call, the gaps between launches taken out;
`"graph": false` marks calls that can't be captured and are timed by events, `"wall": true` those of
XLA, with its dispatch. A float32 recurrence is timed twice: cuDNN with TF32, which is PyTorch's
default, and without.
"""
import json
import math
import os
import sys
import time
import warnings

warnings.filterwarnings("ignore")
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

GROUPS = {}
WANTED = []


def group(function):
    GROUPS[function.__name__] = function
    return function


def wanted(case):
    return not WANTED or any(part in case for part in WANTED)


def line(case, peer, us, **more):
    print(json.dumps({"case": case, "peer": peer, "us": round(us, 2), **more}), flush=True)


def timed(case, peer, call):
    """One line for a call on the GPU."""
    import torch
    from triton.testing import do_bench, do_bench_cudagraph

    try:
        us, graph = do_bench_cudagraph(call, rep=60, return_mode="median") * 1e3, True
    except Exception:
        torch.cuda.synchronize()
        us, graph = do_bench(call, warmup=20, rep=60, return_mode="median") * 1e3, False
    line(case, peer, us, graph=graph)


@group
def attention():
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention

    for case, b, hq, hkv, sq, sk, d in [
        ("attn/f16-b1h8s512d64", 1, 8, 8, 512, 512, 64),
        ("attn/f32-b32h8s60d64-causal", 32, 8, 8, 60, 60, 64),
        ("attn/f32-b1h8s60d64-causal", 1, 8, 8, 60, 60, 64),
        ("attn/bf16-b4h16s4096d128-causal", 4, 16, 16, 4096, 4096, 128),
        ("attn/bf16-b4h16s4096d128", 4, 16, 16, 4096, 4096, 128),
        ("attn/bf16-b1h16s16384d128-causal", 1, 16, 16, 16384, 16384, 128),
        ("attn/bf16-b1h32s16384d64-causal", 1, 32, 32, 16384, 16384, 64),
        ("attn/bf16-b2h8s8192d256-causal", 2, 8, 8, 8192, 8192, 256),
        ("attn/bf16-b1h32kv8s8192d128-causal", 1, 32, 8, 8192, 8192, 128),
        ("attn/bf16-b1h16s32768d128-causal", 1, 16, 16, 32768, 32768, 128),
        ("attn/f32-b4h16s2048d64-causal", 4, 16, 16, 2048, 2048, 64),
        ("decode/bf16-b1h32kv8s8192d128", 1, 32, 8, 1, 8192, 128),
        ("decode/bf16-b32h32kv8s8192d128", 32, 32, 8, 1, 8192, 128),
    ]:
        if not wanted(case):
            continue
        name = case.split("/")[1].split("-")[0]
        dtype = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}[name]
        q = torch.randn(b, hq, sq, d, dtype=dtype, device="cuda")
        k, v = (torch.randn(b, hkv, sk, d, dtype=dtype, device="cuda") for _ in range(2))
        causal, gqa = case.endswith("causal"), hq != hkv

        def call():
            return scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=gqa)

        for backend in ("CUDNN_ATTENTION", "FLASH_ATTENTION", "EFFICIENT_ATTENTION"):
            try:
                with sdpa_kernel(getattr(SDPBackend, backend)):
                    call()
                    timed(case, "torch " + backend.split("_")[0].lower(), call)
            except RuntimeError:
                pass  # it does not take this type or shape


@group
def rnn():
    import torch

    shapes = [(1, 60, 512, 1), (32, 60, 512, 1), (256, 60, 512, 1), (1, 60, 512, 2), (32, 60, 512, 2),
              (1, 1, 512, 1), (1, 1, 256, 2), (16, 1024, 768, 1), (32, 512, 1024, 1)]
    for kind in ("LSTM", "GRU"):
        for dtype in ("float32", "bfloat16", "float16"):
            for b, t, h, layers in shapes:
                case = f"{kind.lower()}/{dtype}-b{b}t{t}i{h}h{h}l{layers}"
                if not wanted(case):
                    continue
                net = getattr(torch.nn, kind)(h, h, layers, batch_first=True)
                net = net.to("cuda", getattr(torch, dtype))
                net.flatten_parameters()
                x = torch.randn(b, t, h, device="cuda", dtype=getattr(torch, dtype))
                for tf32 in (True, False) if dtype == "float32" else (False,):
                    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = tf32
                    peer = "cudnn" if dtype != "float32" else "cudnn tf32" if tf32 else "cudnn f32"
                    with torch.inference_mode():
                        timed(case, peer, lambda: net(x))


@group
def scan():
    import torch
    import torch.nn.functional as F

    import selective_scan_cuda

    for name, dtype in (("f32", torch.float32), ("bf16", torch.bfloat16)):
        for b, l, d, n in [(1, 60, 512, 16), (1, 60, 1024, 16), (32, 60, 1024, 16),
                           (8, 2048, 2048, 16), (1, 2048, 4096, 16), (8, 2048, 4096, 16)]:
            case = f"scan/{name}-b{b}l{l}d{d}n{n}"
            if not wanted(case):
                continue
            u, z = (torch.randn(b, d, l, device="cuda", dtype=dtype) for _ in range(2))
            delta, a = F.softplus(torch.randn_like(u)), -torch.exp(torch.randn(d, n, device="cuda"))
            bs, cs = (torch.randn(b, 1, n, l, device="cuda", dtype=dtype) for _ in range(2))
            skip = torch.ones(d, device="cuda")
            timed(case, "mamba_ssm", lambda: selective_scan_cuda.fwd(u, delta, a, bs, cs, skip, z, None, False))


@group
def norm():
    import torch
    import torch.nn.functional as F

    for rows, width in [(60, 512), (4096, 1024), (16384, 4096), (8192, 12288)]:
        x, r = (torch.randn(rows, width, device="cuda", dtype=torch.bfloat16) for _ in range(2))
        w, b = (torch.randn(width, device="cuda", dtype=torch.bfloat16) for _ in range(2))
        layer = torch.compile(lambda x, r: F.layer_norm(x + r, (width,), w, b))
        rms = torch.compile(lambda x, r: F.rms_norm(x + r, (width,), w))
        for name, call in (("layernorm", layer), ("rmsnorm", rms)):
            case = f"{name}-residual/bf16-{rows}x{width}"
            if wanted(case):
                call(x, r)
                timed(case, "torch.compile", lambda: call(x, r))


@group
def gemm():
    import torch

    torch.backends.cuda.matmul.allow_tf32 = False
    shapes = {"bf16": [(1, 1024, 1024), (60, 1024, 1024), (512, 1024, 1024), (4096,) * 3, (8192,) * 3],
              "f32": [(1, 512, 512), (60, 512, 512), (512, 1024, 1024), (4096,) * 3]}
    for name, dtype in (("bf16", torch.bfloat16), ("f32", torch.float32)):
        for m, n, k in shapes[name]:
            case = f"gemm/{name}-{m}x{n}x{k}"
            if wanted(case):
                a, b = (torch.randn(s, device="cuda", dtype=dtype) for s in ((m, k), (k, n)))
                timed(case, "cublas", lambda: a @ b)


@group
def unary():
    import torch
    import torch.nn.functional as F

    for name, dtype in (("f32", torch.float32), ("bf16", torch.bfloat16), ("f16", torch.float16)):
        x = torch.rand(4096, 4096, device="cuda").mul(6).sub(3).to(dtype)
        for kind, call in (("relu", F.relu), ("gelu", F.gelu), ("tanh", torch.tanh), ("sin", torch.sin),
                           ("cos", torch.cos)):
            case = f"unary/{name}-{kind}-4096x4096"
            if wanted(case):
                timed(case, "torch", lambda: call(x))


@group
def solve():
    import torch

    for name, dtype in (("f32", torch.float32), ("f64", torch.float64)):
        for b, m, n in [(1, 32, 1), (10_000, 4, 1), (1000, 32, 32), (1, 256, 1), (1, 256, 256), (64, 256, 64),
                        (1, 1024, 1), (1, 1024, 1024), (1, 4096, 1)]:
            case = f"solve/{name}-b{b}m{m}n{n}"
            if wanted(case):
                a = torch.rand(b, m, m, device="cuda", dtype=dtype).add(0.5).tril()
                sides = torch.rand(b, m, n, device="cuda", dtype=dtype)
                timed(case, "torch", lambda: torch.linalg.solve_triangular(a, sides, upper=False))


@group
def xla():
    """What a jitted EXLA program of the same formula costs: JAX drives the same compiler."""
    import jax
    import jax.numpy as jnp

    key = jax.random.PRNGKey(0)

    def wall(case, peer, function, *args):
        if not wanted(case):
            return
        for _ in range(2):
            jax.block_until_ready(function(*args))
        times = []
        for _ in range(40):
            start = time.perf_counter()
            jax.block_until_ready(function(*args))
            times.append(time.perf_counter() - start)
        line(case, peer, sorted(times)[len(times) // 2] * 1e6, wall=True)

    @jax.jit
    def lstm(x, wi, wh, b):
        def step(carry, xt):
            h, c = carry
            i, f, g, o = jnp.split(xt + h @ wh, 4, -1)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            h = jax.nn.sigmoid(o) * jnp.tanh(c)
            return (h, c), h

        zero = jnp.zeros((x.shape[0], wh.shape[0]), x.dtype)
        return jax.lax.scan(step, (zero, zero), (x @ wi + b).swapaxes(0, 1))[1].swapaxes(0, 1)

    for b, t, h in [(1, 60, 512), (32, 60, 512), (256, 60, 512), (32, 512, 1024), (1, 1, 512)]:
        x, wi, wh = (jax.random.normal(key, s) for s in ((b, t, h), (h, 4 * h), (h, 4 * h)))
        case = f"lstm/float32-b{b}t{t}i{h}h{h}l1"
        wall(case, "xla scan", lstm, x, wi * 0.02, wh * 0.02, jnp.zeros(4 * h))

    @jax.jit
    def attend(q, k, v):
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(q.shape[-1])
        scores = jnp.where(jnp.tril(jnp.ones(scores.shape[-2:], bool)), scores, -1e30)
        return jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores, -1), v)

    for dtype, b, s, h, d in [("f32", 1, 60, 8, 64), ("f32", 32, 60, 8, 64), ("bf16", 4, 4096, 16, 128)]:
        q = jax.random.normal(key, (b, s, h, d), jnp.float32 if dtype == "f32" else jnp.bfloat16)
        wall(f"attn/{dtype}-b{b}h{h}s{s}d{d}-causal", "xla", attend, q, q, q)

    @jax.jit
    def selective_scan(u, dt, a, bs, cs, skip):
        def combine(left, right):
            return left[0] * right[0], right[0] * left[1] + right[1]

        decay = jnp.exp(dt[..., None] * a)
        fed = dt[..., None] * bs[:, :, None, :] * u[..., None]
        h = jax.lax.associative_scan(combine, (decay, fed), axis=1)[1]
        return jnp.einsum("bldn,bln->bld", h, cs) + u * skip

    for b, l, d, n in [(1, 60, 512, 16), (1, 60, 1024, 16), (32, 60, 1024, 16), (8, 2048, 2048, 16)]:
        u, bs = jax.random.normal(key, (b, l, d)), jax.random.normal(key, (b, l, n))
        a, dt = -jnp.exp(jax.random.normal(key, (d, n))), jax.nn.softplus(u)
        case = f"scan/f32-b{b}l{l}d{d}n{n}"
        wall(case, "xla associative_scan", selective_scan, u, dt, a, bs, bs, jnp.ones(d))


if __name__ == "__main__":
    names = [a for a in sys.argv[1:] if a in GROUPS]
    WANTED = [a for a in sys.argv[1:] if a not in GROUPS]
    if not names:
        sys.exit(__doc__)
    for name in names:
        try:
            GROUPS[name]()
        except ImportError as missing:
            print(f"{name}: left out: {missing}", file=sys.stderr)
