"""Every token source keeps the promises of `TokenSource`."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sae_kit.checkpoint import load_checkpoint, save_checkpoint
from sae_kit.data import docs
from sae_kit.data.docs import DocsConfig, DocstringCorpus
from sae_kit.data.grammar import Words
from sae_kit.data.hub import HubConfig
from sae_kit.data.mixture import MixtureConfig
from sae_kit.data.text import TextConfig
from sae_kit.data.tokens import Split, TokensConfig, TokenSource
from sae_kit.dist import World
from sae_kit.models.tokenizer import Tokenizer, train_bpe

SIZE = 24
TRAIN = tuple(f"the cat {i} sat on the mat" + " and the dog" * (i % 7) for i in range(80))
HELDOUT = tuple(f"the tree {i} was not seen" for i in range(40))

KINDS = sorted(TokensConfig.variants())
INDEXED = sorted(set(KINDS) - {"hub"})  # what is on this machine, and can be read by index
PLAIN = ["docs", "hub", "text"]  # nothing but TRAIN and HELDOUT

Open = Callable[..., TokenSource]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """One that the synthetic part of the mixture can work with."""
    words = Words().words()
    years = [str(year) for year in range(1100, 1900)]
    spaced = "".join(f" {word}" for word in (*words, *years))
    return train_bpe([spaced, "\n".join(words)] * 20, 1800)


@pytest.fixture
def configs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, TokensConfig]:
    """A config of every kind, all of them with the same train and heldout documents."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setenv("SAE_KIT_CACHE", str(tmp_path / "cache"))
    corpus = DocstringCorpus(
        train=TRAIN, heldout=HELDOUT, versions={}, n_files=1, n_unreadable=0, seconds=0.0
    )
    monkeypatch.setattr(docs, "docstring_corpus", lambda: corpus)
    for split, documents in (("train", TRAIN), ("heldout", HELDOUT)):
        (tmp_path / split).mkdir()
        for i, document in enumerate(documents):
            path = tmp_path / split / f"{i:03d}-{split}.txt"
            path.write_text(document, encoding="utf-8")

    def load_dataset(repo: str, name: str | None, *, split: str, **_: object) -> object:
        rows = [{"text": document, "id": i} for i, document in enumerate((*HELDOUT, *TRAIN))]
        return datasets.Dataset.from_list(rows).to_iterable_dataset(num_shards=1)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    paths = (str(tmp_path / "*" / "*.txt"),)
    return {
        "docs": DocsConfig(context_size=SIZE),
        "text": TextConfig(context_size=SIZE, paths=paths, heldout_paths=("*-heldout.txt",)),
        "hub": HubConfig(context_size=SIZE, repo="o/set", heldout_documents=len(HELDOUT)),
        "mixture": MixtureConfig(
            context_size=SIZE, text_paths=paths, text_heldout=("*-heldout.txt",)
        ),
    }


@pytest.fixture
def open_source(configs: dict[str, TokensConfig], tokenizer: Tokenizer) -> Open:
    def open_source(
        kind: str,
        *,
        split: Split = "train",
        rank: int = 0,
        size: int = 1,
        seed: int = 0,
        prepend_bos: bool = True,
    ) -> TokenSource:
        config = replace(configs[kind], prepend_bos=prepend_bos)
        return config.open(tokenizer, split=split, world=World(rank, size), seed=seed)

    return open_source


def read(source: TokenSource, n: int) -> Tensor:
    return torch.stack([next(source) for _ in range(n)])


def flat(documents: tuple[str, ...], tokenizer: Tokenizer) -> list[int]:
    return [i for text in documents for i in (*tokenizer.encode(text), tokenizer.eot_id)]


def test_every_kind_is_tested(configs: dict[str, TokensConfig]) -> None:
    assert sorted(configs) == KINDS


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prepend_bos", [True, False])
@pytest.mark.parametrize("split", ["train", "heldout"])
def test_contexts_are_full(
    kind: str, prepend_bos: bool, split: Split, open_source: Open, tokenizer: Tokenizer
) -> None:
    source = open_source(kind, split=split, prepend_bos=prepend_bos)
    assert iter(source) is source
    contexts = read(source, 60)
    assert source.context_size == SIZE
    assert contexts.shape == (60, SIZE)
    assert contexts.dtype == torch.int64
    assert 0 <= contexts.min() <= contexts.max() < tokenizer.vocab_size
    starts_with_bos = contexts[:, 0] == tokenizer.eot_id
    assert starts_with_bos.all() if prepend_bos else not starts_with_bos.all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_call_gives_the_same_contexts(kind: str, open_source: Open) -> None:
    assert read(open_source(kind), 80).equal(read(open_source(kind), 80))


