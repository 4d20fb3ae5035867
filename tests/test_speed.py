"""The page on speed: its measurements on small networks, their files, pictures and command."""

import copy
import json
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

from sparsecore.__main__ import main
from sparsecore.compiled.engine import lane_width
from sparsecore.compiled.lanes import Width, widest
from sparsecore.paper import store
from sparsecore.paper.page import Note
from sparsecore.paper.speed import contest, roofline
from sparsecore.paper.speed import figures as speed_figures
from sparsecore.paper.speed import measure as speed
from sparsecore.paper.speed.measure import Effort
from sparsecore.paper.training.conditions import STUDIES
from sparsecore.paper.training.studies import Results

SMALL = Effort(2, 0.01, (1,), (40, 90))
SHAPES = {"fashion-mnist": (30, 40, 20, 50, 5)}


def contest_of(shape, threads, absent=()):
    """Make up a contest as `compare` returns it."""
    found = {}
    for i, key in enumerate(("sparsecore", "c-loop", "torch-dense")):
        if key in absent:
            continue
        found[key] = {
            "ms": 2.0 + i, "low": 1.5 + i, "high": 3.0 + i, "rounds": [2.0 + i],
            "ratio": {"median": 1 + i / 2, "low": 1, "high": 2}, "cores": 1.0, "version": "1.0",
            "blas": [], "peak_rss_mb": 100.0, "label": key, "note": "",
        }  # fmt: skip
    gone = {key: {"label": key, "reason": f"{key} not installed"} for key in absent}
    sizes = list(speed.SHAPES[shape])
    return {
        "shape": shape, "problem": {"sizes": sizes, "threads": threads, "batch_size": 128},
        "nnz": 1, "meeting_us": [0.25, 0.5], "peers": found, "absent": gone,
    }  # fmt: skip


CONTESTS = {"contests": [contest_of(shape, 1, ("torch-dense",)) for shape in speed.SHAPES]}


@pytest.fixture(scope="module")
def measured():
    """Measure each part on small networks, without other processes."""
    return {
        "peers": CONTESTS,
        "density": speed.density_sweep(SMALL, (30, 200, 200, 5), (0.01, 0.1, 1.0)),
        "roofline": {
            "gflops": 100.0,
            "bandwidth": {"L1": 200.0, "L2": 100.0, "L3": 50.0, "DRAM": 10.0},
            "kernels": [
                {
                    "shape": "fashion-mnist", "layer": 1, "direction": direction, "nnz": 9,
                    "ms": {"median": 1.0, "low": 0.9, "high": 2.0}, "gflops": 20.0, "flops": 1,
                    "bytes": 1, "intensity": 0.5, "working_set": 9, "level": "L2", "share": 0.4,
                }
                for direction in ("forward", "backward")
            ],
        },
        "width": speed.width_sweep(SMALL),
    }  # fmt: skip


@pytest.fixture
def small(measured, monkeypatch, results):
    """Have a profile take no time, in a folder of its own; return that and what is measured."""
    monkeypatch.setattr(speed, "EFFORTS", {"quick": SMALL, "paper": SMALL})
    monkeypatch.setattr(store, "busy_cpus", lambda: 0.0)
    done = []

    def measure(name, effort):
        done.append(name)
        return copy.deepcopy(measured[name.removesuffix("-avx2")])

    parts = {name: partial(measure, name) for name in speed.PARTS}
    monkeypatch.setattr(speed, "PARTS", parts)
    return results, done


# --- measuring ---


def test_density_sweep_reaches_from_sparse_to_dense(measured):
    found = measured["density"]
    shares = [p["density"] for p in found["points"]]
    assert shares == pytest.approx([0.01, 0.1, 1.0], rel=0.2)
    assert found["points"][-1]["nnz"] == 30 * 200 + 200 * 200 + 200 * 5
    for p in found["points"]:
        assert 0 < p["ms"]["low"] <= p["ms"]["median"] <= p["ms"]["high"]
    assert "blas-dense" in found["dense"]


def test_crossover_is_interpolated_in_the_logarithms():
    found = [{"density": d, "ms": {"median": 100 * d}} for d in (0.01, 0.1, 1.0)]
    assert speed.crossover(found, 10**1.5) == pytest.approx(10**-0.5)
    assert speed.crossover(found, 10) == pytest.approx(0.1)
    assert {speed.crossover(found[:2], ms) for ms in (100, 0.5)} == {None}


