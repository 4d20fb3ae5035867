"""The store of results: when a file is taken for what it says, and when it is computed."""

import fcntl
import json
import math
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from sparsecore import experiment, files
from sparsecore.cluster import ClusterError
from sparsecore.datasets import DataNotAvailable
from sparsecore.paper import store
from sparsecore.paper.store import Entry, ResultWarning

pytestmark = pytest.mark.usefixtures("results")
FOUND = {"ms": 1.5, "config": {"epochs": 3}}


def entry(profile="paper", **expected):
    return Entry("F-test", "one", profile, lambda: expected)


def never():
    raise AssertionError("computed")


def test_what_is_missing_is_computed_once():
    assert entry().look() == (None, "missing")
    first = entry().obtain(lambda: FOUND)
    assert first["ms"] == 1.5 and first["recipe"] == experiment.RECIPE
    assert {"cpu", "cores", "python", "commit"} <= first["provenance"].keys()
    assert entry().obtain(never) == first == entry().recorded()


def _cut(text):
    return text[: len(text) // 2]


def _edited(text):
    return text.replace("1.5", "0.5")


def _unencodable(text):
    return re.sub(r'"digest": "\w+"', r'"digest": "\\ud800"', text)


def _foreign(text):
    return json.dumps({"accuracy": 1.0})


def _typed(text):
    return text.replace("1.5", '"fast"')


def _renamed(text):
    return store.signed(json.loads(text) | {"name": "two"}).decode()


def _shorter(text):
    return store.signed(json.loads(text) | {"profile": "quick"}).decode()


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (_cut, "not JSON"),
        (_edited, "digest"),
        (_unencodable, "digest"),
        (_foreign, "format_version"),
        (_typed, "digest"),
        (_renamed, "another run, two"),
        (_shorter, "another run, one"),
    ],
)
def test_a_damaged_file_is_named_and_computed_anew(spoil, reason):
    good = entry().obtain(lambda: FOUND)
    entry().path.write_text(spoil(entry().path.read_text()))
    with pytest.warns(ResultWarning, match=f"one.json of F-test, paper: damaged.*{reason}"):
        assert entry().recorded() is None
    with pytest.warns(ResultWarning, match=f"damaged.*{reason}"):
        assert entry().obtain(lambda: FOUND)["ms"] == good["ms"]
    assert entry().look()[1] == "recorded"


def test_a_number_that_is_not_finite_is_not_written():
    with pytest.raises(ValueError, match="JSON"):
        entry().obtain(lambda: {"ms": math.nan})
    assert entry().look() == (None, "missing")


def test_a_recorded_result_is_valid_for_its_configuration_and_recipe_alone(monkeypatch):
    entry().obtain(lambda: FOUND)
    monkeypatch.setattr(store, "sources_sha256", lambda: "a module was renamed")
    monkeypatch.setattr(store, "_cache_key", lambda: "another machine")
    assert entry(**{"config.epochs": 3}).look()[1] == "recorded"
    other = entry(**{"config.epochs": 4}).look()
    assert other == (None, "other configuration: config.epochs was 3, is now 4")
    monkeypatch.setattr(store, "RECIPE", experiment.RECIPE + 1)
    told = f"other recipe: was {experiment.RECIPE}, is now {store.RECIPE}"
    assert entry().look()[1] == told
    assert entry().obtain(lambda: FOUND)["recipe"] == store.RECIPE


def test_a_quick_result_is_a_cache_of_this_code_on_this_machine(monkeypatch):
    entry("quick").obtain(lambda: FOUND)
    assert entry("quick").look()[1] == "recorded"
    with monkeypatch.context() as patch:
        patch.setattr(store, "sources_sha256", lambda: "changed")
        assert entry("quick").look() == (None, "other code or machine")
    with monkeypatch.context() as patch:
        patch.setattr(store, "cpu_model", lambda: "another")
        assert entry("quick").look() == (None, "other code or machine")
    with monkeypatch.context() as patch:  # such as a peer of the contest that is new here
        patch.setattr(store, "installed", lambda package: "another version")
        assert entry("quick").look() == (None, "other code or machine")


