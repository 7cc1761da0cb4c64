"""The main job in this process: what it leaves, and that what it leaves is what was trained."""

import json
import re
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from sae_kit import load_model, load_sae, load_saes
from sae_kit.checkpoint import checkpoints, load_checkpoint
from sae_kit.data.text import TextConfig
from sae_kit.dist import World
from sae_kit.evals.base import Subject
from sae_kit.evals.core import Core
from sae_kit.jobs.train import train
from sae_kit.maths import fvu
from sae_kit.result import Result

SITES = ["blocks.0.hook_resid_pre", "blocks.1.hook_resid_pre"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def run(composed, tiny_saes, tmp_path_factory, cache) -> Path:
    """A finished run."""
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch, composed(folder, *tiny_saes) as cfg:
        patch.setenv("SAE_KIT_CACHE", str(cache))
        assert train(cfg).stopped is None
    return folder


def test_what_a_run_leaves(run):
    assert {path.name for path in run.iterdir()} == {
        "config.yaml",
        "provenance.json",
        "metrics.jsonl",
        "checkpoints",
        "saes",
        "evaluation",
    }
    assert [path.name for path in checkpoints(run / "checkpoints")] == ["step_10", "step_8"]
    assert list(load_saes(run)) == SITES


def test_saved_saes_take_raw_activations(run, tiny_folder, cache, monkeypatch):
    """The scale is folded in: on the model's own activations a saved SAE computes what the trained
    one computed on scaled ones.
    """
    lm = load_model(str(tiny_folder / "model"))
    tokens = torch.tensor([lm.tokenizer.encode("Then, Mary and John went to the store.")])
    state = load_checkpoint(run / "checkpoints" / "step_10")["task"]
    for site in SITES:
        x = lm.model.run(tokens, capture=[site]).acts[site][0]
        scale = state["source"]["scales"][site]
        assert abs(scale - 1) > 0.05, "a scale of 1 would make this test say nothing"
        sae = load_sae(run / "saes" / site)
        trained = sae.config.build(32, generator=torch.Generator().manual_seed(0))
        trained.load_state_dict(state["sites"][site]["sae"])
        assert_close(sae(x), trained(x * scale) / scale, atol=1e-5, rtol=1e-4)
        assert_close(sae.encode(x), trained.encode(x * scale), atol=1e-5, rtol=1e-4)


def test_what_a_saved_sae_says_of_itself(run, tiny_folder):
    sae = load_sae(run / "saes" / SITES[1])
    assert sae.config.k == 4
    said = sae.metadata
    assert said["model_name"] == str(tiny_folder / "model")
    assert said["hook_name"] == SITES[1]
    assert (said["context_size"], said["prepend_bos"]) == (32, True)
    assert (said["drop_first_position"], said["drop_special_tokens"]) == (True, True)
    assert said["model_from_pretrained_kwargs"] == {"center_writing_weights": False}
    assert said["training"]["trainer"]["n_tokens"] == 320
    assert said["training"]["data"]["kind"] == "text"
    assert said["training"]["folded_input_scale"] > 0


def test_the_closing_table_is_the_evaluation_of_what_was_saved(
    run, tiny_folder, cache, monkeypatch
):
    monkeypatch.setenv("SAE_KIT_CACHE", str(cache))
    saved = Result.load(run / "evaluation")
    data = TextConfig(paths=(str(tiny_folder / "text.txt"),), context_size=32)
    subject = Subject(
        language_model=load_model(str(tiny_folder / "model")), saes=load_saes(run), tokens=data
    )
    again = Core(n_tokens=65_536, n_splice_tokens=8_192).run(subject)
    for row, other in zip(saved.rows, again.rows, strict=True):
        assert row["site"] == other["site"]
        for name in ("l0", "fvu", "ce_recovered", "kl", "dead_fraction"):
            assert row[name] == pytest.approx(other[name], rel=1e-5, abs=1e-7), name


def test_the_evaluation_measures_held_out_text(run, tiny_folder, cache, monkeypatch):
    """The FVU by hand, on the last 2 % of the file."""
    monkeypatch.setenv("SAE_KIT_CACHE", str(cache))
    lm = load_model(str(tiny_folder / "model"))
    data = TextConfig(paths=(str(tiny_folder / "text.txt"),), context_size=32)
    source = data.open(lm.tokenizer, split="heldout", world=World(0, 1), seed=0)
    tokens = torch.stack([next(source) for _ in range(source.n_contexts)])
    row = Result.load(run / "evaluation").rows[1]
    acts = lm.model.run(tokens, capture=[SITES[1]]).acts[SITES[1]]
    x = acts[:, 1:][tokens[:, 1:] != lm.tokenizer.eot_id]
    assert row["fvu"] == pytest.approx(
        float(fvu(x, load_sae(run / "saes" / SITES[1])(x).detach())), rel=1e-4
    )


def test_metrics_are_lines_of_finite_numbers(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["tokens"]) for line in lines] == [(5, 160), (10, 320)]
    for line in lines:
        assert all(isinstance(value, int | float) for value in line.values())
        assert {f"{site}/FVU" for site in SITES} | {"FVU", "L0", "dead", "loss", "lr"} <= set(line)


