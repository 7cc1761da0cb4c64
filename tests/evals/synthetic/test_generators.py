"""Synthetic activations of planted dictionaries: what is kept and what replaced. METHODS 4(f)."""

import dataclasses

import pytest
import torch

from sae_kit.evals.perturb.pool import Gaussian, Pool
from sae_kit.evals.synthetic.generators import GENERATORS, TOP_COSINE, Source, Synthetic, Vocabulary
from sae_kit.maths import StreamingMoments
from sae_kit.sae.base import SAE
from sae_kit.sae.topk import TopKConfig

D, D_SAE, K, N = 16, 64, 4, 30
REPLACING = ("baseline", "structured", "bag", "nearest")


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def sae_of(rows: torch.Tensor) -> SAE:
    """A TopK SAE with these decoder rows, encoder tied."""
    d_sae, d = rows.shape
    sae = TopKConfig(d_sae=d_sae, k=K).build(d, generator=torch.Generator().manual_seed(0))
    sae.load_weights(
        {"W_enc": rows.T, "b_enc": torch.zeros(d_sae), "W_dec": rows, "b_dec": torch.zeros(d)}
    )
    return sae


def source(
    rows: torch.Tensor | None = None, frequency: torch.Tensor | None = None, *, index=None, seed=0
) -> Source:
    if rows is None:
        rows = torch.nn.functional.normalize(draw(D_SAE, D, seed=1), dim=1)
    d_sae, d = rows.shape
    if frequency is None:
        frequency = torch.rand(d_sae, generator=torch.Generator().manual_seed(3)) * 0.2 + 0.001
    real = draw(200, d, seed=4)
    moments = StreamingMoments(d, with_cov=True)
    moments.update(real)
    normal = Gaussian.of(moments, "here")
    pool = Pool("here", normal, real, torch.zeros(200, dtype=torch.long), 4.0)
    index = torch.arange(N) if index is None else index
    base, vocabulary = draw(N, d, seed=5), Vocabulary(sae_of(rows), frequency, normal.mean)
    return Source(
        base=base[index],
        index=index,
        pool=pool,
        vocabulary=vocabulary,
        part_length=vocabulary.mean_part(base),
        seed=seed,
    )


def sets(made: Synthetic) -> list[set[int]]:
    code = made.code
    rows = zip(code.indices, code.values, strict=True)
    return [set(indices[values != 0].tolist()) for indices, values in rows]


@pytest.mark.parametrize("name", list(GENERATORS))
def test_each_is_registered_and_gives_an_activation_for_every_prompt(name):
    generator = GENERATORS[name]
    assert generator.name == name
    made = generator.of(source())
    assert made.vectors.shape == (N, D)
    assert made.vectors.isfinite().all()


@pytest.mark.parametrize("name", list(GENERATORS))
def test_draws_belong_to_prompts_not_to_groups(name):
    whole = GENERATORS[name].of(source()).vectors
    part = GENERATORS[name].of(source(index=torch.tensor([7, 3]))).vectors
    torch.testing.assert_close(part, whole[[7, 3]])
    again = GENERATORS[name].of(source(seed=1)).vectors
    if name not in ("structured", "nearest"):  # nothing is drawn there
        assert not torch.equal(again, whole)


@pytest.mark.parametrize("name", REPLACING)
def test_number_and_activations_are_kept_and_no_latent_comes_twice(name):
    given = source()
    made, own = GENERATORS[name].of(given), given.code(given.base)
    assert torch.equal(made.code.values, own.values)
    for new, old in zip(sets(made), own.l0().tolist(), strict=True):
        assert len(new) == old
    recon = given.vocabulary.sae.decode(made.code).float()
    torch.testing.assert_close(made.vectors, recon)


@pytest.mark.parametrize("name", REPLACING)
def test_an_activation_without_active_latents_stays_without(name):
    """As a ReLU SAE has them; the SAE's output is its bias."""
    given = source()
    silent = dataclasses.replace(given, base=given.base.index_fill(0, torch.tensor([2]), 0.0))
    made = GENERATORS[name].of(silent)
    assert made.code.l0()[2] == 0
    torch.testing.assert_close(made.vectors[2], torch.zeros(D))
    assert (made.code.l0()[:2] > 0).all()


@pytest.mark.parametrize("name", ["baseline", "structured", "nearest"])
def test_every_latent_is_another_one(name):
    given = source()
    made, own = GENERATORS[name].of(given), given.code(given.base)
    active = own.values != 0
    assert (made.code.indices != own.indices)[active].all()


@pytest.mark.parametrize("name", ["single_latent", *REPLACING])
def test_dead_latents_are_never_used(name):
    frequency = torch.rand(D_SAE, generator=torch.Generator().manual_seed(3)) * 0.2 + 0.001
    dead = torch.arange(D_SAE) % 2 == 0
    made = GENERATORS[name].of(source(frequency=frequency.masked_fill(dead, 0.0)))
    assert all(latent % 2 for row in sets(made) for latent in row)


