"""Language models from outside: the shipped demo model, a local folder, or the Hugging Face hub.

    lm = load_model("demo")
    run = lm.model.run(torch.tensor([lm.tokenizer.encode("Returns the")]))

A folder holds the Hugging Face layout (`hf_layout`): config.json, weights, tokenizer files. From
the hub only those files are fetched, once; with the hub out of reach the cached copy is used.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import final

import torch

from sae_kit.config import nearest
from sae_kit.hub import cached_repositories, explained, is_repository_id
from sae_kit.models.expectations import Expectations, Fitted
from sae_kit.models.gpt2 import GPT2
from sae_kit.models.hf_layout import WEIGHT_FILES, read_model, write_model
from sae_kit.models.hooks import torch_device, torch_dtype
from sae_kit.models.tokenizer import Tokenizer

DEMO = Path(__file__).parent.parent / "assets" / "demo"

HUB_NAMES = {
    name: f"openai-community/{name}" for name in ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")
}

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt")
# A repository often holds the same weights for other frameworks too; these are all we read.
SAFE_FILES = ("config.json", "model*.safetensors", "model.safetensors.index.json", *TOKENIZER_FILES)
PICKLED_FILES = ("config.json", "pytorch_model.bin", *TOKENIZER_FILES)

WRITERS = ("W_E", "W_pos", "W_O", "b_O", "W_out", "b_out")
"""Parameters whose last axis is d_model and is added to the residual stream."""


@final
@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which language model to load, and how."""

    name: str
    """"demo", a local folder, or a hub id (gpt2, gpt2-medium, gpt2-large, gpt2-xl for short)."""
    revision: str | None = None
    """Branch, tag or commit of a hub model; null is its main branch."""
    centre_writing_weights: bool = False
    """Subtract the mean over d_model from all that writes to the residual stream."""
    dtype: str = "float32"
    """Type of weights and activations: float32, bfloat16, float16 or float64."""
    device: str = "auto"
    """"auto" (a GPU if there is one), "cpu", "cuda", "cuda:1", "mps"."""

    def __post_init__(self) -> None:
        if not self.name.strip():
            raise ValueError("name: empty; give 'demo', a local folder or a hub id such as 'gpt2'")
        torch_dtype(self.dtype)

    def build(self) -> "LanguageModel":
        """Load it; see `load_model`."""
        return load_model(
            self.name,
            revision=self.revision,
            centre_writing_weights=self.centre_writing_weights,
            dtype=self.dtype,
            device=self.device,
        )


@final
@dataclass(frozen=True)
class LanguageModel:
    """A loaded model, its tokenizer, and what tells later which model it was."""

    model: GPT2
    """Its weights are frozen (`requires_grad` is off)."""
    tokenizer: Tokenizer
    name: str
    """The name it was asked for by."""
    revision: str | None
    """The hub commit it came from; None for a local one."""
    centred: bool
    """Whether the writing weights were mean-centred on loading."""


def load_model(
    name: str | None = None,
    *,
    like: Fitted | None = None,
    centre_writing_weights: bool | None = None,
    dtype: str = "float32",
    device: str = "cpu",
    revision: str | None = None,
) -> LanguageModel:
    """Load a GPT-2 and its tokenizer; the arguments are the fields of `ModelConfig`.

    Args:
        name: see `ModelConfig`; may be left out where `like` says it.
        like: an SAE; the model is the one that it was trained on, processed as it was then, as far
            as its file says and nothing else is given here.
        centre_writing_weights: see `ModelConfig`; None = as `like` says, or else not.
        dtype: see `ModelConfig`.
        device: see `ModelConfig`.
        revision: see `ModelConfig`.

    Raises:
        ValueError: no such model, or its files are incomplete, broken or not a GPT-2's.
        ConnectionError: a hub model is not in the cache and the hub cannot be reached.
    """
    to_dtype, to_device = torch_dtype(dtype), torch_device(device)
    expected = Expectations.of({} if like is None else like.metadata)
    if (name := name or expected.model_name) is None:
        raise ValueError("name: none given, and no SAE that says which; give 'gpt2', say, or like=")
    if centre_writing_weights is None:
        centre_writing_weights = bool(expected.centred)
    folder, commit = find_model(name, revision=revision)
    model = read_model(folder)
    tokenizer = Tokenizer.load(folder)
    if tokenizer.vocab_size > model.config.n_vocab:
        raise ValueError(
            f"{folder}: the tokenizer has {tokenizer.vocab_size} tokens but the model embeds only "
            f"{model.config.n_vocab}; they belong to different models"
        )
    if centre_writing_weights:
        # In float32 at least: a mean taken in half precision would leave a visible remainder.
        model = centred_copy(model.to(torch.promote_types(torch.float32, to_dtype)))
    model = model.to(to_device, to_dtype).eval().requires_grad_(False)
    return LanguageModel(model, tokenizer, name, commit, centre_writing_weights)


