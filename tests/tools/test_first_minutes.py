"""docs/first_minutes.md is what comes back: every try is run again, and its verdict and text are those of the page."""

import pytest

from tools.first_minutes import PAGE, read_page, rewrite, run_all

TEXT = PAGE.read_text(encoding="utf-8")
TRIES = read_page(TEXT)


def test_the_page_has_twenty_tries_with_a_verdict_each_and_counts_them() -> None:
    assert len(TRIES) == 20
    assert len({each.command for each in TRIES}) == 20
    verdicts = [each.result.rpartition("\n")[2] for each in TRIES]
    assert all(v.startswith(("**Right**", "**Wrong**", "**Warned**", "**Nonsense")) for v in verdicts)
    right = sum(v.startswith(("**Right", "**Warned")) for v in verdicts)
    assert f"Of 20 tries {right} come back right" in TEXT


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return run_all(TEXT, tmp_path_factory.mktemp("tries"))


@pytest.mark.slow
@pytest.mark.parametrize("number", range(20), ids=[each.name for each in TRIES])
def test_what_comes_back_is_what_the_page_says(results: list[str], number: int) -> None:
    assert results[number] == TRIES[number].result


def test_other_outputs_are_written_with_their_verdicts() -> None:
    text = (
        "Of 0 tries 0 are right.\n\n```sh\nddit world scenes --num 1\n```\n\n"
        "## 1. An answer\n\n<!-- answer: ddit 2 -->\n```sh\nddit nothing\n```\nold\n\n"
        "## 2. Nothing\n\n<!-- nothing is right -->\n```sh\n"
        "ddit ask scenes/0000.png 'is there a castle?' --num-steps 1\n```\n"
    )
    found = rewrite(text)
    wrong, nothing = (each.result for each in read_page(found))
    assert wrong.endswith("**Wrong**: the answer is ddit 2.")
    assert wrong.startswith("```text\nddit: ")
    assert nothing.startswith("```text\nddit: warning: the model does not know the word 'castle'")
    assert nothing.endswith("**Warned**, as it should be.")
    assert "Of 2 tries 1 come back right, 0 wrong with a warning, and 1 wrong without one." in found
    assert "old" not in found
    assert rewrite(found) == found