def test_width_sweep_counts_connections_and_bytes(measured):
    found = measured["width"]
    assert [p["width"] for p in found["points"]] == list(SMALL.widths)
    for p in found["points"]:
        n = p["width"]
        assert p["dense_mib"] * 2**20 == 4 * (784 * n + n * n + 10 * n)
        assert p["nnz"] <= 784 * n + n * n + 10 * n
        # 20 bytes a connection, 24 a neuron and a few per layer
        assert p["bytes_per_connection"] <= 20 + 24 * (784 + 2 * n + 10 + 3) / p["nnz"]
        assert p["make_s"] > 0


def test_the_ceilings_are_what_was_done_in_the_least_time(monkeypatch):
    lanes, out = widest(), np.zeros(1, np.float32)
    roofline._read(Width(lanes), lanes, 3, np.ones(4 * lanes, np.float32), out)
    assert out[0] == 3 * 4 * lanes, "all is read"
    roofline._multiply_add(Width(lanes), 1, np.float32(0.5), np.float32(0.5), out)
    assert out[0] == 0.75 * lanes
    cold, *warm = 0.1, 2.0, 0.5
    monkeypatch.setattr(roofline, "timed", lambda work, n: np.array([cold, *warm]))
    monkeypatch.setattr(roofline, "aligned", lambda n, dtype: np.zeros(1, dtype))
    found = roofline.ceilings()
    assert found["gflops"] == 2 * 2 * lanes * roofline._PEAK_STEPS / 1e9
    assert list(found["bandwidth"]) == list(found["working_set"]) == ["L1", "L2", "L3", "DRAM"]
    assert found["bandwidth"]["L3"] == 2 * 2**28 / 1e9
    assert found["bandwidth"]["DRAM"] == 2 * found["working_set"]["DRAM"] / 1e9, "once"


def test_kernels_lie_under_the_roof_that_their_rows_have(monkeypatch):
    memory = {"L1": 200.0, "L2": 100.0, "L3": 50.0, "DRAM": 10.0}
    made_up = {"gflops": 100.0, "bandwidth": memory, "cache": roofline._CACHES}
    monkeypatch.setattr(roofline, "ceilings", lambda: made_up)
    found = roofline.measure(SHAPES, 5, 2)
    bandwidth = found["bandwidth"]
    sizes = SHAPES["fashion-mnist"]
    assert len(found["kernels"]) == 2 * (len(sizes) - 1)
    wide = lane_width(128)
    for p in found["kernels"]:
        lanes = min(wide, 64) if p["direction"] == "forward" else wide
        blocks = 128 // lanes
        n_in, n_out = sizes[p["layer"] - 1], sizes[p["layer"]]
        products = 2 if p["direction"] == "backward" and p["layer"] > 1 else 1
        assert p["flops"] == 2 * 128 * p["nnz"] * products
        assert p["bytes"] >= blocks * p["nnz"] * 4 * lanes
        assert p["intensity"] == pytest.approx(p["flops"] / p["bytes"])
        visited = n_in if p["direction"] == "forward" else n_out
        assert p["working_set"] == 4 * lanes * visited
        roof = min(found["gflops"], p["intensity"] * bandwidth[p["level"]])
        assert p["share"] == pytest.approx(p["gflops"] / roof)
        assert p["gflops"] == pytest.approx(p["flops"] / p["ms"]["median"] / 1e6)


def test_level_is_the_smallest_memory_that_holds_the_rows():
    caches = {"L1": 100, "L2": 1000, "L3": 10_000}
    levels = [roofline.level_of(n, caches) for n in (1, 100, 101, 1000, 10_001)]
    assert levels == ["L1", "L1", "L2", "L2", "DRAM"]


# --- files ---


def test_the_command_measures_each_part_once(small, capsys):
    folder, done = small
    for _ in range(2):
        assert main(["study", "run", "F-speed"]) == 0
        assert "4/4 results recorded" in capsys.readouterr().out
        assert done == ["peers", "density", "roofline", "width"]
    written = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.json"))
    assert written == [f"quick/F-speed/{part}.json" for part in sorted(done)]


# --- pictures ---


def test_a_page_shows_one_version_at_a_time(small):
    build = speed.load("quick")
    assert speed.recorded() == {}
    speed.load("paper")
    recorded = speed.recorded()
    for name in ("peers", "what_peers_do", "density", "roofline", "width"):
        draw = getattr(speed_figures, name)
        first, here = draw(recorded), draw(build)
        assert first.sources.startswith("Recorded (profile paper): ")
        assert here.sources.startswith("This build (profile quick): ")
        assert here.key == f"{first.key}-here"
        assert isinstance(draw({}), Note), "one line where nothing is recorded"
    assert "<svg" in speed_figures.width(recorded).svg()
    assert speed_figures.peers_avx2(recorded).key == "F-speed-avx2"


