"""SAEs to the hub and back, through the real client, to a server on 127.0.0.1."""

import json
from pathlib import Path

import pytest
import torch
from hub_server import files_of

from sae_kit.formats import save_sae
from sae_kit.formats.publish import push_saes
from sae_kit.result import Result
from sae_kit.sae import SAE
from sae_kit.sae.batch_topk import BatchTopKConfig

SITES = ["blocks.0.hook_resid_pre", "blocks.10.hook_resid_pre"]
REPO = "someone/new-saes"

PUSH = """
import json
from sae_kit import load_saes
from sae_kit.formats.publish import push_saes
for source, repo, options in json.loads({asked!r}):
    try:
        saes = load_saes(source) if options.pop("open") else source
        answer = push_saes(saes, repo, **options)
    except (ValueError, ConnectionError) as error:
        answer = f"{{type(error).__name__}} {{error}}"
    print(json.dumps(answer))
"""

READ = """
import json, torch
from sae_kit import load_saes
x = torch.linspace(-1, 1, 5)
saes = load_saes({repo!r})
print(json.dumps({{site: [sae.config.word, sae(x).tolist()] for site, sae in saes.items()}}))
"""


def make(seed: int) -> SAE:
    generator = torch.Generator().manual_seed(seed)
    sae = BatchTopKConfig(d_sae=40, k=3).build(5, generator=generator)
    sae.threshold.fill_(0.1)
    return sae


@pytest.fixture
def run(tmp_path) -> Path:
    """A run folder with SAEs, figures, and files that nobody should push."""
    folder = tmp_path / "run"
    for seed, site in enumerate(SITES):
        metadata = {"hook_name": site, "model_name": "gpt2", "training": {"trainer": {"lr": 3e-4}}}
        save_sae(make(seed), folder / "saes" / site, metadata=metadata, sparsity=torch.zeros(40))
    rows = [{"site": site, "l0": 3.0, "fvu": 0.25 + i} for i, site in enumerate(SITES)]
    Result(name="core", rows=rows).save(folder / "evaluation")
    (folder / "checkpoints" / "step_1").mkdir(parents=True)
    (folder / "checkpoints" / "step_1" / "sae_weights.safetensors").write_bytes(b"")
    (folder / "metrics.jsonl").write_text("{}")
    return folder


def push(hub, cache, *asked, token="hf_some") -> list[str]:
    calls = [[str(source), repo, {"open": False, **options}] for source, repo, options in asked]
    said = hub.python(PUSH.format(asked=json.dumps(calls)), cache=cache, token=token)
    return [json.loads(line) for line in said.splitlines()]


@pytest.mark.slow
def test_a_run_is_pushed_and_read_back(hub, run, tmp_path):
    opened = {"open": True, "private": True}
    first, second = push(hub, tmp_path, (run, REPO, {}), (run, "someone/opened", opened))
    assert first.startswith(f"{hub.url}/{REPO}/commit/")
    assert second.startswith(f"{hub.url}/someone/opened/commit/")
    assert hub.private == {"someone/opened"}
    three = ("cfg.json", "sae_weights.safetensors", "sparsity.safetensors")
    pushed = [f"{site}/{file}" for site in SITES for file in three]
    folder = hub.folder / "models" / REPO
    assert files_of(folder) == sorted(["README.md", "evaluation/result.json", *pushed])
    for path in pushed:
        assert (folder / path).read_bytes() == (run / "saes" / path).read_bytes()
    x = torch.linspace(-1, 1, 5)
    expected = {s: ["batch_topk", make(i)(x).tolist()] for i, s in enumerate(SITES)}
    for repo in (REPO, "someone/opened"):
        assert json.loads(hub.python(READ.format(repo=repo), cache=tmp_path)) == expected
    # Again, into the repository that is there now.
    (again,) = push(hub, tmp_path, (run / "saes" / SITES[1], REPO, {}))
    assert again.startswith(f"{hub.url}/{REPO}/commit/")
    assert f"| `{SITES[0]}`" not in (folder / "README.md").read_text()


@pytest.mark.slow
def test_what_hinders_a_push_is_named(hub, run, tmp_path):
    (refused,) = push(hub, tmp_path, (run, REPO, {}), token=None)
    assert refused.startswith(f"ValueError repo: the hub does not let you write to {REPO!r} (")
    assert "run 'hf auth login' with a token that may write" in refused
    hub.stop()
    unreachable, bad = push(hub, tmp_path, (run, REPO, {}), (run, "a--b/c", {}))
    assert unreachable.startswith(f"ConnectionError writing to {REPO!r} on {hub.url} failed: ")
    assert bad.startswith("ValueError repo: 'a--b/c' is no name of a repository")


@pytest.mark.parametrize("repo", ["name", "a/b/c", "../a", ""])
def test_names_that_are_none(repo, run):
    with pytest.raises(ValueError, match=r"repo: .* is not of the form owner/name"):
        push_saes(run, repo)


def test_what_is_no_folder_of_saes(tmp_path):
    with pytest.raises(ValueError, match="absent: no such folder; give"):
        push_saes(tmp_path / "absent", REPO)
    with pytest.raises(ValueError, match="holds no SAEs in the native layout"):
        push_saes(tmp_path, REPO)
    with pytest.raises(ValueError, match=r"saes: '\.\./x' is no name of a folder"):
        push_saes({"../x": make(0)}, REPO)
