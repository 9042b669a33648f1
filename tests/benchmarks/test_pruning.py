"""The comparison of rankings at equal budgets."""

import json


def test_the_script_cuts_heals_and_continues(ranking_path, tiny_recipe_file, tmp_path, capsys):
    import pruning

    arguments = [str(tiny_recipe_file), "--quick", "--out", str(tmp_path / "out")]
    pruning.main(arguments)
    folder = tmp_path / "out" / "tiny"
    cuts = [json.loads(line) for line in (folder / "pruning.jsonl").read_text().splitlines()]
    for cut in cuts:
        if cut["fresh"] is not None:
            assert cut[cut["resource"]] <= 0.7 + 1e-9
    healed = [json.loads(line) for line in (folder / "healed.jsonl").read_text().splitlines()]
    assert {entry["label"] for entry in healed} == {"random", "magnitude", "gate-ggn"}
    printed = capsys.readouterr().out
    assert "30% of MACs removed" in printed and "After 1 epochs" in printed
    pruning.main(arguments)
    assert capsys.readouterr().out == printed
    assert len((folder / "pruning.jsonl").read_text().splitlines()) == len(cuts)


def test_closed_form_and_implants_are_compared_too(ranking_path, tiny_recipe_file, tmp_path, capsys):
    import pruning

    given = ["--quick", "--removed", "0.15", "--epochs", "0", "--implants", "0.3", "--implanted", "magnitude"]
    pruning.main([str(tiny_recipe_file), *given, "--out", str(tmp_path / "out")])
    healed = [json.loads(line) for line in (tmp_path / "out" / "tiny" / "healed.jsonl").read_text().splitlines()]
    assert {entry["method"] for entry in healed} == {"ridge"}
    implanted = [entry for entry in healed if entry["label"] == "magnitude, implants for 30%"]
    assert len(implanted) == 1 and implanted[0]["macs"] <= 0.85 + 1e-9
    assert "Refitted in closed form" in capsys.readouterr().out
