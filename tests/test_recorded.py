"""The recorded results: they are valid, README and pages tell the same of them, captions are short.

They are read once for all of this, which takes seconds.
"""

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from sparsecore import SparseMLPClassifier, datasets
from sparsecore.commands import study
from sparsecore.paper import claims, deviations, estimator, forest, reliability, store
from sparsecore.paper.extreme import figures as extreme_figures
from sparsecore.paper.extreme import runs as extreme
from sparsecore.paper.extreme.runs import Row
from sparsecore.paper.page import Note, Picture
from sparsecore.paper.parallel import figures as parallel_figures
from sparsecore.paper.parallel import runs as parallel
from sparsecore.paper.scaling import figures as scaling_figures
from sparsecore.paper.scaling import measure as scaling
from sparsecore.paper.speed import figures as speed_figures
from sparsecore.paper.speed import measure as speed
from sparsecore.paper.training import figures as training_figures
from sparsecore.paper.training import pruning, studies, tables, times, topology
from sparsecore.paper.training.conditions import STUDIES
from sparsecore.paper.training.effects import difference, effect, spread_of
from sparsecore.settings import DECAYS, SETTINGS

ROOT = Path(__file__).parent.parent
SPARSE = ("torch-csr", "sparseprop", "sparselab")  # the peers that hold no dense matrix
_PROVENANCE = re.compile(r"commit|AMD|EPYC|Intel|Xeon|CPU @|sparsecore \d|Source|\b[0-9a-f]{7,}\b")
_HYPHEN = re.compile(r"(?<![\w-])-\d")
_SHOWN = {
    speed_figures: ("peers", "peers_avx2", "what_peers_do", "density", "roofline", "width"),
    scaling_figures: ("measured", "simulated", "stragglers", "comparison"),
    parallel_figures: ("accuracy", "staleness", "resources"),
    extreme_figures: ("table", "scaling", "losses"),
}  # fmt: skip
_TRAINING = (
    ("T-main", lambda found: training_figures.cost(found, times.recorded())),
    ("T-main", training_figures.accuracies),
    ("T-main", lambda found: training_figures.reach(found, times.recorded())),
    ("F-curves", training_figures.curves),
    ("F-gradient-flow", training_figures.gradient_flow),
    ("F-alpha", training_figures.sensitivity),
    ("F-average", parallel_figures.averaged),
    ("F-importance", lambda found: pruning.during_training(found.at(0.0002))),
    ("F-importance", lambda found: pruning.during_training(found.at(0.0))),
    *(
        (key, lambda found, draw=draw, decay=decay: draw(found.at(decay)))
        for key, draw in (
            ("F-importance", pruning.importance),
            ("F-importance", pruning.after_training),
            ("F-topology", topology.degrees),
            ("F-topology", topology.pixels),
        )
        for decay in (0.0002, 0.0)
    ),
    ("T-main", tables.main),
    ("F-decay", training_figures.decay),
    ("T-deviations", deviations.figure),
    ("T-deviations", deviations.table),
    ("T-deviations", parallel_figures.rate_kept),
    ("L-claims", lambda found: claims.Ledger(found).grid()),
    ("L-claims", lambda found: claims.Ledger(found).table()),
    ("L-claims", lambda found: forest.figure(claims.Ledger(found))),
    ("L-claims", lambda found: claims.Ledger(found).evidence("C2")),
)


@pytest.fixture(scope="module", autouse=True)
def hashed():
    """Have results read from the book's folder, each file once; return how data are hashed."""
    read, hashed, seen = store.read, studies.data_sha256, {}

    def once(path):  # most studies are made of the same runs
        if path not in seen:
            seen[path] = read(path)
        return seen[path]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "read", once)
        patch.setenv(store.FOLDER, str(ROOT / "book" / "results"))
        patch.setattr(studies, "data_sha256", lambda name: None)  # not to be downloaded
        yield hashed


def test_what_is_committed_is_valid_and_belongs_to_a_study(hashed, monkeypatch):
    pinned = {c.dataset for s in STUDIES.values() for c in s.conditions("paper")} - {"higgs"}
    digest = lambda name: hashed(name) if name in pinned - {"leukemia"} else None  # noqa: E731
    monkeypatch.setattr(studies, "data_sha256", digest)  # the others would be downloaded
    measured = study._measured()
    entries = [e for module in measured.values() for e in module.entries("paper")]
    for key in STUDIES.keys() - measured.keys():
        entries += map(studies.entry, STUDIES[key].conditions("paper"))
    # Most studies are made of the same runs.
    states = {path: e.look()[1] for path, e in {e.path: e for e in entries}.items()}
    assert {state for state in states.values() if state != "missing"} == {"recorded"}
    there = set((store.root() / "paper").rglob("*.json"))
    assert there <= states.keys() and len(there) > 100


