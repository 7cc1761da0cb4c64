"""Free directions that are known exactly: METHODS 7(f)."""

import pytest
import torch

from sae_kit.evals.loss_landscape.ranks import Free, Grams, effective_rank, rank

CPU = torch.device("cpu")


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def free(inputs: torch.Tensor, gradients: torch.Tensor) -> Free:
    grams = Grams(inputs.shape[1], gradients.shape[1], device=CPU)
    for some in zip(inputs.split(7), gradients.split(7), strict=True):
        grams.update(*some)
    return Free.of(*grams.spectra(), 1e-10)


def test_full_ranks_leave_nothing_free():
    found = free(draw(100, 5), draw(100, 3, seed=1))
    assert found == Free(6 * 3, 6, 3)
    assert found.n_free == 0
    assert found.share == 0.0


def test_rank_deficient_data_frees_a_row_of_every_output():
    """Inputs of rank 3 in 5 channels, with a constant: two of six directions are never used."""
    found = free(draw(100, 3) @ draw(3, 5, seed=2), draw(100, 4, seed=1))
    assert found.rank_inputs == 4
    assert found.n_free == 2 * 4


def test_a_duplicated_input_channel_frees_one_direction_for_every_output():
    x = draw(100, 4)
    found = free(torch.cat([x, x[:, :1]], 1), draw(100, 3, seed=1))
    assert found.n_free == 1 * 3


def test_an_output_that_nothing_reads_frees_its_whole_column():
    """A zeroed neuron: its outgoing weights are 0, so the gradient at it is."""
    gradients = draw(100, 4, seed=1)
    gradients[:, 2] = 0
    found = free(draw(100, 5), gradients)
    assert found.rank_gradients == 3
    assert found.n_free == 6


def test_both_together_leave_the_product_of_the_ranks():
    gradients = draw(100, 2, seed=1) @ draw(2, 4, seed=3)
    found = free(draw(100, 3) @ draw(3, 5, seed=2), gradients)
    assert found.n_free == 6 * 4 - 4 * 2
    assert found.share == pytest.approx(16 / 24)


def test_free_directions_are_free():
    """A change of W in them leaves a network's outputs as they are."""
    inputs, readout = draw(50, 3) @ draw(3, 5, seed=2), draw(4, 2, seed=3)
    W = draw(5, 4, seed=4)
    unused = torch.linalg.svd(inputs)[2][3:]  # rows: input directions never taken
    ignored = torch.linalg.svd(readout.T)[2][2:]  # rows: output directions never read
    change = unused.T @ draw(2, 4, seed=5) + draw(5, 2, seed=6) @ ignored
    torch.testing.assert_close(inputs @ (W + change) @ readout, inputs @ W @ readout)


def test_ranks_are_relative_to_the_largest_eigenvalue():
    spectrum = torch.tensor([1e6, 1.0, 1e-9], dtype=torch.float64)
    assert [rank(spectrum, t) for t in (1e-3, 1e-7, 1e-16)] == [1, 2, 3]
    assert rank(torch.zeros(3), 1e-3) == 0


def test_effective_rank_counts_equal_eigenvalues():
    assert effective_rank(torch.tensor([2.0, 2.0, 2.0, 0.0])) == pytest.approx(3.0)
    assert effective_rank(torch.zeros(4)) == 0.0
