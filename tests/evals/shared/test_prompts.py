import pytest
import torch
import toy_subject

from sae_kit.evals.shared.prompts import Prompts


def prompts(subject, **changed):
    settings = {
        "context_size": 16,
        "n_hosts": 6,
        "n_others": 9,
        "drop_first_position": True,
        "drop_special_tokens": True,
        **changed,
    }
    return Prompts.of(subject, **settings)


def test_hosts_and_others_are_different_heldout_prompts(subject):
    found = prompts(subject)
    assert found.hosts.shape == (6, 16)
    assert found.others.shape == (9, 16)
    together = torch.cat([found.hosts, found.others])
    assert len(together.unique(dim=0)) == 15
    eot = toy_subject.tokenizer().eot_id
    assert (together[:, 0] == eot).all()  # the subject's text begins with BOS


def test_more_others_leave_the_hosts_as_they_are(subject):
    assert torch.equal(prompts(subject, n_others=20).hosts, prompts(subject).hosts)


@pytest.mark.parametrize("drop_first", [True, False])
@pytest.mark.parametrize("drop_special", [True, False])
def test_positions_count_unless_they_are_dropped(subject, drop_first, drop_special):
    found = prompts(subject, drop_first_position=drop_first, drop_special_tokens=drop_special)
    eot = toy_subject.tokenizer().eot_id
    for tokens, counts in (
        (found.hosts, found.hosts_count),
        (found.others, found.others_count),
    ):
        expected = torch.ones_like(counts)
        expected[:, 0] &= not drop_first
        expected &= (tokens != eot) | (not drop_special)
        assert torch.equal(counts, expected)
        assert ((tokens[:, 1:] == eot).any()).item(), "no end of text: nothing is tested"


def test_less_text_than_asked_for_is_refused(subject):
    with pytest.raises(
        ValueError, match=r"n_pool_prompts: the held-out text has \d+ prompts of 16"
    ):
        prompts(subject, n_others=100_000)


def test_prompts_longer_than_the_models_context_are_refused(subject):
    with pytest.raises(ValueError, match="context_size=129 is longer"):
        prompts(subject, context_size=129)
