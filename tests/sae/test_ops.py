import pytest
import torch
from torch.testing import assert_close

from sae_kit.sae import ops


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def leaves(*tensors):
    return [tensor.clone().requires_grad_() for tensor in tensors]


def dense_top(x, encoder_rows, b_enc, k):
    """The same by plain dense autograd, largest first."""
    return (x @ encoder_rows.T + b_enc).topk(k)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_top_pre_activations_equal_dense_autograd(dtype):
    tensors = [draw(7, 5, dtype=dtype), draw(11, 5, seed=1, dtype=dtype), draw(11, dtype=dtype)]
    weights = draw(7, 3, seed=2, dtype=dtype)
    sparse, dense = leaves(*tensors), leaves(*tensors)

    values, indices = ops.top_pre_activations(*sparse, 3)
    expected_values, expected_indices = dense_top(*dense, 3)
    order = values.argsort(-1, descending=True)
    assert_close(values.gather(-1, order), expected_values)
    assert torch.equal(indices.gather(-1, order), expected_indices)

    (values.gather(-1, order) * weights).sum().backward()
    (expected_values * weights).sum().backward()
    for ours, expected in zip(sparse, dense, strict=True):
        assert_close(ours.grad, expected.grad)


@pytest.mark.parametrize(("n", "k"), [(64, 2), (72, 1), (65, 2), (64, 40), (5, 5), (1, 1)])
def test_largest_is_topk_however_it_is_found(n, k):
    pre = draw(30, n)
    values, indices = ops.largest(pre, k)
    assert torch.equal(pre.gather(-1, indices), values)
    assert torch.equal(values.sort(-1, descending=True).values, pre.topk(k).values)
    assert all(len(set(row)) == k for row in indices.tolist())


@pytest.mark.parametrize("choose", [ops.top_pre_activations, ops.group_maxima])
def test_chunks_of_rows_make_no_difference(choose, monkeypatch):
    x, encoder, bias = draw(50, 6), draw(128, 6, seed=1), draw(128, seed=2)
    whole = choose(x, encoder, bias, 4)
    for chunk in (1, 128 * 7):
        monkeypatch.setattr(ops, "CHUNK", chunk)
        for ours, expected in zip(choose(x, encoder, bias, 4), whole, strict=True):
            assert_close(ours, expected)


@pytest.fixture
def bf16_is_fast(monkeypatch):
    monkeypatch.setattr(ops, "fast_bf16", lambda _: True)


@pytest.mark.usefixtures("bf16_is_fast")
def test_screening_changes_neither_the_choice_nor_a_bit_of_float32():
    """At real sizes: the same latents, values of float32 precision, the same gradients."""
    tensors = [
        draw(64, 128, dtype=torch.float32),
        draw(4096, 128, seed=1, dtype=torch.float32) / 128**0.5,
        0.1 * draw(4096, seed=2, dtype=torch.float32),
    ]
    screened, exact = leaves(*tensors), leaves(*tensors)
    found = []
    for top, operands in (
        (ops.screened_top_pre_activations, screened),
        (ops.top_pre_activations, exact),
    ):
        values, indices = top(*operands, 16)
        order = indices.argsort(-1)
        found.append((indices.gather(-1, order), values.gather(-1, order)))
        (values.square().sum() / 2).backward()
    assert torch.equal(found[0][0], found[1][0])
    assert_close(found[0][1], found[1][1])
    for ours, expected in zip(screened, exact, strict=True):
        assert_close(ours.grad, expected.grad, atol=1e-4, rtol=1e-4)


@pytest.mark.usefixtures("bf16_is_fast")
def test_a_missed_latent_is_hardly_smaller_than_the_least_that_is_kept():
    """Latents so close together that bfloat16 cannot rank them: the values are as good."""
    x = 1 + 1e-3 * draw(20, 256, dtype=torch.float32)
    encoder = 1 + 1e-3 * draw(512, 256, seed=1, dtype=torch.float32)
    bias = torch.zeros(512)
    ours, _ = ops.screened_top_pre_activations(x, encoder, bias, 8)
    best, _ = ops.top_pre_activations(x, encoder, bias, 8)
    assert_close(ours.sort(-1).values, best.sort(-1).values, rtol=2**-7, atol=0)
    assert not torch.equal(ours, best)


def test_screening_falls_back_where_bfloat16_is_slow(monkeypatch):
    monkeypatch.setattr(ops, "fast_bf16", lambda _: False)
    operands = draw(9, 7), draw(40, 7, seed=1), draw(40, seed=2)
    for ours, exact in zip(
        ops.screened_top_pre_activations(*operands, 3),
        ops.top_pre_activations(*operands, 3),
        strict=True,
    ):
        assert torch.equal(ours, exact)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sparse_decode_equals_dense_autograd(dtype):
    indices = torch.stack([draw(9, seed=row).topk(4).indices for row in range(6)])
    tensors = [draw(6, 4, dtype=dtype), draw(9, 5, seed=1, dtype=dtype)]
    weights = draw(6, 5, seed=2, dtype=dtype)
    sparse, dense = leaves(*tensors), leaves(*tensors)

    ours = ops.sparse_decode(sparse[0], indices, sparse[1])
    expected = torch.zeros(6, 9, dtype=dtype).scatter(-1, indices, dense[0]) @ dense[1]
    assert_close(ours, expected)

    (ours * weights).sum().backward()
    (expected * weights).sum().backward()
    for one, other in zip(sparse, dense, strict=True):
        assert_close(one.grad, other.grad)


