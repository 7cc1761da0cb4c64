"""Local files: what is found, what is held out, and what is said about a bad one."""

import json
import math
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sae_kit.data.text import Part, TextConfig, find_files, read_part, select_parts
from sae_kit.dist import World
from sae_kit.models.tokenizer import Tokenizer


def write_jsonl(path: Path, values: list) -> None:
    path.write_text("\n".join(json.dumps(value) for value in values) + "\n", encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two books in a folder tree, beside something else."""
    books = tmp_path / "books"
    (books / "old").mkdir(parents=True)
    (books / "b.txt").write_text("the dog sat\n" * 100, encoding="utf-8")
    (books / "old" / "a.txt").write_text("the cat sat\n" * 100, encoding="utf-8")
    (books / "cover.png").write_bytes(b"\x89PNG")
    return books


def test_files_folders_and_patterns(folder: Path) -> None:
    a, b = folder / "old" / "a.txt", folder / "b.txt"
    assert find_files((str(folder),)) == [b, a]
    assert find_files((str(folder / "*.txt"),)) == [b]
    assert find_files((str(folder / "**" / "*.txt"),)) == [b, a]
    assert find_files((str(a), str(folder), str(a))) == [b, a]


def test_hidden_files_of_a_folder_are_no_text(folder: Path) -> None:
    """Such as what macOS leaves beside a file, and old copies of notebooks and repositories."""
    before = find_files((str(folder),))
    (folder / "._b.txt").write_bytes(b"\x00\x05\x16\x07\xff")
    (folder / ".copies").mkdir()
    (folder / ".copies" / "b.txt").write_bytes((folder / "b.txt").read_bytes())
    assert find_files((str(folder),)) == before
    hidden = folder.rename(folder.parent / ".books")  # which is named
    assert len(find_files((str(hidden),))) == len(before)


@pytest.mark.parametrize("name", ["books [1].txt", "a*b.txt", "what?.txt", "[!x].txt"])
def test_a_file_is_found_whatever_its_name_would_match(folder: Path, name: str) -> None:
    (folder / name).write_text("the cat sat\n", encoding="utf-8")
    assert find_files((str(folder / name),)) == [folder / name]
    files = find_files((str(folder),))
    assert select_parts(files, (name,), "heldout") == [(folder / name, "all")]
    assert select_parts(files, (str(folder / name),), "heldout") == [(folder / name, "all")]


def test_what_is_in_a_folder_is_found_whatever_its_name_would_match(folder: Path) -> None:
    (folder / "old").rename(folder / "old [2]")
    assert find_files((str(folder / "old [2]"),)) == [folder / "old [2]" / "a.txt"]


@pytest.mark.parametrize("name", ["nothing", "*.md", "old/empty"])
def test_no_text_found_says_where_it_looked(folder: Path, name: str) -> None:
    (folder / "old" / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no text found.*searched .*books") as error:
        find_files((str(folder / "b.txt"), str(folder / name)))
    assert name in str(error.value)


def test_other_kinds_of_files_are_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"cover\.png is none of \.txt, \.jsonl, \.parquet"):
        find_files((str(folder / "cover.png"),))


def test_no_paths_are_refused() -> None:
    with pytest.raises(ValueError, match="paths: no text named"):
        TextConfig(paths=())


@pytest.mark.parametrize("line_end", ["\n", ""])
def test_the_two_parts_of_a_text_are_the_text(tmp_path: Path, line_end: str) -> None:
    text = "".join(f"line {i} of the book{line_end}" for i in range(500))
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    (first,) = read_part(tmp_path / "a.txt", "first")
    (last,) = read_part(tmp_path / "a.txt", "last")
    assert first + last == text
    assert 0.01 < len(last) / len(text) < 0.025
    assert last.startswith("line") or not line_end


@pytest.mark.parametrize("line_end", ["\n", "\n\n", ""])
def test_a_text_of_few_long_lines_has_a_last_part_too(tmp_path: Path, line_end: str) -> None:
    text = "\n".join(f"paragraph {i} " + "and so on " * 200 for i in range(3)) + line_end
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    (first,) = read_part(tmp_path / "a.txt", "first")
    (last,) = read_part(tmp_path / "a.txt", "last")
    assert first + last == text
    assert 0.01 < len(last) / len(text) < 0.025


@pytest.mark.parametrize(("n", "n_last"), [(1, 0), (2, 1), (50, 1), (51, 2), (200, 4)])
def test_the_two_parts_of_many_documents(tmp_path: Path, n: int, n_last: int) -> None:
    documents = [f"document {i}" for i in range(n)]
    write_jsonl(tmp_path / "a.jsonl", [{"text": d} for d in documents])
    first = list(read_part(tmp_path / "a.jsonl", "first"))
    last = list(read_part(tmp_path / "a.jsonl", "last"))
    assert first + last == documents == list(read_part(tmp_path / "a.jsonl", "all"))
    assert len(last) == n_last


@pytest.mark.parametrize("n", [*range(4), 49, 50, 51, 700])
def test_the_parts_are_those_of_the_list_of_all_documents(tmp_path: Path, n: int) -> None:
    """The last 2 %, rounded up, blank documents counted; blank lines of .jsonl are no documents."""
    documents = ["" if i % 5 == 1 else f"document {i}" for i in range(n)]
    lines = [
        json.dumps({"text": document}) + "\n" * (1 + i % 3) for i, document in enumerate(documents)
    ]
    (tmp_path / "a.jsonl").write_text("\n \u2003\n" + "".join(lines), encoding="utf-8")
    table = pa.table({"text": pa.array([d or None for d in documents], pa.string())})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=300)
    cut = n if n < 2 else n - math.ceil(n * 0.02)
    expected = {"all": documents, "first": documents[:cut], "last": documents[cut:]}
    for name in ("a.jsonl", "a.parquet"):
        for part, own in expected.items():
            assert list(read_part(tmp_path / name, part)) == [d for d in own if d], (name, part)


def test_jsonl_is_read_document_by_document(tmp_path: Path) -> None:
    write_jsonl(
        tmp_path / "a.jsonl", [{"text": "the cat"}, {"text": "the dog"}, {"body": "the mat"}]
    )
    for part in ("all", "first"):
        documents = read_part(tmp_path / "a.jsonl", part)
        assert [next(documents), next(documents)] == ["the cat", "the dog"]
    with pytest.raises(ValueError, match=r"a\.jsonl, line 3 has no text in 'text'"):
        list(read_part(tmp_path / "a.jsonl", "all"))


@pytest.mark.parametrize("part", ["all", "first"])
def test_parquet_is_read_document_by_document(tmp_path: Path, part: Part) -> None:
    draw = random.Random(0)
    texts = [draw.randbytes(1000).hex() for _ in range(8000)]
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet", use_dictionary=False)
    assert pq.read_metadata(tmp_path / "a.parquet").num_row_groups == 1
    del texts
    before, most = pa.total_allocated_bytes(), 0
    for _ in read_part(tmp_path / "a.parquet", part):
        most = max(most, pa.total_allocated_bytes() - before)
    assert most < (tmp_path / "a.parquet").stat().st_size / 2


def test_whole_files_are_held_out_by_pattern(folder: Path) -> None:
    a, b = folder / "old" / "a.txt", folder / "b.txt"
    assert select_parts([a, b], ("a*",), "train") == [(b, "all")]
    assert select_parts([a, b], ("old/*.txt",), "heldout") == [(a, "all")]
    assert select_parts([a, b], (), "heldout") == [(a, "last"), (b, "last")]
    with pytest.raises(ValueError, match=r"heldout_paths: 'c\*' matches none of: a\.txt, b\.txt"):
        select_parts([a, b], ("a*", "c*"), "train")


def test_the_three_formats_hold_the_same_documents(tmp_path: Path) -> None:
    documents = ["the cat", "a naïve dog\nwith two lines", "   ", "日本"]
    kept = [document for document in documents if document.strip()]
    write_jsonl(
        tmp_path / "a.jsonl", [{"n": 1, "body": document} for document in [*documents, None]]
    )
    pq.write_table(pa.table({"body": [*documents, None]}), tmp_path / "a.parquet")
    assert list(read_part(tmp_path / "a.jsonl", "all", "body")) == kept
    assert list(read_part(tmp_path / "a.parquet", "all", "body")) == kept
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf" + documents[1].encode())
    assert list(read_part(tmp_path / "a.txt", "all")) == [documents[1]]


def test_half_a_character_in_jsonl_can_be_tokenised(
    tiny_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    lines = '{"text": "the cat \\ud83d"}\n{"text": "\\ud83d\\ude00"}\n'
    (tmp_path / "a.jsonl").write_text(lines, encoding="utf-8")
    documents = list(read_part(tmp_path / "a.jsonl", "all"))
    assert documents == ["the cat \ufffd", "\U0001f600"]
    assert tiny_tokenizer.encode_batch(documents)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"abc\xff", r"a\.txt is not UTF-8: byte 3 is 0xff"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "\xe9"}', r"a\.jsonl is not UTF-8: byte 24 is 0xe9"),
        ("a.jsonl", b'{"text": "a"}\n{"text"', r"a\.jsonl, line 2 is not JSON"),
        ("a.jsonl", b'{"text": "a", "n": ' + b"1" * 5000 + b"}", r"a\.jsonl, line 1 is not JSON"),
        ("a.jsonl", b'{"body": "a"}', r"line 1 has no text in 'text'; fields: body .*text_field"),
        ("a.jsonl", b'["a"]', r"line 1 has no text in 'text'; fields: none"),
        ("a.parquet", b"PAR1", r"a\.parquet is not a parquet file"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        list(read_part(tmp_path / name, "all"))


def test_a_damaged_parquet_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["the cat"] * 100}), path)
    path.write_bytes(b"PAR1" + b"\xff" * 30 + path.read_bytes()[34:])
    with pytest.raises(ValueError, match=r"a\.parquet is damaged \(.*\); download"):
        list(read_part(path, "all"))


def test_a_missing_parquet_column_is_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"body": ["a"], "id": [1]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="no column 'text'; columns: body, id"):
        list(read_part(tmp_path / "a.parquet", "all"))


def test_a_parquet_column_without_text_is_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": [None, 1]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"a\.parquet: column 'text' holds int, not text"):
        list(read_part(tmp_path / "a.parquet", "all"))


def test_an_open_source_says_what_is_too_short(tiny_tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("  \n", encoding="utf-8")
    config = TextConfig(paths=(str(tmp_path),))
    with pytest.raises(ValueError, match=rf"train text of {tmp_path}: 0 tokens of text"):
        config.open(tiny_tokenizer, split="train", world=World(0, 1), seed=0)


def test_everything_held_out_leaves_no_train(tiny_tokenizer: Tokenizer, folder: Path) -> None:
    config = TextConfig(paths=(str(folder),), heldout_paths=("*.txt",))
    with pytest.raises(ValueError, match="no file is left after setting aside"):
        config.open(tiny_tokenizer, split="train", world=World(0, 1), seed=0)


def test_changed_text_is_tokenised_anew(tiny_tokenizer: Tokenizer, folder: Path) -> None:
    config = TextConfig(paths=(str(folder / "b.txt"),), context_size=8)

    def n_tokens() -> int | None:
        source = config.open(tiny_tokenizer, split="train", world=World(0, 1), seed=0)
        return source.n_tokens

    before = n_tokens()
    (folder / "b.txt").write_text("the cat sat\n" * 200, encoding="utf-8")
    assert before is not None
    assert n_tokens() > 1.5 * before
