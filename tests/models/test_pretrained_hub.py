"""Models from the hub, through the real client, from a server on 127.0.0.1."""

import json
from pathlib import Path

import pytest
import torch
from hub_server import Hub, commit_of
from safetensors.torch import load_file

from sae_kit.models.pretrained import save_model

pytestmark = pytest.mark.slow  # every question starts a new process

REPOSITORY = "openai-community/gpt2"

ASK = """
import json, torch
from sae_kit.models.pretrained import load_model, load_tokenizer
for arguments in json.loads({asked!r}):
    if "tokenizer_of" in arguments:
        answer = load_tokenizer(arguments["tokenizer_of"]).fingerprint
    else:
        try:
            lm = load_model(**arguments)
            logits = lm.model.run(torch.tensor([lm.tokenizer.encode("the cat")])).logits
            answer = [lm.name, lm.revision, logits.double().sum().item()]
        except (ValueError, ConnectionError) as error:
            answer = f"{{type(error).__name__}} {{error}}"
    print(json.dumps(answer))
"""


@pytest.fixture
def stocked(hub, make_gpt2, tiny_tokenizer) -> Hub:
    """A hub with a small "gpt2" and, beside its weights, files that nobody should fetch."""
    folder = hub.folder / "models" / REPOSITORY
    save_model(make_gpt2(), tiny_tokenizer, folder)
    for extra in ("64.tflite", "onnx/model.safetensors", "flax_model.msgpack", "README.md"):
        (folder / extra).parent.mkdir(exist_ok=True)
        (folder / extra).write_bytes(b"x" * 1000)
    (folder / "pytorch_model.bin").write_bytes(b"x" * 1000)
    return hub


@pytest.fixture
def expected(stocked, make_gpt2, tiny_tokenizer) -> list:
    """What loading "gpt2" from that hub gives."""
    tokens = torch.tensor([tiny_tokenizer.encode("the cat")])
    logits = make_gpt2().run(tokens).logits
    commit = commit_of(stocked.folder / "models" / REPOSITORY)
    return ["gpt2", commit, logits.double().sum().item()]


def ask(hub: Hub, cache: Path, *asked: dict, offline: bool = False) -> list:
    """What loading each of `asked` gives in one new process: a list, or an error's text."""
    lines = hub.python(ASK.format(asked=json.dumps(asked)), cache=cache, offline=offline)
    return [json.loads(line) for line in lines.splitlines()]


GPT2 = {"name": "gpt2"}


def test_a_hub_model_is_fetched_once_and_then_comes_from_the_cache(stocked, expected, tmp_path):
    assert ask(stocked, tmp_path, GPT2) == [expected]
    fetched = {download.split("/", 1)[1] for download in stocked.downloads()}
    assert fetched == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    n_downloads = len(stocked.downloads())
    assert ask(stocked, tmp_path, GPT2) == [expected]
    assert len(stocked.downloads()) == n_downloads
    stocked.stop()
    assert ask(stocked, tmp_path, GPT2) == [expected]


@pytest.mark.parametrize("offline", [False, True])
def test_an_unreachable_hub_says_what_was_tried_and_what_works(
    stocked, expected, tmp_path, offline
):
    ask(stocked, tmp_path, GPT2)
    stocked.stop()
    cached, said = ask(stocked, tmp_path, GPT2, {"name": "gpt2-xl"}, offline=offline)
    assert cached == expected
    assert said.startswith("ConnectionError 'openai-community/gpt2-xl'")
    assert f"fetching it from {stocked.url} failed" in said
    for works in ("model=demo", "model=local model.name=FOLDER", "in the cache: " + REPOSITORY):
        assert works in said


def test_an_unreachable_hub_and_an_empty_cache(hub, tmp_path):
    hub.stop()
    (said,) = ask(hub, tmp_path, GPT2)
    assert said.endswith("models in the cache: none")


def test_revisions_and_unknown_repositories(stocked, expected, tmp_path):
    commit = expected[1]
    right, revision, repository, name = ask(
        stocked,
        tmp_path,
        {"name": REPOSITORY, "revision": commit},
        {"name": "gpt2", "revision": "v9"},
        {"name": "openai-community/gpt-2"},
        {"name": "a--b/c"},
    )
    assert right == [REPOSITORY, *expected[1:]]
    assert revision.startswith("ValueError revision: the hub has no 'openai-community/gpt2' at")
    assert "'v9'" in revision
    # A mistake, not an outage: nothing is said about what works without the hub.
    assert repository.startswith("ValueError name: ")
    assert "no public model 'openai-community/gpt-2'" in repository
    assert name.startswith("ValueError name: ")


def test_a_repository_with_pickled_weights_only(stocked, expected, tmp_path):
    folder = stocked.folder / "models" / REPOSITORY
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert ask(stocked, tmp_path, GPT2) == [["gpt2", commit_of(folder), expected[2]]]


def test_the_tokenizer_alone_fetches_no_weights(stocked, tmp_path, tiny_tokenizer):
    asked = {"tokenizer_of": "gpt2"}
    assert ask(stocked, tmp_path, asked) == [tiny_tokenizer.fingerprint]
    assert not any("safetensors" in download for download in stocked.downloads())


def test_a_broken_transfer_leaves_nothing_half_there(stocked, expected, tmp_path):
    stocked.cut_after = 600
    (said,) = ask(stocked, tmp_path, GPT2)
    assert said.startswith("ConnectionError 'openai-community/gpt2' is not (completely) in")
    stocked.cut_after = None
    assert ask(stocked, tmp_path, GPT2) == [expected]
