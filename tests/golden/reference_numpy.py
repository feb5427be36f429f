#!/usr/bin/env python3
"""Float64 numpy reference of the Ring-linear 2.0 forward pass.

The oracle of the engine's tests: every tensor has the name and layout of the
published checkpoints, nothing is rounded, and nothing of the engine is used.

Run:  python3 reference_numpy.py        (checks itself; needs numpy only)
"""
import math
import sys
from dataclasses import dataclass, replace

import numpy as np

F = np.float64


# --------------------------------------------------------------------------
# configuration
# --------------------------------------------------------------------------
@dataclass(frozen=True)
class Config:
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    layer_group_size: int
    group_norm_size: int              # NUMBER of groups in the output norm
    num_experts: int
    num_experts_per_tok: int
    num_shared_experts: int
    moe_intermediate_size: int
    n_group: int
    topk_group: int
    routed_scaling_factor: float = 2.5
    norm_topk_prob: bool = True
    first_k_dense_replace: int = 1
    partial_rotary_factor: float = 0.5
    rope_theta: float = 1.0e6
    rope_scaling: dict = None         # None, or {"factor", "original_max_position_embeddings", ...}
    rms_norm_eps: float = 1.0e-6
    use_qk_norm: bool = True
    linear_silu: bool = False
    tie_word_embeddings: bool = False
    # Not in config.json.  Which layer factor scales the ALiBi-like decay:
    #   "index"    1 - l/(N-1) + 1e-5           SGLang, vLLM, AReno, AReaL (default)
    #   "index_m1" 1 - (l-1)/(N-1) + 1e-5       HF remote code, transformers PR
    #   "clamp_m1" as index_m1 with max(l-1,0)  mlx-lm, mlxcel
    slope_mode: str = "index"

    @property
    def rotary_dim(self):
        return int(self.head_dim * self.partial_rotary_factor)


RING_MINI = Config(
    vocab_size=157184, hidden_size=2048, intermediate_size=5120, num_hidden_layers=20,
    num_attention_heads=16, num_key_value_heads=4, head_dim=128, layer_group_size=5,
    group_norm_size=4, num_experts=256, num_experts_per_tok=8, num_shared_experts=1,
    moe_intermediate_size=512, n_group=8, topk_group=4)

RING_FLASH = Config(
    vocab_size=157184, hidden_size=4096, intermediate_size=9216, num_hidden_layers=32,
    num_attention_heads=32, num_key_value_heads=4, head_dim=128, layer_group_size=8,
    group_norm_size=4, num_experts=256, num_experts_per_tok=8, num_shared_experts=1,
    moe_intermediate_size=1024, n_group=8, topk_group=4)

# seven layers in groups of three: 2 and 5 are softmax, 6 is the softmax tail
TINY = Config(
    vocab_size=97, hidden_size=48, intermediate_size=80, num_hidden_layers=7,
    num_attention_heads=4, num_key_value_heads=2, head_dim=16, layer_group_size=3,
    group_norm_size=2, num_experts=16, num_experts_per_tok=4, num_shared_experts=1,
    moe_intermediate_size=24, n_group=4, topk_group=2, rope_theta=10000.0)


