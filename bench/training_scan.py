"""The selective scan that training needs: h ← exp(dt·a)·h + dt·x·b, y = c·h, with its gradients.

`scan(x, dt, a, b, c, h0)`: x and dt {B, L, E}, a {E, N}, b and c {B, L, N}, h0 {B, E, N} or None →
y {B, L, E} and the last h {B, E, N}. On a GPU both ways are one Triton kernel each, which keeps every
h in memory in between; elsewhere a loop over the frames, which autograd follows.
"""

import torch

try:
    import triton
    import triton.language as tl
except ImportError:  # The loop needs none.
    triton = None

CHANNELS = 32  # of a block


def loop(x, dt, a, b, c, h):
    decay = torch.exp(dt[..., None] * a)
    new = (dt * x)[..., None] * b[:, :, None, :]
    ys = []
    for t in range(x.shape[1]):
        h = decay[:, t] * h + new[:, t]
        ys.append((h * c[:, t, None, :]).sum(-1))
    return torch.stack(ys, 1), h


def scan(x, dt, a, b, c, h0=None):
    if h0 is None:
        h0 = x.new_zeros(x.shape[0], *a.shape)
    if x.is_cuda:
        return Scan.apply(*(t.contiguous() for t in (x, dt, a, b, c, h0)))
    # In pieces, so that a long text needs no {L, E, N} at once.
    ys, h = [], h0
    for at in range(0, x.shape[1], 512):
        piece = [t[:, at : at + 512] for t in (x, dt, b, c)]
        y, h = loop(piece[0], piece[1], a, piece[2], piece[3], h)
        ys.append(y)
    return torch.cat(ys, 1), h


if triton:

    @triton.jit
    def forward_kernel(
        X, DT, A, B, C, H0, Y, H, L: tl.constexpr, E: tl.constexpr, N: tl.constexpr, W: tl.constexpr
    ):
        batch = tl.program_id(1)
        e = tl.program_id(0) * W + tl.arange(0, W)
        n = tl.arange(0, N)
        cell = e[:, None] * N + n[None, :]
        a = tl.load(A + cell)
        h = tl.load(H0 + batch * E * N + cell)
        for t in range(L):
            row = (batch * L + t).to(tl.int64)
            x = tl.load(X + row * E + e)
            dt = tl.load(DT + row * E + e)
            b = tl.load(B + row * N + n)
            c = tl.load(C + row * N + n)
            h = tl.exp(dt[:, None] * a) * h + (dt * x)[:, None] * b[None, :]
            tl.store(Y + row * E + e, tl.sum(h * c[None, :], 1))
            tl.store(H + row * E * N + cell, h)

    @triton.jit
    def backward_kernel(
        X, DT, A, B, C, H0, H, DY, DX, DDT, DA, DB, DC, L: tl.constexpr, E: tl.constexpr,
        N: tl.constexpr, W: tl.constexpr,
    ):
        batch, block, blocks = tl.program_id(1), tl.program_id(0), tl.num_programs(0)
        e = block * W + tl.arange(0, W)
        n = tl.arange(0, N)
        cell = e[:, None] * N + n[None, :]
        a = tl.load(A + cell)
        dh = tl.zeros([W, N], tl.float32)
        da = tl.zeros([W, N], tl.float32)
        h = tl.load(H + (batch * L + L - 1).to(tl.int64) * E * N + cell)
        for i in range(L):
            t = L - 1 - i
            row = (batch * L + t).to(tl.int64)
            x = tl.load(X + row * E + e)
            dt = tl.load(DT + row * E + e)
            dy = tl.load(DY + row * E + e)
            b = tl.load(B + row * N + n)
            c = tl.load(C + row * N + n)
            first = tl.load(H0 + batch * E * N + cell, mask=(cell >= 0) & (t == 0), other=0.0)
            earlier = tl.load(H + (row - 1) * E * N + cell, mask=(cell >= 0) & (t > 0), other=0.0)
            before = first + earlier
            dh += dy[:, None] * c[None, :]
            part = (row * blocks + block) * N + n
            tl.store(DC + part, tl.sum(h * dy[:, None], 0))
            tl.store(DB + part, tl.sum(dh * (dt * x)[:, None], 0))
            decay = tl.exp(dt[:, None] * a)
            g = dh * before * decay
            along_b = tl.sum(dh * b[None, :], 1)
            tl.store(DDT + row * E + e, tl.sum(g * a, 1) + along_b * x)
            tl.store(DX + row * E + e, along_b * dt)
            da += g * dt[:, None]
            dh = dh * decay
            h = before
        tl.store(DA + batch * E * N + cell, da)


class Scan(torch.autograd.Function):
    """No gradient goes into h0, and none comes from the last h: training cuts there."""

    @staticmethod
    def forward(ctx, x, dt, a, b, c, h0):
        (batch, length, channels), states = x.shape, a.shape[1]
        y = torch.empty_like(x)
        h = x.new_empty(batch, length, channels, states)
        grid = (channels // CHANNELS, batch)
        forward_kernel[grid](
            x, dt, a, b, c, h0, y, h, length, channels, states, CHANNELS, num_warps=2
        )
        ctx.save_for_backward(x, dt, a, b, c, h0, h)
        last = h[:, -1].clone()
        ctx.mark_non_differentiable(last)
        return y, last

    @staticmethod
    def backward(ctx, dy, _):
        x, dt, a, b, c, h0, h = ctx.saved_tensors
        (batch, length, channels), states = x.shape, a.shape[1]
        grid = (channels // CHANNELS, batch)
        dx, ddt = torch.empty_like(x), torch.empty_like(dt)
        da = a.new_empty(batch, channels, states)
        db, dc = (a.new_empty(batch, length, grid[0], states) for _ in range(2))
        backward_kernel[grid](
            x, dt, a, b, c, h0, h, dy.contiguous(), dx, ddt, da, db, dc,
            length, channels, states, CHANNELS, num_warps=2,
        )  # fmt: skip
        return dx, ddt, da.sum(0), db.sum(2), dc.sum(2), None
