"""The pictures and tables of the page on scaling: what was measured, and what was simulated.

Measurements come from `scaling`; simulations are made here, by `simulate`, when a picture is. What
is simulated says so in its title, its axis or its caption.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from sparsecore.paper.figures import GREY, STYLE, WIDTH, disturbed, line
from sparsecore.paper.page import Picture, Table
from sparsecore.paper.parallel.figures import COLOUR, LABELS
from sparsecore.paper.scaling.measure import (
    Result,
    Scaling,
    busy,
    calibrate,
    check,
    powers,
    samples_per_second,
    speedups,
    spent,
    workers_of,
)
from sparsecore.paper.scaling.simulate import (
    ALGORITHMS,
    EVEN,
    NETWORKS,
    ONE_MACHINE,
    SCENARIOS,
    Network,
    saturation,
    service,
    simulate,
)
from sparsecore.paper.store import origin

_NETWORK_STYLES = dict(zip(NETWORKS, ("-", (0, (5, 2)), (0, (1, 1))), strict=True))
_SCENARIO_STYLES = dict(zip(SCENARIOS[1:], ("-", (0, (5, 2)), (0, (1, 1))), strict=True))


def measured(scaling: Scaling) -> Picture:
    """Draw the measured samples per second against the number of workers, relative to one."""
    versions = scaling.versions()
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.4), layout="constrained")
        axes = figure.subplots(1, len(versions), squeeze=False)[0]
        for ax, (title, result) in zip(axes, versions, strict=True):
            most = 1
            for shift, name in ((-0.02, "wasap"), (0.02, "wassp")):
                numbers = workers_of(result, name)
                ratios = [speedups(result, name, k) for k in numbers]
                middle = np.array([np.median(r) for r in ratios])
                below = [m - r.min() for m, r in zip(middle, ratios, strict=True)]
                above = [r.max() - m for m, r in zip(middle, ratios, strict=True)]
                ax.errorbar(
                    np.array(numbers) + shift, middle, yerr=[below, above], fmt="o-",
                    color=COLOUR[name], markersize=5, linewidth=1.6, capsize=3,
                )  # fmt: skip
                most = max(most, *numbers)
            ax.plot((1, most), (1, most), color=GREY, linestyle=":", linewidth=1.2)
            ax.set(xlabel="workers", title=f"measured, {title}", xlim=(0.9, most + 0.1))
            ax.set_ylim(bottom=0)
            ax.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(6, integer=True))
        axes[0].set_ylabel("speed-up over the\nsequential trainer")
        handles = [line(COLOUR[name], LABELS[name]) for name in ALGORITHMS]
        handles.append(line(GREY, "ideal", ":"))
        figure.legend(handles=handles, loc="outside upper center", ncols=len(handles))
    told = "; ".join(f"{title}: {_gains(result)}" for title, result in versions)
    caption = (
        "**Measured speed-up per worker.** Samples per second of phase 1 on Fashion-MNIST, all "
        "rows, evolution included, relative to the sequential trainer with one thread in the same "
        "round; medians over rounds, bars from the lowest to the highest. What to see: how far "
        f"from the dotted line each added worker falls. {told}. {_disturbed(scaling)}"
        f"{_source(scaling)}"
    )
    alt = "Speed-up against number of workers for WASAP-SGD and WASSP-SGD, with the ideal line."
    return Picture("F-scaling", figure, caption, alt)


def simulated(scaling: Scaling) -> Picture:
    """Draw the simulated speed-up up to 1024 workers, a line per network."""
    versions, numbers = scaling.versions(), powers()
    told = []
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.9 * len(versions)), layout="constrained")
        axes = figure.subplots(len(versions), 2, squeeze=False, sharex=True, sharey=True)
        for row, (title, result) in zip(axes, versions, strict=True):
            calibration = calibrate(result)
            for ax, name in zip(row, ALGORITHMS, strict=True):
                ax.plot(numbers, numbers, color=GREY, linestyle=":", linewidth=1)
                for network, style in _NETWORK_STYLES.items():
                    found = [simulate(calibration, k, name, network) for k in numbers]
                    gains = [outcome.speedup for outcome in found]
                    ax.plot(numbers, gains, color=COLOUR[name], linestyle=style)
                    best = found[int(np.argmax(gains))]
                    last = found[-1]
                    text = f"{LABELS[name]}, {network.name}: at most {best.speedup:.1f} times "
                    text += f"one worker, with {best.workers}"
                    if best is not last:
                        text += f", {last.speedup:.1f} with {last.workers}"
                    if name == "wasap":
                        point = saturation(calibration, network)
                        at = float(np.exp(np.interp(np.log(point), np.log(numbers), np.log(gains))))
                        ax.plot(point, at, "D", color=GREY, markersize=6)
                        held = 1e3 * service(calibration, network)
                        text += f", saturated from K* = {point:.1f} on ({held:.2f} ms a push)"
                    told.append(text)
                ax.set(xscale="log", yscale="log", title=f"simulation: {LABELS[name]}, {title}")
                ax.set_xticks((1, 4, 16, 64, 256, 1024), ("1", "4", "16", "64", "256", "1024"))
                ax.minorticks_off()
                ax.set_xlabel("simulated workers")
            row[0].set_ylabel("simulated speed-up\nover one worker")
        handles = [line("#333333", n.name, style) for n, style in _NETWORK_STYLES.items()]
        figure.legend(handles=handles, loc="outside upper center", ncols=len(handles))
    caption = (
        "**Simulation: up to 1024 workers.** Not a run: a discrete-event simulation with the times "
        "measured on this page, and networks that are assumed; one worker per core, or per machine "
        "on a network. Diamonds: from here on the parameter server has no rest. What to see: where "
        "WASAP-SGD's line leaves the dotted one, and that it falls beyond the diamond: more and "
        "more gradients meet a newer topology, and take longer under the lock. WASSP-SGD has no "
        f"such place, but exchanges messages with every other worker. {_told(told, len(versions))} "
        f"{_deviations(versions)}With {_rows(scaling):,} rows no more than {_updates(scaling)} "
        "workers have a full batch each; beyond them the data would have to grow. "
        f"{_source(scaling)}"
    )
    alt = "Simulated speed-up against up to 1024 workers, log-log, one line per network."
    return Picture("F-scaling-simulated", figure, caption, alt)


def stragglers(scaling: Scaling, network: Network = ONE_MACHINE) -> Picture:
    """Draw the simulated throughput with uneven workers, relative to that with even ones."""
    versions, numbers = scaling.versions(), powers()[1:]
    told = []
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.4 * len(versions)), layout="constrained")
        axes = figure.subplots(len(versions), 2, squeeze=False, sharex=True, sharey=True)
        for row, (title, result) in zip(axes, versions, strict=True):
            calibration = calibrate(result)
            for ax, name in zip(row, ALGORITHMS, strict=True):
                even = [
                    simulate(calibration, k, name, network, EVEN).gradients_per_second
                    for k in numbers
                ]
                for scenario, style in _SCENARIO_STYLES.items():
                    uneven = [
                        simulate(calibration, k, name, network, scenario).gradients_per_second
                        for k in numbers
                    ]
                    kept = 100 * np.array(uneven) / even
                    ax.plot(numbers, kept, color=COLOUR[name], linestyle=style)
                    few, many = (round(kept[i] - 100) for i in (numbers.index(8), -1))
                    told.append(
                        f"{LABELS[name]}, {scenario.name}, 8 workers: {few:+d} %, "
                        f"{numbers[-1]}: {many:+d} %"
                    )
                ax.axhline(100, color=GREY, linestyle=":", linewidth=1)
                ax.set(xscale="log", title=f"simulation: {LABELS[name]}, {title}")
                ax.set_xticks((2, 8, 32, 128, 512), ("2", "8", "32", "128", "512"))
                ax.minorticks_off()
                ax.set_xlabel("simulated workers")
            row[0].set_ylabel("throughput, % of that of\nworkers all alike")
            row[0].set_ylim(bottom=0)
        handles = [line("#333333", s.name, style) for s, style in _SCENARIO_STYLES.items()]
        figure.legend(handles=handles, loc="outside upper center", ncols=len(handles))
    caption = (
        "**Simulation: what stragglers cost.** Gradients per second relative to workers that all "
        f"take the mean time; {network.name}. Jitter is that of {_drawn(scaling)} gradients "
        "measured one by one, and is in the other two scenarios as well. What to see: in lockstep "
        "everybody waits for the slowest, until the exchange takes longer than that; WASAP-SGD "
        "loses what the slow ones themselves do not do, and nothing where all wait for the server. "
        f"{_told(told, len(versions))} {_source(scaling)}"
    )
    alt = "Simulated throughput with stragglers relative to even workers, one panel per algorithm."
    return Picture("F-scaling-stragglers", figure, caption, alt)


def comparison(scaling: Scaling) -> Table:
    """Make T-scaling: measured and simulated samples per second, side by side."""
    rows: list[dict[str, Any]] = []
    for title, result in scaling.versions():
        for name, k, outcome in check(result):
            rates, times = samples_per_second(result, name, k), spent(result, name, k)
            beside = simulate(busy(result, name, k), k, name) if name == "wasap" else None
            rows.append(
                {
                    "where": title,
                    "algorithm": LABELS[name],
                    "workers": k,
                    "measured": float(np.median(rates)),
                    "lowest": float(rates.min()),
                    "highest": float(rates.max()),
                    "speedup": float(np.median(speedups(result, name, k))),
                    "gradient_ms": 1e3 * times["compute"],
                    "lock_ms": 1e3 * times["lock"],
                    "update_ms": 1e3 * times["update"],
                    "simulated": outcome.samples_per_second,
                    "simulated_beside": None if beside is None else beside.samples_per_second,
                }
            )
    plain = pd.DataFrame(rows)
    shown = pd.DataFrame(
        {
            "where": plain["where"],
            "algorithm": plain["algorithm"],
            "workers": plain["workers"].astype(str),
            "samples/s measured": [
                f"{r['measured']:,.0f} ({r['lowest']:,.0f}–{r['highest']:,.0f})" for r in rows
            ],
            "speed-up": [f"{r['speedup']:.2f}" for r in rows],
            "gradient, lock, update (ms)": [
                f"{r['gradient_ms']:.2f}, "
                + ("—" if r["algorithm"] == LABELS["wassp"] else f"{r['lock_ms']:.2f}")
                + f", {r['update_ms']:.2f}"
                for r in rows
            ],
            "samples/s simulated": [_against(r, "simulated") for r in rows],
            "with that gradient": [_against(r, "simulated_beside") for r in rows],
        }
    )
    numbers = tuple(c for c in shown.columns if c not in ("where", "algorithm"))
    caption = (
        "**Does the simulation hold where it can be checked?** Medians over rounds (lowest to "
        "highest), speed-up over the sequential trainer, where a worker's time per gradient goes "
        "(in lockstep the update includes the wait for the slowest), and the samples per second of "
        "the simulation, with its deviation from the measurement. The simulation knows WASAP-SGD "
        "with one worker only; the last column has it use the time of a gradient that was measured "
        "beside as many busy cores. What separates the two columns is what cores take from each "
        "other (memory, clock, other processes); what remains is what the model lacks. "
        f"{_disturbed(scaling)}{_source(scaling)}"
    )
    return Table("T-scaling", shown, caption, plain, numbers)


_MEANINGS = {
    "compute": ("a worker's time between two pushes", "WASAP-SGD, one worker"),
    "lock": ("taking the free lock", "WASAP-SGD, one worker"),
    "update": ("a push, under the lock", "WASAP-SGD, one worker, less evolution"),
    "evolve": ("more for the push that ends an epoch", "step by step, one process"),
    "retain": ("more for a push that meets a newer topology", "step by step, one process"),
    "adopt": ("adopting that topology, without the lock", "step by step, one process"),
    "reduce": ("adding up gradients in lockstep", "step by step, one process"),
    "term": ("the same, more per worker", "step by step, one process"),
    "message": ("a small message", "two ranks to each other"),
    "bandwidth": ("a large one, GB/s each way", "two ranks to each other"),
    "n_params": ("parameters", "the network"),
    "bytes_per_update": ("megabytes that an update moves", "WASAP-SGD, one worker"),
    "samples_per_update": ("samples in a gradient", "the data"),
    "updates_per_epoch": ("updates between two evolutions", "the data"),
}


def calibration(scaling: Scaling) -> Table:
    """Make T-scaling-calibration: what the simulation takes from measurements."""
    versions = [(title, calibrate(result)) for title, result in scaling.versions()]
    names = [field.name for field in fields(versions[0][1]) if field.name in _MEANINGS]
    plain = pd.DataFrame(
        {"quantity": names, **{t: [float(getattr(c, n)) for n in names] for t, c in versions}}
    )
    shown = pd.DataFrame(
        {
            "quantity": [_MEANINGS[name][0] for name in names],
            **{title: [_shown(n, getattr(c, n)) for n in names] for title, c in versions},
            "from": [_MEANINGS[name][1] for name in names],
        }
    )
    networks = "; ".join(
        f"{n.name}: {1e6 * n.latency:g} µs one way, {n.bandwidth / 1e9:g} GB/s each way"
        for n in NETWORKS
        if n.bandwidth is not None
    )
    caption = (
        "**What the simulation is calibrated with.** Times in milliseconds; the CSV file has "
        f"seconds and bytes. Assumed, not measured: {networks}. {_source(scaling)}"
    )
    numbers = tuple(title for title, _ in versions)
    return Table("T-scaling-calibration", shown, caption, plain, numbers)


# --- texts ---------------------------------------------------------------------------------------


def _shown(name: str, value: float) -> str:
    if name == "bandwidth":
        return f"{value / 1e9:.1f}"
    if name == "bytes_per_update":
        return f"{value / 1e6:.2f}"
    if name in ("n_params", "updates_per_epoch"):
        return f"{value:,}"
    return f"{value:.1f}" if name == "samples_per_update" else f"{1e3 * value:.4f}"


def _deviations(versions: list[tuple[str, Result]]) -> str:
    """Say by how much the simulation deviates where it can be checked, with most workers."""
    parts = []
    for title, result in versions:
        found = check(result)
        most = max(k for _, k, _ in found)
        errors = {
            name: outcome.samples_per_second / np.median(samples_per_second(result, name, k)) - 1
            for name, k, outcome in found
            if k == most
        }
        told = ", ".join(f"{error:+.0%} ({LABELS[name]})" for name, error in errors.items())
        parts.append(f"{title}, {most} workers: {told}")
    return (
        "Where it can be checked the simulation deviates from what was measured, and beyond by as "
        f"much at least: {'; '.join(parts)}. "
    )


def _against(row: dict[str, Any], name: str) -> str:
    """Return simulated samples per second, and by how much they deviate from those measured."""
    if row[name] is None:
        return "—"
    return f"{row[name]:,.0f} ({row[name] / row['measured'] - 1:+.0%})"


def _gains(result: Result) -> str:
    return ", ".join(
        f"{LABELS[name]} {np.median(speedups(result, name, k)):.2f} with {k}"
        for name in ALGORITHMS
        for k in workers_of(result, name)[-1:]
    )


def _told(parts: list[str], n_versions: int) -> str:
    """Return sentences; of two versions those of the recorded one."""
    first = parts[: len(parts) // n_versions]
    return f"{'Recorded: ' * (n_versions > 1)}{'; '.join(first)}."


def _first(scaling: Scaling) -> Result:
    """Return the measurements whose numbers the captions tell."""
    return scaling.versions()[0][1]


def _rows(scaling: Scaling) -> int:
    return int(_first(scaling)["n_train"])


def _updates(scaling: Scaling) -> int:
    return _rows(scaling) // int(_first(scaling)["batch_size"])


def _drawn(scaling: Scaling) -> int:
    return int(_first(scaling)["steps"]["n_gradients"])


def _disturbed(scaling: Scaling) -> str:
    used = {title: float(np.median(result["others"])) for title, result in scaling.versions()}
    return disturbed(used, "workers shared cores with them, so that these speed-ups are too low")


def _source(scaling: Scaling) -> str:
    places = []
    for title, result in scaling.versions():
        about = result["provenance"]
        load = about.get("load_before")
        places.append(
            f"{title} (profile {result['profile']}): {origin(about)}"
            + ("" if load is None else f", load before it {load:.1f}")
        )
    return f"*Source: {'; '.join(places)}.*"
