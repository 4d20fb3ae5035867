"""Captions of the recorded results: short, and without where the numbers come from."""

import re
from pathlib import Path

import pytest

from sparsecore.paper import claims, forest, reliability, store
from sparsecore.paper.extreme import figures as extreme_figures
from sparsecore.paper.extreme import runs as extreme
from sparsecore.paper.page import Note, Picture
from sparsecore.paper.parallel import figures as parallel_figures
from sparsecore.paper.parallel import runs as parallel
from sparsecore.paper.scaling import figures as scaling_figures
from sparsecore.paper.scaling import measure as scaling
from sparsecore.paper.speed import figures as speed_figures
from sparsecore.paper.speed import measure as speed
from sparsecore.paper.training import figures as training_figures
from sparsecore.paper.training import pruning, studies, tables, times, topology

_PROVENANCE = re.compile(r"commit|AMD|EPYC|Intel|Xeon|CPU @|sparsecore \d|Source|\b[0-9a-f]{7,}\b")
_HYPHEN = re.compile(r"(?<![\w-])-\d")
_SHOWN = {
    speed_figures: (
        "peers", "what_peers_do", "epochs", "density", "roofline", "kernels", "width",
    ),
    scaling_figures: ("measured", "simulated", "stragglers", "comparison", "calibration"),
    parallel_figures: ("accuracy", "staleness", "resources"),
    extreme_figures: ("table", "memory", "scaling", "losses", "split", "survival", "projection"),
}  # fmt: skip
_TRAINING = (
    ("T-main", lambda found: training_figures.cost(found, times.recorded())),
    ("T-main", training_figures.accuracies),
    ("F-curves", training_figures.curves),
    ("F-gradient-flow", training_figures.gradient_flow),
    ("F-alpha", training_figures.sensitivity),
    ("F-importance", lambda found: pruning.importance(found.at(0.0002))),
    ("F-average", parallel_figures.averaged),
    ("F-importance", pruning.during_training),
    ("F-importance", pruning.after_training),
    ("F-topology", topology.degrees),
    ("F-topology", topology.pixels),
    ("T-main", tables.main),
    ("F-decay", training_figures.decay),
    ("T-deviations", tables.deviations),
    ("L-claims", lambda found: claims.Ledger(found).grid()),
    ("L-claims", lambda found: claims.Ledger(found).table()),
    ("L-claims", lambda found: forest.figure(claims.Ledger(found))),
    ("L-claims", lambda found: claims.Ledger(found).evidence("C2")),
)


@pytest.fixture(scope="module")
def recorded(short_simulations):
    """What each page shows of the recorded results, by its module of figures."""
    read, seen = store.read, {}

    def once(path, schema):  # most studies are made of the same runs
        if path not in seen:
            seen[path] = read(path, schema)
        return seen[path]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "read", once)
        patch.setenv(store.FOLDER, str(Path(__file__).parent.parent / "book" / "results"))
        patch.setattr(studies, "data_sha256", lambda name: None)  # not to be downloaded
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
    assert key == "L-claims" or "Runs: profile paper" in shown.sources


def test_the_schematic_has_a_short_caption_too():
    assert_reads_well(parallel_figures.overview())


@pytest.mark.parametrize("held, share", [(4, "all 7"), (3, "6 of 7")])
def test_attempts_that_failed_are_counted(held, share, monkeypatch, tmp_path):
    monkeypatch.setenv(store.FOLDER, str(tmp_path))
    monkeypatch.setenv("SPARSECORE_RECORD", "1")
    reliability.keep("fuzz", "files", 4, held)
    reliability.keep("kills", "runs", 2, 2)
    reliability.keep("kills", "WASAP", 1, 1)
    table = reliability.table()
    assert table.finding == f"The promise held in {share} attempts."
    assert list(table.frame["to"]) == ["WASAP", "runs", "files"]
    promises = table.data.set_index("what")["promise"]
    assert "replays" in promises["WASAP"] and "unbroken" in promises["runs"]
    assert_reads_well(table)


def assert_reads_well(shown):
    """The caption is short, and numbers have a minus sign."""
    assert len(shown.caption.split()) <= 60
    assert shown.caption.startswith("**")
    assert not _PROVENANCE.search(shown.caption)
    # A picture's Markdown has its image, which takes seconds to draw and has no text to search.
    drawn = isinstance(shown, Picture)
    assert not _HYPHEN.search(shown.caption + shown.alt if drawn else shown._repr_markdown_())
