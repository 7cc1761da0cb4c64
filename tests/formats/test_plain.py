import json

import pytest
import torch

from sae_kit.formats.plain import RECORD, Plain, Record, check_trained
from sae_kit.sae import SAEConfig
from sae_kit.sae.batch_topk import BatchTopKConfig
from sae_kit.sae.topk import TopKConfig

HERE = "cfg.json"


def build(config, d_out=None):
    return config.build(4, d_out, generator=torch.Generator().manual_seed(0))


def test_plain_is_what_decides_outputs():
    """Two ways of training one plain architecture, and none of what training alone reads."""
    batch = Plain.of(build(BatchTopKConfig(d_sae=8, k=3, row_warmup=0.5)))
    assert batch == Plain({**batch.settings, "arch": "jumprelu"}, 4, None)
    assert batch.settings.keys() == {"arch", "d_sae", "apply_b_dec_to_input", "skip"}
    topk = Plain.of(build(TopKConfig(d_sae=8, k=3, k_aux=2)))
    assert topk.settings == {**batch.settings, "arch": "topk", "k": 3}
    assert topk.arch == "topk"


@pytest.mark.parametrize("d_out", [None, 4])
def test_record_comes_back(d_out):
    config = BatchTopKConfig(d_sae=8, k=3, row_warmup=0.5, apply_b_dec_to_input=d_out is None)
    contents = Record.contents(build(config, d_out), {"hook_name": "here", "l0": [1, None]})
    again = Record.read(json.loads(json.dumps({RECORD: contents})), HERE)
    assert again == Record(config, d_out is not None, {"hook_name": "here", "l0": [1, None]})
    assert Record.read({"other": 1}, HERE) is None


def good():
    return Record.contents(build(TopKConfig(d_sae=8, k=3)), {})


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (None, "sae_kit is 'None'"),
        ([], "sae_kit is"),
        ({**good(), "metadata": 3}, "sae_kit is"),
        ({**good(), "is_transcoder": "yes"}, "sae_kit is"),
        ({**good(), "sae": None}, r"sae_kit\.sae: expected"),
        ({**good(), "sae": {"arch": "topk", "k": 9, "d_sae": 8}}, r"sae_kit\.sae\.k: 9 does not"),
        ({**good(), "sae": {"arch": "topq"}}, r"sae_kit\.sae\.arch: 'topq' is unknown"),
    ],
)
def test_damaged_records_are_named(contents, message):
    with pytest.raises(ValueError, match=rf"cfg\.json: {message}"):
        Record.read({RECORD: contents}, HERE)


@pytest.mark.parametrize("value", [object(), float("nan")])
def test_metadata_that_is_not_json_is_refused(value):
    with pytest.raises(ValueError, match=r"metadata: .*JSON values only"):
        Record.contents(build(TopKConfig(d_sae=8, k=3)), {"thing": value})


@pytest.mark.parametrize("word", SAEConfig.variants())
def test_what_was_trained_has_to_compute_what_the_file_says(word):
    fields = {"k": 2} if "k" in SAEConfig.variants()[word].__dataclass_fields__ else {}
    config = SAEConfig.variants()[word](d_sae=8, **fields)
    plain = Plain.of(build(config))
    check_trained(config, plain, HERE)
    for change in ({"d_sae": 6}, {"arch": "other"}, {"apply_b_dec_to_input": False}):
        other = Plain({**plain.settings, **change}, 4, None)
        with pytest.raises(ValueError, match=r"cfg\.json: key makes .* of .*; undo the edit"):
            check_trained(config, other, HERE, "key")


def test_a_recorded_size_is_compared_before_anything_of_it_is_built():
    huge = TopKConfig(d_sae=1 << 60, k=3)
    plain = Plain.of(build(TopKConfig(d_sae=8, k=3)))
    with pytest.raises(ValueError, match=r"cfg\.json: key makes d_sae 1152921504606846976 of"):
        check_trained(huge, plain, HERE, "key")


def test_a_recorded_config_that_fits_no_autoencoder_is_named():
    skips = TopKConfig(d_sae=8, k=3, skip=True)
    plain = Plain.of(build(TopKConfig(d_sae=8, k=3)))
    with pytest.raises(ValueError, match=r"cfg\.json: key: skip: true"):
        check_trained(skips, plain, HERE, "key")
