"""End-to-end objectives: known answers on a linear model, gradients, and whole runs on a GPT-2."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from conftest import SMALL, parts_run, random_gpt2
from torch import Tensor
from torch.testing import assert_close

from sae_kit.data import contexts as contexts_module
from sae_kit.data.activations import Batch, LiveConfig
from sae_kit.data.contexts import ContextSource, open_contexts
from sae_kit.data.tokens import Contexts, ContextStream
from sae_kit.dist import World
from sae_kit.maths import fvu
from sae_kit.models.gpt2 import declare_sites
from sae_kit.models.hooks import Edit, Hookable, Run, Site, Stopped, Tape
from sae_kit.models.splice import CleanRun
from sae_kit.sae.base import SAE, Moment
from sae_kit.sae.relu import ReLUConfig
from sae_kit.sae.topk import TopKConfig
from sae_kit.timing import Stopwatch
from sae_kit.train.end_to_end import DownstreamObjective, EndToEndObjective
from sae_kit.train.objective import LocalObjective, Objective, SiteOutput, Trained
from sae_kit.train.trainer import Trainer, TrainerConfig

D, RANK, VOCAB = 10, 3, 40
END = Moment(100, 100)
# As the paper has them: no local beginning, and losses in their own units.
FROM_THE_START = EndToEndObjective(local_share=0.0, lr_factor=1.0)
DOWNSTREAM = DownstreamObjective(local_share=0.0, lr_factor=1.0)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class LinearModel:
    """Tokens are looked up, pass three sites unchanged, and are read out by a matrix of low rank.

    No position sees another.
    """

    n_ctx = 64
    device = torch.device("cpu")
    names = tuple(f"blocks.{i}.hook_resid_post" for i in range(3))

    def __init__(self) -> None:
        self.embedding = randn(VOCAB, D)
        self.readout = randn(D, RANK, seed=1) @ randn(RANK, VOCAB, seed=2)

    def sites(self) -> Mapping[Site, tuple[str, ...]]:
        return dict.fromkeys(self.names, ("batch", "pos", "d_model"))

    def width(self, site: Site) -> int:
        return D

    def run(
        self,
        tokens: Tensor | None = None,
        *,
        capture: Collection[Site] = (),
        edit: Mapping[Site, Edit] | None = None,
        start: tuple[Site, Tensor] | None = None,
        stop: Site | None = None,
        prefix: None = None,
        keep_prefix: bool = False,
    ) -> Run:
        tape = Tape(capture, edit or {}, stop)
        first, x = (0, self.embedding[tokens]) if start is None else start
        first = self.names.index(first) if isinstance(first, str) else 0
        try:
            for site in self.names[first:]:
                x = tape(site, x)
        except Stopped:
            return Run(None, tape.acts, None)
        return Run(x @ self.readout, tape.acts, None)

    def in_row_space(self) -> Tensor:
        """The projection onto what the readout reads, [D D]."""
        basis = torch.linalg.svd(self.readout).U[:, :RANK]
        return basis @ basis.T


LINEAR = LinearModel()


def make_batch(
    model: Hookable, tokens: Tensor, sites: Sequence[Site], *, scale: float = 1.0, n_runs: int = 1
) -> Batch:
    """All positions but the first of each context; every site observed, the same scale
    everywhere.
    """
    counts = torch.ones_like(tokens, dtype=torch.bool)
    counts[:, 0] = False
    runs = [
        CleanRun(model, some, which, capture=sites, observe=list(model.sites()))
        for some, which in zip(tokens.chunk(n_runs), counts.chunk(n_runs), strict=True)
    ]
    acts = {site: scale * torch.cat([run.select(run.acts[site]) for run in runs]) for site in sites}
    return Batch(acts, len(tokens), runs, dict.fromkeys(model.sites(), scale))


def random_tokens(vocab: int, n: int = 6, n_pos: int = 8, seed: int = 0) -> Tensor:
    return torch.randint(vocab, (n, n_pos), generator=torch.Generator().manual_seed(seed))


def output(
    objective: Objective, sae: SAE, batch: Batch, reads: Site, writes: Site | None = None
) -> SiteOutput:
    """The one part, differentiated."""
    dead = {reads: torch.zeros(sae.d_sae, dtype=torch.bool)}
    one = Trained(sae, reads, writes or reads)
    (part,) = objective.parts([one], batch, at=END, dead=dead)
    part.total.backward()
    return part.outputs[reads]


def linear_sae(matrix: Tensor) -> SAE:
    """A transcoder that multiplies by a matrix; its latents say nothing."""
    config = TopKConfig(d_sae=4, k=1, apply_b_dec_to_input=False, skip=True)
    sae = config.build(*matrix.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        sae.W_dec.zero_()
        sae.W_skip.copy_(matrix.T)
    return sae


# --- a linear model -------------------------------------------------------------------------------


def test_only_what_the_model_reads_has_to_be_reconstructed():
    site = LINEAR.names[0]
    batch = make_batch(LINEAR, random_tokens(VOCAB), [site], scale=0.5)
    whole = batch.acts[site].square().sum(1).mean()
    projection = LINEAR.in_row_space()
    read = output(FROM_THE_START, linear_sae(projection), batch, site)
    assert read.measures["KL"] < 1e-5
    assert_close(read.measures["mse"], whole * (D - RANK) / D, rtol=0.3, atol=0)
    unread = output(FROM_THE_START, linear_sae(torch.eye(D) - projection), batch, site)
    assert unread.measures["KL"] > 0.5


def test_gradients_are_zero_off_what_the_model_reads():
    site = LINEAR.names[0]
    batch = make_batch(LINEAR, random_tokens(VOCAB), [site])
    sae = linear_sae(0.5 * torch.eye(D))
    output(FROM_THE_START, sae, batch, site)
    off = sae.W_skip.grad.T @ (torch.eye(D) - LINEAR.in_row_space())
    assert off.abs().max() < 1e-5 * sae.W_skip.grad.abs().max()


@pytest.mark.slow
def test_training_end_to_end_leaves_the_rest_of_the_activation_alone():
    """KL goes to 0 and the error stays; training on the activation itself does the opposite."""
    site = LINEAR.names[0]
    config = TopKConfig(d_sae=2 * RANK, k=RANK, aux_coefficient=0.0)
    found = {}
    for objective in (FROM_THE_START, LocalObjective()):
        sae = config.build(D, generator=torch.Generator().manual_seed(0))
        optimiser = torch.optim.Adam(sae.parameters())
        for step in range(300):
            optimiser.param_groups[0]["lr"] = 0.03 * (1 - step / 300)
            batch = make_batch(LINEAR, random_tokens(VOCAB, 20, seed=step), [site])
            output(objective, sae, batch, site)
            sae.after_backward()
            optimiser.step()
            optimiser.zero_grad()
            sae.after_step()
        seen = output(FROM_THE_START, sae, batch, site)
        found[objective.word] = (
            float(seen.measures["KL"]),
            float(fvu(seen.target, seen.out.recon.detach())),
        )
    (kl, error), (local_kl, local_error) = found["e2e"], found["local"]
    assert kl < 0.05 * local_kl
    assert error > 1.5 * local_error


@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_behind_blocks_that_change_nothing_the_downstream_error_is_the_local_one(scale):
    """Two later sites, of which each sees the splice's error as it is."""
    site = LINEAR.names[0]
    batch = make_batch(LINEAR, random_tokens(VOCAB), [site], scale=scale)
    config = ReLUConfig(d_sae=16, l1_coefficient=0.1)
    sae, same = (config.build(D, generator=torch.Generator().manual_seed(0)) for _ in range(2))
    objective = DownstreamObjective(
        local_share=0.0, kl_coefficient=1e-12, downstream_coefficient=1.0
    )
    found = output(objective, sae, batch, site)
    local = output(LocalObjective(), same, batch, site)
    assert_close(found.terms["downstream"], local.terms["mse"])
    assert_close(found.total, local.total)
    for p, q in zip(sae.parameters(), same.parameters(), strict=True):
        assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-6)


