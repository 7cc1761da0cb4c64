from sae_kit import publish


def test_the_address_is_printed(monkeypatch, capsys):
    asked = []

    def push_saes(folder, repo, *, private):
        asked.append((folder, repo, private))
        return "https://hub/owner/name/commit/1"

    monkeypatch.setattr(publish, "push_saes", push_saes)
    assert publish.main(["run", "owner/name"]) == 0
    assert publish.main(["run", "owner/name", "--private"]) == 0
    assert asked == [("run", "owner/name", False), ("run", "owner/name", True)]
    assert capsys.readouterr().out == 2 * "https://hub/owner/name/commit/1\n"


def test_mistakes_are_a_line_and_no_traceback(tmp_path, capsys):
    assert publish.main([str(tmp_path / "absent"), "owner/name"]) == 1
    assert "absent: no such folder; give a run folder" in capsys.readouterr().err
