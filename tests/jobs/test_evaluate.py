"""Evaluating a run, a folder of SAEs, or a model; drawing figures again; what is refused."""

from pathlib import Path

import pytest
import torch

from sae_kit.jobs import evaluate as job
from sae_kit.jobs.evaluate import evaluate
from sae_kit.jobs.train import train
from sae_kit.result import Result

SITES = ["blocks.0.hook_resid_pre", "blocks.1.hook_resid_pre"]
SHORT = ["eval.n_tokens=256", "eval.n_splice_tokens=128"]


@pytest.fixture(scope="module")
def run(composed, tiny_saes, tmp_path_factory) -> Path:
    """A finished training run."""
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch, composed(folder, *tiny_saes) as cfg:
        patch.setenv("SAE_KIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        assert train(cfg).stopped is None
    return folder


def run_eval(composed, folder: Path, *overrides: str) -> Result:
    with composed(folder, *overrides, name="eval") as cfg:
        return evaluate(cfg, folder)


def test_a_run_brings_its_model_and_text(run, composed, tmp_path):
    result = run_eval(composed, tmp_path / "eval", f"run={run}", *SHORT)
    assert [row["site"] for row in result.rows] == SITES
    assert {path.name for path in (tmp_path / "eval").iterdir()} == {
        "result.json",
        "arrays.safetensors",
        "table.csv",
        "quality.png",
        "frequency.png",
    }
    assert Result.load(tmp_path / "eval").scalars == result.scalars


def test_saes_alone_know_their_model(run, composed, tmp_path, tiny_folder):
    text = ["data=text", f"data.paths=[{tiny_folder / 'text.txt'}]", "data.context_size=32"]
    same = run_eval(composed, tmp_path / "a", f"run={run}", *SHORT)
    result = run_eval(composed, tmp_path / "b", f"saes={run / 'saes'}", *text, *SHORT)
    assert result.rows == same.rows


def test_layers_choose(run, composed, tmp_path):
    result = run_eval(composed, tmp_path, f"run={run}", "layers=[1]", *SHORT)
    assert [row["site"] for row in result.rows] == SITES[1:]


def test_drawing_again_computes_nothing(run, composed, tmp_path, monkeypatch):
    run_eval(composed, tmp_path, f"run={run}", *SHORT)
    before = (tmp_path / "quality.png").read_bytes()
    (tmp_path / "quality.png").unlink()
    monkeypatch.setattr(job, "_subject", lambda config: pytest.fail("built a subject"))
    state = torch.get_rng_state()
    run_eval(composed, tmp_path, f"replot={tmp_path}")
    assert (tmp_path / "quality.png").read_bytes()[:8] == before[:8]
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["run={run}", "saes={run}"], "saes: give either run or saes"),
        (["run={empty}"], "no run there"),
        (["run={run}", "layers=[7]"], r"layers: \[7\] have no SAE .* available: \[0, 1\]"),
        (["run={run}", "eval.n_tokens=0"], r"eval\.n_tokens: 0"),
        (["+eval.n_token=3"], r"eval\.n_token: unknown; did you mean 'n_tokens'"),
        ([], "model: none given"),
    ],
)
def test_what_does_not_fit_is_refused(run, composed, tmp_path, overrides, message):
    (tmp_path / "empty").mkdir()
    given = [o.format(run=run, empty=tmp_path / "empty") for o in overrides]
    with pytest.raises(ValueError, match=message):
        run_eval(composed, tmp_path / "eval", *given)
    assert not list((tmp_path / "eval").iterdir())
