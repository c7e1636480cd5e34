"""The page: what it says of a study, what is text in it, and how it works in a browser."""

import html
import io
import json
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import bench_report
import numpy as np
import pandas as pd
import pytest
from conftest import ACTIVATIONS, config
from matplotlib import rc_context
from matplotlib.figure import Figure
from omegaconf import OmegaConf

from results.collect import add_labels, read_records
from results.escape import latex
from results.explain import explain
from results.figures import STYLE, file_stem, save, scores
from results.files import write_json
from results.leaderboard import leaderboard, table_caption, to_latex
from results.learned import Learned, densities
from results.learned_numbers import COLUMNS, agreement_at, numbers, rows, shape_at, table
from results.methods import methods
from results.palette import COLORS, GRAY, looks
from results.parts import Value, value_of
from results.report import report, write_report
from results.shapes import Shapes, flags, spaced
from results.svg import Panel, inline
from results.verdicts import sentences
from runners.grid import report_settings

NASTY = "<script>alert('x')</script> |*$y$ & {%raw%} \"q\""


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five activations, four seeds, two tasks; one cell failed with a reason that is markup, one has damaged curves."""
    folder = tmp_path_factory.mktemp("outputs") / "s"
    bench_report.write_study(folder, activations=5, seeds=4, tasks=2, epochs=4)
    first, second, *_ = sorted(folder.glob("task1/*/0-*"))
    record = json.loads((first / "record.json").read_text())
    write_json(first / "record.json", record | {"status": "failed", "reason": NASTY})
    (second / "curves.npz").write_bytes(b"no archive")
    for path in folder.glob("*/relu/*/record.json"):
        write_json(path, json.loads(path.read_text()) | {"network.sites": "re:features.(2$|5\\b$)"})
    write_report(folder)
    return folder


@pytest.fixture(scope="module")
def text(study: Path) -> str:
    return (study / "report" / "index.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def records(study: Path) -> pd.DataFrame:
    return add_labels(read_records(study))


class Outline(HTMLParser):
    """Elements of a page, their ids, and whether every one that was opened was closed in order."""

    VOID = (
        "meta",
        "link",
        "img",
        "input",
        "br",
        "path",
        "line",
        "circle",
        "use",
        "rect",
        "polyline",
        "polygon",
    )

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


def test_the_page_is_whole_and_asks_for_nothing(text: str) -> None:
    outline = Outline()
    outline.feed(text)
    assert outline.open == []
    ids = [attributes["id"] for _, attributes in outline.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    used = set(re.findall(r'(?:url\(|href=")#([^)"]+)', text))
    assert used <= set(ids)
    loads = [
        a[name]
        for tag, a in outline.tags
        for name in ("src", "href", "xlink:href")
        if name in a and tag != "a"
    ]
    assert all(str(place).startswith(("data:", "#")) for place in loads)
    assert "default-src 'none'" in text
    sections = [a["id"] for tag, a in outline.tags if tag == "section"]
    assert sections == [
        "verdicts",
        "over-tasks",
        "tasks",
        "cost",
        "learned",
        "explorer",
        "failures",
        "methods",
        "origin",
    ]
    tables = sum(tag == "table" for tag, _ in outline.tags)
    assert tables == sum(tag == "caption" for tag, _ in outline.tags) > 0


def test_names_are_text_in_the_page(text: str) -> None:
    assert NASTY not in text
    assert NASTY in html.unescape(text)
    assert text.count("<script>") == 1
    assert "re:features.(2$|5\\b$)" in html.unescape(text)


def test_a_damaged_cell_is_named(text: str, study: Path) -> None:
    failures = text.partition('<section id="failures"')[2].partition("</section>")[0]
    damaged = sorted(study.glob("task1/*/0-*"))[:2]
    assert all(html.escape(str(folder)) in failures for folder in damaged)


# ---- in a browser

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
WATCH = """<script>
const errors = [];
addEventListener("error", (event) => errors.push(String(event.message || event.target.outerHTML)), true);
addEventListener("securitypolicyviolation", (event) => errors.push(event.violatedDirective + " " + event.blockedURI));
console.error = console.warn = (...all) => errors.push(all.join(" "));
</script>"""
PROBE = """<script>
const first = document.querySelector("#tasks table"), heads = [...first.tHead.rows[0].cells];
const column = (title) => heads.findIndex((head) => head.textContent.trim() === title);
const read = (title) => [...first.tBodies[0].rows].filter((row) => !row.hidden).map((row) => row.cells[column(title)].textContent);
const found = { errors, before: read("mean") };
const sorter = heads[column("mean")].querySelector("button");
sorter.focus();
found.focused = document.activeElement === sorter;
sorter.click();
found.up = read("mean"); found.up_said = heads[column("mean")].getAttribute("aria-sort");
sorter.click();
found.down = read("mean"); found.down_said = heads[column("mean")].getAttribute("aria-sort");
found.sorted_heads = heads.filter((head) => head.hasAttribute("aria-sort")).length;
const box = first.closest(".table"), search = box.querySelector("input[type=search]");
found.labelled = search.labels.length === 1;
search.value = "RELU"; search.dispatchEvent(new Event("input"));
found.filtered = read("activation"); found.status = box.querySelector("[role=status]").textContent;
search.value = ""; search.dispatchEvent(new Event("input"));
const choice = [...box.querySelectorAll("fieldset label")].find((label) => label.textContent === "std").firstChild;
const seen = () => getComputedStyle(first.rows[1].cells[column("std")]).display !== "none";
found.std = [seen()]; choice.click(); found.std.push(seen()); choice.click(); found.std.push(seen());
const entries = document.querySelector("#explorer input[type=search]");
entries.value = "relu"; entries.dispatchEvent(new Event("input"));
found.entries = [...document.querySelectorAll("#explorer > .entry")].filter((entry) => !entry.hidden).length;
const channels = (color) => { const [r, g, b, a = 1] = color.match(/[\\d.]+/g).map(Number); return [r, g, b, a]; };
const light = (color) => channels(color).slice(0, 3).map((v) => v / 255)
  .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
  .reduce((sum, v, k) => sum + v * [0.2126, 0.7152, 0.0722][k], 0);