def test_a_build_of_profile_paper_measures_what_is_missing(small, monkeypatch):
    _, done = small
    monkeypatch.setenv("SPARSECORE_PROFILE", "paper")
    assert speed.recorded().keys() == speed.PARTS.keys() == set(done)


def points(ms):
    return [
        {"density": 0.1 * n, "ms": dict.fromkeys(("median", "low", "high"), ms)} for n in (1, 2)
    ]


DENSE = {"blas-dense": {"median": 5.0, "low": 5.0, "high": 5.0}}
SLOW = {"median": 9000.0, "low": 9000.0, "high": 9000.0}


@pytest.mark.parametrize(
    "part, draw, changes, finding",
    [
        ("peers", "peers", {}, "on Fashion-MNIST's network 1.5 times a plain C loop; on CIFAR"),
        (
            "peers", "peers", {"contests": [contest_of("cifar10", n) for n in (1, 2)]},
            "on CIFAR-10's network 2 times the fastest dense peer, 1.5 times a plain C loop.",
        ),
        (
            "density", "density", {"crossover": 0.15, "points": points(3.0), "dense": DENSE},
            "Sparse steps are faster below a density of 15 %.",
        ),
        (
            "density", "density", {"crossover": None, "points": points(3.0), "dense": DENSE},
            "Sparse steps are faster at every density measured.",
        ),
        (
            "density", "density", {"crossover": None, "points": points(6.0), "dense": DENSE},
            "Dense steps are faster at every density measured.",
        ),
        (
            "density", "density", {"crossover": 0.15, "points": points(6.0), "dense": DENSE},
            "Sparse steps are faster below a density of 15 %.",
        ),
        ("roofline", "roofline", {}, "reach 40 % to 40 % of their ceiling, the median 40 %; for 2"),
        ("roofline", "roofline", {"gflops": 1.0}, "for 0 of 2 that ceiling is a cache or memory"),
    ],
)  # fmt: skip
def test_findings_are_computed(part, draw, changes, finding, small):
    found = speed.load("quick")
    found[part] |= changes
    assert finding in getattr(speed_figures, draw)(found).finding


def test_the_fastest_peer_of_a_kind_is_told():
    found = contest_of("cifar10", 1)
    found["peers"]["blas-dense"] = {**found["peers"]["torch-dense"], "ratio": {"median": 9.0}}
    told = speed_figures._faster({"contests": [found], "provenance": {"cpu": "A"}})
    assert "on CIFAR-10's network 2 times the fastest dense peer" in told


def test_spreads_and_the_crossing_are_drawn_in_percent(small):
    found, ms = speed.load("quick"), {"median": 3.0, "low": 2.0, "high": 7.0}
    point = {"density": 0.1, "ms": ms}
    found["density"] |= {"crossover": 0.15, "points": [point], "dense": DENSE}
    [ax] = speed_figures.density(found).figure.axes
    mark, _, [bars] = ax.containers[0].lines
    assert mark.get_xydata().tolist() == [[10, 3]]
    assert bars.get_segments()[0] == pytest.approx(np.array([[10, 2], [10, 7]]))
    assert ax.lines[-1].get_xdata() == pytest.approx([15, 15])


def test_a_kernel_s_time_is_that_of_one_call(monkeypatch):
    monkeypatch.setattr(roofline, "timed", lambda work: np.array([0.005 * work()]))
    times = roofline._kernel_ms(lambda n: n, 2, SimpleNamespace(act=np.ones(3)))
    assert times == pytest.approx([5.0, 5.0])


def test_an_epoch_is_made_of_what_the_main_table_s_runs_took():
    seconds = {"train": 92.0, "evaluate": 7.5, "evolve": 0.5}
    run = {
        "condition": {"dataset": "fashion-mnist", "method": "set-all-relu"}, "seconds": seconds,
        "config": {"weight_decay": 0.0002, "epsilon": 9}, "data": {"surrogate": False},
    }  # fmt: skip
    main = Results(STUDIES["T-main"], "paper", [run])
    assert speed_figures.epoch(main).text == (
        "On Fashion-MNIST training steps take 92 % of an epoch, the test after it 8 %, and "
        "evolution 0.5 % (SET-All-ReLU, the main table's runs)."
    )
    assert "not recorded yet" in speed_figures.epoch(replace(main, runs=[])).text