@pytest.mark.parametrize("kind", INDEXED)
def test_another_seed_gives_another_order(kind: str, open_source: Open) -> None:
    assert not read(open_source(kind), 80).equal(read(open_source(kind, seed=1), 80))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stop", [0, 1, 37, 130])
@pytest.mark.parametrize(("rank", "size"), [(0, 1), (1, 2)])
def test_resuming_is_never_having_stopped(
    kind: str, stop: int, rank: int, size: int, open_source: Open, tmp_path: Path
) -> None:
    where = {"rank": rank, "size": size}
    expected = read(open_source(kind, **where), stop + 40)
    stopped = open_source(kind, **where)
    for _ in range(stop):
        next(stopped)
    save_checkpoint(tmp_path / "checkpoints", stop, stopped.state_dict(), keep=1)
    read(stopped, 3)
    resumed = open_source(kind, **where)
    read(resumed, 7)  # wherever it was before
    resumed.load_state_dict(load_checkpoint(tmp_path / "checkpoints" / f"step_{stop}"))
    assert read(resumed, 40).equal(expected[stop:])


@pytest.mark.parametrize("kind", KINDS)
def test_a_position_of_another_config_is_refused(kind: str, open_source: Open) -> None:
    state = open_source(kind).state_dict()
    with pytest.raises(ValueError, match="start a new run"):
        open_source(kind, prepend_bos=False).load_state_dict(state)
    with pytest.raises(ValueError, match="resume with the same number"):
        open_source(kind, rank=1, size=2).load_state_dict(state)


@pytest.mark.parametrize("kind", INDEXED)
def test_ranks_together_are_one_process(kind: str, open_source: Open) -> None:
    whole = read(open_source(kind), 160)  # more than an epoch
    ranks = [read(open_source(kind, rank=rank, size=2), 80) for rank in (0, 1)]
    assert torch.stack(ranks, dim=1).flatten(0, 1).equal(whole)


def test_ranks_share_the_documents_of_a_stream_out(open_source: Open, tokenizer: Tokenizer) -> None:
    streams = []
    for rank in (0, 1):
        own = flat(TRAIN[rank::2], tokenizer)
        n = len(own) // SIZE
        source = open_source("hub", rank=rank, size=2, prepend_bos=False)
        streams.append(read(source, n).flatten().tolist())
        assert streams[rank] == own[: n * SIZE]
    assert streams[0] != streams[1]


@pytest.mark.parametrize("kind", PLAIN)
@pytest.mark.parametrize("split", ["train", "heldout"])
def test_packing_neither_loses_nor_repeats_text(
    kind: str, split: Split, open_source: Open, tokenizer: Tokenizer
) -> None:
    expected = flat({"train": TRAIN, "heldout": HELDOUT}[split], tokenizer)
    n = len(expected) // (SIZE - 1)
    source = open_source(kind, split=split)
    bodies = [tuple(context[1:].tolist()) for context in read(source, n)]
    pieces = [tuple(expected[i * (SIZE - 1) : (i + 1) * (SIZE - 1)]) for i in range(n)]
    assert sorted(bodies) == sorted(pieces)
    if kind != "hub":
        assert (source.n_contexts, source.n_tokens) == (n, len(expected))


@pytest.mark.parametrize("kind", KINDS)
def test_a_source_knows_its_config(
    kind: str, open_source: Open, configs: dict[str, TokensConfig]
) -> None:
    assert open_source(kind).config == configs[kind]


@pytest.mark.parametrize("kind", PLAIN)
@pytest.mark.parametrize(("rank", "size"), [(0, 1), (1, 2)])
def test_what_repeats_is_told(
    kind: str, rank: int, size: int, open_source: Open, tokenizer: Tokenizer
) -> None:
    source = open_source(kind, rank=rank, size=size)
    assert not source.repeats
    if kind == "hub":  # a rank's own documents
        n = len(flat(TRAIN[rank::size], tokenizer)) // (SIZE - 1)
    else:
        assert source.n_contexts is not None
        n = len(range(rank, source.n_contexts, size))
    told = []
    for _ in range(2 * n):
        next(source)
        told.append(source.repeats)
    assert told == [False] * n + [True] * n
    again = open_source(kind, rank=rank, size=size)
    again.load_state_dict(source.state_dict())
    assert again.repeats


@pytest.mark.parametrize("kind", KINDS)
def test_heldout_text_is_not_in_train(kind: str, open_source: Open, tokenizer: Tokenizer) -> None:
    def text(split: Split) -> str:
        contexts = read(open_source(kind, split=split), 200)
        return tokenizer.decode(contexts.flatten().tolist())

    assert "tree" not in text("train")
    assert "tree" in text("heldout")
    assert "the cat" not in text("heldout")