def load_tokenizer(name: str, *, revision: str | None = None) -> Tokenizer:
    """Load the tokenizer of a model without its weights; `name` and errors as in `load_model`."""
    if name in HUB_NAMES or _is_hub_id(name):
        return Tokenizer.load(_download(name, revision, TOKENIZER_FILES))
    return Tokenizer.load(find_model(name, revision=revision)[0])


def save_model(
    model: GPT2, tokenizer: Tokenizer, folder: str | Path, *, dtype: str = "float32"
) -> None:
    """Write model and tokenizer in Hugging Face layout, for `load_model` and for `transformers`.

    Raises:
        ValueError: `dtype` is unknown, or too narrow for a weight.
    """
    folder = Path(folder)
    write_model(model, folder, eot_id=tokenizer.eot_id, dtype=torch_dtype(dtype))
    tokenizer.save(folder)


@torch.no_grad()
def centred_copy(model: GPT2) -> GPT2:
    """The same function with a mean-free residual stream, as TransformerLens' default loader makes.

    Everything that writes to the stream loses its mean over d_model, so every activation there is
    the original minus its own mean, and LayerNorm, which ignores the mean, passes on the same
    values. The unembedding keeps the original embedding, so the logits are the same too. Some
    public SAEs (gpt2-small-res-jb) were trained on such a model.
    """
    centred = GPT2(replace(model.config, tied=False))
    centred.to(model.W_E.device, model.W_E.dtype)
    centred.load_state_dict(
        model.state_dict()
    )  # holds W_U under its own name even where it is tied
    for name, weight in centred.named_parameters():
        if name.endswith(WRITERS):
            weight.sub_(weight.mean(-1, keepdim=True))
    return centred


def find_model(name: str, *, revision: str | None = None) -> tuple[Path, str | None]:
    """The folder that holds the model, downloaded if need be, and its hub commit if it has one."""
    if name in HUB_NAMES or _is_hub_id(name):
        folder = _download(name, revision, SAFE_FILES)
        if not any((folder / file).is_file() for file in WEIGHT_FILES):
            folder = _download(name, revision, PICKLED_FILES)
        return folder, folder.name
    if revision is not None:
        raise ValueError(
            f"revision: {revision!r} has no meaning for {name!r}, which is not on the hub"
        )
    if name == "demo":
        if not (DEMO / "config.json").is_file():
            raise ValueError(
                "name: 'demo' is not in this installation (sae_kit/assets/demo is empty); install "
                "again, or name a local model folder or a hub id such as 'gpt2'"
            )
        return DEMO, None
    folder = Path(name).expanduser()
    if not folder.is_dir():
        close = nearest(name, ["demo", *HUB_NAMES])
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(
            f"name: there is no folder {name!r}, and it is no hub id (owner/name) either{hint}"
        )
    return folder, None


def _is_hub_id(name: str) -> bool:
    """Whether `name` has the form owner/name and no folder of that name is here."""
    return is_repository_id(name.split("/")) and not Path(name).is_dir()


def _download(name: str, revision: str | None, files: tuple[str, ...]) -> Path:
    """The snapshot folder of a hub model, with those of `files` that the repository has."""
    # Imported here: it is slow, and the demo and local folders do without.
    from huggingface_hub import snapshot_download

    repo = HUB_NAMES.get(name, name)
    close = nearest(name, HUB_NAMES)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    missing = f"there is no local folder {name!r}, and the hub has no public model {repo!r}{hint}"
    with explained(
        repo,
        revision,
        field="name",
        missing=missing,
        instead=lambda: (
            "What works without the hub: model=demo; a local folder in Hugging Face layout "
            f"(model=local model.name=FOLDER); models in the cache: {cached_repositories()}"
        ),
    ):
        return Path(snapshot_download(repo, revision=revision, allow_patterns=list(files)))
