"""language_model: models whose figures are known, every figure by hand, what is refused."""

import dataclasses
import math

import pytest
import torch
import toy_subject
from torch.testing import assert_close

from sae_kit.data.docs import DocsConfig
from sae_kit.data.prompts import DocstringArguments, GreaterThan, IndirectObject
from sae_kit.data.text import TextConfig
from sae_kit.evals.language_model import LanguageModelEvaluation
from sae_kit.models.gpt2 import GPT2, GPT2Config
from sae_kit.models.pretrained import LanguageModel

TOKENIZER = toy_subject.tokenizer()
SMALL = LanguageModelEvaluation(docs=False, n_tokens=512, n_prompts=20, induction_length=10)


def with_model(subject, model, tokenizer=TOKENIZER):
    lm = LanguageModel(model, tokenizer, "made by hand", None, False)
    return dataclasses.replace(subject, language_model=lm, saes={})


def only(**fields):
    return dataclasses.replace(SMALL, **{"tasks": (), **fields})


@pytest.fixture(scope="module")
def result(subject):
    return SMALL.run(subject)


# --- known answers --------------------------------------------------------------------------------


def test_a_model_that_knows_nothing(subject):
    """All logits are equal: the loss is log(vocabulary), and nothing is above anything else."""
    vocab = TOKENIZER.vocab_size
    config = GPT2Config(n_layer=1, n_head=1, d_model=4, d_mlp=4, n_ctx=128, n_vocab=vocab)
    blank = GPT2(config).requires_grad_(False)
    for parameter in blank.parameters():
        parameter.zero_()
    scalars = SMALL.run(with_model(subject, blank)).scalars
    assert scalars["text_ce"] == pytest.approx(math.log(vocab), rel=1e-6)
    assert scalars["induction_ce_first"] == pytest.approx(math.log(vocab), rel=1e-6)
    assert scalars["induction_ce_drop"] == pytest.approx(0, abs=1e-6)
    assert scalars["ioi_accuracy"] == scalars["ioi_logit_difference"] == 0
    # The 100 pairs of digits share out 100 / vocabulary between them.
    assert abs(scalars["greater_than_mass_difference"]) <= 100 / vocab


def copying_model(n_vocab: int, length: int, *, n_bos: int) -> GPT2:
    """Induction by hand: one head looks `length - 1` positions back and copies the token there.

    It does so from the repeat's first token on, as induction heads do, and not one token earlier.

    A position's stream is (which token, which position), both one-hot.
    """
    n_ctx = 2 * length + 1
    width = n_vocab + n_ctx
    config = GPT2Config(n_layer=1, n_head=1, d_model=width, d_mlp=1, n_ctx=n_ctx, n_vocab=n_vocab)
    model = GPT2(config).requires_grad_(False)
    for name, parameter in model.named_parameters():
        parameter.fill_(1.0 if name.endswith(".w") else 0.0)
    token, position = torch.arange(n_vocab), torch.arange(n_vocab, width)
    model.W_E[token, token] = 1.0
    model.W_pos[torch.arange(n_ctx), position] = 1.0
    attention = model.blocks[0].attn
    early, late = position[: length + n_bos], position[length + n_bos :]
    attention.W_qkv[early, early] = 10.0  # query: the position to look at, first its own
    attention.W_qkv[late, late - (length - 1)] = 10.0
    attention.W_qkv[position, width + position] = 10.0  # key: the own position
    attention.W_qkv[token, 2 * width + token] = 10.0  # value: the own token
    attention.W_O[token, token] = 10.0
    return model


@pytest.mark.parametrize("prepend_bos", [True, False])
def test_a_model_that_copies_has_perfect_induction(subject, tiny_tokenizer, prepend_bos):
    tokens = dataclasses.replace(subject.tokens, context_size=16, prepend_bos=prepend_bos)
    model = copying_model(tiny_tokenizer.vocab_size, 12, n_bos=int(prepend_bos))
    copier = dataclasses.replace(with_model(subject, model, tiny_tokenizer), tokens=tokens)
    found = only(tasks=("induction",), induction_length=12).run(copier)
    assert found.scalars["induction_copy_accuracy"] == 1
    assert found.scalars["induction_ce_second"] < 0.01
    assert found.scalars["induction_ce_first"] > 4
    drop = found.scalars["induction_ce_first"] - found.scalars["induction_ce_second"]
    assert found.scalars["induction_ce_drop"] == pytest.approx(drop)
    loss = found.arrays["induction_ce"]
    assert loss.shape == (20, 23)
    # Targets 13 and on are copies; target 12 begins the repeat, which nothing announces.
    assert (loss[:, 12:] < 0.1).all()
    assert loss[:, 11].mean() > 4


# --- every figure by hand -------------------------------------------------------------------------


def test_loss_and_bits_per_byte(subject, result):
    contexts = subject.contexts(SMALL.n_tokens)
    log_p = subject.model.run(contexts[:, :-1]).logits.log_softmax(-1)
    nats = -log_p.gather(-1, contexts[:, 1:, None]).double()
    text = "".join(TOKENIZER.decode(row) for row in contexts[:, 1:].tolist())
    n_bytes = len(text.replace("<|endoftext|>", "").encode())
    assert result.scalars["text_ce"] == pytest.approx(nats.mean().item(), rel=1e-5)
    bits = nats.sum().item() / math.log(2) / n_bytes
    assert result.scalars["text_bits_per_byte"] == pytest.approx(bits, rel=1e-5)