def test_train_s_weight_decay_is_that_of_held_out_rows_or_else_of_all_released_code():
    found = studies.recorded("T-held-out")
    decay, *_ = deviations.FACTS
    for name, setting in SETTINGS.items():
        none, some = (found.at(decay).of(name, "set-all-relu") for decay in (0.0, DECAYS[0]))
        if name in found.study.datasets:
            free = difference(none, some).low > 0
        else:
            free = f"and so in all code for {datasets.describe(name)['title']}" in decay["released"]
        assert setting.decay == (0.0 if free else DECAYS[0]), name
        assert setting.config.weight_decay == DECAYS[0], f"{name}: the studies' value stays"


def test_no_weight_decay_that_was_tried_on_tables_is_clearly_better_than_the_estimator_s():
    found = estimator.recorded()[estimator.DECAY]
    by_decay = np.transpose([*found["scores"].values()])
    own = by_decay[found["decays"].index(SparseMLPClassifier().weight_decay)]
    spreads = [(some - own, spread_of(some, own, paired=True)) for some in by_decay]
    gains = [effect(float(gain.mean()), spread) for gain, spread in spreads]
    assert [gain is None or gain.low <= 0 for gain in gains] == [True] * len(estimator.DECAYS)


# --- README, first page, ledger and main table tell the same ---


@pytest.fixture(scope="module")
def ledger():
    return claims.Ledger(studies.recorded("L-claims"), extreme.recorded(), times.recorded())


def test_the_readme_has_the_grid_of_the_first_page(ledger):
    page = (ROOT / "book/intro.md").read_text()
    assert "brains, seconds = extreme.recorded(), times.recorded()\n" in page
    assert 'Ledger(studies.recorded("L-claims"), brains, seconds)\nledger.grid()' in page
    frame = ledger.grid().frame
    rows = [list(frame.columns), ["---"] * len(frame.columns), *frame.to_numpy().tolist()]
    lines = "".join("| " + " | ".join(row) + " |\n" for row in rows)
    grid = re.sub(r"\{ref\}`(C\d) <l-claims-c\d>`", r"**\1**", lines)
    readme = (ROOT / "README.md").read_text()
    assert grid in readme, f"put this grid there:\n{grid}"
    told = " ".join(ledger.grid().finding.replace("**", "").split())
    readme = " ".join(readme.split())
    assert told in readme, f"put this above it:\n{told}"
    [rows] = {run["data"]["n_train"] for run in ledger.results.on("higgs")}
    assert f"HIGGS: {rows:,} of the study's 105,000 training rows" in readme
    for text in (ledger.grid().latex(), ledger.grid()._repr_html_()):
        assert "C1 faster than" in text and "ref}" not in text


def test_the_ledger_s_effects_are_those_of_the_main_table(ledger):
    table = tables.main(ledger.results, times.recorded())
    rows, checked = table.data.set_index(["title", "decay", "method"]), Counter()
    asked = {question.text: question for claim in claims.CLAIMS for question in claim.questions}
    for check in (check for checks in ledger.checks.values() for check in checks):
        if check.unit == "points":
            methods = asked[check.question].first, asked[check.question].second
            first, second = (rows.loc[check.dataset, check.decay, method] for method in methods)
            if first["seeds"] == second["seeds"]:  # else pairs leave some out
                difference = 100 * (first["test_accuracy"] - second["test_accuracy"])
                assert check.effect == pytest.approx(difference)
                checked["points"] += 1
        elif check.unit == "×" and asked[check.question].times == "core-seconds":
            ratios = rows["speed_against_dense"].xs(check.dataset)
            ratios = ratios.xs(asked[check.question].first, level="method")
            assert ratios.tolist() == pytest.approx([check.effect] * len(ratios))
            checked["×"] += 1
    assert checked["points"] > 5 and checked["×"] > 5


def test_the_readme_s_figures_are_the_book_s():
    readme = (ROOT / "README.md").read_text()
    contests = [
        {
            name: peer["ratio"]["median"]
            for name, peer in contest["peers"].items()
            if name != "sparsecore"
        }
        for contest in speed.recorded()["peers"]["contests"]
    ]
    torch = [contest["torch-dense"] for contest in contests]
    dense = [min(ratio for name, ratio in one.items() if "dense" in name) for one in contests]
    sparse = [min(ratio for name, ratio in one.items() if name in SPARSE) for one in contests]
    c_loop = [contests[n]["c-loop"] for n in (0, 2)]
    assert (
        f"one thread: {dense[0]:.0f} times the fastest dense peer (PyTorch dense: {torch[0]:.0f}), "
        f"{sparse[0]:.1f} times the fastest sparse peer, and the C loop takes {c_loop[0]:.2f} "
        f"times as long; {dense[2]:.0f} ({torch[2]:.0f}), {sparse[2]:.1f} and {c_loop[1]:.2f} "
        f"times on the CIFAR-10 network; two threads: {dense[1]:.0f} ({torch[1]:.0f}) and "
        f"{sparse[1]:.1f} times, {dense[3]:.0f} ({torch[3]:.0f}) and {sparse[3]:.1f}"
    ) in readme
    reached = training_figures.reach(studies.recorded("T-main"), times.recorded()).finding
    [share] = re.findall(
        r"Fashion-MNIST after [^;]*? in ([\d.]+) times[^;]*?, at λ = 0.0002", reached
    )
    assert "Madelon not at all at λ = 0.0002 and 0;" in reached
    told = f"final accuracy in {share} times the core-seconds, on Madelon never"
    assert told in " ".join(readme.split())
    run = extreme.recorded()[Row(200_000_000, 10)]
    memory, right = run["peak_bytes"] / 2**30, run["test"]["correct"]
    assert f"{memory:.1f} GiB, {run['seconds_per_sample']:.1f} s per sample, {right} % of" in readme


