"""SAEs from the hub, through the real client, from a server on 127.0.0.1."""

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from format_samples import SAMPLES
from hub_server import Hub, commit_of
from safetensors.torch import save_file

from sae_kit import formats
from sae_kit.formats.hub import HubPlace, Repository
from sae_kit.formats.places import Known
from sae_kit.formats.releases import releases
from sae_kit.sae import SAE
from sae_kit.sae.relu import ReLUConfig
from sae_kit.sae.topk import TopKConfig

slow = pytest.mark.slow  # every question starts a new process

D_IN, D_SAE = 6, 5000  # weights of more than the 100 kB that a client reads to get a header
REPO = "someone/some-saes"
SITES = [f"blocks.{layer}.hook_resid_pre" for layer in (0, 1, 10)]

ASK = """
import json, logging, sys, torch
import sae_kit
ours = logging.StreamHandler(sys.stdout)
ours.setFormatter(logging.Formatter("log: %(message)s"))
logging.getLogger("sae_kit").addHandler(ours)

def told(sae):
    return [sae.metadata, sae(torch.linspace(-1, 1, sae.d_in)).double().tolist()]

for function, *args, options in json.loads({asked!r}):
    try:
        answer = getattr(sae_kit, function)(*args, **options)
        if function == "load_sae":
            answer = told(answer)
        elif function == "load_saes":
            answer = {{site: told(sae) for site, sae in answer.items()}}
        else:
            answer = [answer.format, answer.site, answer.d_in, answer.config.d_sae,
                      answer.conversions, answer.metadata, dict(answer.tensors)]
    except (ValueError, ConnectionError) as error:
        answer = f"{{type(error).__name__}} {{error}}"
    print(json.dumps(answer))
"""


def ask(hub: Hub, cache: Path, *asked: list, offline: bool = False) -> list[Any]:
    """What each call answers, all in one new process: a list, or an error's or a log line's text.

    A call is the name of a function of sae_kit, its arguments, and perhaps a dict of options.
    """
    calls = [call if isinstance(call[-1], dict) else [*call, {}] for call in asked]
    lines = hub.python(ASK.format(asked=json.dumps(calls)), cache=cache, offline=offline)
    return [line if line.startswith("log:") else json.loads(line) for line in lines.splitlines()]


def make(seed: int, *, d_sae: int = D_SAE) -> SAE:
    generator = torch.Generator().manual_seed(seed)
    sae = ReLUConfig(d_sae=d_sae).build(D_IN, generator=generator)
    sae.b_dec.data.normal_(generator=generator)
    return sae


def outputs(sae: SAE) -> list[float]:
    return sae(torch.linspace(-1, 1, sae.d_in)).double().tolist()


@pytest.fixture
def stocked(hub) -> Hub:
    """A hub with SAEs of three sites, and files beside them that nobody should fetch."""
    folder = hub.folder / "models" / REPO
    for seed, site in enumerate(SITES):
        formats.save_sae(make(seed), folder / site, metadata={"hook_name": site, "model_name": "m"})
        save_file({"sparsity": torch.zeros(D_SAE)}, folder / site / "sparsity.safetensors")
    for other in ("README.md", ".gitattributes", "figures/a.png"):
        (folder / other).parent.mkdir(exist_ok=True)
        (folder / other).write_bytes(b"x" * 1000)
    return hub


def fetched(hub: Hub) -> set[str]:
    return {download.split("/", 1)[1] for download in hub.downloads()}


@pytest.fixture
def root(monkeypatch) -> HubPlace:
    """A repository of which only the list of files is asked for, and that once."""
    listed = ["a/x/cfg.json", "a/y.pt", "a/y_cfg.json", "a/y.txt/z", ".gitattributes", "ax", "b/.c"]
    answers = iter([listed])

    def model_info(self, repo, *, revision):
        files = [SimpleNamespace(rfilename=name) for name in next(answers)]
        return SimpleNamespace(siblings=files, sha=f"commit of {repo} at {revision}")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    return HubPlace(Repository("o/n", "v1", missing="none"))


