"""The comparison of plans at the same measured speed."""

import json


def test_the_script_plans_measures_heals_and_continues(ranking_path, tiny_recipe_file, tmp_path, capsys):
    import latency_plans

    given = [str(tiny_recipe_file), "--quick", "--speedup", "1.02", "--batch", "8", "--out", str(tmp_path / "out")]
    latency_plans.main(given)
    lines = (tmp_path / "out" / "tiny" / "plans.jsonl").read_text().splitlines()
    printed = capsys.readouterr().out
    assert "| unpruned INT8 |" in printed
    for result in map(json.loads, lines):
        assert f"| {result['resource']} |" in printed
        assert 0.0 < result["macs"] <= 1.0 and result["healed"] > 0.25  # four classes
    latency_plans.main(given)
    assert (tmp_path / "out" / "tiny" / "plans.jsonl").read_text().splitlines()[: len(lines)] == lines


def test_the_loosest_budget_that_is_fast_enough_is_found(ranking_path):
    from latency_plans import _loosest

    class Measured:
        def __init__(self, median):
            self.median = median

    asked = []

    def within(share):
        asked.append(share)
        return None if share < 0.1 else (share, Measured(round(share, 2)))

    found = _loosest(within, 0.4)
    assert 0.385 <= found <= 0.405 and len(asked) <= 8
    assert _loosest(lambda share: None, 0.4) is None
