"""The documentation against the code: names, links, file formats, generated pages."""

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from pkgutil import resolve_name

import make_docs
import numpy as np
import pandas as pd
import pytest
import simulate_verdicts
import yaml
from conftest import ROOT, config, make_factory, train
from omegaconf import OmegaConf
from test_over_tasks import compared, random_scores
from toy import Toy

from results.files import CLASSES, CONFUSION, CURVES, EXAMPLES, METRICS
from results.metrics import METRICS as KNOWN_METRICS
from results.report import write_report

PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "results/README.md")),
    *(ROOT / "docs").glob("*.md"),
]
RECORDS = (ROOT / "docs" / "records.md").read_text(encoding="utf-8")
PROTOCOL = (ROOT / "docs" / "protocol.md").read_text(encoding="utf-8")


def prose(page: Path) -> str:
    """A page without its code blocks."""
    return re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_exist(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", prose(page))
    for link in links:
        if re.match(r"https?:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name) if name else page
        assert target.exists(), link
        if page.parent == ROOT / "docs":  # the site holds docs/ alone
            assert target.resolve().is_relative_to(ROOT / "docs"), link
        if anchor:
            titles = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8").lower(), flags=re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\- ]", "", title).replace(" ", "-") for title in titles}, link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_files_exist(page: Path) -> None:
    """Every path in code spans and command lines that begins with a folder of the repository."""
    folders = "conf|activations|tasks|runners|results|scripts|tests|docs|actbench"
    paths = re.findall(rf"(?<![\w/.-])((?:{folders})/[\w./*-]*)", page.read_text(encoding="utf-8"))
    made = {"activations/cubic.py", "conf/activation/cubic.yaml"}  # by the reader, following the README
    for path in set(paths) - made:
        path = path.rstrip(".")
        if page.name != "log.md":  # which tells of files that have gone since
            assert list(ROOT.glob(path)), path


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 200


def test_overrides_in_the_documentation_are_settings() -> None:
    """Names such as ``runner.threads=`` in prose and commands are keys of a configuration."""
    tasks = [
        "digits",
        "diabetes",
        "photograph",
        "imagenette",
        "imagenet_subset",
        "image_folder",
        "mask_folder",
    ]
    configs = [config(f"task={task}") for task in tasks] + [
        config("network=torchvision"),
        config("network=vit_tiny"),
    ]
    settings = {name for cfg in configs for name in keys(OmegaConf.to_container(cfg))}
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES if page.name != "log.md")
    named = set(re.findall(r"(?<![\w.+/-])((?:runner|network|task)\.[a-z_.]+)=", text))
    assert len(named) > 25
    assert named - settings == set()


def keys(tree: object, prefix: str = "") -> Iterator[str]:
    """Dotted names of all that is in a configuration."""
    for name, value in tree.items() if isinstance(tree, dict) else ():
        yield prefix + name
        yield from keys(value, f"{prefix}{name}.")


def test_all_tasks_networks_and_runners_are_documented() -> None:
    for group, page in (("task", "tasks.md"), ("network", "networks.md"), ("runner", "commands.md")):
        text = (ROOT / "docs" / page).read_text(encoding="utf-8")
        names = {path.stem for path in (ROOT / "conf" / group).glob("*.yaml")}
        assert {name for name in names if not re.search(rf"(`|`{group}=){name}(`| )", text)} == set()