def test_files_are_named_relative_to_the_place(root):
    assert root.names() == ("a/x/cfg.json", "a/y.pt", "a/y.txt/z", "a/y_cfg.json", "ax")
    assert root.at("a").names() == ("x/cfg.json", "y.pt", "y.txt/z", "y_cfg.json")
    assert root.at("a").at("x").names() == ("cfg.json",)
    file = root.at("a/y.pt")
    assert file.names() == ("y.pt",)
    assert file.beside("y_cfg.json").where == "hf:o/n/a/y_cfg.json"
    assert file.beside("ax") is root.beside("ax") is None
    assert root.at("none").names() == root.at("a/").at("none").names() == ()
    assert root.at("").where == root.where == "hf:o/n"
    assert root.at("a").at("y.pt").file("y.pt") == root.at("a").file("y.pt") == "hf:o/n/a/y.pt"
    commit = "commit of o/n at v1"
    assert root.at("a/x").known() == Known(origin={"repo": "o/n", "commit": commit, "path": "a/x"})


def test_of_a_release_nothing_else_is_seen(root):
    known = {"a/y.pt": Known(site="s"), "a/x": Known(site="t"), "gone": Known()}
    release = HubPlace(root._repository, known=known)
    assert release.names() == ("a/x/cfg.json", "a/y.pt", "a/y_cfg.json")
    assert release.at("a").at("x").known().site == "t"
    assert release.at("a/y.pt").known().site == "s"
    assert release.known().site is None


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/x", "a\\..\\x", "\\x", ""])
def test_names_that_lead_elsewhere_are_refused(name, monkeypatch):
    info = SimpleNamespace(siblings=[SimpleNamespace(rfilename=name)], sha="c")
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: info)
    with pytest.raises(ValueError, match=r"hf:o/n: has a file named .* not to be trusted"):
        HubPlace(Repository("o/n", None, missing="none")).names()


def test_files_have_the_checksum_that_they_are_kept_under(tmp_path, monkeypatch):
    """As in the client's cache: a link to a file named by what the hub says of it."""
    blob = tmp_path / hashlib.sha256(b"weights").hexdigest()
    link = tmp_path / "sae.safetensors"
    link.symlink_to(blob)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_, **__: str(link))
    repository = Repository("o/n", None, missing="none")
    blob.write_bytes(b"weights")
    assert repository.fetch("sae.safetensors") == link
    blob.write_bytes(b"weightt")
    with pytest.raises(
        ValueError, match=r"hf:o/n/sae\.safetensors: is damaged: its SHA-256 .* delete"
    ):
        repository.fetch("sae.safetensors")


@slow
def test_only_the_layers_asked_for_are_fetched_and_once(stocked, tmp_path):
    commit = commit_of(stocked.folder / "models" / REPO)
    (saes,) = ask(stocked, tmp_path, ["load_saes", REPO, {"layers": [10, 1]}])
    assert list(saes) == [SITES[1], SITES[2]]
    for seed, site in [(1, SITES[1]), (2, SITES[2])]:
        metadata, out = saes[site]
        assert out == pytest.approx(outputs(make(seed)), abs=1e-6)
        assert metadata["source"] == {"repo": REPO, "commit": commit, "path": site}
        assert metadata["model_name"] == "m"
    weights = {f"{site}/sae_weights.safetensors" for site in SITES[1:]}
    assert fetched(stocked) == {f"{site}/cfg.json" for site in SITES} | weights
    n_downloads = len(stocked.downloads())
    (again,) = ask(stocked, tmp_path, ["load_sae", f"hf:{REPO}/{SITES[1]}"])
    assert again == saes[SITES[1]]
    assert len(stocked.downloads()) == n_downloads


