import toy_results

from sae_kit.viz.browser.__main__ import main


def test_saved_results_become_a_site(tmp_path, capsys):
    for result in (toy_results.dashboard(), toy_results.evolution()):
        result.save(tmp_path / result.name)
    folders = [str(tmp_path / name) for name in ("dashboard", "feature_evolution")]
    assert main([*folders, "--out", str(tmp_path / "site")]) == 0
    assert capsys.readouterr().out == f"open {tmp_path / 'site' / 'index.html'}\n"
    assert (tmp_path / "site" / "index.html").is_file()


def test_what_is_wrong_is_said_and_nothing_written(tmp_path, capsys):
    assert main([str(tmp_path / "nothing"), "--out", str(tmp_path / "site")]) == 1
    assert "no result there" in capsys.readouterr().err
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "mine.txt").write_text("x")
    toy_results.dashboard().save(tmp_path / "dashboard")
    assert main([str(tmp_path / "dashboard"), "--out", str(tmp_path / "site")]) == 1
    assert "holds other files (mine.txt)" in capsys.readouterr().err
