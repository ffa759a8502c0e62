"""The page of options: every row names a test or a file of results that is there.

It reads docs/options.md alone and searches the named files as text; whether a test passes is the other suites' business.
"""

import json
import re
from pathlib import Path

PAGE = Path("docs/options.md")
SECTIONS = [
    "Adapters", "Optimisers and schedules", "Objective", "Data", "Families", "Samples", "Resume", "Choosing the checkpoint", "Logs", "Memory",
]
COLUMNS = ["Option", "Pistachio", "sd-scripts", "ai-toolkit", "diffusion-pipe", "musubi-tuner", "Proved by"]
PROOF = re.compile(r"`(?P<file>tests/\w+/test_\w+\.py)::(?P<test>test_\w+)`|`(?P<results>benchmarks/results/[\w.-]+)`")


def tables(text: str) -> dict[str, list[list[str]]]:
    """Heading -> the cells of each row of its table, the row of column names first."""
    found: dict[str, list[list[str]]] = {}
    for part in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        heading, *lines = part.splitlines()
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
        found[heading.strip()] = [row for row in rows if not set("".join(row)) <= set("-: ")]
    return found


def missing(proof: str, repository: Path) -> str | None:
    """What the cell names and the repository lacks, or None."""
    named = PROOF.fullmatch(proof)
    if named is None:
        return f"{proof!r} is neither a test nor a file of results"
    path = repository / (named["file"] or named["results"])
    if not path.is_file():
        return f"{proof}: no such file"
    if named["test"] and not re.search(rf"^def {named['test']}\(", path.read_text(encoding="utf-8"), re.MULTILINE):
        return f"{proof}: no such test in it"
    return None


def test_every_section_has_its_table(text_of):
    found = tables(text_of(PAGE))
    assert list(found) == SECTIONS
    for heading, (columns, *rows) in found.items():
        assert columns == COLUMNS, heading
        assert rows, heading
        assert [row for row in rows if len(row) != len(COLUMNS) or not all(row)] == []


def test_no_option_stands_twice_in_a_section(text_of):
    for heading, (_, *rows) in tables(text_of(PAGE)).items():
        options = [row[0] for row in rows]
        assert len(set(options)) == len(options), heading


def test_what_proves_a_row_is_there(text_of, repository):
    proofs = [row[-1] for _, *rows in tables(text_of(PAGE)).values() for row in rows]
    assert [said for said in (missing(proof, repository) for proof in proofs) if said] == []


def test_a_wrong_name_is_seen(repository):
    here = "tests/hygiene/test_options_page.py"
    assert missing(f"`{here}::test_a_wrong_name_is_seen`", repository) is None
    for wrong in (f"`{here}::test_a_wrong`", f"`{here}::missing`", "`tests/hygiene/test_no_such.py::test_x`", "`benchmarks/results/none.json`", "proved"):
        assert missing(wrong, repository), wrong


def test_the_families_are_those_of_their_own_page(text_of):
    def names(rows):
        return {name.strip() for row in rows for name in row[0].split(",")}

    proved = names(tables(text_of(Path("docs/families.md")))["Proved"][1:])
    assert proved - names(tables(text_of(PAGE))["Families"][1:]) == set()


def test_the_regret_is_what_the_results_hold(text_of, repository):
    regret = {row["rule"]: f"{row['regret_pct']:.1f} %" for row in json.loads((repository / "benchmarks/results/selection.json").read_text())["rows"]}
    (row,) = [row for row in tables(text_of(PAGE))["Choosing the checkpoint"] if "selection.json" in row[-1]]
    assert row[1].startswith(regret["ours"]) and regret["last"] in row[1]
    assert row[COLUMNS.index("diffusion-pipe")].startswith(regret["diffusion-pipe-quantiles"])
