"""dashboard: every array held against the dense codes of the same text; what is refused."""

import dataclasses

import pytest
import torch
import toy_subject
from torch.testing import assert_close

from sae_kit.evals.dashboard import Dashboard
from sae_kit.evals.latents.spectrum import N_RANGES

SMALL = Dashboard(n_tokens=1024, n_top=3, n_before=4, n_after=2, prompts=("the cat sat",))
SITE = toy_subject.SITES[1]
N_POS = toy_subject.CONTEXT


@pytest.fixture(scope="module")
def result(subject):
    return SMALL.run(subject)


@pytest.fixture(scope="module")
def dense(subject):
    """The code at every place of the text, zero where the place does not count."""
    contexts = subject.contexts(SMALL.n_tokens)
    acts = toy_subject.model().run(contexts, capture=[SITE]).acts[SITE]
    with torch.no_grad():
        code = subject.saes[SITE].encode(acts)
    counts = contexts != toy_subject.tokenizer().eot_id
    counts[:, 0] = False
    return code.where(counts[..., None], 0.0).flatten(0, 1)


def test_statistics_are_those_of_the_dense_code(result, dense):
    active = dense > 0
    assert torch.equal(result.arrays[f"n_active/{SITE}"], active.sum(0))
    assert torch.equal(result.arrays[f"histogram/{SITE}"].sum(1), active.sum(0))
    assert_close(result.arrays[f"max/{SITE}"], dense.amax(0))
    mean = dense.double().sum(0) / active.sum(0).clamp_min(1)
    assert_close(result.arrays[f"mean/{SITE}"], mean.float())
    (row,) = [row for row in result.rows if row["site"] == SITE]
    n_positions = result.scalars["n_positions"]
    assert row["n_alive"] == active.any(0).sum()
    assert row["l0"] == pytest.approx(active.sum().item() / n_positions)
    assert row["mean_activation"] == pytest.approx(dense.sum().item() / active.sum().item())


def test_top_windows_are_the_strongest_contexts(result, dense):
    by_context = dense.view(-1, N_POS, dense.shape[1]).amax(1)
    place = result.arrays[f"top_place/{SITE}"].long()
    acts = result.arrays[f"top_acts/{SITE}"].float()
    for latent in range(dense.shape[1]):
        strongest = by_context[:, latent].sort(descending=True).values[:3]
        peaks = acts[latent, :, SMALL.n_before]
        assert_close(peaks, strongest, rtol=1e-3, atol=1e-6)  # half precision
        used = place[latent][place[latent] >= 0]
        assert_close(dense[used, latent], strongest[: len(used)])
        assert len(set((used // N_POS).tolist())) == len(used), "a context twice"


def test_samples_fire_within_their_ranges(result, dense):
    place = result.arrays[f"sample_place/{SITE}"].view(dense.shape[1], N_RANGES, 2)
    width = result.arrays[f"bin_width/{SITE}"] * 4
    histogram = result.arrays[f"histogram/{SITE}"].view(-1, N_RANGES, 4).sum(-1)
    for latent, number in (place[..., 0] >= 0).nonzero().tolist():
        used = place[latent, number]
        used = used[used >= 0].long()
        assert ((dense[used, latent] / width[latent]).long() == number).all()
        assert len(used) == min(2, histogram[latent, number])


def test_the_text_and_the_vocabulary_can_be_read_again(subject, result):
    assert torch.equal(result.arrays["contexts"].long(), subject.contexts(SMALL.n_tokens))
    ends = result.arrays["vocabulary_ends"].tolist()
    text = bytes(result.arrays["vocabulary"].tolist())
    words = [text[a:b].decode() for a, b in zip([0, *ends[:-1]], ends, strict=True)]
    tokenizer = toy_subject.tokenizer()
    assert words == tokenizer.str_tokens(range(tokenizer.vocab_size))


def test_prompts_are_read_token_by_token(subject, result):
    tokenizer = toy_subject.tokenizer()
    tokens = result.arrays["prompt/0/tokens"]
    assert tokenizer.decode(tokens[tokens != tokenizer.eot_id].tolist()) == "the cat sat"
    acts = toy_subject.model().run(tokens[None], capture=[SITE]).acts[SITE][0]
    with torch.no_grad():
        code = subject.saes[SITE].encode(acts)
    code[(tokens == tokenizer.eot_id) | (torch.arange(len(tokens)) == 0)] = 0.0
    latent = result.arrays[f"prompt/0/latent/{SITE}"].long()
    value = result.arrays[f"prompt/0/activation/{SITE}"]
    assert_close(torch.zeros_like(code).scatter_add(1, latent, value), code)
    assert (value.diff(dim=1) <= 0).all()


def test_the_batch_size_does_not_matter(subject, result):
    other = dataclasses.replace(SMALL, contexts_per_pass=5).run(subject)
    for name in (f"top_place/{SITE}", f"sample_place/{SITE}", f"histogram/{SITE}"):
        assert torch.equal(other.arrays[name], result.arrays[name]), name


def test_a_neuronpedia_id_is_passed_on(subject):
    (sae,) = toy_subject.random_saes((SITE,)).values()
    sae.metadata = {"neuronpedia_id": "gpt2-small/6-res-jb"}
    rows = SMALL.run(dataclasses.replace(subject, saes={SITE: sae})).rows
    assert [row["neuronpedia"] for row in rows] == ["gpt2-small/6-res-jb"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"n_top": 0}, "n_top: 0"),
        ({"n_before": -1}, "n_before: -1"),
        ({"prompts": ("",)}, "prompts: one is empty"),
    ],
)
def test_impossible_settings_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Dashboard(**fields)


def test_a_prompt_beyond_the_models_context_is_refused(subject):
    long = dataclasses.replace(SMALL, prompts=("the cat sat " * 200,))
    with pytest.raises(ValueError, match=r"prompts: .* tokens, but the model's context holds"):
        long.run(subject)


def test_a_run_says_how_far_it_is(subject, capsys):
    SMALL.run(subject)
    assert "1,024/1,024 tokens" in capsys.readouterr().err
