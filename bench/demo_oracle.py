"""The demo's models in plain numpy, float64: what their goldens are checked against."""

import math

import numpy as np

MLP_WINDOW = 16
HEAD = 64  # numbers of an attention head
CONTEXT = 60  # frames that attention sees


class Stepper:
    """A stored model, one character a call: `step(token)` → logits {V}.

    Knows the stored layout and Nitrox's formulas and nothing of torch.
    """

    def __init__(self, backbone, arrays):
        self.w = {name: array.astype(np.float64) for name, array in arrays.items()}
        self.count = len({name.split(".")[1] for name in arrays if name.startswith("layers.")})
        self.kind = {"mlp": self.dense, "lstm": self.lstm, "gru": self.gru}.get(backbone)
        self.window = [0] * MLP_WINDOW if backbone == "mlp" else [0]
        self.state = [None] * self.count

    def step(self, token):
        self.window = self.window[1:] + [int(token)]
        x = np.concatenate([self.w["embedding.table"][t] for t in self.window])
        for n in range(self.count):
            prefix = f"layers.{n}."
            w = {k.removeprefix(prefix): v for k, v in self.w.items() if k.startswith(prefix)}
            layer = self.kind or (self.attention if "qkv.w" in w else self.mamba)
            x, self.state[n] = layer(w, x, self.state[n])
        if not self.kind:
            x = rms_norm(x, self.w["norm.gamma"])
        return x @ self.w["head.w"] + self.w["head.b"]

    def dense(self, w, x, _):
        return np.maximum(x @ w["w"] + w["b"], 0), None

    def lstm(self, w, x, state):
        h, c = state or (np.zeros(len(w["wh"])), np.zeros(len(w["wh"])))
        i, f, g, o = np.split(x @ w["wi"] + h @ w["wh"] + w["b"], 4)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        return layer_norm(h, w["norm.gamma"], w["norm.beta"]), (h, c)

    def gru(self, w, x, h):
        h = np.zeros(len(w["wh"])) if h is None else h
        xr, xz, xn = np.split(x @ w["wi"], 3)
        hr, hz, hn = np.split(h @ w["wh"], 3)
        br, bz, bn, bhn = np.split(w["b"], 4)
        r, z = sigmoid(xr + hr + br), sigmoid(xz + hz + bz)
        new = np.tanh(xn + bn + r * (hn + bhn))
        h = (1 - z) * new + z * h
        return layer_norm(h, w["norm.gamma"], w["norm.beta"]), h

    def mamba(self, w, x, state):
        inner, states = w["a"].shape
        rank = len(w["dt.w"])
        frames, h = state or ([np.zeros(inner)] * (len(w["conv.w"]) - 1), np.zeros(w["a"].shape))
        v, z = np.split(rms_norm(x, w["norm.gamma"]) @ w["in.w"], 2)
        frames = [*frames, v]
        v = sum(weight * frame for weight, frame in zip(w["conv.w"], frames)) + w["conv.b"]
        v = v * sigmoid(v)
        dt, b, c = np.split(v @ w["x.w"], [rank, rank + states])
        dt = np.logaddexp(0, dt @ w["dt.w"] + w["dt.b"])
        h = np.exp(dt[:, None] * w["a"]) * h + (dt * v)[:, None] * b
        y = (h @ c + w["d"] * v) * z * sigmoid(z)
        return x + y @ w["out.w"], (frames[1:], h)

    def attention(self, w, x, past):
        q, k, v = np.split(rms_norm(x, w["norm.gamma"]) @ w["qkv.w"], 3)
        # Keys as they are, and for each the query turned by how far apart they are: not Nitrox's way.
        past = [*(past or []), (k.reshape(-1, HEAD), v.reshape(-1, HEAD))][-CONTEXT:]
        keys, values = (np.stack(part) for part in zip(*past))
        back = np.arange(len(past))[::-1]
        scores = (turned(q.reshape(-1, HEAD), back) * keys).sum(-1) / math.sqrt(HEAD)
        weights = np.exp(scores - scores.max(0))
        seen = ((weights / weights.sum(0))[..., None] * values).sum(0)
        x = x + seen.reshape(-1) @ w["out.w"]
        u = rms_norm(x, w["ffn.norm.gamma"]) @ w["up.w"] + w["up.b"]
        u = u * (1 + np.vectorize(math.erf)(u / math.sqrt(2))) / 2
        return x + u @ w["down.w"] + w["down.b"], past


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def layer_norm(x, gamma, beta):
    return (x - x.mean()) / np.sqrt(x.var() + 1e-5) * gamma + beta


def rms_norm(x, gamma):
    return x / np.sqrt((x * x).mean() + 1e-5) * gamma


def turned(x, frames):
    """Heads {H, D} → {F, H, D}, turned by each of `frames` {F}: pairs are i and i + D/2."""
    half = x.shape[-1] // 2
    angle = (frames[:, None] * 10_000.0 ** (-np.arange(half) / half))[:, None]
    a, b, cos, sin = x[:, :half], x[:, half:], np.cos(angle), np.sin(angle)
    return np.concatenate([a * cos - b * sin, a * sin + b * cos], -1)