def test_gradients_are_contiguous_and_reach_only_chosen_latents():
    encoder, decoder = leaves(draw(20, 5), draw(20, 5, seed=1))
    values, indices = ops.top_pre_activations(draw(3, 5), encoder, draw(20, seed=3), 2)
    ops.sparse_decode(values, indices, decoder).sum().backward()
    chosen = torch.zeros(20, dtype=torch.bool)
    chosen[indices.flatten()] = True
    for weights in (encoder, decoder):
        assert weights.grad.is_contiguous()
        assert torch.equal(weights.grad.any(-1), chosen)


def test_gradients_are_bit_equal_when_repeated():
    def run():
        tensors = leaves(*(draw(*shape, dtype=torch.float32) for shape in [(500, 8), (16, 8)]))
        values, indices = ops.top_pre_activations(*tensors, torch.zeros(16), 4)
        ops.sparse_decode(values.relu(), indices, tensors[1]).square().sum().backward()
        return [tensor.grad for tensor in tensors]

    for first, second in zip(run(), run(), strict=True):
        assert torch.equal(first, second)


def test_no_gradient_is_made_where_none_is_wanted():
    encoder = draw(20, 5).requires_grad_()
    x, b_enc = draw(3, 5), draw(20)
    values, _ = ops.top_pre_activations(x, encoder, b_enc, 2)
    values.sum().backward()
    assert x.grad is None
    assert b_enc.grad is None
    assert encoder.grad is not None


def test_keep_top():
    matrix = torch.tensor([[3.0, -1.0, 2.0], [-5.0, -4.0, -6.0]])
    assert ops.keep_top(matrix, 2).tolist() == [[3.0, 0.0, 2.0], [-5.0, -4.0, 0.0]]


def test_squared_error_sums_channels_and_averages_rows():
    target = torch.zeros(2, 3)
    recon = torch.tensor([[1.0, 2.0, 2.0], [0.0, 0.0, 1.0]])
    assert ops.squared_error(recon, target) == (9 + 1) / 2


def test_variance_is_about_the_mean_row():
    assert ops.variance(torch.tensor([[1.0, 10.0], [3.0, 10.0]])) == 1.0
    assert ops.variance(torch.tensor([[1.0, 10.0]])) == 0.0


def test_unit_norm_rows():
    rows = torch.tensor([[3.0, 4.0], [0.0, 0.0], [0.0, -2.0]])
    ops.unit_norm_rows_(rows)
    assert_close(rows, torch.tensor([[0.6, 0.8], [0.0, 0.0], [0.0, -1.0]]))


def test_remove_parallel_leaves_what_is_orthogonal():
    rows = ops.random_unit_rows(6, 4, torch.Generator().manual_seed(0))
    along, across = 3 * rows, torch.stack([rows[:, 1], -rows[:, 0]], -1)
    across = torch.cat([across, torch.zeros(6, 2)], -1)  # orthogonal to each row by construction
    grad = along + across
    ops.remove_parallel_(grad, rows)
    assert_close(grad, across)


def test_random_unit_rows_depend_on_the_generator_alone():
    def rows(seed):
        return ops.random_unit_rows(5, 3, torch.Generator().manual_seed(seed))

    assert torch.equal(rows(0), rows(0))
    assert not torch.equal(rows(0), rows(1))
    assert_close(rows(0).norm(dim=-1), torch.ones(5))


def test_geometric_median_of_a_triangle_is_its_fermat_point():
    # An equilateral triangle: the centre; it sees every side under 120 degrees.
    corners = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.5, 3**0.5 / 2]], dtype=torch.float64)
    assert_close(ops.geometric_median(corners), corners.mean(0), atol=1e-5, rtol=0)


def test_geometric_median_ignores_an_outlier_that_moves_the_mean():
    cloud = draw(400, 3)
    with_outlier = torch.cat([cloud, torch.full((1, 3), 1e4, dtype=torch.float64)])
    median = ops.geometric_median(with_outlier)
    assert median.norm() < 0.2
    assert with_outlier.mean(0).norm() > 20


def test_geometric_median_has_the_least_summed_distance():
    points = draw(50, 4).exp()
    median = ops.geometric_median(points)

    def cost(point):
        return (points - point).norm(dim=-1).sum()

    for seed in range(20):
        assert cost(median) <= cost(median + 0.01 * draw(4, seed=seed))


@pytest.mark.parametrize("n_rows", [1, 4])
def test_geometric_median_of_one_point(n_rows):
    point = torch.tensor([[1.0, -2.0]]).expand(n_rows, 2)
    assert torch.equal(ops.geometric_median(point), point[0])
