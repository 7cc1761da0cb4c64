"""What a user can get wrong: one clear message, exit status 2, nothing written and nothing lost."""

import json
import re
import shutil
from pathlib import Path

import pytest
from runner import Run

USERS_ERROR = 2
NOWHERE = "http://127.0.0.1:9"  # where nobody listens


def refused(run: Run, *said: str) -> str:
    """The message of a run that was refused, after checking that it says these things."""
    assert run.status == USERS_ERROR, run.out + run.err
    assert "Traceback" not in run.err
    assert run.err.count("error: ") == 1, run.err
    message = run.err[run.err.index("error: ") :]
    for what in said:
        assert what in message
    return message


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


SAE_CASES = {
    "unknown site": (
        {"sites": "blocks.1.hook_resid_prr"},
        ["sites: 'blocks.1.hook_resid_prr'", "nearest: blocks.1.hook_resid_pre"],
    ),
    "site of a layer that is not there": (
        {"sites": "blocks.7.hook_resid_pre"},
        ["sites: 'blocks.7.hook_resid_pre'", "blocks.0.hook_resid_pre"],
    ),
    "context longer than the model's": (
        {"data.context_size": 33},
        ["context_size=33", "context of 32 tokens", "data.context_size=32"],
    ),
    "k larger than d_sae": ({"sae.k": 65}, ["sae.k: 65", "1 to d_sae=64"]),
    "buffer smaller than a batch": (
        {"activations.buffer_rows": 63},
        ["activations.buffer_rows: 63", "batch of 64 rows", "1024", "trainer.batch_rows"],
    ),
    "fewer tokens than a batch": (
        {"trainer.n_tokens": 63},
        ["trainer.n_tokens: 63", "batch_rows=64"],
    ),
    "misspelt field": (
        {"trainer.n_token": 100},
        ["trainer.n_token: there is no such setting (trainer.n_token=100)", "n_tokens"],
    ),
    "misspelt field, appended": (
        {"+trainer.n_token": 100},
        ["trainer.n_token: unknown", "did you mean 'n_tokens'"],
    ),
    "misspelt group": ({"trainr.lr": 1}, ["trainr: there is no such setting", "trainer"]),
    "misspelt group choice": (
        {"sae": "topq"},
        ["Could not find 'sae/topq'", "topk", "relu"],
    ),
    "field of another choice": (
        {"sae.l1_coefficient": 2},
        ["sae.l1_coefficient: there is no such setting", "aux_coefficient"],
    ),
    "not an override": ({"--": None, "trainer.lr:": 3}, ["trainer.lr:"]),
    "word for a number": (
        {"trainer.lr": "fast"},
        ["trainer.lr: expected float, got str 'fast'"],
    ),
    "fraction for a count": (
        {"sae.k": 2.5},
        ["sae.k: expected int, got float 2.5"],
    ),
    "number for a choice": (
        {"activations.scale_inputs": 1},
        ["activations.scale_inputs: expected bool, got int 1"],
    ),
    "group for a field": (
        {"trainer.lr": "{a: 1}"},
        ["trainer.lr: expected float, got dict"],
    ),
    "number for a group": ({"trainer": 3}, ["Config group override must be a string"]),
    "missing field": ({"model.name": None}, ["model.name: missing", "model.name=..."]),
    "model that is not there": (
        {"model.name": "no/such/model"},
        ["name: there is no folder 'no/such/model'"],
    ),
    "negative seed": ({"trainer.seed": -1}, ["trainer.seed: -1", "0 or more"]),
    "unknown task": ({"task": "sae"}, ["task: 'sae' is unknown", "saes, language_model"]),
    "unknown device": ({"model.device": "tpu"}, ["device: 'tpu'", "auto or cpu"]),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", SAE_CASES)
def test_settings_that_do_not_fit(tiny, tmp_path, case):
    changed, said = SAE_CASES[case]
    folder = tmp_path / "outputs" / "run"
    arguments = [a for a in tiny.saes() if a.split("=")[0] not in changed]
    arguments += [f"{key}={value}" for key, value in changed.items() if value is not None]
    refused(tiny.run(*arguments, f"hydra.run.dir={folder}"), *said)
    assert not folder.exists(), "an empty run folder is left"


TEXT_CASES = {
    "no text found": ("[{folder}/*.md]", ["{folder}/*.md"]),
    "no such file": ("[{folder}/missing.txt]", ["{folder}/missing.txt"]),
    "not UTF-8": ("[{folder}/latin.txt]", ["latin.txt is not UTF-8: byte 3 is 0xe9", "iconv"]),
    "not a text file": ("[{folder}/image.png]", ["image.png", ".txt, .jsonl, .parquet"]),
    "empty": ("[{folder}/empty.txt]", ["empty.txt", "0 tokens", "give more text"]),
    "too little": ("[{folder}/short.txt]", ["short.txt", "do not fill one context of 32"]),
    "too little to hold out": (
        "[{folder}/train_only.txt]",
        ["heldout text", "do not fill one context of 32"],
    ),
    "not JSON": ("[{folder}/broken.jsonl]", ["broken.jsonl, line 2 is not JSON"]),
    "no such field": ("[{folder}/fields.jsonl]", ["fields.jsonl, line 1", "'text'", "body"]),
    "no list": ("{folder}/short.txt", ["data.paths: expected a list (write [{folder}/short.txt])"]),
    "no path at all": ("[]", ["data.paths: no text named"]),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", TEXT_CASES)
def test_text_that_cannot_be_read(tiny, tmp_path, case):
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "latin.txt").write_bytes("caf\xe9 ".encode("latin-1") * 1000)
    (texts / "image.png").write_bytes(b"\x89PNG")
    (texts / "empty.txt").write_text("")
    (texts / "short.txt").write_text("A few words.")
    (texts / "train_only.txt").write_text("A few words, again and again.\n" * 40)
    (texts / "broken.jsonl").write_text(
        '{"text": "one"}\n{"text": \n' + '{"text": "and one more"}\n' * 100
    )
    (texts / "fields.jsonl").write_text('{"body": "one"}\n')
    paths, said = TEXT_CASES[case]
    run = tiny.run(
        *tiny.saes(data__paths=paths.format(folder=texts)), f"hydra.run.dir={tmp_path / 'run'}"
    )
    refused(run, *(what.format(folder=texts) for what in said))
    assert not (tmp_path / "run").exists()


# --- the hub --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_model_on_an_unreachable_hub(tiny, tmp_path):
    run = tiny.run(
        *tiny.saes(model="gpt2", model__name=None),
        f"hydra.run.dir={tmp_path / 'run'}",
        impatient=True,
        env={"HF_ENDPOINT": NOWHERE, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0"},
    )
    refused(run, "openai-community/gpt2", NOWHERE, "What works without the hub: model=demo")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_data_set_on_an_unreachable_hub(tiny, tmp_path):
    run = tiny.run(
        *tiny.saes(data="openwebtext", data__paths=None),
        f"hydra.run.dir={tmp_path / 'run'}",
        impatient=True,
        env={"HF_ENDPOINT": NOWHERE, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0"},
    )
    refused(run, "Skylion007/openwebtext", "Without a network: data=docs")
    assert not (tmp_path / "run").exists()


# --- the run folder -------------------------------------------------------------------------------


def test_a_run_folder_that_cannot_be_made(tiny, tmp_path):
    (tmp_path / "file").write_text("kept")
    run = tiny.run(*tiny.saes(), f"hydra.run.dir={tmp_path / 'file' / 'run'}")
    refused(run, "hydra.run.dir: ", str(tmp_path / "file" / "run"), "choose another")
    assert (tmp_path / "file").read_text() == "kept"


def test_a_run_folder_that_is_a_file(tiny, tmp_path):
    (tmp_path / "file").write_text("kept")
    run = tiny.run(*tiny.saes(), f"hydra.run.dir={tmp_path / 'file'}")
    refused(run, "hydra.run.dir: ", str(tmp_path / "file"), "choose another")
    assert (tmp_path / "file").read_text() == "kept"


def test_a_run_folder_without_room(tiny, tmp_path):
    """The first write into it fails: a folder stands where provenance.json belongs."""
    folder = tmp_path / "run"
    (folder / "provenance.json").mkdir(parents=True)
    run = tiny.run(*tiny.saes(), f"hydra.run.dir={folder}")
    refused(run, "hydra.run.dir: ", f"could not write {folder}/provenance.json", "another folder")


# --- runs that exist ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def done(tiny, tmp_path_factory) -> Path:
    """A finished run."""
    folder = tmp_path_factory.mktemp("done") / "run"
    assert tiny.run(*tiny.saes(), f"hydra.run.dir={folder}").status == 0
    return folder


@pytest.fixture
def untouched(done):
    """The finished run, checked to be the same afterwards."""
    before = files(done)
    yield done
    assert files(done) == before


def test_a_folder_that_holds_a_run(tiny, untouched):
    run = tiny.run(*tiny.saes(), f"hydra.run.dir={untouched}")
    refused(run, f"hydra.run.dir: {untouched} holds a run already", f"resume={untouched}")


def test_resume_with_another_config_shows_the_difference(tiny, untouched):
    run = tiny.run(f"resume={untouched}", "trainer.lr=0.5", "sae.k=5", "trainer.seed=0")
    message = refused(run, "trainer.lr: 0.001 -> 0.5", "sae.k: 4 -> 5", "start a new run")
    assert "seed" not in message, "what stays the same is no difference"


def test_resume_with_another_choice_shows_the_difference(tiny, untouched):
    run = tiny.run(f"resume={untouched}", "sae=relu")
    refused(run, "the command line changes\n  sae=relu\n", "start a new run")


@pytest.mark.slow
def test_resume_with_the_same_settings_is_no_change(tiny, done):
    run = tiny.run(f"resume={done}", *tiny.saes())
    assert run.status == 0, run.err


def test_resume_with_an_edited_config_shows_the_difference(tiny, done, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(done, folder)
    text = (folder / "config.yaml").read_text()
    edited = re.sub(r"\n  lr: .*\n", "\n  lr: 0.5\n", text)
    assert edited != text
    (folder / "config.yaml").write_text(edited)
    before = files(folder)
    refused(tiny.run(f"resume={folder}"), "trainer.lr: 0.001 -> 0.5", "config.yaml was changed")
    assert files(folder) == before


@pytest.mark.slow
def test_resume_with_other_text_is_refused(tiny, tmp_path):
    folder, text = tmp_path / "run", tmp_path / "text.txt"
    text.write_text(tiny.text.read_text())
    arguments = tiny.saes(data__paths=f"[{text}]")
    assert tiny.run(*arguments, f"hydra.run.dir={folder}").status == 0
    before = files(folder / "checkpoints")
    text.write_text(text.read_text().replace("e", "E"))
    refused(tiny.run(f"resume={folder}"), "the text, the tokenizer", "start a new run")
    assert files(folder / "checkpoints") == before


def test_resume_of_what_is_no_run(tiny, tmp_path):
    missing = tmp_path / "missing"
    refused(tiny.run(f"resume={missing}"), f"resume: {missing} holds no run", "run's folder")
    assert not missing.exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("kept")
    refused(tiny.run(f"resume={tmp_path / 'mine'}"), "holds no run")
    assert files(tmp_path / "mine") == {"notes.txt": b"kept"}


def test_resume_without_provenance(tiny, done, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(done, folder)
    (folder / "provenance.json").write_text("{")
    refused(tiny.run(f"resume={folder}"), "provenance.json cannot be read", "start a new run")


def test_resume_when_every_checkpoint_is_damaged(tiny, done, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(done, folder)
    for tensors in folder.glob("checkpoints/*/tensors.safetensors"):
        tensors.write_bytes(b"")
    refused(tiny.run(f"resume={folder}"), "no checkpoint to continue from", "step_20, step_18")


def test_what_a_run_folder_says_of_its_starts(done):
    starts = json.loads((done / "provenance.json").read_text())
    assert starts[0]["config"]["sae"]["k"] == 4
    assert "sae.k=4" in starts[0]["overrides"]
    assert {"created", "command", "versions", "git"} <= set(starts[0])


# --- language models ------------------------------------------------------------------------------

LM_CASES = {
    "context longer than the model's": (
        {"data__context_size": 17},
        ["context_size=17", "data.context_size=16"],
    ),
    "vocabulary too small": ({"architecture__n_vocab": 100}, ["architecture.n_vocab: 100", "257"]),
    "heads that do not divide": (
        {"architecture__n_head": 3},
        ["architecture.d_model: 16 is not divisible by n_head 3"],
    ),
    "shares": ({"data__docs_share": 0.5}, ["data", "docs_share", "add up to 1"]),
    "no text": ({"data__text_paths": "[/nowhere/*.txt]"}, ["/nowhere/*.txt"]),
    "held-out losses between log lines": (
        {"lm__eval_every": 3},
        ["lm.eval_every: 3", "log_every=2"],
    ),
    "other data": (
        {
            "data": "docs",
            "data__docs_share": None,
            "data__text_share": None,
            "data__synthetic_share": None,
            "data__text_paths": None,
        },
        ["data.kind: 'docs' does not fit here; give 'mixture'"],
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", LM_CASES)
def test_language_model_settings_that_do_not_fit(tiny, tmp_path, case):
    changed, said = LM_CASES[case]
    folder = tmp_path / "run"
    refused(tiny.run(*tiny.language_model(**changed), f"hydra.run.dir={folder}"), *said)
    assert not folder.exists()