def test_positions_that_training_keeps_are_measured_too(composed, tiny_saes, tmp_path):
    settings = ["activations.drop_first_position=false", "activations.drop_special_tokens=false"]
    with composed(tmp_path / "run", *tiny_saes, *settings, f"sites={SITES[1]}") as cfg:
        train(cfg)
    asked = Result.load(tmp_path / "run" / "evaluation").provenance["evaluation"]
    assert (asked["drop_first_position"], asked["drop_special_tokens"]) == (False, False)
    said = load_sae(tmp_path / "run" / "saes" / SITES[1]).metadata
    assert (said["drop_first_position"], said["drop_special_tokens"]) == (False, False)


def test_a_relu_run(composed, tiny_saes, tmp_path):
    settings = [a for a in tiny_saes if not a.startswith("sae.k=")]
    with composed(tmp_path / "run", *settings, "sae=relu") as cfg:
        assert train(cfg).stopped is None
    assert load_sae(tmp_path / "run" / "saes" / SITES[0]).config.word == "relu"


# --- objectives -----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["e2e", "e2e_downstream"])
def test_an_end_to_end_run(composed, tiny_saes, tmp_path, objective):
    folder = tmp_path / "run"
    with composed(folder, *tiny_saes, f"objective={objective}") as cfg:
        assert train(cfg).stopped is None
    assert list(load_saes(folder)) == SITES
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["tokens"]) for line in lines] == [(5, 160), (10, 320)]
    local, spliced = lines  # as most of the run is local
    for line, names in ((local, ("loss_mse", "FVU")), (spliced, ("loss_kl", "KL", "mse", "FVU"))):
        assert {f"{site}/{name}" for site in SITES for name in names} <= set(line)
    assert f"{SITES[0]}/KL" not in local
    said = load_sae(folder / "saes" / SITES[0]).metadata["training"]["objective"]
    assert said["name"] == objective


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["objective=e2e", "trainer.batch_rows=31"], "batch_rows: 31 is less than one context"),
        (
            ["objective=e2e_downstream", "sites=blocks.*.hook_resid_post"],
            "comes after blocks.1.hook_resid_post; give objective=e2e",
        ),
        (
            ["objective=e2e_downstream", "objective.downstream_sites=blocks.*.resid"],
            "objective.downstream_sites: 'blocks.*.resid' matches no site",
        ),
    ],
)
def test_objectives_that_do_not_fit_fail_before_work_starts(
    composed, tiny_saes, tmp_path, settings, message
):
    with (
        composed(tmp_path / "run", *tiny_saes, *settings) as cfg,
        pytest.raises(ValueError, match=re.escape(message)),
    ):
        train(cfg)
    assert not (tmp_path / "run").exists()


