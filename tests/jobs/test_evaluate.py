"""Evaluating a run, a folder of SAEs, or a model; drawing figures again; what is refused."""

import shutil
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from sae_kit.data.docs import DocsConfig
from sae_kit.evals.base import Evaluation
from sae_kit.evals.core import Core
from sae_kit.formats import load_sae, load_saes, save_sae
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_saes_alone_know_their_model(run, composed, tmp_path, tiny_folder):
    text = ["data=text", f"data.paths=[{tiny_folder / 'text.txt'}]", "data.context_size=32"]
    same = run_eval(composed, tmp_path / "a", f"run={run}", *SHORT)
    result = run_eval(composed, tmp_path / "b", f"saes={run / 'saes'}", *text, *SHORT)
    assert result.rows == same.rows


@pytest.mark.slow
def test_one_sae_is_told_its_site(run, composed, tmp_path, tiny_folder):
    """As for a file that does not say: here in a layout without room for it."""
    sae = load_sae(run / "saes" / SITES[1])
    kept = {k: v for k, v in sae.metadata.items() if k not in ("hook_name", "training")}
    save_sae(sae, tmp_path / "one", metadata=kept)
    text = ["data=text", f"data.paths=[{tiny_folder / 'text.txt'}]", "data.context_size=32"]
    given = [f"saes={tmp_path / 'one'}", f"site={SITES[1]}", *text, *SHORT]
    result = run_eval(composed, tmp_path / "a", *given)
    same = run_eval(composed, tmp_path / "b", f"run={run}", "layers=[1]", *SHORT)
    assert result.rows == same.rows


def test_text_is_cut_as_the_saes_saw_it(run):
    """Where nothing else is said; the shortest of their contexts."""
    saes = load_saes(run)
    assert (job._text_for(saes).context_size, job._text_for(saes).prepend_bos) == (32, True)
    saes[SITES[0]].metadata |= {"context_size": 16}
    assert job._text_for(saes).context_size == 16
    assert job._text_for({}) == DocsConfig()


@pytest.mark.slow
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


def test_a_result_that_no_evaluation_made_is_not_drawn(composed, tmp_path):
    """What a language model's training leaves in removals/."""
    made, folder = tmp_path / "removals", tmp_path / "eval"
    Result("removal", rows=[{"step": 1, "name": "ln_final"}]).save(made)
    with pytest.raises(
        ValueError, match=r"replot: .*removals holds a result of 'removal'"
    ) as error:
        run_eval(composed, folder, f"replot={made}")
    assert all(word in str(error.value) for word in Evaluation.variants())
    assert not list(folder.iterdir())


# --- several sets of SAEs -------------------------------------------------------------------------


@pytest.fixture
def comparing(monkeypatch):
    """Lets eval=core be given several sets, and returns what it was given."""
    given = []
    monkeypatch.setattr(Core, "compares", True)
    monkeypatch.setattr(Core, "run", lambda self, subject: given.append(subject))
    return given


def test_several_runs_are_compared(run, composed, tmp_path, comparing):
    """Each has its SAEs, model and text are the first one's, labels are what tells them apart."""
    other = tmp_path / "runs" / "other"
    shutil.copytree(run, other)
    with pytest.raises(AttributeError):  # there is no result to save
        run_eval(composed, tmp_path / "eval", f"run=[{run},{other}]", "layers=[1]")
    (subject,) = comparing
    assert subject.saes == {}
    assert [list(one.saes) for one in subject.compared] == [SITES[1:], SITES[1:]]
    assert [one.label.split("/")[-1] for one in subject.compared] == [run.name, "other"]
    assert subject.tokens.context_size == 32


def test_several_saved_saes_are_compared(run, composed, tmp_path, comparing):
    places = ",".join(str(run / "saes" / site) for site in SITES)
    with pytest.raises(AttributeError):
        run_eval(composed, tmp_path / "eval", f"saes=[{places}]")
    (subject,) = comparing
    assert {one.label: list(one.saes) for one in subject.compared} == {s: [s] for s in SITES}


def test_a_list_of_one_is_that_one(run, composed, tmp_path, comparing):
    with pytest.raises(AttributeError):
        run_eval(composed, tmp_path / "eval", f"run=[{run}]")
    (subject,) = comparing
    assert list(subject.saes) == SITES
    assert subject.compared == ()


def test_runs_on_different_models_are_refused(run, composed, tmp_path, comparing):
    other = tmp_path / "other"
    shutil.copytree(run, other)
    config = OmegaConf.load(other / "config.yaml")
    config.model.centre_writing_weights = True
    OmegaConf.save(config, other / "config.yaml")
    message = r"other was trained on another model .*centre_writing_weights: False -> True"
    with pytest.raises(ValueError, match=message):
        run_eval(composed, tmp_path / "eval", f"run=[{run},{other}]")


@pytest.mark.parametrize(
    ("places", "labels"),
    [
        (["outputs/a", "outputs/b/"], ["a", "b"]),
        (["x/a/saes/site", "x/b/saes/site"], ["a", "b"]),
        (["release/one", "other/two"], ["release/one", "other/two"]),
        (["a", "a/b"], ["a", "b"]),
    ],
)
def test_labels_are_what_differs(places, labels):
    assert job._labels(places) == dict(zip(labels, places, strict=True))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["run={run}", "saes={run}"], "saes: give either run or saes"),
        (["run={empty}"], "no run there"),
        (["run=[{run},{run}]"], r"run: \[.*\] is empty or has one twice"),
        (["saes=[]"], r"saes: \[\] is empty"),
        (["run=[{run},{empty}]"], r"run: 2 sets of SAEs, and core is of one; .*eval="),
        (["run={run}", "layers=[7]"], r"layers: \[7\] have no SAE .* available: \[0, 1\]"),
        (["run={run}", "site=hook_embed"], "site: 'hook_embed' is that of one SAE; give saes"),
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


def test_a_browsable_result_comes_with_its_site(run, composed, tmp_path):
    folder = tmp_path / "eval"
    short = ["eval=dashboard", "eval.n_tokens=256", "eval.prompts=[the cat sat]"]
    run_eval(composed, folder, f"run={run}", *short)
    index = folder / "browser" / "index.html"
    assert index.is_file()
    index.write_text("damaged")
    run_eval(composed, folder, f"replot={folder}")
    assert "<main" in index.read_text("utf-8")