@slow
def test_inspecting_fetches_no_weights(stocked, tmp_path):
    source = f"{REPO}/{SITES[0]}"
    (told,) = ask(stocked, tmp_path, ["inspect_sae", source])
    assert told[:4] == ["saelens", SITES[0], D_IN, D_SAE]
    assert told[-1]["W_enc"] == ["F32", [D_IN, D_SAE]]
    assert fetched(stocked) == {f"{SITES[0]}/cfg.json"}
    parts = [r for r in stocked.requests if "sae_weights.safetensors" in r]
    assert [part.rsplit(" ", 1)[1] for part in parts] == ["bytes=0-100000"]
    # Loading looks at the header before it fetches the whole; then all is read here.
    _, local = ask(stocked, tmp_path, ["load_sae", source], ["inspect_sae", source])
    assert local == told
    assert len([r for r in stocked.requests if "bytes=" in r]) == 2


@slow
def test_out_of_reach_the_cache_serves(stocked, tmp_path):
    whole, part = f"{REPO}/{SITES[0]}", f"{REPO}/{SITES[1]}"
    first, _ = ask(stocked, tmp_path, ["load_sae", whole], ["inspect_sae", part])
    stocked.stop()
    for offline in (True, False):
        log, again, _, weights, other = ask(
            stocked,
            tmp_path,
            ["load_sae", whole],
            ["load_sae", part],
            ["load_sae", "some/other"],
            offline=offline,
        )
        assert log.startswith("log: the hub cannot be reached; of someone/some-saes there is what")
        assert again == first
        for said, repo in ((weights, REPO), (other, "some/other")):
            assert said.startswith(f"ConnectionError '{repo}' is not (completely) in the local cac")
            assert f"fetching it from {stocked.url} failed" in said
            assert f"without the hub: a local folder; repositories in the cache: {REPO}" in said


@slow
def test_what_the_hub_does_not_have_is_named(stocked, tmp_path):
    stocked.gated.add("someone/gated")
    gated = stocked.folder / "models" / "someone" / "gated"
    formats.save_sae(make(0, d_sae=8), gated, metadata={"hook_name": SITES[0]})
    revision, repository, folder, access, all_of_them, bad_id, commit = ask(
        stocked,
        tmp_path,
        ["load_sae", f"{REPO}/{SITES[0]}", {"revision": "v9"}],
        ["load_saes", "someone/sme-saes"],
        ["load_sae", f"hf:{REPO}/blocks.3.hook_resid_pre"],
        ["load_sae", "someone/gated"],
        ["load_sae", REPO],
        ["load_sae", "hf:a--b/c"],
        ["inspect_sae", f"{REPO}/{SITES[0]}", {"revision": commit_of(gated.parent / "some-saes")}],
    )
    assert revision == f"ValueError revision: the hub has no '{REPO}' at revision 'v9'"
    assert repository.startswith("ValueError source: there is no local folder 'someone/sme-saes', ")
    assert "no public repository 'someone/sme-saes', a release of those that" in repository
    assert repository.endswith("run 'hf auth login'")
    assert folder.startswith(f"ValueError hf:{REPO}: has no folder or file 'blocks.3.hook_resid_pr")
    assert SITES[0] in folder
    assert access.startswith("ValueError source: access to 'someone/gated' has to be asked for")
    assert all_of_them.startswith(f"ValueError hf:{REPO}: this is no SAE, but has 3 below it; ")
    assert all_of_them.endswith(f"one of them, such as hf:{REPO}/{SITES[0]}")
    assert bad_id.startswith("ValueError source: the hub has no public repository 'a--b/c'; for")
    assert commit[1] == SITES[0]


@slow
def test_a_broken_transfer_is_an_error_and_is_resumed(stocked, tmp_path):
    source = f"{REPO}/{SITES[0]}"
    stocked.cut_after = 150_000  # of the weights alone
    (said,) = ask(stocked, tmp_path, ["load_sae", source])
    assert said.startswith(f"ConnectionError '{REPO}' is not (completely) in the local cache")
    stocked.cut_after = None
    ((_, out),) = ask(stocked, tmp_path, ["load_sae", source])
    assert out == pytest.approx(outputs(make(0)), abs=1e-6)


