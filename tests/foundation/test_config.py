"""Configs: what fits is built and round-trips; what does not is refused, naming the field."""

import dataclasses
import subprocess
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Literal

import pytest
from omegaconf import OmegaConf

from sae_kit import config
from sae_kit.config import (
    Family,
    check_counts,
    differences,
    from_node,
    nearest,
    provenance,
    to_dict,
)


@dataclass(frozen=True, kw_only=True)
class Inner:
    rate: float = 0.5


@dataclass(frozen=True, kw_only=True)
class Animal(Family, ABC, tag="kind", package="sae_kit.dist"):
    legs: int = 4

    @abstractmethod
    def sound(self) -> str: ...


@dataclass(frozen=True, kw_only=True)
class Dog(Animal, kind="dog"):
    name: str

    def sound(self) -> str:
        return "woof"


@dataclass(frozen=True, kw_only=True)
class Bird(Animal, kind="bird"):
    legs: int = 2

    def sound(self) -> str:
        return "tweet"


@dataclass(frozen=True, kw_only=True)
class Everything:
    n_tokens: int
    lr: float = 1e-3
    on: bool = True
    note: str | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    layers: tuple[int, ...] = ()
    pair: tuple[int, str] = (1, "a")
    weights: dict[str, float] = field(default_factory=dict)
    width: int | str | None = None
    inner: Inner = Inner()
    pet: Animal | None = None
    pets: tuple[Animal, ...] = ()

    def __post_init__(self) -> None:
        if self.lr <= 0:
            raise ValueError(f"lr: {self.lr} is not positive")
        if self.lr > 10 and self.on:
            raise ValueError("too fast while on")


FULL = {
    "n_tokens": 5,
    "lr": 0.25,
    "on": False,
    "note": "x",
    "dtype": "bfloat16",
    "layers": [1, 2],
    "pair": [3, "b"],
    "weights": {"books.txt": 1.5},
    "width": "auto",
    "inner": {"rate": 0.125},
    "pet": {"kind": "dog", "legs": 3, "name": "Rex"},
    "pets": [{"kind": "bird", "legs": 2}, {"kind": "dog", "legs": 4, "name": "Ada"}],
}


def test_builds_every_supported_type() -> None:
    built = from_node(Everything, FULL)
    assert built == Everything(
        n_tokens=5,
        lr=0.25,
        on=False,
        note="x",
        dtype="bfloat16",
        layers=(1, 2),
        pair=(3, "b"),
        weights={"books.txt": 1.5},
        width="auto",
        inner=Inner(rate=0.125),
        pet=Dog(name="Rex", legs=3),
        pets=(Bird(), Dog(name="Ada")),
    )


def test_to_dict_is_the_inverse_and_puts_the_tag_first() -> None:
    plain = to_dict(from_node(Everything, FULL))
    assert plain == FULL
    assert list(plain["pet"]) == ["kind", "legs", "name"]


def test_defaults_fill_what_is_absent() -> None:
    assert from_node(Everything, {"n_tokens": 1}) == Everything(n_tokens=1)


def test_omegaconf_nodes_are_resolved() -> None:
    node = OmegaConf.create({"base": 7, "run": {**FULL, "n_tokens": "${base}"}})
    assert from_node(Everything, node.run) == from_node(Everything, {**FULL, "n_tokens": 7})


def test_numbers_convert_only_without_loss() -> None:
    built = from_node(Everything, {"n_tokens": 2e6, "lr": 1})
    assert (built.n_tokens, built.lr) == (2_000_000, 1.0)
    assert (type(built.n_tokens), type(built.lr)) == (int, float)


