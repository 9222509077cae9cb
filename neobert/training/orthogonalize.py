"""Replace a matrix by (about) its nearest semi-orthogonal one: G = U S V^T becomes U V^T.

An odd polynomial a x + b x^3 + c x^5 of the matrix, ``a X + (b X X^T + c (X X^T)^2) X``, acts on singular values
alone. Iterated from values in (0, 1], it drives them towards 1 by matrix products only, which bf16 bears; an SVD
costs far more on a GPU. Two choices of coefficients:

newton_schulz  one triple for all steps, of the steepest slope at 0 that stays bounded; values end within about 0.7
               to 1.2 rather than at 1, which trains no worse (Jordan et al. 2024, kellerjordan.github.io/posts/muon).
polar_express  a triple for each step, each the minimax optimum for the interval that the ones before it leave,
               here for values from 1e-3; converges to 1 (Amsel et al. 2025, arXiv:2505.16932, Algorithm 1). All but
               the last are applied to x / 1.01, so that rounding in bf16 cannot push a value out of the interval.

Cost of one [m, n] matrix, m <= n: steps x (4 m^2 n + 2 m^3) operations.
"""

from __future__ import annotations

import torch
from torch import Tensor

EPS = 1e-7
JORDAN = (3.4445, -4.7750, 2.0315)
SAFETY = 1.01
AMSEL = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
)
LIMIT = (1.875, -1.25, 0.375)
"""What Amsel et al.'s coefficients tend to, from the eighth step on."""

Coefficients = tuple[float, float, float]


def coefficients(method: str, steps: int) -> list[Coefficients]:
    """(a, b, c) of each step of ``newton_schulz`` or ``polar_express``."""
    if method == "newton_schulz":
        return [JORDAN] * steps
    safe = [(a / SAFETY, b / SAFETY**3, c / SAFETY**5) for a, b, c in AMSEL]
    return (safe + [LIMIT] * steps)[:steps]


def orthogonalize(stack: Tensor, method: str, steps: int) -> Tensor:
    """[B, rows, columns] -> the same shape and type, the singular values of each matrix moved to about 1.

    A zero matrix stays zero. Scaling a matrix does not change its result.
    """
    rows, columns = stack.shape[-2:]
    x = stack.mT if rows > columns else stack  # the smaller Gram matrix
    margin = SAFETY if method == "polar_express" else 1.0
    # The Frobenius norm bounds the largest singular value.
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) * margin).clamp_min(EPS)
    for a, b, c in coefficients(method, steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if rows > columns else x