@slow
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\0", "is damaged or cut short"),
        (b"\xff" * 100, "is damaged or cut short"),
        ((8).to_bytes(8, "little") + b"[1, 2]  ", "is damaged or cut short"),
        ((20).to_bytes(8, "little") + b'{"W_enc": [1, 2, 3]}', "is damaged or cut short"),
    ],
)
def test_headers_that_are_none(stocked, tmp_path, content, message):
    file = f"{REPO}/{SITES[0]}/sae_weights.safetensors"
    (stocked.folder / "models" / file).write_bytes(content)
    (said,) = ask(stocked, tmp_path, ["inspect_sae", f"{REPO}/{SITES[0]}"])
    assert said.startswith(f"ValueError hf:{file}: {message}")


@slow
def test_a_release_names_sites_and_says_what_its_files_do_not(hub, tmp_path):
    release = releases()["gpt2-small-mlp-tm"]
    for seed, one in enumerate(release.saes[:2]):
        folder = hub.folder / "models" / release.repo / one.path
        formats.save_sae(make(seed, d_sae=8), folder, metadata={"context_size": 128})
        config = json.loads((folder / "cfg.json").read_text())
        config["normalize_activations"] = "expected_average_only_in"
        config["metadata"]["model_from_pretrained_kwargs"] = {"fold_ln": False}
        (folder / "cfg.json").write_text(json.dumps(config))
    other = hub.folder / "models" / release.repo / "another"
    formats.save_sae(make(9, d_sae=8), other, metadata={"hook_name": "blocks.1.hook_mlp_out"})
    saes, one, info, absent, unknown = ask(
        hub,
        tmp_path,
        ["load_saes", release.name, {"layers": [1]}],
        ["load_sae", f"{release.name}/blocks.1.hook_mlp_out"],
        ["inspect_sae", f"{release.name}/blocks.1.hook_mlp_out"],
        ["load_sae", f"{release.name}/blocks.2.hook_mlp_out"],
        ["load_sae", f"{release.name}/blocks.12.hook_mlp"],
    )
    entry = release.saes[1]
    assert saes == {entry.site: one}
    metadata, out = one
    folded = make(1, d_sae=8)
    folded.fold_scales(entry.input_scale, entry.input_scale)
    assert out == pytest.approx(outputs(folded), abs=1e-6)
    assert metadata["hook_name"] == entry.site
    assert metadata["release"] == f"{release.name}/{entry.id}"
    assert metadata["source"]["path"] == entry.path
    assert metadata["context_size"] == 128
    assert metadata["model_from_pretrained_kwargs"] == {
        "fold_ln": False,
        "center_writing_weights": True,
    }
    assert metadata["conversions"] == [f"input scale {entry.input_scale} folded into the weights"]
    assert info[1] == entry.site
    # Of the other layer, and of what is no part of the release, nothing was fetched.
    assert fetched(hub) == {f"{entry.path}/cfg.json", f"{entry.path}/sae_weights.safetensors"}
    assert absent.startswith(f"ValueError hf:{release.repo}/{release.saes[2].path}: holds no SAE")
    assert unknown.startswith(f"ValueError {release.name}: has no SAE 'blocks.12.hook_mlp'; it has")
    assert "blocks.11.hook_mlp_out" in unknown