def test_the_widest_network_is_told(small):
    found = speed.load("quick")
    found["width"]["points"][-1] |= {"mib": 2048, "dense_mib": 4096, "ms": SLOW}
    told = speed_figures.width(found).finding
    assert "With 90 neurons per hidden layer the network takes 2 GiB and a step 9 s" in told
    assert "dense weights alone would take 4.0 GiB" in told


def test_the_table_of_the_peers_says_what_is_there_and_what_is_not(small):
    measured = speed.load("quick")
    versions = speed_figures.what_peers_do(measured).frame.set_index("peer")["version"]
    assert versions["PyTorch, dense"] == "torch-dense not installed"
    contests = [contest_of("fashion-mnist", 1), contest_of("fashion-mnist", 2)]
    measured["peers"]["contests"] = contests
    versions = speed_figures.what_peers_do(measured).frame.set_index("peer")["version"]
    assert versions["PyTorch, dense"] == versions["sparsecore"] == "1.0"
    assert versions["JAX, dense"] == "not timed"
    older = copy.deepcopy(measured["peers"])
    older["provenance"]["cpu"] = "an old CPU"
    for each in older["contests"]:
        each["peers"]["torch-dense"] |= {"note": "Older.", "version": "0.9"}
    table = speed_figures.what_peers_do(measured | {"peers-avx2": older}).frame.set_index("peer")
    now = measured["peers"]["contests"][0]["peers"]["torch-dense"]["note"]
    assert list(table.loc["PyTorch, dense"]) == [f"{now} On an old CPU: Older.", "1.0, 0.9"]
    assert table["version"]["sparsecore"] == "1.0"


# --- the command ---


def test_bench_with_peers_prints_one_json_object(capsys, monkeypatch):
    few = {key: contest.PEERS[key] for key in ("sparsecore", "blas-dense", "c-loop")}
    monkeypatch.setattr(contest, "PEERS", few)
    words = "bench --peers --dims 20,30,5 --batch 32 --rounds 1 --json"
    assert main(words.split()) == 0
    out, err = capsys.readouterr()
    [line] = out.splitlines()
    result = json.loads(line)
    assert result["peers"]["sparsecore"]["ratio"]["median"] == 1
    assert result["peers"]["blas-dense"]["ratio"]["median"] > 0
    assert "c-loop" in result["absent"]
    assert "round 1 of 1" in err
    times = [p["ms"] for p in result["peers"].values()]
    assert all(np.isfinite(times))
    assert min(result["meeting_us"]) > 0


def test_report_lists_the_fastest_first():
    text = contest.report(contest_of("fashion-mnist", 1, ("c-loop",))).splitlines()
    assert [line.split()[0] for line in text[2:4]] == ["sparsecore", "torch-dense"]
    assert text[4].endswith("c-loop not installed")
    assert "the threads synchronise in 0.25 us before, 0.50 us after" in contest.report(
        contest_of("fashion-mnist", 2)
    )
    assert "synchronise" not in "".join(text)


@pytest.mark.parametrize(
    "options, message",
    [
        (["--rounds", "3"], "--rounds: expected --peers"),
        (["--peers", "--steps", "3"], "--steps: not with --peers"),
        (["--peers", "--rounds", "0"], "rounds: expected an integer of at least 1, got 0"),
        (["--peers", "--batch", "0"], "batch_size: expected an integer of at least 1, got 0"),
    ],
)
def test_options_that_do_not_go_together(options, message, capsys):
    assert main(["bench", *options]) == 1
    assert message in capsys.readouterr().err


def test_cache_sizes_are_the_system_s(tmp_path, monkeypatch):
    for index, (level, kind, size) in enumerate(
        [("1", "Data", "48K"), ("1", "Instruction", "32K"), ("2", "Unified", "2048K")]
    ):
        folder = tmp_path / f"index{index}"
        folder.mkdir()
        for name, text in (("level", level), ("type", kind), ("size", size)):
            (folder / name).write_text(f"{text}\n")
    monkeypatch.setattr(roofline, "_SYSTEM", tmp_path)
    found = roofline.cache_sizes()
    assert (found["L1"], found["L2"]) == (48 * 1024, 2 * 1024 * 1024)
    monkeypatch.setattr(roofline, "_SYSTEM", tmp_path / "nothing")
    assert roofline.cache_sizes() == roofline._CACHES
