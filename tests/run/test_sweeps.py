"""Sweeps: several runs from one command, side by side and as a search."""

import math

import pytest
from omegaconf import OmegaConf
from runner import ROOT

from sae_kit.result import Result

# Optuna and its Hydra plugin warn of themselves.
QUIET = {"PYTHONWARNINGS": "ignore"}


def settings(folder):
    return OmegaConf.load(folder / "config.yaml")


@pytest.mark.slow
def test_joblib_runs_every_combination(tiny, tmp_path):
    arguments = [*tiny.saes(sae__k="2,4"), "trainer.seed=0,1", f"hydra.sweep.dir={tmp_path}"]
    run = tiny.run("-m", "sweep=joblib", *arguments, "trainer.checkpoint_every=100")
    assert run.status == 0, run.err
    found = {(settings(f).sae.k, settings(f).trainer.seed) for f in map(tmp_path.joinpath, "0123")}
    assert found == {(2, 0), (2, 1), (4, 0), (4, 1)}
    assert all((tmp_path / number / "saes").is_dir() for number in "0123")


@pytest.mark.slow
def test_a_search_minimises_the_mean_fvu(tiny, tmp_path):
    arguments = [*tiny.saes(trainer__lr=None), f"hydra.sweep.dir={tmp_path}"]
    run = tiny.run("-m", "sweep=optuna", *arguments, "hydra.sweeper.n_trials=3", env=QUIET)
    assert run.status == 0, run.err
    best = OmegaConf.load(tmp_path / "optimization_results.yaml")
    fvu = {
        settings(tmp_path / n).trainer.lr: Result.load(tmp_path / n / "evaluation").scalars
        for n in "012"
    }
    assert len(fvu) == 3
    least = min(fvu, key=lambda lr: fvu[lr]["mean_fvu"])
    assert math.isclose(best.best_value, fvu[least]["mean_fvu"])
    assert math.isclose(best.best_params["trainer.lr"], least)


@pytest.mark.slow
def test_a_run_that_fails_ends_the_sweep_with_its_message(tiny, tmp_path):
    arguments = [*tiny.saes(sae__k="4,65"), f"hydra.sweep.dir={tmp_path}"]
    run = tiny.run("-m", *arguments)
    assert run.status == 2
    assert "k: 65 does not fit; give 1 to d_sae=64" in run.err
    assert (tmp_path / "0" / "saes").is_dir()


@pytest.mark.parametrize("sweep", ["slurm", "ray"])
def test_cluster_configs_set_known_fields_of_their_launchers(sweep):
    """Held against the launchers' own schemas where they are installed."""
    name = {"slurm": "submitit", "ray": "ray"}[sweep]
    plugin = pytest.importorskip(f"hydra_plugins.hydra_{name}_launcher.config")
    schema = {"slurm": "SlurmQueueConf", "ray": "RayLauncherConf"}[sweep]
    known = OmegaConf.structured(getattr(plugin, schema))
    given = OmegaConf.load(ROOT / "conf" / "sweep" / f"{sweep}.yaml").hydra.launcher
    OmegaConf.merge(known, given)  # raises where a field is unknown or of another type
