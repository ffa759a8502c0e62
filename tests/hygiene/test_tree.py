"""The repository as a reader finds it: sizes of files, paths that mean nothing elsewhere, links, the promised commands."""

import re
from pathlib import Path

CODE = {".py", ".js", ".mjs", ".sh", ".cu", ".cpp"}
MAX_LINES = 600
DEMO_BYTES = 16_000_000

# What means something on one machine, or in one place's network, alone.
ELSEWHERE = re.compile(
    r"(?<![\w.~-])/(work|root|home/\w+|Users/\w+)/"  # a folder of somebody's machine
    r"|[A-Z]:\\Users\\"
    r"|pypi\.org|pythonhosted\.org|registry\.npmjs|download\.pytorch\.org|index-url"
    r"|\b10\.\d+\.\d+\.\d+\b|\b192\.168\.\d+\.\d+\b"
)
THIS_FOLDER = Path("tests/hygiene")  # it holds the patterns themselves
LINK = re.compile(r"(?<!`)\[[^\]]*\]\(([^)\s]+)\)")
PICTURE = re.compile(r"""<img[^>]*\bsrc=["']([^"']+)["']""")


def test_no_file_of_code_is_long(tree, text_of):
    long = {path.as_posix(): len(text_of(path).splitlines()) for path in tree if path.suffix in CODE}
    assert {name: lines for name, lines in long.items() if lines > MAX_LINES} == {}


def test_nothing_that_means_something_on_one_machine_alone(tree, text_of):
    found = []
    for path in tree:
        text = text_of(path)
        if text is None or THIS_FOLDER in path.parents:
            continue
        found += [f"{path}:{number}: {line.strip()[:160]}" for number, line in enumerate(text.splitlines(), 1) if ELSEWHERE.search(line)]
    assert found == []


def test_the_demo_is_small(tree, repository):
    size_bytes = sum((repository / path).stat().st_size for path in tree if path.parts[0] == "demo")
    assert 0 < size_bytes <= DEMO_BYTES, f"{size_bytes / 1e6:.1f} MB"


def test_no_build_products(tree):
    assert [path.as_posix() for path in tree if path.suffix in {".pyc", ".log", ".part"} or "__pycache__" in path.parts or "node_modules" in path.parts] == []


def test_every_python_file_says_what_it_owns(tree, text_of):
    import ast

    silent = []
    for path in tree:
        if path.suffix == ".py" and text_of(path).strip() and ast.get_docstring(ast.parse(text_of(path))) is None:
            silent.append(path.as_posix())
    assert silent == []


def test_links_between_documents_lead_somewhere(tree, text_of, repository):
    help_pages = repository / "js" / "docs"  # ComfyUI reads what stands in a help page from here, not from the page's own folder
    broken = []
    for path in tree:
        if path.suffix != ".md":
            continue
        text = text_of(path)
        for target in [*LINK.findall(text), *PICTURE.findall(text)]:
            if re.match(r"[a-z]+:|#", target):
                continue
            folder = repository / path.parent
            if not ((help_pages if help_pages in folder.parents else folder) / target.split("#")[0]).exists():
                broken.append(f"{path}: {target}")
    assert broken == []


def test_the_readme_has_the_two_commands_and_ci_runs_one(text_of):
    readme = text_of(Path("README.md"))
    assert "python dev.py demo" in readme and "python dev.py test" in readme
    assert re.search(r"\bdev\.py test\s*$", text_of(Path(".ci/run")), re.MULTILINE)
