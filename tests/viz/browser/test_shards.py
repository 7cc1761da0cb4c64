import json

import pytest
import torch
from read_shard import read_entries, read_shard

from sae_kit.viz.browser.shards import Shards, numbers, significant

HOSTILE = ["</script>", '"\\', "\u2028\u2029", "\x00", "\U0001f600", "é"]


def test_a_shard_is_read_back_as_it_was(tmp_path):
    value = {"texts": HOSTILE, "numbers": [1, 0.5, None], "nested": [[[]]]}
    Shards(tmp_path / "data").write("latents/3/12", value)
    assert read_shard(tmp_path, "latents/3/12") == value


def test_entries_are_read_back_one_by_one(tmp_path):
    entries = [{"texts": HOSTILE}, [1, 0.5, None], "a"]
    Shards(tmp_path / "data").write_entries("latents/3/12", entries)
    assert read_entries(tmp_path, "latents/3/12") == entries
    assert {type(one) for one in read_shard(tmp_path, "latents/3/12")} == {str}


def test_no_text_is_in_the_script_as_it_is(tmp_path):
    Shards(tmp_path / "data").write("vocabulary", HOSTILE)
    script = (tmp_path / "data" / "vocabulary.js").read_text("ascii")
    assert script.startswith('browser.receive("vocabulary","')
    assert not set(script) & set("<>&'\\`\n") - {"\n"}


def test_equal_values_make_equal_files(tmp_path):
    for name in ("a", "b"):
        Shards(tmp_path / name).write("x", HOSTILE)
    assert (tmp_path / "a/x.js").read_bytes() == (tmp_path / "b/x.js").read_bytes()


def test_numbers_are_short_and_finite():
    values = torch.tensor([[1 / 3, float("nan")], [-2.0, 1e-9]])
    assert json.dumps(numbers(values)) == "[[0.3333, 0.0], [-2.0, 0.0]]"
    assert numbers(torch.tensor([3, 4])) == [3, 4]
    assert significant(torch.tensor([123456.0, 1e-9, 0.0])) == [123500.0, 1e-9, 0.0]


def test_what_json_cannot_hold_is_refused(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        Shards(tmp_path).write("x", [float("nan")])