def test_the_page_on_deviations_has_the_accuracies_of_one_run_on_two_lane_widths(tmp_path):
    cells = json.loads((ROOT / "notebooks/deviations.ipynb").read_text())["cells"]
    [lines] = [cell["source"] for cell in cells if cell["id"] == "deviations-lanes"]

    def shown():
        exec("".join(lines[:-1]), names := {"recorded": studies.recorded("T-deviations")})
        return eval(lines[-1], names)._repr_markdown_()

    files = "T-main/fashion-mnist-set-all-relu-seed0", "F-parallel/sequential-seed0"
    runs = [json.loads((store.root() / f"paper/{name}.json").read_text()) for name in files]
    main, other = (f"{100 * run['test_accuracy']:.2f} %" for run in runs)
    assert f"is {main} in the main table and {other} in the sequential run." in shown()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(store.FOLDER, str(tmp_path))
        assert "is not recorded in the main table and not recorded in the" in shown()


# --- captions ---


@pytest.fixture(scope="module")
def recorded(short_simulations):
    """What each page shows, by its module of figures or its study."""
    return {
        speed_figures: speed.recorded(),
        scaling_figures: scaling.recorded(),
        parallel_figures: parallel.recorded(),
        extreme_figures: extreme.recorded(),
        **{key: studies.recorded(key) for key in dict(_TRAINING)},
    }


@pytest.mark.parametrize(
    "page, name", [(page, name) for page, names in _SHOWN.items() for name in names]
)
def test_a_caption_is_short_and_its_sources_are_apart(page, name, recorded):
    shown = getattr(page, name)(recorded[page])
    assert not isinstance(shown, Note), "it is recorded"
    assert_reads_well(shown)
    assert "Recorded (profile paper): " in shown.sources
    assert re.search(r"commit [0-9a-f]{7}", shown.sources)


@pytest.mark.parametrize("key, draw", _TRAINING)
def test_a_training_s_caption_is_short_and_its_sources_are_apart(key, draw, recorded):
    shown = draw(recorded[key])
    assert_reads_well(shown)
    assert "profile" not in shown.caption
    assert "Runs: profile paper" in shown.sources


def test_the_schematic_has_a_short_caption_too():
    assert_reads_well(parallel_figures.overview())


@pytest.mark.parametrize("held, share", [(4, "all 4"), (3, "3 of 4")])
def test_attempts_that_failed_are_counted(held, share, monkeypatch, results):
    monkeypatch.setenv("SPARSECORE_RECORD", "1")
    assert reliability.table() == Note(store.NOTHING["missing"])
    reliability.keep("fuzz", "files", 4, held)
    assert reliability.table().finding == f"The promise held in {share} changed inputs."
    reliability.keep("kills", "runs", 2, 2)
    reliability.keep("kills", "WASAP", 1, 1)
    table = reliability.table()
    told = f"The promise held in all 3 kills, interrupts and ended jobs and {share} changed inputs."
    assert table.finding == told
    assert list(table.frame["on"]) == ["WASAP", "runs", "files"]
    promises = table.data.set_index("what")["promise"]
    assert "a replay" in promises["WASAP"] and "uninterrupted" in promises["runs"]
    assert_reads_well(table)


def assert_reads_well(shown):
    """The caption is short, and numbers have a minus sign."""
    assert len(shown.caption.split()) <= 60
    assert shown.caption.startswith("**")
    assert not _PROVENANCE.search(shown.caption)
    # A picture's Markdown has its image, which takes seconds to draw and has no text to search.
    drawn = isinstance(shown, Picture)
    assert not _HYPHEN.search(shown.caption + shown.alt if drawn else shown._repr_markdown_())


def test_latex_knows_every_sign_of_the_ledger(ledger):
    for table in (ledger.table(), *(ledger.evidence(f"C{n}") for n in range(1, 6))):
        assert table.latex().isascii(), table.key
        assert not re.search(r"(?<!\$)[<>|]", table.latex()), "a letter in LaTeX's usual fonts"
