"""The pictures and tables of the page on scaling: measurements and simulations."""

from collections.abc import Mapping
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes

from sparsecore.bench import spread
from sparsecore.paper.page import Column, Note, Table
from sparsecore.paper.parallel.figures import COLOUR, LABELS
from sparsecore.paper.scaling import simulate as model
from sparsecore.paper.scaling.measure import calibrate
from sparsecore.paper.scaling.rounds import samples_per_second, speedups, spent, workers_of
from sparsecore.paper.store import Result
from sparsecore.paper.style import GREY, line, patch, picture, shows, with_spread
from sparsecore.wasap.plan import ALGORITHMS

_DASHES = ("-", (0, (5, 2)), (0, (1, 1)))
_NETWORK_STYLES = dict(zip(model.NETWORKS, _DASHES, strict=True))
_SCENARIO_STYLES = dict(zip(model.SCENARIOS[1:], _DASHES, strict=True))
_IDEAL = line(GREY, "ideal", "-.", linewidth=1)
_FEW_ROWS = patch(GREY, "too few rows for full batches", alpha=0.15)
# Simulated numbers of workers: the powers of two, and one and a half times each.
_NUMBERS = (1, *(n for i in range(1, 10) for n in (2**i, 3 * 2 ** (i - 1))), 1024)


@picture(
    "F-scaling", height=2.7,
    legend=[*(line(COLOUR[name], LABELS[name]) for name in ALGORITHMS), _IDEAL],
    caption="**Measured speedup by number of workers.** Samples per second of phase 1 on "
    "Fashion-MNIST, evolution included, relative to the sequential trainer with one thread in "
    "the same round. Dots are medians over rounds, bars reach from the lowest to the highest. "
    "What to see: below the ideal line, K workers are less than K times as fast.",
    alt="Speedup against number of workers for WASAP-SGD and WASSP-SGD, with the ideal line.",
)  # fmt: skip
def measured(ax: Axes, result: Result) -> tuple[str, str]:
    """Draw the measured samples per second against the number of workers, relative to one."""
    most, told = 1, []
    for shift, name in ((-0.02, "wasap"), (0.02, "wassp")):
        numbers = workers_of(result, name)
        spreads = [spread(speedups(result, name, k)) for k in numbers]
        with_spread(ax, np.array(numbers) + shift, spreads, COLOUR[name], linewidth=1.6, capsize=3)
        most = max(most, *numbers)
        gain = f"{spreads[-1]['median']:.2f} times as fast"
        told.append(f"{LABELS[name]} with {numbers[-1]} workers is {gain}")
    ax.plot((1, most), (1, most), color=GREY, linestyle="-.", linewidth=1)
    ax.set(xlabel="workers", ylabel="speedup over the\nsequential trainer")
    ax.set(xlim=(0.9, most + 0.1), ylim=(0, None))
    ax.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(6, integer=True))
    rounds = f"{len(samples_per_second(result, 'sequential'))} rounds, one seed each."
    return f"Measured against the sequential trainer, {' and '.join(told)}.", rounds


def _rates(calibration: model.Calibration, *how: Any) -> np.ndarray:
    """Return simulated gradients per second, for all numbers of workers."""
    return np.array([model.simulate(calibration, k, *how).gradients_per_second for k in _NUMBERS])


