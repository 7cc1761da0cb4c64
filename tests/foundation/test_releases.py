import json

from sae_kit.formats.releases import releases
from sae_kit.releases import detail, main, search


def test_all_are_listed_a_line_each(capsys):
    assert main([]) == 0
    heading, *lines = capsys.readouterr().out.splitlines()
    assert heading.split() == ["release", "SAEs", "sites", "d_sae", "kind", "L0", "EV"]
    assert [line.split()[0] for line in lines] == list(releases())
    jb = "gpt2-small-res-jb 13 hook_resid_pre 0-11, hook_resid_post 11 24,576 relu 10 to 70"
    assert " ".join(lines[0].split()) == f"{jb} 0.77 to 0.999"


def test_a_word_is_looked_for_in_names_texts_and_sites():
    assert [one.name for one in search("feature-splitting")] == [
        "gpt2-small-res-jb-feature-splitting"
    ]
    assert {one.name for one in search("RESID_MID")} == {
        "gpt2-small-resid-mid-v5-32k",
        "gpt2-small-resid-mid-v5-128k",
    }
    assert [one.name for one in search("gpt2-small-res-jb")] == ["gpt2-small-res-jb"]
    assert search("") == list(releases().values())


def test_one_is_shown_in_detail_with_lines_that_load_it(capsys):
    assert main(["gpt2-small-res-jb"]) == 0
    shown = capsys.readouterr().out
    assert "processing    writing weights centred" in shown
    assert "blocks.8.hook_resid_pre    blocks.8.hook_resid_pre    24,576  60  0.9\n" in shown
    assert shown.endswith(
        'sae = load_sae("gpt2-small-res-jb/blocks.0.hook_resid_pre")\n'
        'saes = load_saes("gpt2-small-res-jb", layers=[0])\n'
    )
    # Eight SAEs of one site cannot be opened together.
    assert "load_saes" not in detail(releases()["gpt2-small-res-jb-feature-splitting"])
    assert "context       not known" in detail(releases()["gpt2-small-hook-z-kk"])


def test_sites_and_json_are_for_programs(capsys):
    assert main(["feature-splitting", "--sites"]) == 0
    first = capsys.readouterr().out.splitlines()[0]
    name = "gpt2-small-res-jb-feature-splitting/blocks.8.hook_resid_pre_768"
    assert first == f"{name}  blocks.8.hook_resid_pre"
    assert main(["--json"]) == 0
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one["name"] for one in told] == list(releases())
    assert told[0]["saes"][8]["l0"] == 60


def test_an_unknown_word_is_named_with_what_is_near(capsys):
    assert main(["gpt2-smal-res-jb"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("no release has 'gpt2-smal-res-jb'; did you mean gpt2-small-res-jb, ")