# --- transcoders ----------------------------------------------------------------------------------

TRANSCODERS = [
    "sites=blocks.*.ln2.hook_normalized",
    "writes=blocks.*.hook_mlp_out",
    "sae.apply_b_dec_to_input=false",
]


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["local", "e2e_downstream"])
@pytest.mark.parametrize("skip", ["true", "false"])
def test_a_transcoder_run(composed, tiny_saes, tmp_path, tiny_folder, skip, objective):
    folder = tmp_path / "run"
    settings = [*tiny_saes, *TRANSCODERS, f"sae.skip={skip}", f"objective={objective}"]
    with composed(folder, *settings) as cfg:
        assert train(cfg).stopped is None
    saes = load_saes(folder)
    reads = [f"blocks.{i}.ln2.hook_normalized" for i in (0, 1)]
    writes = [f"blocks.{i}.hook_mlp_out" for i in (0, 1)]
    assert list(saes) == reads
    rows = Result.load(folder / "evaluation").rows
    assert [(row["site"], row["writes"]) for row in rows] == list(zip(reads, writes, strict=True))

    lm = load_model(str(tiny_folder / "model"))
    tokens = torch.tensor([lm.tokenizer.encode("Then, Mary and John went to the store.")])
    acts = lm.model.run(tokens, capture=[*reads, *writes]).acts
    state = load_checkpoint(folder / "checkpoints" / "step_10")["task"]
    for read, written in zip(reads, writes, strict=True):
        sae = saes[read]
        assert sae.is_transcoder
        assert (sae.metadata["hook_name"], sae.metadata["hook_name_out"]) == (read, written)
        scale, scale_out = (state["source"]["scales"][site] for site in (read, written))
        trained = sae.config.build(32, 32, generator=torch.Generator().manual_seed(0))
        trained.load_state_dict(state["sites"][read]["sae"])
        x = acts[read][0]
        assert_close(sae(x), trained(x * scale) / scale_out, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["sae.apply_b_dec_to_input=true"], "apply_b_dec_to_input: true does not fit a transcoder"),
        (["writes=blocks.0.hook_mlp_out"], "writes: 1 sites match, but 2 are read"),
        (["writes=blocks.*.hook_attn_out"], "blocks.0.hook_attn_out does not come after"),
        (["writes=null", "sae.skip=true"], "skip: true would let an autoencoder copy its input"),
    ],
)
def test_transcoders_that_do_not_fit_fail_before_work_starts(
    composed, tiny_saes, tmp_path, settings, message
):
    with (
        composed(tmp_path / "run", *tiny_saes, *TRANSCODERS, *settings) as cfg,
        pytest.raises(ValueError, match=re.escape(message)),
    ):
        train(cfg)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_table_and_what_comes_next_are_said(composed, tiny_saes, tmp_path, caplog):
    caplog.set_level("INFO")
    with composed(tmp_path / "run", *tiny_saes) as cfg:
        train(cfg)
    for said in (
        "shuffle buffer: 256 positions at 2 sites",
        "where the time went: ",
        "CE recovered",
        f"python eval.py eval=core run={tmp_path / 'run'}",
        f"load_sae('{tmp_path / 'run' / 'saes' / SITES[1]}')",
    ):
        assert said in caplog.text
    rows = [line for line in caplog.text.splitlines() if line.startswith("blocks.")]
    assert [row.split()[0] for row in rows] == SITES


def test_no_held_out_text_shows_before_training(composed, tiny_saes, tmp_path):
    (tmp_path / "short.txt").write_text("A few words, again and again.\n" * 40)
    settings = [*tiny_saes, f"data.paths=[{tmp_path / 'short.txt'}]"]
    with (
        composed(tmp_path / "run", *settings) as cfg,
        pytest.raises(ValueError, match=r"heldout text .* do not fill one context of 32"),
    ):
        train(cfg)
    assert not (tmp_path / "run").exists()