def test_prompts_one_at_a_time_give_the_same(subject, result):
    eot, n, seed = TOKENIZER.eot_id, SMALL.n_prompts, subject.seed

    def prompts(family):
        for prompt in family(TOKENIZER).prompts(n, seed=seed, split="heldout"):
            logits = subject.model.run(torch.tensor([[eot, *prompt.clean]])).logits[0, -1]
            yield prompt, logits.double()

    ioi = torch.stack([x[p.answers[0]] - x[p.wrong[0]] for p, x in prompts(IndirectObject)])
    assert_close(result.arrays["ioi_logit_difference"], ioi, atol=1e-4, rtol=1e-4)
    assert result.scalars["ioi_logit_difference"] == pytest.approx(ioi.mean().item(), abs=1e-4)
    assert result.scalars["ioi_accuracy"] == (ioi > 0).double().mean()

    hits = [x[p.answers[0]] > max(x[list(p.wrong)]) for p, x in prompts(DocstringArguments)]
    assert result.scalars["docstring_accuracy"] == sum(hits).item() / n

    masses = []
    for prompt, logits in prompts(GreaterThan):
        p = logits.softmax(-1)
        masses.append(p[list(prompt.answers)].sum() - p[list(prompt.wrong)].sum())
    mass = torch.stack(masses)
    assert_close(result.arrays["greater_than_mass_difference"], mass, atol=1e-6, rtol=1e-4)
    assert result.scalars["greater_than_mass_difference"] == pytest.approx(mass.mean().item())


def test_every_row_is_a_scalar_inside_its_interval(result):
    assert [row["figure"] for row in result.rows] == list(result.scalars)
    for row in result.rows:
        assert row["value"] == result.scalars[row["figure"]]
        assert row["low"] <= row["value"] <= row["high"]
    sizes = {row["figure"]: row["n"] for row in result.rows}
    assert sizes["text_ce"] == 8
    assert sizes["ioi_accuracy"] == sizes["induction_ce_drop"] == SMALL.n_prompts


# --- which text -----------------------------------------------------------------------------------


def test_the_named_sets_of_text_join_the_subjects_own():
    own = TextConfig(paths=("own",), context_size=32, prepend_bos=False)
    cut = {"context_size": 32, "prepend_bos": False}
    docs = DocsConfig(**cut)
    books = TextConfig(paths=("books",), heldout_paths=("moby*",), **cut)
    plain = LanguageModelEvaluation()
    assert plain.texts(own) == {"text": own, "docs": docs}
    assert plain.texts(docs) == {"docs": docs}
    assert only().texts(own) == {"text": own}
    both = LanguageModelEvaluation(text_paths=("books",), text_heldout=("moby*",))
    assert both.texts(docs) == {"docs": docs, "text": books}
    assert both.texts(own) == {"docs": docs, "text": books}


def test_files_held_out_by_name_are_read_whole(subject, folder):
    named = only(text_paths=(str(folder),), text_heldout=("heldout.jsonl",)).run(subject)
    assert named.scalars == only().run(subject).scalars


# --- refusals -------------------------------------------------------------------------------------


def test_a_tokenizer_that_a_task_cannot_use_is_refused_with_the_way_out(subject, tiny_tokenizer):
    vocab = tiny_tokenizer.vocab_size
    config = GPT2Config(n_layer=1, n_head=1, d_model=4, d_mlp=4, n_ctx=128, n_vocab=vocab)
    model = GPT2(config, generator=torch.Generator().manual_seed(0)).requires_grad_(False)
    with pytest.raises(ValueError, match=r"tasks: ioi: only 0 of .* leave ioi out"):
        SMALL.run(with_model(subject, model, tiny_tokenizer))


def test_a_task_whose_prompts_are_too_long_is_refused(subject):
    vocab = TOKENIZER.vocab_size
    config = GPT2Config(n_layer=1, n_head=1, d_model=4, d_mlp=4, n_ctx=8, n_vocab=vocab)
    model = GPT2(config, generator=torch.Generator().manual_seed(0)).requires_grad_(False)
    short = dataclasses.replace(
        with_model(subject, model), tokens=dataclasses.replace(subject.tokens, context_size=8)
    )
    with pytest.raises(ValueError, match=r"ioi has prompts of \d+ tokens"):
        only(tasks=("ioi",)).run(short)
    with pytest.raises(ValueError, match=r"induction_length: 10 twice over .* give at most 3"):
        only(tasks=("induction",)).run(short)


@pytest.mark.parametrize(
    ("field", "value"), [("n_tokens", 0), ("n_prompts", 0), ("induction_length", 1)]
)
def test_numbers_that_make_no_sense_are_refused(field, value):
    with pytest.raises(ValueError, match=f"{field}: {value}"):
        LanguageModelEvaluation(**{field: value})