def _full(result: Result) -> int:
    """Return how many workers have a full batch each."""
    return max(1, int(result["n_train"] // result["batch_size"]))


def _workers_axis(ax: Axes, result: Result, name: str, *ticks: int, **more: Any) -> None:
    ax.set(xscale="log", title=f"simulation: {LABELS[name]}", xlabel="simulated workers", **more)
    ax.axvspan(min(_full(result), _NUMBERS[-1]), _NUMBERS[-1], color=GREY, alpha=0.15, linewidth=0)
    ax.set_xticks(ticks, [str(n) for n in ticks])
    ax.minorticks_off()


@picture(
    "F-scaling-simulated", across=2, height=3.9, sharex=True, sharey=True,
    legend=[*(line("#333333", network.name, style) for network, style in _NETWORK_STYLES.items()),
            _IDEAL, _FEW_ROWS],
    caption="**Simulation: up to 1024 workers.** Simulated throughput, not measured, from the "
    "times measured on this page and assumed networks. From the diamonds on, by mean times, the "
    "parameter server is never idle. What to see: WASAP-SGD falls beyond its diamond, because more "
    "and more gradients meet a newer topology and take longer under the lock.",
    alt="Simulated speedup against up to 1024 workers, log-log, one line per network.",
)  # fmt: skip
def simulated(axes: Any, result: Result) -> tuple[str, str]:
    """Draw the simulated speedup up to 1024 workers, a line per network."""
    calibration, told, points, full = calibrate(result), [], [], _full(result)
    filled = [n for n in _NUMBERS if n <= full]
    most = dict.fromkeys(ALGORITHMS, (0.0, 0))
    for ax, name in zip(axes, ALGORITHMS, strict=True):
        best = []
        ax.plot(_NUMBERS, _NUMBERS, color=GREY, linestyle="-.", linewidth=1)
        for network, style in _NETWORK_STYLES.items():
            gains = _rates(calibration, name, network, model.AS_MEASURED) / calibration.alone
            ax.plot(_NUMBERS, gains, color=COLOUR[name], linestyle=style)
            where = ("over " if network.bandwidth else "on ") + network.name.partition(",")[0]
            gain, at = max(zip(gains.tolist(), filled, strict=False))
            most[name] = max(most[name], (gain, at))
            number = f"{'at least ' * (at == filled[-1])}{at} workers"
            best.append(f"{number} {where} ({gain:.1f}{': no gain' * (gain <= 1)})")
            if name == "wasap":
                point = model.saturation(calibration, network)
                y = np.exp(np.interp(np.log(point), np.log(_NUMBERS), np.log(gains)))
                ax.plot(point, y, "D", color=GREY, markersize=6)
                points.append(f"{network.name} K* = {point:.1f}")
        told.append(f"{LABELS[name]} peaks with {', '.join(best)}")
        _workers_axis(ax, result, name, 1, 4, 16, 64, 256, 1024, yscale="log")
    axes[0].set_ylabel("simulated throughput\nover one worker's")
    peaks = " and ".join(f"{gain:.1f} ({LABELS[name]})" for name, (gain, _) in most.items())
    many, one = most["wassp"][1], float(np.median(speedups(result, "wasap", 1)))
    rows, k = many * result["batch_size"], workers_of(result, "wassp")[-1]
    off = 100 * _compared(result, "wassp", k)["deviation"]
    return (
        f"As long as every worker has a full batch, simulated throughput is at most {peaks} times "
        f"one worker's. One worker has {one:.2f} times the sequential trainer's. The simulation is "
        f"rough: with {k} workers it deviates by {off:+.0f} % from the measured {LABELS['wassp']}. "
        f"And it is of throughput only: in lockstep {many} workers take steps of {rows:,} rows, "
        f"{-(-result['n_train'] // rows)} per epoch, and whether such steps still train the "
        "network is not simulated.",
        f"{'; '.join(told)}. Saturated: {'; '.join(points)}. With {result['n_train']:,} rows at "
        f"most {full} workers have a full batch each; for more the data would have to grow.",
    )


@picture(
    "F-scaling-stragglers", across=2, height=3.4, sharex=True, sharey=True,
    legend=[*(line("#333333", case.name, style) for case, style in _SCENARIO_STYLES.items()),
            _FEW_ROWS],
    caption="**Simulation: what stragglers cost.** Gradients per second relative to workers "
    "that all take the mean time; one machine, shared memory. What to see: in lockstep all wait "
    "for the slowest, until the exchange takes longer than this wait. WASAP-SGD loses only the "
    "slow workers' share, and nothing where all wait for the server.",
    alt="Simulated throughput with stragglers relative to even workers, one panel per algorithm.",
)  # fmt: skip
def stragglers(axes: Any, result: Result) -> tuple[str, str]:
    """Draw the simulated throughput with uneven workers, relative to that with even ones."""
    calibration = calibrate(result)
    told: dict[str, list[str]] = {}
    for ax, name in zip(axes, ALGORITHMS, strict=True):
        even = _rates(calibration, name, model.ONE_MACHINE, model.EVEN)[1:]
        for scenario, style in _SCENARIO_STYLES.items():
            shares = 100 * _rates(calibration, name, model.ONE_MACHINE, scenario)[1:] / even
            ax.plot(_NUMBERS[1:], shares, color=COLOUR[name], linestyle=style)
            change = f"{round(shares[_NUMBERS.index(8) - 1] - 100):+d} % ({LABELS[name]})"
            told.setdefault(scenario.name, []).append(change)
        ax.axhline(100, color=GREY, linestyle=":", linewidth=1)
        _workers_axis(ax, result, name, 2, 8, 32, 128, 512)
    axes[0].set(ylabel="throughput (% of that of\neven workers)", ylim=(0, None))
    costs = "; ".join(f"{case} {', '.join(changes)}" for case, changes in told.items())
    return (
        f"Change in the simulated throughput of 8 workers by stragglers: {costs}.",
        f"The jitter is that of {result['steps']['n_gradients']:,} gradients measured one by one.",
    )


def _parts(row: Mapping[str, Any]) -> str:
    lock = "—" if row["algorithm"] == LABELS["wassp"] else f"{row['lock_ms']:.2f}"
    return f"{row['gradient_ms']:.2f}, {lock}, {row['update_ms']:.2f}"


_COMPARISON = (
    Column("algorithm", "algorithm", number=False, once=True),
    Column("workers", "workers"),
    Column("samples/s measured", "", "{measured:,.0f} ({lowest:,.0f}–{highest:,.0f})".format_map),
    Column("speedup", "speedup", "{:.2f}"),
    Column("gradient, lock, update (ms)", "", _parts),
    Column("samples/s simulated", "", "{simulated:,.0f} ({deviation:+.0%})".format_map),
)  # fmt: skip


@shows()
def comparison(result: Result) -> Table:
    """Make T-scaling: measured and simulated samples per second, side by side."""
    rows = [_compared(result, name, k) for name in ALGORITHMS for k in workers_of(result, name)]
    # The calibration is on WASAP-SGD with one worker, so that row is no check.
    checks = [row for row in rows if (row["algorithm"], row["workers"]) != (LABELS["wasap"], 1)]
    told = ", ".join(
        f"{100 * row['deviation']:+.0f} % ({row['algorithm']} × {row['workers']})" for row in checks
    )
    finding = f"Where it was not calibrated, the simulation deviates by {told}."
    caption = (
        "**The simulation, where it can be checked.** Medians over rounds (lowest to "
        "highest) beside simulated samples per second and their deviation. In lockstep the update "
        "includes the wait for the slowest. The simulation uses the times of one worker only: "
        "it does not model that busy cores share memory bandwidth and clock."
    )
    return Table.of("T-scaling", rows, _COMPARISON, caption, finding=finding)


@shows()
def calibration(result: Result) -> Table:
    """Make the table of the simulation's times and sizes."""
    known = vars(calibrate(result)).items()
    rows = [{"name": name, "value": value} for name, value in known if name != "jitter"]
    columns = [Column("name", "name", "`{}`", number=False), Column("value", "value", "{:.3g}")]
    caption = "**The simulation's inputs.** Times in seconds, sizes, and bytes per second."
    return Table.of("T-calibration", rows, columns, caption)


@shows()
def another(result: Result, **how: Any) -> Note:
    """Report a simulation with other workers, network or stragglers."""
    return Note(str(model.simulate(calibrate(result), **how)))


def _compared(result: Result, name: str, k: int) -> Result:
    """Return what was measured and simulated for an algorithm with `k` workers."""
    times, measured = spent(result, name, k), spread(samples_per_second(result, name, k))
    simulated = model.simulate(calibrate(result), k, name).samples_per_second
    return {
        "algorithm": LABELS[name], "workers": k,
        **dict(zip(("measured", "lowest", "highest"), measured.values(), strict=True)),
        "speedup": float(np.median(speedups(result, name, k))),
        "gradient_ms": 1e3 * times["compute"], "lock_ms": 1e3 * times["lock"],
        "update_ms": 1e3 * times["update"],
        "simulated": simulated, "deviation": simulated / measured["median"] - 1,
    }  # fmt: skip
