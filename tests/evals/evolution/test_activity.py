"""activity: thresholds, sums, and codes that are kept on disk while a text is read."""

import numpy as np
import pytest
import torch
import toy_subject
from scipy.sparse import csr_array

from sae_kit.data.activations import LiveConfig, Passes
from sae_kit.evals.evolution import activity as activity_module
from sae_kit.evals.evolution.activity import Activity, Recording, Threshold, as_matrix
from sae_kit.evals.shared.kept import Kept

CODES = torch.tensor([[0.0, 1.0, 10.0], [0.0, 0.4, 1.0], [0.0, 0.0, 3.0]])


def activity(threshold: Threshold) -> Activity:
    return Activity.of(csr_array(CODES.numpy()), threshold)


@pytest.mark.parametrize(
    ("threshold", "n_active"),
    [
        (Threshold(), [0, 2, 3]),
        (Threshold(absolute=0.5), [0, 1, 3]),
        (Threshold(relative=0.2), [0, 2, 2]),
        (Threshold(absolute=0.5, relative=0.2), [0, 1, 2]),
        (Threshold(absolute=1.0), [0, 0, 2]),
    ],
)
def test_a_latent_is_active_above_both_thresholds(threshold, n_active):
    found = activity(threshold)
    assert found.n_active.tolist() == n_active
    assert found.active.sum(0).tolist() == n_active
    assert found.n_firing.tolist() == [0, 2, 3]


def test_sums_are_of_all_activations_whatever_the_threshold():
    found = activity(Threshold(absolute=5.0))
    codes = CODES.double()
    torch.testing.assert_close(found.sum, codes.sum(0))
    torch.testing.assert_close(found.sum_squares, codes.square().sum(0))
    torch.testing.assert_close(found.largest, codes.max(0).values)
    assert (found.n_rows, found.d_sae) == (3, 3)


def test_reordering_positions_changes_rows_and_no_sum():
    own = activity(Threshold())
    other = own.reordered(torch.tensor([2, 0, 1]))
    np.testing.assert_array_equal(other.codes.toarray(), own.codes.toarray()[[2, 0, 1]])
    np.testing.assert_array_equal(other.active.toarray(), own.active.toarray()[[2, 0, 1]])
    assert torch.equal(other.sum, own.sum)


def test_the_canonical_order_does_not_depend_on_how_latents_are_numbered():
    permuted = Activity.of(csr_array(CODES[:, [2, 0, 1]].numpy()), Threshold())
    own = CODES[:, activity(Threshold()).canonical_order()]
    assert torch.equal(own, CODES[:, [2, 0, 1]][:, permuted.canonical_order()])


@pytest.mark.parametrize(
    "bad", [{"absolute": -0.1}, {"relative": 1.0}, {"relative": -0.1}, {"relative": 20.0}]
)
def test_bad_thresholds_are_refused(bad):
    name, value = next(iter(bad.items()))
    with pytest.raises(ValueError, match=f"{name}: {value}"):
        Threshold(**bad)


# --- reading --------------------------------------------------------------------------------------


def recorded(subject, folder, *, n_contexts: int = 6) -> tuple[Recording, torch.Tensor, Passes]:
    contexts = subject.contexts(n_contexts * toy_subject.CONTEXT)
    sites = list(subject.saes)
    passes = Passes(LiveConfig(), subject.model, sites, [subject.language_model.tokenizer.eot_id])
    recording = Recording.of(subject, passes, contexts, Kept(folder), contexts_per_pass=2)
    return recording, contexts, passes


def test_codes_on_disk_are_those_of_one_pass(tmp_path, monkeypatch):
    monkeypatch.setattr(activity_module, "PIECE", 2 * toy_subject.CONTEXT)  # three pieces
    subject = toy_subject.subject(tmp_path)
    recording, contexts, passes = recorded(subject, tmp_path / "kept")
    assert recording.n_pieces == 3
    with torch.no_grad():
        acts, _ = passes.rows(contexts)
    for site, sae in subject.saes.items():
        expected = sae.encode(acts[site]).detach()
        found = torch.from_numpy(recording.codes(site).toarray())
        torch.testing.assert_close(found, expected)


@pytest.mark.slow
def test_an_interrupted_pass_goes_on_where_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(activity_module, "PIECE", 2 * toy_subject.CONTEXT)
    subject = toy_subject.subject(tmp_path)
    whole, _, _ = recorded(subject, tmp_path / "kept")
    (tmp_path / "kept" / "codes_done" / "000001.safetensors").unlink()
    n_contexts, rows = [], Passes.rows

    def counted(passes: Passes, tokens: torch.Tensor):
        n_contexts.append(len(tokens))
        return rows(passes, tokens)

    monkeypatch.setattr(Passes, "rows", counted)
    again, _, _ = recorded(subject, tmp_path / "kept")
    assert sum(n_contexts) == 2
    for site in subject.saes:
        assert (whole.codes(site) != again.codes(site)).nnz == 0


def test_kept_codes_that_are_gone_are_missed_in_words(tmp_path):
    subject = toy_subject.subject(tmp_path)
    recording, _, _ = recorded(subject, tmp_path / "kept")
    site = next(iter(subject.saes))
    for file in (tmp_path / "kept" / "codes" / site).iterdir():
        file.unlink()
    with pytest.raises(OSError, match=r"kept codes are gone; run again"):
        recording.codes(site)


def test_pieces_join_row_after_row():
    one = {
        "n_active": torch.tensor([1, 0]).int(),
        "latents": torch.tensor([2]).int(),
        "values": torch.tensor([5.0]),
    }
    joined = as_matrix([one, one], 3).toarray()
    assert joined.tolist() == [[0, 0, 5], [0, 0, 0], [0, 0, 5], [0, 0, 0]]