# --- what the loss is -----------------------------------------------------------------------------

MODEL = random_gpt2()
SITES = ("blocks.0.hook_resid_pre", "blocks.1.hook_mlp_out", "blocks.1.attn.hook_z")
LATER = {
    SITES[0]: [f"blocks.{i}.hook_resid_post" for i in range(3)],
    SITES[1]: [f"blocks.{i}.hook_resid_post" for i in (1, 2)],
    SITES[2]: [f"blocks.{i}.hook_resid_post" for i in (1, 2)],
}


def relu_sae(seed: int = 0, **fields) -> SAE:
    config = ReLUConfig(d_sae=48, l1_coefficient=0.5, l1_warmup=0.0, **fields)
    return config.build(32, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("site", SITES)
def test_the_loss_is_the_documented_one(site):
    tokens, scale = random_tokens(300), 0.4
    sae, batch = relu_sae(), make_batch(MODEL, tokens, SITES, scale=scale)
    found = output(DOWNSTREAM, sae, batch, site)

    counts = torch.arange(8).expand(6, 8) > 0
    own = MODEL.run(tokens, capture=list(MODEL.sites()))

    def splice(acts: Tensor) -> Tensor:
        recon = (sae(scale * acts.flatten(2)) / scale).view(acts.shape)
        return torch.where(counts.view(6, 8, *[1] * (acts.ndim - 2)), recon, acts)

    with torch.no_grad():
        spliced = MODEL.run(tokens, edit={site: splice}, capture=LATER[site])
        code = sae.encode(batch.acts[site])
    log_p, log_q = (run.logits[counts].log_softmax(-1) for run in (own, spliced))
    # torch's argument order is (perturbed, clean)
    kl = F.kl_div(log_q, log_p, log_target=True, reduction="batchmean")
    errors = [scale * (spliced.acts[s] - own.acts[s])[counts] for s in LATER[site]]
    downstream = torch.stack([e.square().sum(1).mean() for e in errors]).mean()
    assert set(found.terms) == {"kl", "downstream", "l1"}
    assert_close(found.measures["KL"], kl, rtol=1e-4, atol=1e-6)
    assert_close(found.terms["kl"], 0.5 * 32 * kl, rtol=1e-4, atol=1e-5)
    assert_close(found.terms["downstream"], 2.5 * downstream, rtol=1e-4, atol=1e-5)
    assert_close(found.terms["l1"], 0.5 * code.sum(1).mean())
    assert_close(found.total, sum(found.terms.values()))
    error = (found.out.recon - batch.acts[site]).square().sum(1).mean()
    assert_close(found.measures["mse"], error)

    alone = output(FROM_THE_START, sae, batch, site)
    assert set(alone.terms) == {"kl", "l1"}
    assert_close(alone.terms["kl"], 32 * kl, rtol=1e-4, atol=1e-5)


def test_the_auxiliary_loss_of_dead_latents_stays():
    batch, sae = make_batch(MODEL, random_tokens(300), SITES), relu_sae()
    one, dead = Trained(sae, SITES[0], SITES[0]), torch.ones(48, dtype=torch.bool)
    (part,) = FROM_THE_START.parts([one], batch, at=END, dead={SITES[0]: dead})
    local = LocalObjective().parts([one], batch, at=END, dead={SITES[0]: dead})
    terms = part.outputs[SITES[0]].terms
    assert torch.equal(terms["aux"], next(local).outputs[SITES[0]].terms["aux"])


def test_a_transcoder_is_spliced_in_where_it_writes():
    """What attention writes is a linear function of its mixed values."""
    reads, writes = "blocks.1.attn.hook_z", "blocks.1.hook_attn_out"
    batch = make_batch(MODEL, random_tokens(300), [reads, writes], scale=0.3)
    sae = linear_sae(MODEL.blocks[1].attn.W_O)
    with torch.no_grad():
        sae.b_dec.copy_(0.3 * MODEL.blocks[1].attn.b_O)
    found = output(DOWNSTREAM, sae, batch, reads, writes)
    assert abs(found.measures["KL"]) < 1e-6
    assert found.terms["downstream"] < 1e-8
    with torch.no_grad():
        sae.b_dec[0] += 1
    assert output(DOWNSTREAM, sae, batch, reads, writes).measures["KL"] > 1e-3


def test_errors_at_sites_of_another_width_are_relative_to_the_saes_own():
    model = random_gpt2()
    batch = make_batch(model, random_tokens(300), ["blocks.0.mlp.hook_post"])
    config = TopKConfig(d_sae=64, k=4)
    sae = config.build(SMALL.d_mlp, generator=torch.Generator().manual_seed(0))
    found = output(DOWNSTREAM, sae, batch, "blocks.0.mlp.hook_post")
    run = batch.runs[0]
    spliced = run.spliced("blocks.0.mlp.hook_post", found.out.recon, capture=LATER[SITES[0]])
    mean = sum(
        (run.select(spliced.acts[s]) - run.select(run.observed[s])).square().sum(1).mean() / 3
        for s in LATER[SITES[0]]
    )
    assert_close(found.terms["downstream"], 2.5 * mean * SMALL.d_mlp / SMALL.d_model)


# --- gradients ------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", [FROM_THE_START, DOWNSTREAM])
@pytest.mark.parametrize("site", SITES[:2])
def test_gradients_are_those_of_finite_differences(objective, site):
    model = random_gpt2().double()
    batch = make_batch(model, random_tokens(300, 2, 4), [site])
    config = ReLUConfig(d_sae=4, l1_coefficient=0.5)
    sae = config.build(32, generator=torch.Generator().manual_seed(0)).double()
    output(objective, sae, batch, site)
    eps = 1e-6
    for p in sae.parameters():
        direction = randn(*p.shape, seed=p.numel()).double()
        totals = []
        for sign in (1, -1):
            with torch.no_grad():
                p += sign * eps * direction
            dead = {site: torch.zeros(4, dtype=torch.bool)}
            (part,) = objective.parts([Trained(sae, site, site)], batch, at=END, dead=dead)
            totals.append(float(part.total.detach()))
            with torch.no_grad():
                p -= sign * eps * direction
        slope = (totals[0] - totals[1]) / (2 * eps)
        assert float((p.grad * direction).sum()) == pytest.approx(slope, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("objective", [FROM_THE_START, DOWNSTREAM])
def test_how_contexts_are_cut_into_runs_does_not_matter(objective):
    tokens = random_tokens(300)
    found = []
    for n_runs in (1, 3):
        sae = relu_sae()
        batch = make_batch(MODEL, tokens, SITES, n_runs=n_runs)
        found.append((output(objective, sae, batch, SITES[0]), sae))
    (one, whole), (other, parts) = found
    assert_close(one.total, other.total)
    for p, q in zip(whole.parameters(), parts.parameters(), strict=True):
        assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-5)


def test_the_model_gets_no_gradients_even_if_it_asks_for_some():
    model = random_gpt2().requires_grad_(True)
    batch = make_batch(model, random_tokens(300), SITES)
    output(DOWNSTREAM, relu_sae(), batch, SITES[1])
    assert all(p.grad is None for p in model.parameters())


def test_a_half_precision_model_trains_a_float32_sae():
    batch = make_batch(random_gpt2().bfloat16(), random_tokens(300), SITES[:1])
    acts = {SITES[0]: batch.acts[SITES[0]].float()}
    sae = relu_sae()
    found = output(DOWNSTREAM, sae, Batch(acts, 6, batch.runs, batch.scales), SITES[0])
    assert found.total.dtype == sae.W_dec.grad.dtype == torch.float32
    assert found.total.isfinite()


# --- whole runs -----------------------------------------------------------------------------------

EOT = 7
CONFIG = TrainerConfig(n_tokens=640, batch_rows=32, lr=0.01, log_every=5, checkpoint_every=6)


class Drawn(Contexts):
    n_contexts = n_tokens = None
    fingerprint = "drawn"

    def __getitem__(self, index: int) -> Tensor:
        return torch.randint(20, (16,), generator=torch.Generator().manual_seed(index))


def open_source(sites: Sequence[Site], objective: Objective) -> ContextSource:
    return open_contexts(
        LiveConfig(),
        MODEL,
        sites,
        ContextStream(Drawn(), world=World(0, 1)),
        observed=objective.observes(sites, MODEL.sites()),
        batch_rows=32,
        special_ids=[EOT],
        stopwatch=Stopwatch(),
    )


SAE_CONFIG = TopKConfig(d_sae=48, k=4)


def make(
    objective: Objective, sites: Sequence[Site] = SITES, config: TrainerConfig = CONFIG
) -> Trainer:
    return Trainer(
        config,
        SAE_CONFIG,
        objective,
        open_source(sites, objective),
        device=torch.device("cpu"),
    )


@pytest.fixture(autouse=True)
def small_sample(monkeypatch):
    monkeypatch.setattr(contexts_module, "N_SAMPLE_ROWS", 200)


@pytest.mark.parametrize("objective", [FROM_THE_START, DOWNSTREAM])
def test_a_site_alone_is_that_site_among_all(objective):
    """But for reading attention's inside, which makes the model compute another way."""
    sites = [SITES[0], "blocks.1.hook_resid_mid"]
    among, alone = make(objective, sites), make(objective, sites[1:])
    for trainer in (among, alone):
        trainer.initialise()
        for step in range(4):
            trainer.step(step, measure=True)
    for name, tensor in among.saes[sites[1]].weights().items():
        assert torch.equal(tensor, alone.saes[sites[1]].weights()[name]), name


@pytest.mark.slow
def test_stopped_and_resumed_is_never_stopped(tmp_path):
    objective = DOWNSTREAM
    whole = make(objective)
    whole.fit(tmp_path / "whole", [])

    class Stop(Exception):
        pass

    cut = make(objective)
    step = cut.step

    def breaking(number: int, *, measure: bool):
        if number == 14:
            raise Stop
        return step(number, measure=measure)

    cut.step = breaking
    with pytest.raises(Stop):
        cut.fit(tmp_path / "cut", [])
    resumed = make(objective)
    assert resumed.fit(tmp_path / "cut", [], resume=True) is None
    for site in SITES:
        for name, tensor in resumed.saes[site].weights().items():
            assert torch.equal(tensor, whole.saes[site].weights()[name]), name
    assert len({(tmp_path / n / "metrics.jsonl").read_text() for n in ("whole", "cut")}) == 1


def test_what_is_logged():
    trainer = make(DOWNSTREAM)
    trainer.initialise()
    metrics = trainer.step(0, measure=True)
    for site in SITES:
        own = {n.removeprefix(f"{site}/") for n in metrics if n.startswith(f"{site}/")}
        assert own == {"FVU", "L0", "dead", "loss_kl", "loss_downstream", "KL", "mse"}
    terms = [float(v) for name, v in metrics.items() if "/loss_" in name]
    assert float(metrics["loss"]) == pytest.approx(sum(terms) / 3, rel=1e-5)
    assert metrics["n_contexts"] == 2


@pytest.mark.slow
def test_training_lowers_the_kl():
    config = replace(CONFIG, n_tokens=32 * 150, n_warmup_steps=5)
    trainer = make(FROM_THE_START, SITES[:1], config)
    trainer.initialise()
    kl = [float(trainer.step(s, measure=True)[f"{SITES[0]}/KL"]) for s in range(150)]
    assert sum(kl[-20:]) < 0.7 * sum(kl[:20])


@pytest.mark.slow
@pytest.mark.parametrize("objective", [EndToEndObjective(), DownstreamObjective()])
def test_a_run_begins_as_a_local_one(objective):
    """Step for step, on the same batches."""
    own, source = make(objective), open_source(SITES, objective)
    local = Trainer(CONFIG, SAE_CONFIG, LocalObjective(), source, device=torch.device("cpu"))
    start = round(0.7 * CONFIG.n_steps)
    for trainer in (own, local):
        trainer.initialise()
        for step in range(start):
            trainer.step(step, measure=True)
    for site in SITES:
        for name, tensor in own.saes[site].weights().items():
            assert torch.equal(tensor, local.saes[site].weights()[name]), name
    after = own.step(start, measure=True)
    assert f"{SITES[0]}/loss_kl" in after
    assert after["lr"] == pytest.approx(0.25 * float(local.step(start, measure=True)["lr"]))


@pytest.mark.parametrize("objective", [EndToEndObjective(), DownstreamObjective()])
def test_after_a_local_beginning_the_loss_is_as_large_as_the_local_error(objective):
    """And its gradients are those of the loss in its own units, all multiplied by one number."""
    batch = make_batch(MODEL, random_tokens(300), SITES)
    saes = [relu_sae(apply_b_dec_to_input=False) for _ in range(2)]
    exact = replace(objective, local_share=0.0)
    found = output(objective, saes[0], batch, SITES[0])
    own = output(exact, saes[1], batch, SITES[0])
    asked = [name for name in own.terms if name != "l1"]
    assert_close(sum(found.terms[name] for name in asked), found.measures["mse"])
    assert torch.equal(found.terms["l1"], own.terms["l1"])
    factor = found.terms["kl"] / own.terms["kl"]
    assert abs(factor - 1) > 0.1
    for name in asked:
        assert_close(found.terms[name], factor * own.terms[name])
    # The one parameter that the penalty does not know.
    assert_close(saes[0].b_dec.grad, factor * saes[1].b_dec.grad, rtol=1e-4, atol=1e-6)


def test_the_local_beginning_asks_for_no_predictions():
    batch = make_batch(LINEAR, random_tokens(VOCAB), LINEAR.names)
    one = Trained(linear_sae(torch.eye(D)), LINEAR.names[0], LINEAR.names[0])
    dead = {one.reads: torch.zeros(one.sae.d_sae, dtype=torch.bool)}
    objective = EndToEndObjective(local_share=0.5)
    for step, asked in ((49, False), (50, True)):
        list(objective.parts([one], batch, at=Moment(step, 100), dead=dead))
        assert ("predictions" in vars(batch.runs[0])) == asked


PARTS = [f"blocks.{i}.{part}" for i in range(3) for part in ("ln1", "attn", "ln2", "mlp")]
PARTS.append("ln_final")


@pytest.mark.parametrize("objective", [EndToEndObjective(), DownstreamObjective()])
@pytest.mark.parametrize(
    ("site", "last", "goes_on", "spliced_from"),
    [
        ("blocks.1.hook_resid_pre", "blocks.0.mlp", "blocks.1.ln1", "blocks.1.ln1"),
        ("blocks.1.hook_mlp_out", "blocks.1.mlp", "blocks.1.ln2", "blocks.0.ln1"),
    ],
)
def test_local_steps_run_the_model_no_further_than_the_last_site(
    objective, site, last, goes_on, spliced_from
):
    """And the others run the rest of it once, and what is behind the splice once."""
    trainer = make(objective, [site])
    trainer.initialise()
    trainer.step(0, measure=True)
    local = PARTS[: PARTS.index(last) + 1]
    with parts_run(MODEL) as names:
        for step in (1, 13):
            trainer.step(step, measure=True)
        assert names == 2 * local
        names.clear()
        trainer.step(14, measure=True)
        spliced, rest = (PARTS[PARTS.index(part) :] for part in (spliced_from, goes_on))
        assert Counter(names) == Counter([*local, *spliced, *rest])


# --- settings -------------------------------------------------------------------------------------


def test_what_is_compared_lies_behind_the_first_site_written():
    known = declare_sites(12)
    assert EndToEndObjective().observes(["blocks.3.hook_resid_pre"], known) == []
    objective = DownstreamObjective(downstream_sites="blocks.*.hook_resid_pre")
    written = ["blocks.8.hook_resid_pre", "blocks.6.hook_resid_pre"]
    assert objective.observes(written, known) == [
        f"blocks.{i}.hook_resid_pre" for i in range(7, 12)
    ]


@pytest.mark.parametrize(
    ("sites", "written", "message"),
    [
        ("blocks.*.hook_resid_pre", "blocks.11.hook_resid_pre", "comes after blocks.11.hook_resid"),
        ("blocks.*.hook_resid_post", "blocks.11.hook_resid_post", "give objective=e2e"),
        ("blocks.*.resid", "blocks.1.hook_resid_post", r"downstream_sites: 'blocks\.\*\.resid'"),
    ],
)
def test_sites_with_nothing_behind_them_to_compare_are_refused(sites, written, message):
    with pytest.raises(ValueError, match=message):
        DownstreamObjective(downstream_sites=sites).observes([written], declare_sites(12))


def test_a_source_without_runs_is_refused():
    tokens = ContextStream(Drawn(), world=World(0, 1))
    source = LiveConfig(buffer_rows=64).open(
        MODEL, SITES, tokens, batch_rows=32, special_ids=[], seed=0, stopwatch=Stopwatch()
    )
    with pytest.raises(ValueError, match="e2e needs the model and whole contexts"):
        Trainer(CONFIG, TopKConfig(), EndToEndObjective(), source, device=torch.device("cpu"))


@pytest.mark.parametrize("name", ["kl_coefficient", "downstream_coefficient"])
def test_coefficients_are_positive(name):
    with pytest.raises(ValueError, match=f"{name}: 0.0 is not positive"):
        DownstreamObjective(**{name: 0.0})


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_something_is_left_for_the_objective(share):
    with pytest.raises(ValueError, match=f"local_share: {share} leaves nothing"):
        EndToEndObjective(local_share=share)


def test_coefficients_are_the_papers():
    assert EndToEndObjective().kl_coefficient == 1
    both = DownstreamObjective()
    assert (both.kl_coefficient, both.downstream_coefficient) == (0.5, 2.5)