def is_softmax_layer(cfg, l):
    g, n = cfg.layer_group_size, cfg.num_hidden_layers
    return (l + 1) % g == 0 or l >= (n // g) * g


# --------------------------------------------------------------------------
# tensor inventory (names and shapes as in the checkpoint)
# --------------------------------------------------------------------------
def tensor_shapes(cfg):
    h, D = cfg.hidden_size, cfg.head_dim
    H, K = cfg.num_attention_heads, cfg.num_key_value_heads
    t = {"model.word_embeddings.weight": (cfg.vocab_size, h)}
    for l in range(cfg.num_hidden_layers):
        p = f"model.layers.{l}."
        t[p + "input_layernorm.weight"] = (h,)
        t[p + "post_attention_layernorm.weight"] = (h,)
        rows = (H + 2 * K) * D if is_softmax_layer(cfg, l) else 3 * H * D
        t[p + "attention.query_key_value.weight"] = (rows, h)
        t[p + "attention.query_layernorm.weight"] = (D,)
        t[p + "attention.key_layernorm.weight"] = (D,)
        t[p + "attention.dense.weight"] = (h, H * D)
        if not is_softmax_layer(cfg, l):
            t[p + "attention.g_proj.weight"] = (H * D, h)
            t[p + "attention.g_norm.weight"] = (H * D,)

        def mlp(prefix, inter):
            t[prefix + "gate_proj.weight"] = (inter, h)
            t[prefix + "up_proj.weight"] = (inter, h)
            t[prefix + "down_proj.weight"] = (h, inter)

        if l < cfg.first_k_dense_replace:
            mlp(p + "mlp.", cfg.intermediate_size)
        else:
            t[p + "mlp.gate.weight"] = (cfg.num_experts, h)
            t[p + "mlp.gate.expert_bias"] = (cfg.num_experts,)
            for e in range(cfg.num_experts):
                mlp(f"{p}mlp.experts.{e}.", cfg.moe_intermediate_size)
            mlp(p + "mlp.shared_experts.", cfg.moe_intermediate_size * cfg.num_shared_experts)
    t["model.norm.weight"] = (h,)
    if not cfg.tie_word_embeddings:
        t["lm_head.weight"] = (cfg.vocab_size, h)
    return t


def parameter_report(cfg):
    shapes = tensor_shapes(cfg)
    total = active = ends = 0
    for name, shp in shapes.items():
        n = math.prod(shp)
        total += n
        if name in ("model.word_embeddings.weight", "lm_head.weight"):
            ends += n
        elif ".experts." in name:
            active += n * cfg.num_experts_per_tok / cfg.num_experts
        else:
            active += n
    return dict(tensors=len(shapes), total=total, active_body=int(active),
                embed_and_head=ends, active_all=int(active) + ends)


def random_weights(cfg, seed=0):
    rng = np.random.default_rng(seed)
    w = {}
    for name, shp in tensor_shapes(cfg).items():
        if len(shp) == 1 and name.endswith("expert_bias"):
            w[name] = rng.normal(0, 0.2, shp)
        elif len(shp) == 1:
            w[name] = 1.0 + rng.normal(0, 0.1, shp)
        elif name.endswith("mlp.gate.weight"):
            w[name] = rng.normal(0, 0.3, shp)
        else:
            w[name] = rng.normal(0, 1.0 / math.sqrt(shp[1]), shp)
    return w


# --------------------------------------------------------------------------
# elementwise pieces
# --------------------------------------------------------------------------
def sigmoid(x):
    return 0.5 * (1.0 + np.tanh(0.5 * x))


def silu(x):
    return x * sigmoid(x)


def rms_norm(x, weight, eps):
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * weight


def group_rms_norm(x, weight, groups, eps):
    """RMS over each of `groups` contiguous slices of the last axis."""
    parts = x.reshape(x.shape[:-1] + (groups, -1))
    parts = parts / np.sqrt(np.mean(parts * parts, axis=-1, keepdims=True) + eps)
    return parts.reshape(x.shape) * weight


def rope_tables(cfg, positions):
    """cos, sin of shape [T, rotary_dim/2]; YaRN if cfg.rope_scaling is set."""
    r = cfg.rotary_dim
    freq = cfg.rope_theta ** (-np.arange(0, r, 2, dtype=F) / r)
    gain = 1.0
    if cfg.rope_scaling:
        s = cfg.rope_scaling
        factor, orig = float(s["factor"]), float(s["original_max_position_embeddings"])
        fast, slow = float(s.get("beta_fast", 32)), float(s.get("beta_slow", 1))

        def dim_of(rotations):
            return r * math.log(orig / (rotations * 2 * math.pi)) / (2 * math.log(cfg.rope_theta))

        lo = max(math.floor(dim_of(fast)), 0)
        hi = min(math.ceil(dim_of(slow)), r - 1)
        ramp = np.clip((np.arange(r // 2, dtype=F) - lo) / max(hi - lo, 1e-3), 0, 1)
        freq = freq * (1 - ramp) + freq / factor * ramp      # fast dims kept, slow dims divided
        gain = 0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0
    ang = np.asarray(positions, dtype=F)[:, None] * freq[None, :]
    return np.cos(ang) * gain, np.sin(ang) * gain


def apply_rope(x, cos, sin):
    """x [T, heads, D]; rotates the first rotary_dim entries, pairing i with i + rotary_dim/2."""
    half = cos.shape[-1]
    a, b, rest = x[..., :half], x[..., half:2 * half], x[..., 2 * half:]
    c, s = cos[:, None, :], sin[:, None, :]
    return np.concatenate([a * c - b * s, b * c + a * s, rest], axis=-1)


# --------------------------------------------------------------------------
# decay of the linear layers
# --------------------------------------------------------------------------
def head_slopes(heads):
    def pow2(n):
        return [2.0 ** (-8.0 * (i + 1) / n) for i in range(n)]

    p = 1 << (heads.bit_length() - 1)
    if p == heads:
        return np.array(pow2(heads))
    return np.array(pow2(p) + pow2(2 * p)[0::2][:heads - p])


def layer_slopes(cfg, l):
    """Positive decay rates; the per-step multiplier of the state is exp(-slope)."""
    idx = {"index": l, "index_m1": l - 1, "clamp_m1": max(l - 1, 0)}[cfg.slope_mode]
    return head_slopes(cfg.num_attention_heads) * (1.0 - idx / (cfg.num_hidden_layers - 1) + 1e-5)


# --------------------------------------------------------------------------
# linear attention core: two equal forms.  q,k,v [T,H,D]; state [H,Dk,Dv]
# --------------------------------------------------------------------------
def linear_core_recurrent(q, k, v, slopes, state, scale):
    T, H, D = q.shape
    decay = np.exp(-slopes)[:, None, None]
    S = state.copy()
    out = np.empty((T, H, v.shape[-1]))
    for t in range(T):
        S = decay * S + k[t][:, :, None] * v[t][:, None, :]
        out[t] = scale * np.einsum("hd,hde->he", q[t], S)
    return out, S


def linear_core_chunked(q, k, v, slopes, state, scale, chunk):
    T, H, D = q.shape
    S = state.copy()
    out = np.empty((T, H, v.shape[-1]))
    for a in range(0, T, chunk):
        qc, kc, vc = (x[a:a + chunk].transpose(1, 0, 2) for x in (q, k, v))   # [H,C,D]
        C = qc.shape[1]
        i = np.arange(C)
        gap = i[:, None] - i[None, :]
        mask = np.where(gap >= 0, np.exp(-slopes[:, None, None] * np.maximum(gap, 0)), 0.0)
        inside = (qc @ kc.transpose(0, 2, 1) * mask) @ vc
        carried = np.exp(-slopes[:, None] * (i + 1))[:, :, None] * (qc @ S)
        out[a:a + chunk] = (scale * (inside + carried)).transpose(1, 0, 2)
        tail = np.exp(-slopes[:, None] * (C - 1 - i))[:, :, None]
        S = np.exp(-slopes * C)[:, None, None] * S + (kc * tail).transpose(0, 2, 1) @ vc
    return out, S


# --------------------------------------------------------------------------
# layers
# --------------------------------------------------------------------------
class Cache:
    """Per-sequence memory: KV lists for softmax layers, one state for linear layers."""

    def __init__(self, cfg):
        H, K, D = cfg.num_attention_heads, cfg.num_key_value_heads, cfg.head_dim
        self.length = 0
        self.k, self.v, self.state = {}, {}, {}
        for l in range(cfg.num_hidden_layers):
            if is_softmax_layer(cfg, l):
                self.k[l] = np.zeros((0, K, D))
                self.v[l] = np.zeros((0, K, D))
            else:
                self.state[l] = np.zeros((H, D, D))


def project_qkv(cfg, w, p, x, kv_heads):
    H, D, T = cfg.num_attention_heads, cfg.head_dim, x.shape[0]
    y = x @ w[p + "query_key_value.weight"].T
    q, k, v = np.split(y, [H * D, (H + kv_heads) * D], axis=-1)
    return q.reshape(T, H, D), k.reshape(T, kv_heads, D), v.reshape(T, kv_heads, D)


def norm_and_rotate(cfg, w, p, q, k, cos, sin):
    if cfg.use_qk_norm:
        q = rms_norm(q, w[p + "query_layernorm.weight"], cfg.rms_norm_eps)
        k = rms_norm(k, w[p + "key_layernorm.weight"], cfg.rms_norm_eps)
    return apply_rope(q, cos, sin), apply_rope(k, cos, sin)


def softmax_attention(cfg, w, l, x, cos, sin, cache):
    p = f"model.layers.{l}.attention."
    H, K, D, T = cfg.num_attention_heads, cfg.num_key_value_heads, cfg.head_dim, x.shape[0]
    q, k, v = project_qkv(cfg, w, p, x, K)
    q, k = norm_and_rotate(cfg, w, p, q, k, cos, sin)
    cache.k[l] = np.concatenate([cache.k[l], k])
    cache.v[l] = np.concatenate([cache.v[l], v])
    kk = np.repeat(cache.k[l], H // K, axis=1)               # head h reads kv head h // (H/K)
    vv = np.repeat(cache.v[l], H // K, axis=1)
    s = np.einsum("thd,shd->hts", q, kk) / math.sqrt(D)
    past = cache.k[l].shape[0] - T
    ok = np.arange(past + T)[None, :] <= (past + np.arange(T))[:, None]
    s = np.where(ok[None], s, -np.inf)
    s = np.exp(s - s.max(axis=-1, keepdims=True))
    s /= s.sum(axis=-1, keepdims=True)
    o = np.einsum("hts,shd->thd", s, vv).reshape(T, H * D)
    return o @ w[p + "dense.weight"].T


def linear_attention(cfg, w, l, x, cos, sin, cache, chunk):
    p = f"model.layers.{l}.attention."
    H, D, T = cfg.num_attention_heads, cfg.head_dim, x.shape[0]
    q, k, v = project_qkv(cfg, w, p, x, H)                   # as many k/v heads as q heads
    if cfg.linear_silu:
        q, k, v = silu(q), silu(k), silu(v)
    q, k = norm_and_rotate(cfg, w, p, q, k, cos, sin)
    args = (q, k, v, layer_slopes(cfg, l), cache.state[l], D ** -0.5)
    o, cache.state[l] = linear_core_chunked(*args, chunk) if chunk else linear_core_recurrent(*args)
    o = group_rms_norm(o.reshape(T, H * D), w[p + "g_norm.weight"], cfg.group_norm_size,
                       cfg.rms_norm_eps)
    o = o * sigmoid(x @ w[p + "g_proj.weight"].T)
    return o @ w[p + "dense.weight"].T


def swiglu(w, prefix, x):
    return (silu(x @ w[prefix + "gate_proj.weight"].T) * (x @ w[prefix + "up_proj.weight"].T)) \
        @ w[prefix + "down_proj.weight"].T


def route(cfg, logits, bias):
    """logits [T,E] -> (indices [T,k], weights [T,k]).  Ties go to the lower index."""
    T, E = logits.shape
    score = sigmoid(logits)
    choice = score + bias
    grouped = choice.reshape(T, cfg.n_group, -1)
    group_score = np.sort(grouped, axis=-1)[..., -2:].sum(-1)
    keep = np.argsort(-group_score, axis=-1, kind="stable")[:, :cfg.topk_group]
    open_group = np.zeros((T, cfg.n_group), bool)
    np.put_along_axis(open_group, keep, True, axis=1)
    choice = np.where(np.repeat(open_group, E // cfg.n_group, axis=1), choice, -np.inf)
    idx = np.argsort(-choice, axis=-1, kind="stable")[:, :cfg.num_experts_per_tok]
    wt = np.take_along_axis(score, idx, axis=1)              # the bias takes no part in the weight
    if cfg.norm_topk_prob:
        wt = wt / (wt.sum(-1, keepdims=True) + 1e-20)
    return idx, wt * cfg.routed_scaling_factor


def moe(cfg, w, l, x):
    p = f"model.layers.{l}.mlp."
    idx, wt = route(cfg, x @ w[p + "gate.weight"].T, w[p + "gate.expert_bias"])
    y = np.zeros_like(x)
    for e in np.unique(idx):
        tok, slot = np.nonzero(idx == e)
        y[tok] += wt[tok, slot][:, None] * swiglu(w, f"{p}experts.{e}.", x[tok])
    return y + swiglu(w, p + "shared_experts.", x)


def forward(cfg, w, tokens, cache, chunk=None, trace=None):
    """tokens: new ids (any count).  chunk=None: recurrent form, else chunked with that size."""
    tokens = np.asarray(tokens)
    pos = cache.length + np.arange(len(tokens))
    cos, sin = rope_tables(cfg, pos)
    h = w["model.word_embeddings.weight"][tokens]
    for l in range(cfg.num_hidden_layers):
        p = f"model.layers.{l}."
        x = rms_norm(h, w[p + "input_layernorm.weight"], cfg.rms_norm_eps)
        if is_softmax_layer(cfg, l):
            h = h + softmax_attention(cfg, w, l, x, cos, sin, cache)
        else:
            h = h + linear_attention(cfg, w, l, x, cos, sin, cache, chunk)
        x = rms_norm(h, w[p + "post_attention_layernorm.weight"], cfg.rms_norm_eps)
        h = h + (swiglu(w, p + "mlp.", x) if l < cfg.first_k_dense_replace else moe(cfg, w, l, x))
        if trace is not None:
            trace.append(h.copy())
    cache.length += len(tokens)
    h = rms_norm(h, w["model.norm.weight"], cfg.rms_norm_eps)
    head = w["model.word_embeddings.weight" if cfg.tie_word_embeddings else "lm_head.weight"]
    return h @ head.T


# --------------------------------------------------------------------------
# tensor-parallel emulation of the two layers with a rule of their own
# --------------------------------------------------------------------------
def linear_attention_tp(cfg, w, l, x, cos, sin, tp):
    """Sum over `tp` ranks of a sliced linear layer (zero start state)."""
    p = f"model.layers.{l}.attention."
    H, D, T = cfg.num_attention_heads, cfg.head_dim, x.shape[0]
    assert H % tp == 0 and cfg.group_norm_size % tp == 0
    n = H // tp
    total = 0
    for r in range(tp):
        rows = np.concatenate([np.arange(s * H * D + r * n * D, s * H * D + (r + 1) * n * D)
                               for s in range(3)])
        cols = slice(r * n * D, (r + 1) * n * D)
        y = x @ w[p + "query_key_value.weight"][rows].T
        q, k, v = (y[:, s * n * D:(s + 1) * n * D].reshape(T, n, D) for s in range(3))
        q, k = norm_and_rotate(cfg, w, p, q, k, cos, sin)
        o, _ = linear_core_recurrent(q, k, v, layer_slopes(cfg, l)[r * n:(r + 1) * n],
                                     np.zeros((n, D, D)), D ** -0.5)
        o = group_rms_norm(o.reshape(T, n * D), w[p + "g_norm.weight"][cols],
                           cfg.group_norm_size // tp, cfg.rms_norm_eps)
        o = o * sigmoid(x @ w[p + "g_proj.weight"][cols].T)
        total = total + o @ w[p + "dense.weight"][:, cols].T
    return total


# --------------------------------------------------------------------------
# checks
# --------------------------------------------------------------------------
def main():
    worst = {}

    def check(name, a, b, tol=1e-10):
        d = float(np.max(np.abs(a - b)) / max(1.0, float(np.max(np.abs(b)))))
        worst[name] = d
        print(f"{'ok  ' if d < tol else 'FAIL'} {name:58s} {d:.2e}")
        return d < tol

    good = True
    rng = np.random.default_rng(1)

    # 1. recurrent == chunked, with a non-zero incoming state and ragged last chunk
    T, H, D = 75, 4, 16
    q, k, v = (rng.normal(size=(T, H, D)) for _ in range(3))
    S0 = rng.normal(size=(H, D, D))
    sl = layer_slopes(TINY, 1)
    o1, s1 = linear_core_recurrent(q, k, v, sl, S0, D ** -0.5)
    for c in (1, 2, 7, 16, 32, 64, 75, 256):
        o2, s2 = linear_core_chunked(q, k, v, sl, S0, D ** -0.5, c)
        good &= check(f"core: chunk {c} output", o2, o1)
        good &= check(f"core: chunk {c} state", s2, s1)

    # 2. against the closed-form double sum, zero state
    o3 = np.zeros((T, H, D))
    for t in range(T):
        for j in range(t + 1):
            o3[t] += (np.sum(q[t] * k[j], -1) * np.exp(-sl * (t - j)))[:, None] * v[j] * D ** -0.5
    good &= check("core: recurrent vs double sum",
                  linear_core_recurrent(q, k, v, sl, np.zeros_like(S0), D ** -0.5)[0], o3)

    # 3. whole model: prefill recurrent, prefill chunked, token by token, split prefill
    for mode in ("index", "index_m1", "clamp_m1"):
        cfg = replace(TINY, slope_mode=mode)
        w = random_weights(cfg)
        ids = rng.integers(0, cfg.vocab_size, 41)
        ref = forward(cfg, w, ids, Cache(cfg))
        for c in (8, 32, 64):
            good &= check(f"model[{mode}]: prefill chunk {c}", forward(cfg, w, ids, Cache(cfg), c), ref)
        cache = Cache(cfg)
        step = np.concatenate([forward(cfg, w, [i], cache) for i in ids])
        good &= check(f"model[{mode}]: token by token", step, ref)
        cache = Cache(cfg)
        split = np.concatenate([forward(cfg, w, ids[:17], cache, 8), forward(cfg, w, ids[17:30], cache, 8),
                                forward(cfg, w, ids[30:], cache)])
        good &= check(f"model[{mode}]: split prefill then recurrent", split, ref)

    # 4. tensor parallel slicing of the linear layer
    w = random_weights(TINY)
    x = rng.normal(size=(9, TINY.hidden_size))
    cos, sin = rope_tables(TINY, np.arange(9))
    ref = linear_attention(TINY, w, 0, x, cos, sin, Cache(TINY), None)
    for tp in (1, 2):
        good &= check(f"linear layer: TP {tp} sum of ranks", linear_attention_tp(TINY, w, 0, x, cos, sin, tp), ref)

    # 5. router: bias moves the choice, never the weight; groups are obeyed
    lg = rng.normal(size=(200, TINY.num_experts))
    b = rng.normal(0, 0.3, TINY.num_experts)
    idx, wt = route(TINY, lg, b)
    per = TINY.num_experts // TINY.n_group
    assert all(len(set(r // per)) <= TINY.topk_group for r in idx)
    good &= check("router: weights sum to the scaling factor", wt.sum(-1), np.full(200, 2.5))
    raw = np.take_along_axis(sigmoid(lg), idx, 1)
    good &= check("router: weights are unbiased scores", wt, 2.5 * raw / raw.sum(-1, keepdims=True))

    # 6. rope: relative property on the rotated part (dot products depend on the distance)
    qv, kv = rng.normal(size=(1, 1, 16)), rng.normal(size=(1, 1, 16))
    for sc in (None, {"factor": 4.0, "original_max_position_embeddings": 64}):
        cfg = replace(TINY, rope_scaling=sc)
        dots = [float(np.sum(apply_rope(qv, *rope_tables(cfg, [a])) * apply_rope(kv, *rope_tables(cfg, [a - 5]))))
                for a in (5, 50, 500)]
        good &= check(f"rope: shift invariance (yarn={sc is not None})", np.array(dots), np.full(3, dots[0]))

    # 7. layer kinds and slopes of the real models
    for name, cfg in (("flash", RING_FLASH), ("mini", RING_MINI)):
        soft = [l for l in range(cfg.num_hidden_layers) if is_softmax_layer(cfg, l)]
        print(f"{name}: softmax layers {soft}")
        r = parameter_report(cfg)
        print(f"{name}: tensors {r['tensors']}  total {r['total']:,}  active body {r['active_body']:,}  "
              f"embedding+head {r['embed_and_head']:,}  active with both {r['active_all']:,}")
        s = head_slopes(cfg.num_attention_heads)
        print(f"{name}: base slopes first {s[0]:.6f} last {s[-1]:.8f}; layer 0 factor 'index' "
              f"{layer_slopes(cfg, 0)[0] / s[0]:.6f}, 'index_m1' "
              f"{layer_slopes(replace(cfg, slope_mode='index_m1'), 0)[0] / s[0]:.6f}")
    assert [l for l in range(7) if is_softmax_layer(TINY, l)] == [2, 5, 6]
    assert abs(parameter_report(RING_FLASH)["total"] / 1e9 - 104.2) < 0.1
    assert abs(parameter_report(RING_MINI)["total"] / 1e9 - 16.4) < 0.1

    # 8. how far apart the slope conventions are (so that a test can tell them apart)
    w = random_weights(TINY)
    ids = rng.integers(0, TINY.vocab_size, 41)
    base = forward(TINY, w, ids, Cache(TINY))
    for mode in ("index_m1", "clamp_m1"):
        other = forward(replace(TINY, slope_mode=mode), w, ids, Cache(TINY))
        print(f"slope_mode index vs {mode}: max logit difference {np.max(np.abs(other - base)):.3f}")

    print("ALL CHECKS PASS" if good else "SOME CHECK FAILED")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