def test_the_simulation_has_help(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(sys, "argv", ["simulate_verdicts.py", "--help"])
    with pytest.raises(SystemExit) as stopped:
        simulate_verdicts.main()
    assert stopped.value.code == 0
    assert "near 99 %" in capsys.readouterr().out


def test_functions_and_tests_of_the_protocol_exist() -> None:
    tests = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").glob("test_*.py"))
    rows = re.findall(r"^\| [^|]+ \| `([\w.]+)` \| ([^|]+) \|$", PROTOCOL, flags=re.MULTILINE)
    assert len(rows) > 25
    for function, named in rows:
        assert callable(resolve_name(function)), function
        for test in re.findall(r"`(\w+)`", named):
            assert f"def {test}(" in tests, test


def test_tests_that_keep_identity_exist() -> None:
    tests = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").glob("test_*.py"))
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs" / "identity.md").read_text(encoding="utf-8")))
    assert len(named) > 20
    assert not [name for name in named if f"def {name}(" not in tests]


def test_margins_of_the_protocol_are_those_of_the_code() -> None:
    section = PROTOCOL.partition("**Margins.**")[2].partition("**Rank")[0]
    stated = dict(re.findall(r"^\| `(\w+)` \| ([\d.]+)", section, flags=re.MULTILINE))
    margins = {name: m.margin + m.relative for name, m in KNOWN_METRICS.items()}
    assert {name: float(value) for name, value in stated.items()} == pytest.approx(margins)


def test_version_and_date_agree() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    released = re.search(
        r"^## (\S+) \((.*)\)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert (project["version"], str(citation["version"])) == (released[1], released[1])
    assert str(citation["date-released"]) == released[2]


def test_generated_pages_are_up_to_date() -> None:
    for path, text in make_docs.generated().items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name}: run python scripts/make_docs.py"


def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    page = (tmp_path / "site" / "api" / "index.html").read_text(encoding="utf-8")
    assert 'id="activations.pwlu.PWLU"' in page
    assert 'id="results.statistics.Comparisons"' in page


def documented(title: str) -> list[str]:
    """The names in the first column of a section's table in records.md."""
    section = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", RECORDS, flags=re.MULTILINE | re.DOTALL)
    assert section is not None, title
    rows = re.findall(r"^\| (`[^|]+`) \|", section[1], flags=re.MULTILINE)
    return [name for row in rows for name in re.findall(r"`([^`]+)`", row)]


def check(title: str, written: set[str]) -> None:
    """All that is written is documented, and all that is documented is written by one of the cells."""
    names = documented(title)
    assert len(names) == len(set(names))
    patterns = {name: re.sub(r"<[^>]+>", "*", name) for name in names}
    unknown = {found for found in written if not any(fnmatchcase(found, p) for p in patterns.values())}
    assert unknown == set(), f"{title}: not documented"
    unused = {name for name, p in patterns.items() if not any(fnmatchcase(found, p) for found in written)}
    assert unused == set(), f"{title}: documented, but never written"


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cells of all kinds of task; the one on digits has a penalty, phases and diagnostics."""
    outputs = tmp_path_factory.mktemp("outputs")
    relu = make_factory("relu")
    train(outputs, Toy, "runner=smoke", "runner.epochs=3", "runner.cost=1", "runner.threads=1", task="digits")
    for task in ("shapes", "photograph"):
        train(outputs, relu, "runner=smoke", task=task, activation="relu")
    return outputs / "main"


def test_records_are_documented(study: Path) -> None:
    records = [json.loads(path.read_text(encoding="utf-8")) for path in study.rglob("record.json")]
    assert [record["status"] for record in records] == ["ok"] * 3
    check("record.json", {name for record in records for name in record})
    check("sessions", {name for record in records for session in record["sessions"] for name in session})


@pytest.mark.parametrize("file", [METRICS, CLASSES])
def test_tables_of_cells_are_documented(study: Path, file: str) -> None:
    check(file, {column for path in study.rglob(file) for column in pd.read_csv(path)})


def test_confusion_and_curves_are_documented(study: Path) -> None:
    columns = {column for path in study.rglob(CONFUSION) for column in pd.read_csv(path)}
    assert columns > {"true \\ predicted", "9", "disc"}
    check(CONFUSION, columns)
    arrays = {name for path in study.rglob(CURVES) for name in np.load(path)}
    check(CURVES, arrays)
    check(EXAMPLES, {name for path in study.rglob(EXAMPLES) for name in np.load(path)})


def test_the_leaderboard_is_documented(study: Path) -> None:
    path, _ = write_report(study)
    for name in ("leaderboard.csv", "reproduction.csv"):
        assert set(pd.read_csv(path.parent / name)) == set(documented(name))


def test_the_table_of_what_was_learned_is_documented(study: Path) -> None:
    path, _ = write_report(study)
    assert list(pd.read_csv(path.parent / "learned.csv")) == documented("learned.csv")


def test_tables_over_tasks_are_documented() -> None:
    over = compared(random_scores(2))
    assert list(over.activations) == documented("over_tasks.csv")
    assert list(over.pairs) == documented("pairs.csv")


def test_committed_speed_tables_say_where_they_were_measured() -> None:
    text = (ROOT / "results" / "README.md").read_text(encoding="utf-8")
    for path in (ROOT / "results" / "speed").glob("*.csv"):
        table = pd.read_csv(path)
        assert {"cpu", "cores", "torch"} <= set(table)
        assert table[["cpu", "cores", "torch"]].notna().all(axis=None)
        for column in table:
            assert f"`{column}`" in text, f"{path.name}: {column}"


def test_every_page_is_in_the_navigation() -> None:
    navigation = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    listed = {page for entry in navigation for page in entry.values()}
    assert listed == {path.name for path in (ROOT / "docs").glob("*.md")}
