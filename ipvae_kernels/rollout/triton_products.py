"""What both drivers use: a tile's matrix product in the precision asked for, and the streams of a rollout."""

import triton
import triton.language as tl

PRODUCTS = {"float32": "tf32x3", "tf32": "tf32", "bf16": "bf16"}
"""How ``RolloutConfig.precision`` is computed: three TF32 products carry 22 bits of each factor."""


@triton.jit
def add_product(acc, a, b, PRODUCT: tl.constexpr):
    """Acc + a b of float32 tiles, on tensor cores, accumulated in float32."""
    if PRODUCT == "bf16":
        acc = tl.dot(a.to(tl.bfloat16), b.to(tl.bfloat16), acc)
    else:
        acc = tl.dot(a, b, acc, input_precision=PRODUCT)
    return acc


@triton.jit
def stream_of(draw, first_step, n_inner, SINGLE: tl.constexpr):
    """Step and high word of draw t (n_inner + 1) + j of a rollout; j = n_inner is the fresh one."""
    draw = tl.cast(draw, tl.int64)
    j = draw % (n_inner + 1)
    step = draw // (n_inner + 1) + first_step
    fresh = j == n_inner
    high = tl.where(fresh, 1 << 28, j << 20)
    if SINGLE:
        reuse = (j < n_inner) & (step > 0)
        high = tl.where(reuse, 1 << 28, high)
        step = tl.where(reuse, step - 1, step)
    return step.to(tl.uint32), high.to(tl.uint32)