def test_exact_type_wins_in_a_union() -> None:
    assert type(from_node(Everything, {"n_tokens": 1, "width": 3}).width) is int


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_token": 5}, r"^trainer\.n_token: unknown; did you mean 'n_tokens'.*known: n_tokens"),
        ({"zzz": 5}, r"^trainer\.zzz: unknown; \(known: n_tokens"),
        ({"n_tokens": 2.5}, r"^trainer\.n_tokens: expected int, got float 2\.5"),
        ({"n_tokens": float("inf")}, r"^trainer\.n_tokens: expected int"),
        ({"n_tokens": True}, r"^trainer\.n_tokens: expected int, got bool True"),
        ({"n_tokens": "5"}, r"^trainer\.n_tokens: expected int, got str '5'"),
        ({"n_tokens": None}, r"^trainer\.n_tokens: expected int, got NoneType"),
        ({"n_tokens": "???"}, r"^trainer\.n_tokens: missing"),
        ({"lr": False}, r"^trainer\.lr: expected float, got bool"),
        ({"lr": float("nan")}, r"^trainer\.lr: nan is not finite"),
        ({"lr": float("-inf")}, r"^trainer\.lr: -inf is not finite"),
        ({"lr": 10**400}, r"^trainer\.lr: expected float, got int 1000"),
        ({"on": 1}, r"^trainer\.on: expected bool, got int 1"),
        ({"note": 3}, r"^trainer\.note: expected str, got int 3"),
        ({"dtype": "bfloat"}, r"^trainer\.dtype: 'bfloat' is not one of .*mean 'bfloat16'"),
        ({"layers": "3"}, r"^trainer\.layers: expected a list \(write \[3\]\), got str"),
        ({"layers": [1, "x"]}, r"^trainer\.layers\[1\]: expected int, got str 'x'"),
        ({"pair": [1]}, r"^trainer\.pair: \[1\] has 1 entries; give 2"),
        ({"weights": {"a": "b"}}, r"^trainer\.weights\.a: expected float, got str 'b'"),
        ({"weights": {1: 2.0}}, r"^trainer\.weights: key 1 is not a string"),
        ({"width": 2.5}, r"^trainer\.width: expected int or str or null, got float 2\.5"),
        ({"inner": {"rat": 1}}, r"^trainer\.inner\.rat: unknown; did you mean 'rate'"),
        ({"inner": 3}, r"^trainer\.inner: expected a mapping, got int 3"),
        ({"pet": {"kind": "dgo"}}, r"^trainer\.pet\.kind: 'dgo' is unknown; did you mean 'dog'"),
        ({"pet": {"kind": ["dog"]}}, r"^trainer\.pet\.kind: \['dog'\] is unknown"),
        ({"pet": {"legs": 4}}, r"^trainer\.pet\.kind: missing; choose one of: bird, dog"),
        ({"pet": {"kind": "dog"}}, r"^trainer\.pet\.name: missing"),
        ({"pets": [{"kind": "bird", "leg": 1}]}, r"^trainer\.pets\[0\]\.leg: unknown"),
        ({"lr": -1.0}, r"^trainer\.lr: -1\.0 is not positive"),
        ({"lr": 11.0}, r"^trainer: too fast while on"),
    ],
)
def test_misfits_are_refused_by_name(change: dict[object, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_node(Everything, {"n_tokens": 1, **change}, where="trainer")


def test_missing_field_is_named() -> None:
    with pytest.raises(ValueError, match=r"^trainer\.n_tokens: missing.*int"):
        from_node(Everything, {}, where="trainer")


def test_broken_interpolation_is_a_value_error() -> None:
    node = OmegaConf.create({"n_tokens": "${nowhere}"})
    with pytest.raises(ValueError, match=r"trainer: .*nowhere"):
        from_node(Everything, node, where="trainer")


def test_unsupported_field_type_is_a_developer_error() -> None:
    @dataclass(frozen=True)
    class Odd:
        x: set[int]

    with pytest.raises(TypeError, match="x: a config field cannot have the type"):
        from_node(Odd, {"x": []})


def test_nothing_is_built_when_a_later_field_is_wrong() -> None:
    with pytest.raises(ValueError, match=r"pets\[1\]\.name"):
        from_node(Everything, {**FULL, "pets": [{"kind": "bird"}, {"kind": "dog", "name": 1}]})


# --- families -------------------------------------------------------------------------------------


def test_family_picks_the_member_by_its_word() -> None:
    pet = from_node(Animal, {"kind": "dog", "name": "Rex"})
    assert type(pet) is Dog
    assert (Animal.tag, Dog.word) == ("kind", "dog")
    assert Animal.variants() == {"bird": Bird, "dog": Dog}


def test_member_takes_its_own_word_or_none_but_no_other() -> None:
    assert from_node(Bird, {"kind": "bird"}) == from_node(Bird, {}) == Bird()
    with pytest.raises(ValueError, match=r"pet\.kind: 'dog' does not fit here; give 'bird'"):
        from_node(Bird, {"kind": "dog"}, where="pet")


def test_variants_imports_the_package() -> None:
    # In a fresh interpreter nothing has imported the module that defines the members.
    code = (
        "import sys, sae_kit.config as c\n"
        "class F(c.Family, tag='t', package='json'): pass\n"
        "sys.modules.pop('json.tool', None); F.variants(); assert 'json.tool' in sys.modules"
    )
    subprocess.run([config.sys.executable, "-c", code], check=True)


def test_two_members_cannot_share_a_word() -> None:
    with pytest.raises(TypeError, match="kind=dog names both"):

        class Wolf(Animal, kind="dog"):
            pass


def test_member_must_use_the_familys_tag() -> None:
    with pytest.raises(TypeError, match="unknown class keywords"):

        class Cat(Animal, sort="cat"):
            pass


# --- comparing, finding, provenance ---------------------------------------------------------------


def test_differences_names_each_changed_leaf() -> None:
    nan = float("nan")
    old = {"trainer": {"lr": 0.0003, "seed": 0, "x": nan}, "sae": {"k": 16}, "sites": [1]}
    new = {"trainer": {"lr": 0.001, "seed": 0, "x": nan}, "sae": {"k": 16, "aux": 1}, "sites": [2]}
    assert differences(old, new) == [
        "trainer.lr: 0.0003 -> 0.001",
        "sae.aux: (absent) -> 1",
        "sites: [1] -> [2]",
    ]
    assert differences(new["sae"], old["sae"]) == ["aux: 1 -> (absent)"]
    assert differences(old, old) == []


def test_nearest_orders_by_likeness_and_ignores_case() -> None:
    sites = [f"blocks.{i}.hook_resid_pre" for i in range(3)] + ["ln_final.hook_scale"]
    assert nearest("BLOCKS.1.hook_resid_pr", sites, n=1) == ["blocks.1.hook_resid_pre"]
    assert len(nearest("resid_pre", sites)) == 3
    assert nearest("qqqq", sites) == []


def test_provenance_is_plain_and_complete() -> None:
    found = provenance()
    assert set(found) == {
        *("created", "command", "python", "platform", "n_threads", "versions", "git")
    }
    assert found["created"].endswith("+00:00")
    assert found["versions"]["torch"].startswith("2.")


def test_git_state_reports_commit_and_dirt(tmp_path: config.Path) -> None:
    def git(*arguments: str) -> str:
        who = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        command = ["git", "-C", str(tmp_path), *who, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    file = tmp_path / "module.py"
    file.write_text("a = 1\n")
    assert config._git_state(file) is None  # no repository
    git("init", "-q")
    assert config._git_state(file) is None  # not tracked in it
    git("add", "module.py")
    git("commit", "-q", "-m", "first")
    assert config._git_state(file) == {"commit": git("rev-parse", "HEAD"), "dirty": False}
    file.write_text("a = 2\n")
    assert config._git_state(file) == {"commit": git("rev-parse", "HEAD"), "dirty": True}


def test_configs_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        from_node(Inner, {}).rate = 1.0


def test_counts_are_one_or_more() -> None:
    class Settings:
        rows, steps = 0, 3

    check_counts(Settings, "steps")
    with pytest.raises(ValueError, match=r"^rows: 0 is not positive; give 1 or more$"):
        check_counts(Settings, "steps", "rows")