def write_openai(file: Path, *, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    held = {
        "pre_bias": torch.randn(D_IN, generator=generator),
        "latent_bias": torch.randn(12, generator=generator),
        "encoder.weight": torch.randn(12, D_IN, generator=generator),
        "decoder.weight": torch.randn(D_IN, 12, generator=generator),
        "activation": "TopK",
        "activation_state_dict": {"k": 3, "postact_fn": "ReLU"},
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(held, file)


def write_published_e2e(file: Path, site: str) -> None:
    sae = make(3, d_sae=12)
    names = {"encoder.weight": "W_enc", "decoder.weight": "W_dec"}
    held = {theirs: getattr(sae, ours).data.T.contiguous() for theirs, ours in names.items()}
    held |= {"encoder.bias": sae.b_enc.data, "decoder.bias": sae.b_dec.data}
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(held, file)
    file.with_suffix(".yaml").write_text(f"saes:\n  sae_positions: [{site}]\n")


def write_hook_z(file: Path) -> None:
    sae = make(4, d_sae=12)
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(
        {name: getattr(sae, name).data for name in ("W_enc", "b_enc", "W_dec", "b_dec")}, file
    )
    config = {"act_size": D_IN, "dict_size": 12, "act_name": "blocks.1.attn.hook_z"}
    file.with_name(file.stem + "_cfg.json").write_text(json.dumps(config))


@slow
def test_every_sample_opens_from_the_hub_as_it_does_here(hub, tmp_path):
    repo = hub.folder / "models" / "someone" / "samples"
    folders = [repo / str(i) for i in range(len(SAMPLES))]
    for folder in folders:
        folder.mkdir(parents=True)
    here = [sample.write(folder) for sample, folder in zip(SAMPLES, folders, strict=True)]
    models = hub.folder / "models"
    asked = [["load_sae", f"hf:{place.relative_to(models).as_posix()}"] for place in here]
    for sample, place, answer in zip(SAMPLES, here, ask(hub, tmp_path, *asked), strict=True):
        sae = formats.load_sae(place)
        metadata, out = answer
        assert out == outputs(sae), sample
        assert metadata.pop("source")["repo"] == "someone/samples"
        assert metadata == sae.metadata, sample


@slow
def test_every_layout_opens_from_the_hub_as_it_does_here(hub, tmp_path):
    models, of = hub.folder / "models", releases()
    topk = TopKConfig(d_sae=12, k=3).build(D_IN, generator=torch.Generator().manual_seed(5))
    mixed, v5, e2e, hook_z = (
        "someone/mixed",
        of["gpt2-small-resid-post-v5-32k"],
        of["gpt2-small-e2e-apollo"],
        of["gpt2-small-hook-z-kk"],
    )
    said = {"hook_name": "blocks.3.hook_mlp_out"}
    for name, folder in (("sparsify", "sparsify/h.3.mlp"), ("dictionary_learning", "dl/trainer_0")):
        formats.save_sae(topk, models / mixed / folder, metadata=said, format=name)
    write_openai(models / mixed / "resid_post_mlp_v5_32k/autoencoders/6.pt", seed=1)
    write_openai(models / mixed / "resid_post_mlp_v5_32k/autoencoders/7.pt", seed=2)
    formats.save_sae(topk, models / v5.repo / v5.saes[8].path, metadata={"context_size": 128})
    write_published_e2e(models / e2e.repo / e2e.saes[4].path, e2e.saes[4].site)
    write_hook_z(models / hook_z.repo / hook_z.saes[1].path)
    asked = {
        f"{mixed}/sparsify/h.3.mlp": (f"{mixed}/sparsify/h.3.mlp", said["hook_name"]),
        f"{mixed}/dl/trainer_0": (f"{mixed}/dl/trainer_0", said["hook_name"]),
        f"{mixed}/resid_post_mlp_v5_32k/autoencoders/6.pt": (
            f"{mixed}/resid_post_mlp_v5_32k/autoencoders/6.pt",
            "blocks.6.hook_resid_post",
        ),
        f"{v5.name}/{v5.saes[8].id}": (f"{v5.repo}/{v5.saes[8].path}", v5.saes[8].site),
        f"{e2e.name}/{e2e.saes[4].id}": (f"{e2e.repo}/{e2e.saes[4].path}", e2e.saes[4].site),
        f"{hook_z.name}/{hook_z.saes[1].id}": (
            f"{hook_z.repo}/{hook_z.saes[1].path}",
            "blocks.1.attn.hook_z",
        ),
    }
    *opened, several = ask(
        hub,
        tmp_path,
        *(["load_sae", source] for source in asked),
        ["load_saes", f"{mixed}/resid_post_mlp_v5_32k", {"layers": [7]}],
    )
    for (metadata, out), (file, site) in zip(opened, asked.values(), strict=True):
        assert out == outputs(formats.load_sae(models / file))
        assert metadata.get("hook_name") == site
    assert list(several) == ["blocks.7.hook_resid_post"]
    conversion = "context_size is 64 as its release says; the file says 128"
    assert conversion in opened[3][0]["conversions"]
    assert opened[4][0]["release"] == "gpt2-small-e2e-apollo/e2e_similar_ce_layer_6"
