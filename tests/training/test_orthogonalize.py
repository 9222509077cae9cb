"""Orthogonalisation against the singular value decomposition."""

import pytest
import torch

from neobert.training.orthogonalize import coefficients, orthogonalize

METHODS = ["newton_schulz", "polar_express"]


def stack(shape, seed=0, **options):
    return torch.randn(3, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64, **options)


@pytest.mark.parametrize("shape", [(6, 6), (12, 5), (5, 12)])
@pytest.mark.parametrize("steps", [1, 5, 9])
@pytest.mark.parametrize("method", METHODS)
def test_it_is_the_polynomial_of_the_singular_values(method, steps, shape):
    matrices = stack(shape)
    u, s, vh = torch.linalg.svd(matrices, full_matrices=False)
    s = s / s.norm(dim=-1, keepdim=True) / (1.01 if method == "polar_express" else 1)
    for a, b, c in coefficients(method, steps):
        s = a * s + b * s**3 + c * s**5
    torch.testing.assert_close(orthogonalize(matrices, method, steps), u @ torch.diag_embed(s) @ vh)


def with_values(values):
    """A [16, 24] matrix of these singular values."""
    u, v = (torch.linalg.qr(stack((n, n), seed=n)[0]).Q for n in (16, 24))
    return (u * values) @ v[:16]


def test_polar_express_converges_to_the_nearest_orthogonal_matrix():
    matrix = with_values(torch.logspace(-2.8, 0, 16, dtype=torch.float64))
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    errors = [(orthogonalize(matrix[None], "polar_express", n)[0] - u @ vh).norm() for n in (5, 7, 10)]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-9


@pytest.mark.parametrize(("method", "low", "high"), [("newton_schulz", 0.6, 1.25), ("polar_express", 0.85, 1.15)])
def test_five_steps_bring_a_wide_range_of_values_near_one(method, low, high):
    matrix = with_values(torch.logspace(-1.8, 0, 16, dtype=torch.float64))
    found = torch.linalg.svdvals(orthogonalize(matrix[None], method, 5)[0])
    assert low < found.min()
    assert found.max() < high


@pytest.mark.parametrize("method", METHODS)
def test_scale_does_not_matter_and_zero_stays_zero(method):
    matrices = stack((4, 6))
    torch.testing.assert_close(orthogonalize(matrices * 1e-4, method, 5), orthogonalize(matrices, method, 5))
    assert not orthogonalize(torch.zeros(2, 4, 6), method, 5).any()
    assert orthogonalize(torch.zeros(0, 4, 6), method, 5).shape == (0, 4, 6)


def test_it_bears_bf16():
    found = orthogonalize(stack((8, 16)).bfloat16(), "polar_express", 5)
    assert found.dtype == torch.bfloat16
    values = torch.linalg.svdvals(found.float())
    assert values.min() > 0.85
    assert values.max() < 1.15
