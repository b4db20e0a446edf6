"""What a precision of the matrix products costs in accuracy, emulated: ``python tools/precision.py``.

Factors are rounded as tensor cores round them and multiplied exactly (float64), so that a row shows the
rounding of factors alone; "float32" is torch's own product. Errors are the largest of a product, over the
largest of the exact result, of Phi z (counts as in a trained model) and of Phi^T e.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def rounded(x: Tensor, bits: int) -> Tensor:
    """x in float32 to nearest, with that many explicit bits of mantissa: 10 for TF32, 7 for bfloat16."""
    drop = 23 - bits
    word = x.contiguous().view(torch.int32)
    return ((word + (1 << (drop - 1))) >> drop << drop).view(torch.float32)


def parts(x: Tensor, bits: int, n: int) -> list[Tensor]:
    """x as a sum of n terms of that many bits."""
    terms = []
    for _ in range(n):
        terms.append(rounded(x, bits))
        x = x - terms[-1]
    return terms


def product(a: Tensor, b: Tensor, bits: int, n: int) -> Tensor:
    """The product of split factors without the pairs that are below the last term."""
    left, right = parts(a, bits, n), parts(b, bits, n)
    pairs = [(x, y) for i, x in enumerate(left) for j, y in enumerate(right) if i + j < n]
    return torch.stack([x.double() @ y.double() for x, y in pairs]).sum(0)


def main() -> None:
    """Prints the table."""
    torch.manual_seed(0)
    pixels, neurons, batch = 256, 512, 200
    phi = torch.randn(pixels, neurons) * neurons**-0.5
    counts = torch.poisson(torch.exp(1.5 * torch.randn(batch, neurons) - 1.5))
    error = torch.randn(batch, pixels)
    print("| product | Phi z | Phi^T e |\n| --- | --- | --- |")
    rows: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "float32": lambda a, b: (a @ b).double(),
        "tf32x3": lambda a, b: product(a, b, 10, 2),
        "bf16x3 (split dictionary, exact counts)": lambda a, b: product(a, b, 7, 3),
        "tf32": lambda a, b: product(a, b, 10, 1),
        "bf16": lambda a, b: product(a, b, 7, 1),
    }
    for name, multiply in rows.items():
        errors = []
        for a, b in ((counts, phi.T.contiguous()), (error, phi)):
            exact = a.double() @ b.double()
            errors.append(float((multiply(a, b) - exact).abs().max() / exact.abs().max()))
        print(f"| {name} | {errors[0]:.1e} | {errors[1]:.1e} |")


if __name__ == "__main__":
    main()
