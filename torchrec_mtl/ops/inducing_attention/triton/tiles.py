"""Functions that the Triton kernels share: tiles of rows, their scores and their softmax.

Letters: B samples, F input rows, K points, D embedding dimension, m heads, L layers, T tasks. Uppercase arguments are
known when a kernel is compiled; BLOCK_* are the sizes of tiles, powers of two and at least 16.

Points with z = 0 have the same query, zero, hence the same output row. A sample with ``n`` selected points keeps their
rows and one row for all the others: ``n + 1`` rows, or K if all points are selected. As a key, the common row counts
``K - n`` times: its score gets ``+ log(K - n)``. Row ``i`` below ``n`` belongs to point ``order[i]``; row ``n`` is the
common row.
"""

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def round_to_tf32(x):
    """Rounds to TF32's 10 bits, half away from zero: the matrix units cut bits off, which doubles the error."""
    bits = x.to(tl.int32, bitcast=True)
    rounded = ((bits + 0x1000) & -0x2000).to(tl.float32, bitcast=True)
    return tl.where(x == x, rounded, x)  # the sum turns CUDA's NaN into a zero


@triton.jit
def dot(a, b, total, PRECISION: tl.constexpr):
    """Returns ``total + a @ b`` in float32. The interpreter would multiply bfloat16's bits, so there operands widen."""
    if INTERPRETED:
        a, b = a.to(tl.float32), b.to(tl.float32)
    if (PRECISION == "tf32") & (a.dtype == tl.float32):
        a, b = round_to_tf32(a), round_to_tf32(b)
    return tl.dot(a, b, acc=total, input_precision=PRECISION, out_dtype=tl.float32)


@triton.jit
def tile(rows, valid, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Returns the offsets and the mask of these rows of a ``[..., D]`` array."""
    columns = tl.arange(0, BLOCK_D)
    return rows[:, None] * D + columns[None, :], valid[:, None] & (columns < D)[None, :]


@triton.jit
def load_rows(base, rows, valid, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Loads rows of a ``[..., D]`` array; zeros where not valid, so memory that nobody wrote is never read."""
    offsets, mask = tile(rows, valid, D, BLOCK_D)
    return tl.load(base + offsets, mask, other=0.0)


@triton.jit
def load_vector(base, known, other, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Loads a ``[D]`` array; fills it with ``other`` if it is not known."""
    columns = tl.arange(0, BLOCK_D)
    return tl.load(base + columns, (columns < D) & known, other=other)


@triton.jit
def load_keys(base, rows, valid, weight, bias, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Loads a layer's input: the former layer's output, from its normalised rows, or the fields (weight 1, bias 0)."""
    x = load_rows(base, rows, valid, D, BLOCK_D)
    return (x.to(tl.float32) * weight[None, :] + bias[None, :]).to(x.dtype)


@triton.jit
def log_count(rows, common, K: tl.constexpr):
    """Returns the logarithm of how many points each row stands for: 0 except at ``common`` (-1 if there is none)."""
    return tl.where(rows == common, tl.log(tl.maximum(K - common, 1).to(tl.float32)), 0.0)


@triton.jit
def attend(
    query, scale, base, num_keys, common, weight, bias,
    K: tl.constexpr, D: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Returns ``softmax(scale * query keys^T + log count) keys`` and the softmax's log-sum, by tiles of keys."""
    ROWS: tl.constexpr = query.shape[0]
    highest = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    context = tl.zeros([ROWS, BLOCK_D], tl.float32)
    for start in tl.range(0, num_keys, BLOCK_K):
        rows = start + tl.arange(0, BLOCK_K)
        keys = load_keys(base, rows, rows < num_keys, weight, bias, D, BLOCK_D)
        scores = dot(query, tl.trans(keys), None, PRECISION) * scale[:, None] + log_count(rows, common, K)[None, :]
        scores = tl.where((rows < num_keys)[None, :], scores, float("-inf"))
        new = tl.maximum(highest, tl.max(scores, 1))
        rescale, powers = tl.exp(highest - new), tl.exp(scores - new[:, None])
        total = total * rescale + tl.sum(powers, 1)
        context = dot(powers.to(keys.dtype), keys, context * rescale[:, None], PRECISION)
        highest = new
    return context / total[:, None], highest + tl.log(total)


@triton.jit
def residual_of(depth, FIRST_RESIDUAL: tl.constexpr, RESIDUAL: tl.constexpr):
    """Returns whether a layer adds its query, and whether it adds its input, eq. (20)."""
    first = depth == 0
    adds_query = (first & (FIRST_RESIDUAL == "query")) | ((depth > 0) & (RESIDUAL == "query"))
    adds_input = (first & (FIRST_RESIDUAL == "input")) | ((depth > 0) & (RESIDUAL == "input"))
    return adds_query, adds_input


@triton.jit
def normalise(x, EPS: tl.constexpr, D: tl.constexpr):
    """Returns LayerNorm's rows before weight and bias, and 1 / deviation. Columns from D on stay zero."""
    mean = tl.sum(x, 1) / D
    centred = tl.where((tl.arange(0, x.shape[1]) < D)[None, :], x - mean[:, None], 0.0)
    rstd = 1.0 / tl.sqrt(tl.sum(centred * centred, 1) / D + EPS)
    return centred * rstd[:, None], rstd


@triton.jit
def normalise_gradient(upstream, normalised, rstd, weight, D: tl.constexpr):
    """Returns the gradient of LayerNorm's argument, by rows."""
    scaled = upstream * weight[None, :]
    mean = tl.sum(scaled, 1) / D
    slope = tl.sum(scaled * normalised, 1) / D
    inside = (tl.arange(0, upstream.shape[1]) < D)[None, :]
    return tl.where(inside, (scaled - mean[:, None] - normalised * slope[:, None]) * rstd[:, None], 0.0)


@triton.jit
def add_rows(base, rows, valid, x, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Adds to rows that only this program writes. After the barrier, another of its threads may add to them."""
    offsets, mask = tile(rows, valid, D, BLOCK_D)
    tl.store(base + offsets, tl.load(base + offsets, mask, other=0.0) + x, mask)
    tl.debug_barrier()


@triton.jit
def add_vector(base, x, D: tl.constexpr, BLOCK_D: tl.constexpr):
    columns = tl.arange(0, BLOCK_D)
    tl.store(base + columns, tl.load(base + columns, columns < D, other=0.0) + x, columns < D)
    tl.debug_barrier()