def test_a_result_says_which_code_computed_it_though_that_changes_meanwhile(monkeypatch):
    now = ["before"]
    monkeypatch.setattr(store, "sources_sha256", lambda: now[0])

    def edited_meanwhile():
        now[0] = "after"
        return FOUND

    entry("quick").obtain(edited_meanwhile)
    assert entry("quick").look()[1] == "other code or machine"


def test_two_processes_do_not_compute_the_same_result(monkeypatch):
    arrived, flock = threading.Event(), fcntl.flock
    held = entry().path.with_name(".one.lock")
    with ThreadPoolExecutor(1) as pool:
        with files.lock(held) as locked, monkeypatch.context() as patch:
            assert locked
            patch.setattr(fcntl, "flock", lambda *how: arrived.set() or flock(*how))
            waiting = pool.submit(entry().obtain, never)
            assert arrived.wait(60)
            whole = {"study": "F-test", "name": "one", "profile": "paper", "recipe": store.RECIPE}
            whole |= {**FOUND, "provenance": store.provenance(1, None)}
            store.write(entry().path, whole)
        assert waiting.result()["ms"] == 1.5


def test_a_result_that_cannot_be_kept_is_shown_all_the_same_and_its_state_is_left(monkeypatch):
    def full(path):
        raise OSError("no space left")

    entry().path.parent.mkdir(parents=True)
    own, others = entry().checkpoint("a"), replace(entry(), name="one-2").checkpoint("a")
    for path in (own, others):
        path.touch()
    with monkeypatch.context() as patch:
        patch.setattr(files, "atomic_write", full)
        with pytest.warns(ResultWarning, match=r"one.*cannot be kept \(no space left"):
            assert entry().obtain(lambda: FOUND)["ms"] == 1.5
    assert own.exists(), "hours of training"
    entry().obtain(lambda: FOUND)
    assert others.exists() and not own.exists()


def test_what_cannot_be_had_is_a_result_that_says_why(monkeypatch):
    def absent():
        raise DataNotAvailable("digits", [], "put it there")

    def no_cluster():
        raise ClusterError("no MPI here")

    def load(compute):
        *_, load = store.measured(lambda profile: {"one": (entry(), compute)}, store.only)
        return load("paper")

    monkeypatch.setattr(store, "busy_cpus", lambda: 0.0)
    for compute, why in ((absent, "put it there"), (no_cluster, "no MPI here")):
        assert why in load(compute)["missing"]
        assert entry().look() == (None, "missing"), "a reason is no result: it is not kept"
    with pytest.raises(AssertionError, match="computed"):
        load(never)  # an error of ours is no reason
    assert load(lambda: FOUND) == entry().recorded()


def test_profiles(monkeypatch):
    assert store.current_profile() == "quick"
    monkeypatch.setenv(store.PROFILE, "paper")
    assert store.current_profile() == "paper"
    assert store.current_profile("quick") == "quick"
    monkeypatch.setenv(store.PROFILE, "huge")
    with pytest.raises(
        ValueError, match=r"\$SPARSECORE_PROFILE: expected one of quick, paper, got 'huge'"
    ):
        store.current_profile()


def test_where_results_are(tmp_path, monkeypatch):
    monkeypatch.setenv(store.FOLDER, "mine")
    with pytest.raises(ValueError, match=r"RESULTS: expected an absolute path, .* got 'mine'"):
        store.root()
    monkeypatch.setenv(store.FOLDER, "~/mine")
    assert store.root() == Path.home() / "mine"
    monkeypatch.delenv(store.FOLDER, raising=False)
    (tmp_path / "book").mkdir()
    (tmp_path / "book" / "_toc.yml").touch()
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "book" / "notebooks").symlink_to("../notebooks")
    for place in (".", "book", "notebooks", "book/notebooks"):
        monkeypatch.chdir(tmp_path / place)
        assert store.root() == tmp_path / "book" / "results"
    outside = tmp_path / "elsewhere" / "deep"
    outside.mkdir(parents=True)
    (tmp_path / "book" / "_toc.yml").unlink()
    monkeypatch.chdir(outside)
    assert store.root() == outside / "results"
