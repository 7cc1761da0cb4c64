"""Models of several moments of a training run."""

import pytest
import torch

from sae_kit.models.pretrained import load_model
from sae_kit.models.snapshots import MOMENT, SNAPSHOTS, Moment, find_snapshots, save_snapshot


def test_snapshots_are_models_in_the_order_of_their_steps(make_gpt2, tiny_tokenizer, tmp_path):
    moments = [Moment(step=step, n_tokens=8 * step) for step in (100, 0, 20)]
    for moment in moments:
        save_snapshot(make_gpt2(seed=moment.step), tiny_tokenizer, tmp_path, moment)
    found = find_snapshots(tmp_path)
    assert [(folder.name, moment) for folder, moment in found.items()] == [
        (f"step_{moment.step}", moment) for moment in (moments[1], moments[2], moments[0])
    ]
    for folder, moment in found.items():
        lm = load_model(str(folder))
        assert torch.equal(lm.model.W_E, make_gpt2(seed=moment.step).W_E)
        assert lm.tokenizer.fingerprint == tiny_tokenizer.fingerprint


def test_a_folder_without_snapshots_has_none(tmp_path):
    assert find_snapshots(tmp_path) == {}
    (tmp_path / SNAPSHOTS / ".DS_Store").mkdir(parents=True)
    assert find_snapshots(tmp_path) == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"step_3/snapshot.json: No such file .* delete it"),
        ("{", r"step_3/snapshot.json: damaged"),
        ('{"step": 3}', r"step_3/snapshot.json.n_tokens: missing"),
    ],
)
def test_a_snapshot_that_is_not_whole_is_named(tmp_path, text, message):
    folder = tmp_path / SNAPSHOTS / "step_3"
    folder.mkdir(parents=True)
    if text is not None:
        (folder / MOMENT).write_text(text)
    with pytest.raises(ValueError, match=message):
        find_snapshots(tmp_path)