def test_the_baselines_latents_are_close_in_frequency():
    """Frequencies a decade apart, eleven latents each: replacements stay in their decade."""
    decades = torch.arange(6).repeat_interleave(11)
    rows = torch.nn.functional.normalize(draw(66, D, seed=1), dim=1)
    frequency = 10.0 ** (-1.0 - decades.float()) * (1 + 0.01 * torch.rand(66))
    given = source(rows, frequency)
    made, own = GENERATORS["baseline"].of(given), given.code(given.base)
    # Two of one prompt in one decade may push one out; the first never is.
    top = own.values.argmax(1, keepdim=True)
    before, after = (decades[c.indices.gather(1, top)] for c in (own, made.code))
    assert torch.equal(before, after)


def test_the_structured_one_keeps_cosines_to_the_top_latent_and_the_baseline_does_not():
    """F4: latents come in groups of known cosine; real activations take theirs from one group."""
    centres = torch.linalg.qr(draw(32, 32, seed=7))[0][:8]
    within = torch.nn.functional.normalize(
        centres.repeat_interleave(12, 0) + 0.25 * draw(96, 32, seed=8), dim=1
    )
    given = source(within, torch.full((96,), 0.05) + 0.001 * torch.rand(96))
    groups = torch.arange(96).view(8, 12)
    base = torch.stack([within[groups[i % 8][:K]].sum(0) for i in range(N)])
    given = Source(**{**vars(given), "base": base})

    def profile(code) -> torch.Tensor:
        top = code.indices.gather(1, code.values.argmax(1, keepdim=True))
        cosines = (within[code.indices] * within[top]).sum(-1)
        return cosines.sort(1).values

    own = profile(given.code(base))
    structured = profile(GENERATORS["structured"].of(given).code)
    baseline = profile(GENERATORS["baseline"].of(given).code)
    assert (structured - own).abs().mean() < 0.1
    assert (baseline - own).abs().mean() > 0.2


def test_the_structured_ones_new_top_latent_has_the_cosine_asked_for():
    given = source()
    own, made = given.code(given.base), GENERATORS["structured"].of(given).code
    top = own.values.argmax(1, keepdim=True)
    rows = given.vocabulary.rows
    for before, after in zip(own.indices.gather(1, top), made.indices.gather(1, top), strict=True):
        cosines = rows @ rows[int(before)]
        others = torch.arange(D_SAE) != int(before)
        best = (cosines - TOP_COSINE).abs()[others].min()
        assert abs(cosines[int(after)] - TOP_COSINE).item() == pytest.approx(best.item(), abs=1e-6)


def test_an_orthonormal_dictionary_is_all_ties_and_the_closest_in_frequency_win():
    rows = torch.eye(32)
    frequency = torch.linspace(0.01, 0.5, 32)
    given = source(rows, frequency)
    own, made = given.code(given.base), GENERATORS["structured"].of(given).code
    top = own.values.argmax(1, keepdim=True)
    before, after = own.indices.gather(1, top), made.indices.gather(1, top)
    assert ((before - after).abs() == 1).all()
    assert torch.equal(made.indices, GENERATORS["structured"].of(given).code.indices)


def test_how_latents_are_numbered_makes_no_difference():
    rows = torch.nn.functional.normalize(draw(D_SAE, D, seed=1), dim=1)
    frequency = (torch.rand(D_SAE, generator=torch.Generator().manual_seed(3)) * 5).round() / 20
    frequency = frequency.clamp(min=0.05)  # many ties
    order = torch.randperm(D_SAE, generator=torch.Generator().manual_seed(2))
    for name, generator in GENERATORS.items():
        plain = generator.of(source(rows, frequency)).vectors
        permuted = generator.of(source(rows[order], frequency[order])).vectors
        torch.testing.assert_close(permuted, plain, msg=lambda text, name=name: f"{name}: {text}")


def test_a_reconstruction_is_of_the_real_activation_of_the_same_draw():
    given = source()
    real = GENERATORS["model_generated"].of(given).vectors
    recon = GENERATORS["sae_reconstruction"].of(given).vectors
    torch.testing.assert_close(recon, given.vocabulary.sae(real.double()).float())
    # Of a full basis with every latent active it is the activation itself.
    sae = sae_of(torch.cat([torch.eye(2), -torch.eye(2)]))
    torch.testing.assert_close(sae(draw(5, 2)), draw(5, 2))


def test_a_single_latent_has_the_mean_length():
    given = source()
    made, code = GENERATORS["single_latent"].of(given), given.code(given.base)
    lengths = made.vectors.norm(dim=1)
    torch.testing.assert_close(lengths, code.values[code.values != 0].mean().float().expand(N))
    assert all(len(row) == 1 for row in sets(made))


def test_random_ones_have_the_moments_of_real_ones():
    given = source()
    many = Source(
        **{**vars(given), "base": given.base[:1].expand(4000, D), "index": torch.arange(4000)}
    )
    vectors = GENERATORS["random"].of(many).vectors.double()
    assert (vectors.mean(0) - given.pool.normal.mean).abs().max() < 0.1
    assert (torch.cov(vectors.T) - given.pool.normal.covariance).abs().max() < 0.15


def test_too_few_live_latents_are_refused():
    frequency = torch.zeros(D_SAE)
    frequency[:10] = 0.1
    with pytest.raises(ValueError, match="only 10 latents fire"):
        source(frequency=frequency)
    frequency[:12] = 0.1
    with pytest.raises(ValueError, match=r"prompt 0 has \d active latents, too many"):
        GENERATORS["bag"].of(source(frequency=frequency))