const ground = (element) => {
  for (let e = element; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor; if (channels(c)[3] > 0) return c; }
  return "rgb(255, 255, 255)";
};
document.querySelectorAll("details").forEach((entry) => { entry.open = true; });
found.contrast = {}; found.checked = 0; found.grounds = [];
for (const theme of ["light", "dark"]) {
  document.documentElement.dataset.theme = theme;
  found.grounds.push(light(getComputedStyle(document.body).backgroundColor));
  let worst = [99, ""];
  for (const element of document.querySelectorAll("body *:not(script):not(svg):not(svg *)")) {
    if (![...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim())) continue;
    if (!element.getClientRects().length) continue;
    const pair = [light(getComputedStyle(element).color), light(ground(element))].sort((a, b) => b - a);
    const ratio = (pair[0] + 0.05) / (pair[1] + 0.05);
    if (ratio < worst[0]) worst = [ratio, `${element.tagName}.${element.className} ${element.textContent.slice(0, 40)}`];
    found.checked++;
  }
  found.contrast[theme] = worst;
}
const theme = document.getElementById("theme");
const was = document.documentElement.dataset.theme; theme.click();
found.toggled = [was, document.documentElement.dataset.theme, theme.hidden];
found.wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
found.requests = performance.getEntriesByType("resource").map((entry) => entry.name).filter((name) => !name.startsWith("data:"));
const result = document.createElement("pre"); result.id = "found"; result.textContent = JSON.stringify(found);
document.body.append(result);
</script>"""


@pytest.fixture(scope="module")
def found(text: str, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """What a script at the end of the page sees and does in Chromium, at the width of a phone."""
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine")
    folder = tmp_path_factory.mktemp("browser")
    page = folder / "page.html"
    page.write_text(
        text.replace("<head>", f"<head>{WATCH}", 1).replace("</body>", f"{PROBE}</body>"), encoding="utf-8"
    )
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}", "--window-size=500,900",
        "--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr", "--dump-dom", page.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    dumped = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, flags=re.DOTALL)
    assert dumped, done.stderr
    return json.loads(html.unescape(dumped[1])) | {
        "console": [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    }


def test_the_browser_finds_no_error_and_requests_nothing(found: dict) -> None:
    assert (found["errors"], found["console"], found["requests"]) == ([], [], [])


def test_tables_are_sorted_filtered_and_columns_hidden(found: dict) -> None:
    numbers = sorted(map(float, found["before"]))
    assert len(numbers) == 5
    assert list(map(float, found["up"])) == numbers
    assert list(map(float, found["down"])) == numbers[::-1]
    assert (found["up_said"], found["down_said"], found["sorted_heads"]) == ("ascending", "descending", 1)
    assert found["focused"]
    assert found["labelled"]
    assert all("relu" in name for name in found["filtered"])
    assert found["status"] == f"{len(found['filtered'])} of 5 rows"
    assert found["std"] == [True, False, True]
    assert 0 < found["entries"] < 5


def test_text_has_the_contrast_of_wcag_aa_in_both_themes(found: dict) -> None:
    assert found["checked"] > 200
    light, dark = found["grounds"]
    assert light > 0.8
    assert dark < 0.1
    for worst, where in found["contrast"].values():
        assert worst >= 4.5, where
    assert found["toggled"] == ["dark", "light", False]


def test_nothing_is_wider_than_a_phone(found: dict) -> None:
    assert found["wide"] <= 0


# ---- sentences


def row(
    activation: str, verdict: str, low: int, high: int, delta: float = 0.0, **more: object
) -> dict[str, object]:
    return {
        "task": "digits", "metric": "top1", "higher_is_better": True, "activation": activation, "baseline": "relu",
        "verdict": verdict, "rank_low": low, "rank_high": high, "n": 5, "mean": 90 + delta, "std": 0.5,
        "ci95_low": 89 + delta, "ci95_high": 91 + delta, "delta": delta, "delta_low": delta - 0.25,
        "delta_high": delta + 0.25, "delta_n": 5, "relative": False, "margin": 0.5, "seeds_needed": np.nan, "diverged": 0,
    } | more  # fmt: skip


def test_sentences_state_the_best_set_the_differences_and_what_is_missing() -> None:
    rows = [
        row("gelu", "better", 1, 2, 1.0),
        row("swish", "undecided", 1, 3, 0.25, seeds_needed=12.0),
        row("relu", "baseline", 2, 4, **dict.fromkeys(("delta", "delta_low", "delta_high"), np.nan)),
        row("elu", "equal", 2, 4, 0.125),
        row("tanh", "worse", 5, 5, -2.0, diverged=1),
    ]
    said = sentences(pd.DataFrame(rows))
    best, against, lost = re.split(r"(?<=\.) (?=[A-Z])", said)
    assert "gelu" in best.split()[0]
    assert "91.00 % (95 % interval 90.00 to 92.00, n = 5)" in best
    assert "swish" in best
    assert "tanh" not in best
    assert "better: gelu (+1.00 [+0.75, +1.25])" in against
    assert "worse: tanh (-2.00 [-2.25, -1.75])" in against
    assert "equal within 0.5 %: elu" in against
    assert "undecided: swish (+0.25 [+0.00, +0.50]; 12 seeds needed)" in against
    assert "tanh 1" in lost


def test_sentences_without_scores_or_a_baseline() -> None:
    assert "no verdict" in sentences(pd.DataFrame([row("relu", "baseline", 1, 1, n=0)]))
    unscored = sentences(
        pd.DataFrame([row("tanh", "", 1, 1), row("relu", "baseline", 2, 2, n=0, diverged=4)])
    )
    assert "baseline relu, which has no score" in unscored
    alone = sentences(pd.DataFrame([row("tanh", "", 1, 1, baseline=None)]))
    assert "nothing to compare" in alone
    several = sentences(pd.DataFrame([row(name, "", 1, 2, baseline=None) for name in ("tanh", "elu")]))
    assert "No activation is the baseline" in several


def test_sentences_do_not_call_a_mean_the_best_that_lacks_its_hardest_seed() -> None:
    ahead, lucky = row("gelu", "better", 1, 2, 1.0), row("elu", "undecided", 1, 3, 2.0, n=4, diverged=1)
    said = sentences(pd.DataFrame([ahead, lucky, row("relu", "baseline", 2, 3)]))
    assert "best mean" not in said
    assert "elu (+2.00 [+1.75, +2.25]; it diverged more often)" in said


def test_the_caption_names_no_family_without_a_baseline(records: pd.DataFrame) -> None:
    rows = leaderboard(records, "absent")
    captions = [table_caption(of_task) for _, of_task in rows.groupby("task")]
    assert all("ranks: 10 pairs" in caption and "verdicts" not in caption for caption in captions)
    assert "4 comparisons with relu" in table_caption(leaderboard(records).query("task == 'task0'"))


# ---- looks


def test_an_activation_looks_the_same_everywhere_and_the_first_ones_differ_in_color() -> None:
    tasks = [pd.DataFrame({"task": t, "activation": [f"a{k:02}" for k in range(30)]}) for t in "xy"]
    table = pd.concat(tasks).assign(baseline="a29")
    found = looks(table)
    assert len(set(found.values())) == 30  # no two alike
    assert found["a29"].color == "black"
    assert [found[f"a{k:02}"].color for k in range(7)] == list(COLORS)
    assert {found[f"a{k:02}"].dash for k in range(7)} == {()}
    assert found["a07"].dash


def test_long_and_foreign_names_fit_into_figures_and_file_names(tmp_path: Path) -> None:
    """A warning, of a layout without room or of a glyph that is missing, would be an error here."""
    stems: set[str] = set()
    long = [f"{'cifar10' * 40}[lr={lr}]" for lr in (0.1, 0.2)]
    first, second = (file_stem(name, stems) for name in long)
    assert first != second
    assert max(map(len, (first, second))) < 110
    names = ["relu", "L" * 200, "\N{FOX FACE}"]
    table = pd.DataFrame([row(name, "", 1, 3, task="T" * 200) for name in names])
    cells = pd.DataFrame({"activation_label": np.repeat(names, 2), "primary": 90.0})
    save(scores(table, cells, looks(table)), tmp_path, "scores")
    assert len(list(tmp_path.iterdir())) == 2


def test_points_on_a_straight_line_are_left_out_and_knots_stay() -> None:
    panel = Panel(-3.0, 3.0, -1.0, 3.0)
    x = np.linspace(-3, 3, 241)
    panel.line(x, np.maximum(x, 0), "mean")
    points = re.findall(r"[\d.]+,[\d.]+", panel.parts[0])
    assert len(points) < 8
    assert any(abs(float(a) - 75) < 1.5 and abs(float(b) - 72) < 1 for a, b in (p.split(",") for p in points))


def test_figures_are_inline_without_ids_that_meet() -> None:
    figure = Figure()
    ax = figure.subplots()
    ax.plot([0, 1], [0.123456, 1], "o-", color="black")
    ax.plot([0, 1], [1, 0], color=GRAY)
    ax.set_title("0.123456 <b>")
    buffer = io.BytesIO()
    with rc_context(STYLE):
        figure.savefig(buffer, format="svg")
    both = [inline(buffer.getvalue(), prefix, "a <b>") for prefix in ("f0-", "f1-")]
    ids = [set(re.findall(r' id="([^"]*)"', svg)) for svg in both]
    assert ids[0]
    assert not ids[0] & ids[1]
    assert 'aria-label="a &lt;b&gt;"' in both[0]
    assert "metadata" not in both[0]
    assert "#000000" not in both[0]
    assert "stroke:var(--faint)" in both[0]
    assert "<g>" not in both[0]
    assert "0.123456 &lt;b&gt;" in both[0]  # text keeps its digits


# ---- what the units learned


def learned(slope: float, start: float = 0.0, **more: object) -> Learned:
    x = np.linspace(-6, 6, 241, dtype=np.float32)
    inputs = np.zeros(242, dtype=np.float32)
    inputs[101:141] = 1 / 40  # from -1 to 1
    return Learned(
        "t/a/0", x, {"act": slope * x[None]}, {"act": inputs}, evolution={0: {"act": start * x}}, **more
    )  # type: ignore[arg-type]


def test_the_shape_of_a_curve_in_numbers() -> None:
    x = np.linspace(-6, 6, 241)
    inputs = np.zeros(242)
    inputs[101:141] = 1 / 40

    def shape(curve: np.ndarray) -> dict[str, float]:
        return shape_at(Learned("t/a/0", x, {"act": curve[None]}, {"act": inputs}), "act")

    relu = shape(3 + 2 * np.maximum(x, 0))
    assert relu["not_relu"] == pytest.approx(0, abs=1e-6)
    # uniform on [-1, 1]: corr(x, ReLU)^2 = (1/6)^2 / (1/3 (1/6 - 1/16)) = 0.8
    assert relu["not_linear"] == pytest.approx(0.2, abs=0.01)
    assert relu["slope_below_0"] == pytest.approx(0, abs=1e-6)
    assert relu["slope_above_0"] == pytest.approx(2)
    line = shape(1 - x)
    assert line["not_relu"] == pytest.approx(0.2, abs=0.01)
    assert line["not_linear"] == pytest.approx(0, abs=1e-6)
    assert [line["slope_below_0"], line["slope_above_0"]] == pytest.approx([-1, -1])
    assert 0 < shape(np.maximum(x, 0) + 0.1 * np.maximum(-x, 0))["not_relu"] < 0.02
    assert shape(np.abs(x))["slope_below_0"] == pytest.approx(-1)
    constant = shape(np.ones(241))
    assert math.isnan(constant["not_relu"])
    assert math.isnan(constant["not_linear"])
    assert constant["slope_below_0"] == 0
    both = [Learned("t/a/0", x, {"act": c[None]}, {"act": inputs}) for c in (x, np.maximum(x, 0))]
    assert numbers(both)["act"]["not_relu"].mean == pytest.approx(0.1, abs=0.01)
    unseen = shape_at(Learned("t/a/0", x, {"act": x[None]}), "act")
    assert all(map(math.isnan, unseen.values()))


def test_what_was_learned_is_a_table_by_site() -> None:
    gates = [np.array([-1.0, 1.0]), np.array([1.0, 3.0])]
    read = [
        learned(
            slope,
            diagnostics={"act": {"gamma": gate, "occupancy": np.ones((1, 18))}},
            roles={"act": {"gamma": "gate", "occupancy": "occupancy"}},
        )
        for slope, gate in zip((1.0, 2.0), gates, strict=True)
    ]
    found = table([*rows("digits", "pwlu", numbers(read), learned=True)])
    assert tuple(found) == COLUMNS
    assert set(found["depth"]) == {1}
    by_name = found.set_index("quantity")
    assert set(by_name.index) == {
        "agreement", "not_relu", "not_linear", "slope_below_0", "slope_above_0", "gamma"
    }  # fmt: skip
    assert by_name.loc["gamma", "mean"] == 1  # of seeds' means, 0 and 2
    assert by_name.loc["gamma", "std"] == pytest.approx(math.sqrt(2), rel=1e-4)
    assert by_name.loc["gamma", "within_std"] == 1
    assert by_name.loc["slope_below_0", "mean"] == pytest.approx(1.5)
    assert np.isnan(by_name.loc["slope_below_0", "within_std"])
    assert by_name.loc["agreement", "mean"] == pytest.approx(agreement_at(read, "act"), rel=1e-4)


def test_coefficients_have_a_row_each_and_sites_without_rows_no_depth() -> None:
    x = np.linspace(-6, 6, 241)
    fixed = np.maximum(x, 0)[None]  # a ReLU behind the unit
    values = np.stack([np.full((8, 4), 0.5 * k) for k in range(4)], axis=-1)
    read = [
        Learned(
            "t/a/0",
            x,
            {"act.base": fixed},
            diagnostics={site: {"coefficients": values} for site in ("act", "blocks.0.act")},
            roles={site: {"coefficients": "coefficients"} for site in ("act", "blocks.0.act")},
        )
    ]
    found = table([*rows("digits", "dyrelu", numbers(read), learned=False)])
    assert list(found["quantity"]) == ["slope 1", "slope 2", "intercept 1", "intercept 2"] * 2
    assert list(found["mean"]) == [0, 0.5, 1, 1.5] * 2
    assert list(found["depth"]) == [1] * 4 + [2] * 4
    assert found["std"].isna().all()  # one seed


def test_agreement_is_the_share_of_the_change_that_seeds_have_in_common() -> None:
    slopes = np.array([1.0, 1.5, 2.0])
    expected = 1 - slopes.var(ddof=1) / (slopes**2).mean()  # the functions are multiples of one another
    assert agreement_at([learned(s) for s in slopes], "act") == pytest.approx(expected, rel=1e-5)
    assert agreement_at([learned(s, start=2.0) for s in (3.0, 3.0)], "act") == 1
    assert agreement_at([learned(s) for s in (-1.0, 1.0)], "act") == 0
    assert np.isnan(agreement_at([learned(1.0)], "act"))  # one seed agrees with nobody
    assert np.isnan(agreement_at([learned(s, start=1.0) for s in (1.0, 1.0)], "act"))  # nothing was learned
    without = Learned("t/a/0", np.linspace(-6, 6, 241), {"act": np.ones((1, 241))})
    assert np.isnan(agreement_at([without, without], "act"))


def test_densities_are_shares_of_the_inputs_around_the_points() -> None:
    weights = densities(learned(1.0), "act")
    assert weights.sum() == pytest.approx(1, rel=1e-5)
    assert weights[100] == pytest.approx(weights[101] / 2)


def test_dead_segments_and_unused_intervals_are_flagged() -> None:
    named = {"occupancy": np.array([0.0, 0.5, 0.5, 0.0]), "left": np.array([-3.0]), "right": np.array([1.0])}
    roles = {"occupancy": "occupancy", "left": "interval_end", "right": "interval_end"}
    more = {"diagnostics": {"act": named}, "roles": {"act": roles}}
    dead, unused = flags([learned(1.0, **more)] * 2)
    assert dead.startswith("act: 50%")
    assert unused.startswith("act: 50%")  # inputs from -1 to 1 of an interval from -3 to 1
    assert not [*flags([learned(1.0)])]


def test_sites_by_depth_have_the_first_and_the_last() -> None:
    assert spaced("abc", 6) == ["a", "b", "c"]
    assert spaced([str(k) for k in range(19)], 4) == ["0", "6", "12", "18"]
    assert spaced("abc", 1) == ["c"]


# ---- texts


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation_is_explained(name: str) -> None:
    found = explain(name, config(f"activation={name}").activation._target_)
    assert found.head
    assert found.formula
    assert "Args:" not in found.formula


def test_an_activation_of_elsewhere_is_not_explained() -> None:
    found = explain("mine", "my_pkg.units.Mine")
    assert (found.head, found.formula, found.links) == ("", "", [])
    assert explain("pwlu", None).links == ["https://arxiv.org/abs/2104.03693"]


def test_methods_are_those_of_the_settings(records: pd.DataFrame) -> None:
    about, *_, statistics = methods(records, leaderboard(records))
    for fact in (
        "4 epochs (400 steps) of batch size 64",
        "sgd, learning rate 0.1",
        "cosine",
        "seeds 0, 1, 2, 3",
    ):
        assert fact in about
    assert "paired by seed" in statistics


def test_latex_sets_names_as_they_are(records: pd.DataFrame) -> None:
    assert latex(r"a_b&c%$#{}~^\<>|") == (
        r"a\_b\&c\%\$\#\{\}\textasciitilde{}\textasciicircum{}\textbackslash{}\textless{}\textgreater{}\textbar{}"
    )
    tex = to_latex(leaderboard(records))
    rows = [line for line in tex.splitlines() if line.endswith(r"\\")]
    assert {len(re.findall(r"(?<!\\)&", line)) for line in rows} == {6}
    assert tex.count(r"\toprule") == tex.count(r"\bottomrule") == 2


def test_numbers_of_a_table_are_sorted_as_numbers() -> None:
    assert value_of(1234.5678) == Value("1235", 1234.5678)
    assert value_of("<a>") == Value("<a>")
    assert value_of(np.nan) == Value("", math.inf)


# ---- several studies, and the settings of a grid's report


def test_studies_are_merged(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("results.figures.draw_figures", lambda *tables: [])
    monkeypatch.setattr("results.shapes.read_shapes", lambda *tables: Shapes())
    a, b = tmp_path / "a", tmp_path / "b"
    shutil.copytree(study / "task0", a / "task0")
    shutil.copytree(study / "task1", b / "task1")
    report([a, b], name="both")
    assert str(tmp_path / "both" / "report" / "index.html") in capsys.readouterr().out
    table = pd.read_csv(tmp_path / "both" / "report" / "leaderboard.csv")
    assert set(table["task"]) == {"task0", "task1"}
    with pytest.raises(ValueError, match="must have a name"):
        write_report([a, b])
    with pytest.raises(ValueError, match=r"b is a study already"):
        write_report([a], name="b")
    twice = next((a / "task0").glob("relu/0-*"))
    shutil.copytree(twice, b / "task0" / "relu" / twice.name)
    with pytest.raises(ValueError, match=rf"task0/relu/{twice.name}: the cell is in .*a and in .*b;"):
        write_report([a, b], name="both")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("margin", -1, "finite number >= 0"),
        ("margin", "x", "finite number"),
        ("baseline", 3, "an activation"),
        ("more", 1, "no others"),
    ],
)
def test_settings_of_a_report_are_checked(key: str, value: object, message: str) -> None:
    good = OmegaConf.create({"report": {"baseline": "gelu", "margin": 0.25}})
    assert report_settings(good) == {"baseline": "gelu", "margin": 0.25}
    with pytest.raises(ValueError, match=message):
        report_settings(OmegaConf.merge(good, {"report": {key: value}}))
