"""A run from data to result: the contract of its record, resuming, and what is refused."""

import json
from itertools import count
from types import SimpleNamespace

import numpy as np
import pytest

from sparsecore import checkpoint, experiment, provenance, train
from sparsecore.config import TrainConfig
from sparsecore.datasets import Dataset

# The names are a contract: results, notebooks and other people's scripts read them.
KEYS = {
    "config", "seed", "recipe", "test_accuracy", "best_test_accuracy", "test_right", "nnz_start",
    "nnz_end", "seconds", "samples_per_second", "peak_rss_mb", "weights_sha256", "epochs",
    "provenance",
}  # fmt: skip


def dataset(n=200, n_test=60, seed=0, shape=(12,), **changes):
    rng = np.random.default_rng(seed)
    n_features = int(np.prod(shape))
    y = np.concatenate([np.arange(3), rng.integers(3, size=n + n_test - 3)])
    X = 3 * rng.standard_normal((3, n_features))[y] + rng.standard_normal((n + n_test, n_features))
    X = X.astype(np.float32)
    values = {
        "name": "clusters",
        "X_train": X[:n],
        "X_test": X[n:],
        "y_train": y[:n],
        "y_test": y[n:],
        "classes": ("a", "b", "c"),
        "feature_shape": shape,
        "domain": "artificial",
        "source": "test",
    }
    return Dataset(**(values | changes))


def config(**changes):
    values = {"hidden": (20, 15), "epsilon": 4, "batch_size": 32, "epochs": 5, "prune_from": 2}
    return TrainConfig(**(values | {"prune_every": 2, "prune_percentile": 10} | changes))


def timeless(result):
    """Leave out what differs between two runs of the same thing."""
    epochs = [{k: v for k, v in e.items() if k != "seconds"} for e in result["epochs"]]
    drop = {"seconds", "samples_per_second", "peak_rss_mb", "provenance"}
    return {k: v for k, v in result.items() if k not in drop} | {"epochs": epochs}


def test_the_record_of_a_run():
    model, result = experiment.run(dataset(), config(), seed=3)
    assert result.keys() == KEYS
    assert result["config"] == {"dataset": "clusters", "n_train": 200, **config().to_dict()}
    assert result["seed"] == 3
    assert result["recipe"] == experiment.RECIPE
    assert result["seconds"].keys() == {"train", "evaluate", "evolve"}
    assert all(v > 0 for v in result["seconds"].values())
    spent = result["seconds"]["train"] + result["seconds"]["evolve"]
    assert result["samples_per_second"] == 1000 / spent
    assert result["weights_sha256"] == model.weights_sha256()
    assert result["nnz_end"] == model.nnz < result["nnz_start"]
    assert result["peak_rss_mb"] > 10
    assert {"commit", "packages", "cpu", "threads", "ranks", "lane_width", "data_sha256"} <= (
        result["provenance"].keys()
    )
    assert result["provenance"]["data_sha256"] == dataset().content_hash
    json.loads(json.dumps(result, allow_nan=False))

    epochs = result["epochs"]
    assert [e["epoch"] for e in epochs] == [1, 2, 3, 4, 5]
    accuracies = [e["test_accuracy"] for e in epochs]
    assert result["test_accuracy"] == accuracies[-1]
    assert result["best_test_accuracy"] == max(accuracies)
    data = dataset().standardized()
    right = model.predict(data.X_test) == data.y_test
    assert accuracies[-1] == right.mean()
    np.testing.assert_array_equal(experiment.unpacked(result["test_right"], 60), right)
    half = experiment.test_half(60)
    assert half.tolist() == sorted(np.random.default_rng(0).permutation(60)[:30])
    assert len(half) == 30 and epochs[-1]["test_half_correct"] == right[half].sum()
    assert accuracies[-1] > 0.6, "guessing is right in 20 of 60 times, give or take 4"
    # nnz is that of the network the epoch trained and evaluated; pruning comes after.
    nnz = result["nnz_start"]
    for e in epochs:
        assert e["nnz"] == nnz
        nnz -= e["pruned"]
    assert nnz == result["nnz_end"]
    assert [e["pruned"] > 0 for e in epochs] == [False, True, False, True, False]
    assert [e["replaced"] > 0 for e in epochs] == [True, True, True, True, False]


def test_seed_and_threads():
    one = experiment.run(dataset(), config(), seed=1)[1]
    for threads in (1, 2):
        assert timeless(experiment.run(dataset(), config(), seed=1, threads=threads)[1]) == (
            timeless(one)
        )
    assert experiment.run(dataset(), config(), seed=2)[1]["weights_sha256"] != one["weights_sha256"]


def test_no_epochs_are_an_evaluation():
    model, result = experiment.run(dataset(), config(epochs=0))
    data = dataset().standardized()
    assert result["test_accuracy"] == (model.predict(data.X_test) == data.y_test).mean()
    assert result["epochs"] == [] and result["seconds"]["train"] == 0
    assert result["samples_per_second"] == 0


def test_observations_go_into_the_record():
    def observe(model, epoch):
        return {"norm": float(np.abs(model.params).sum()), "seen": model.nnz}

    _, result = experiment.run(dataset(), config(), observe=observe)
    assert [e["epoch"] for e in result["epochs"]] == [0, 1, 2, 3, 4, 5]
    assert all(e["seen"] == e["nnz"] and e["norm"] > 0 for e in result["epochs"])
    assert "test_accuracy" not in result["epochs"][0]


def test_inputs_are_standardised_with_the_training_moments():
    data = dataset()
    _, plain = experiment.run(data, config(epochs=1))
    moved = dataset(X_train=data.X_train * 8 + 64, X_test=data.X_test * 8 + 64)
    _, other = experiment.run(moved, config(epochs=1))
    # 8 x + 64 loses at most the last bits of x: nearly the same inputs, nearly the same loss.
    assert other["epochs"][0]["loss"] == pytest.approx(plain["epochs"][0]["loss"], rel=1e-3)


# --- resuming -------------------------------------------------------------------------------------


class RunInterruptedError(Exception):
    pass


@pytest.mark.parametrize("done", [0, 1, 2, 4])
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, done):
    path = tmp_path / "run.npz"
    seen = []

    def observe(model, epoch):
        if len(seen) == done + 1:  # epoch 0 is observed, then `done` epochs, then the machine fails
            raise RunInterruptedError
        seen.append(model.nnz)
        return {"norm": np.abs(model.params).sum()}  # NumPy's float32, which JSON has not

    def look(model, epoch):
        return {"norm": float(np.abs(model.params).sum())}

    whole_model, whole = experiment.run(dataset(), config(), seed=4, observe=look)
    with pytest.raises(RunInterruptedError):
        experiment.run(dataset(), config(), seed=4, observe=observe, checkpoint_path=path)
    assert path.exists() == (done > 0)
    model, result = experiment.run(
        dataset(), config(), seed=4, observe=look, checkpoint_path=path, resume=True, threads=2
    )
    assert timeless(result) == timeless(whole)
    np.testing.assert_array_equal(model.velocity, whole_model.velocity)


def test_resuming_a_finished_run_does_nothing(tmp_path):
    path = tmp_path / "run.npz"
    _, whole = experiment.run(dataset(), config(), checkpoint_path=path)
    _, again = experiment.run(dataset(), config(), checkpoint_path=path, resume=True)
    assert timeless(again) == timeless(whole)
    assert again["seconds"] == whole["seconds"], "the clock of the run, not of the resumption"


@pytest.mark.parametrize(("first", "then"), [(2, 5), (4, 5), (1, 2)])
def test_a_run_resumed_with_more_epochs_is_the_longer_run(tmp_path, first, then):
    # What had been the last epoch neither evolved nor pruned; after 2 and 4 both are due.
    path = tmp_path / "run.npz"
    experiment.run(dataset(), config(epochs=first), checkpoint_path=path)
    whole_model, whole = experiment.run(dataset(), config(epochs=then))
    model, result = experiment.run(
        dataset(), config(epochs=then), checkpoint_path=path, resume=True
    )
    assert timeless(result) == timeless(whole)
    np.testing.assert_array_equal(model.velocity, whole_model.velocity)
    with pytest.raises(ValueError, match=f"with epochs {then}, not {first}; {then} are done: that"):
        experiment.run(dataset(), config(epochs=first), checkpoint_path=path, resume=True)


def test_without_resume_a_checkpoint_is_overwritten(tmp_path):
    path = tmp_path / "run.npz"
    experiment.run(dataset(), config(), seed=1, checkpoint_path=path)
    _, other = experiment.run(dataset(), config(), seed=2, checkpoint_path=path)
    model, state = checkpoint.load(path)
    assert state["seed"] == 2 and model.weights_sha256() == other["weights_sha256"]


def test_another_runs_checkpoint_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "run.npz"
    model, _ = experiment.run(dataset(), config(), seed=1, checkpoint_path=path)

    def resume(seed=1, data=None, **changes):
        experiment.run(
            dataset() if data is None else data, config(**changes), seed=seed,
            checkpoint_path=path, resume=True,
        )  # fmt: skip

    with pytest.raises(ValueError, match="belongs to a run with seed 1, not 2; resume with"):
        resume(seed=2)
    for seed in (-1, 1.5):
        with pytest.raises(
            ValueError, match=f"seed: expected an integer of at least 0, got {seed}"
        ):
            resume(seed=seed)
    with pytest.raises(ValueError, match="resume: expected checkpoint_path with it, got none"):
        experiment.run(dataset(), config(), resume=True)
    with pytest.raises(ValueError, match=r"belongs to a run with alpha 0\.6, not 0\.7; resume"):
        resume(alpha=0.7)
    with pytest.raises(ValueError, match="belongs to a run with n_train "):
        resume(data=dataset(n=150))
    with pytest.raises(ValueError, match="belongs to a run with data '"):  # same name and size
        resume(data=dataset(seed=1))
    with monkeypatch.context() as patch:
        patch.setattr(experiment, "RECIPE", experiment.RECIPE + 1)
        with pytest.raises(ValueError, match="belongs to a run with recipe 1, not 2; resume with"):
            resume()
    checkpoint.save(model, path)
    with pytest.raises(checkpoint.CheckpointError, match="a model, not the checkpoint of a run"):
        resume()
    path.write_bytes(path.read_bytes()[:500])
    path.with_name("run.npz.previous").unlink()
    with pytest.raises(checkpoint.CheckpointError, match="not a whole sparsecore model file"):
        resume()


@pytest.mark.parametrize(("every", "times"), [(100.0, 0), (3.0, 1), (0.0, 5)])
def test_checkpoints_are_no_closer_than_asked(monkeypatch, every, times):
    clock, saved = count(), []  # a second passes between two looks at it
    monkeypatch.setattr(experiment, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    data, plan = dataset(), config(epochs=5)
    model = train.new_model(plan, data.n_features, data.n_classes, 0)
    experiment.fit(model, data, plan, save=saved.append, checkpoint_every=every)
    assert len(saved) == times


# --- what is refused, before training -------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize(("part", "name"), [("X_train", "training data"), ("X_test", "test data")])
def test_data_that_is_not_finite(value, part, name):
    X = getattr(dataset(), part).copy()
    X[5, 7] = value
    with pytest.raises(
        ValueError, match=f"{name}: expected finite numbers, got {value} at row 5, f"
    ):
        experiment.run(dataset(**{part: X}), config())


@pytest.mark.parametrize(
    ("part", "value", "told"),
    [
        ("X_train", 1e200, "training data: its values are too large to be standardised; divide"),
        ("X_test", 1e39, "test data, standardised: expected finite numbers, got inf at row 5, f"),
    ],
)
def test_data_that_are_finite_and_too_large(part, value, told):
    X = getattr(dataset(), part).astype(np.float64)
    X[5, 7] = value
    with pytest.raises(ValueError, match=told):
        experiment.run(dataset(**{part: X}), config())


def test_what_is_observed_and_cannot_be_saved():
    with pytest.raises(TypeError, match="observe: expected a dict of JSON types"):
        experiment.run(dataset(), config(), observe=lambda model, epoch: {"x": object()})


def test_one_class_is_not_enough():
    with pytest.raises(ValueError, match=r"y: expected at least two classes, got only \[2\]"):
        experiment.run(dataset(y_train=np.full(200, 2)), config())


def test_augmentation_needs_images():
    with pytest.raises(ValueError, match=r"augment: .* clusters has features of shape \(12,\)"):
        experiment.run(dataset(), config(augment=True))


def test_augmented_images_train_and_are_evaluated_as_they_are():
    shape = (4, 4, 3)
    rng = np.random.default_rng(0)
    X = rng.integers(0, 256, (260, 48)).astype(np.uint8)
    data = dataset(shape=shape, X_train=X[:200], X_test=X[200:])
    model, result = experiment.run(data, config(augment=True), seed=1)
    scaled = data.standardized()
    assert result["test_accuracy"] == (model.predict(scaled.X_test) == scaled.y_test).mean()
    _, plain = experiment.run(data, config(), seed=1)
    assert result["weights_sha256"] != plain["weights_sha256"]
    assert timeless(experiment.run(data, config(augment=True), seed=1, threads=2)[1]) == (
        timeless(result)
    )
    again = experiment.run(data, config(augment=True), seed=np.int64(1))[1]
    assert timeless(again) == timeless(result)


@pytest.mark.parametrize(
    ("cpuinfo", "name"),
    [
        (
            "processor\t: 0\ncpu family\t: 25\nmodel\t\t: 17\nmodel name\t: AMD EPYC\n"
            "\nprocessor\t: 1\ncpu family\t: 26\n",
            "AMD EPYC (family 25, model 17)",
        ),
        ("cpu family\t: 6\nmodel\t\t: 143\nmodel name\t: Intel(R) Xeon(R) 8488C\n", None),
    ],
)
def test_a_cpu_without_a_number_is_told_by_family_and_model(monkeypatch, cpuinfo, name):
    monkeypatch.setattr(provenance.Path, "read_text", lambda path: cpuinfo)
    expected = name or "Intel(R) Xeon(R) 8488C"
    assert provenance.cpu_model.__wrapped__() == expected


def test_threads_are_those_of_the_engine(threads_seen):
    experiment.run(dataset(), config(epochs=1), threads=2)
    assert len(threads_seen) > 2 and set(threads_seen) == {2}


def test_a_run_resumed_with_fewer_epochs_is_the_shorter_run(tmp_path):
    path, look = tmp_path / "run.npz", lambda model, epoch: {}

    def stop(model, epoch):
        if epoch == 3:
            raise KeyboardInterrupt
        return {}

    with pytest.raises(KeyboardInterrupt):
        experiment.run(dataset(), config(), observe=stop, checkpoint_path=path)
    how = {"observe": look, "checkpoint_path": path, "resume": True}
    with pytest.raises(ValueError, match="with epochs 5, not 2; 2 are done: that is too many"):
        experiment.run(dataset(), config(epochs=2), **how)
    _, result = experiment.run(dataset(), config(epochs=3), **how)
    _, whole = experiment.run(dataset(), config(epochs=3), observe=look)
    assert timeless(result) == timeless(whole)


def test_each_worker_moves_its_images_by_itself():
    X = np.random.default_rng(0).integers(0, 256, (260, 48)).astype(np.uint8)
    data = dataset(shape=(4, 4, 3), X_train=X[:200], X_test=X[200:])
    one, other, third = (
        experiment.Shard(data, slice(None), config(augment=True), 1, rank)(0) for rank in range(3)
    )
    assert not np.array_equal(one, other) and not np.array_equal(other, third)
    for seed, epoch in ((1, 1), (2, 0)):
        moved = experiment.Shard(data, slice(None), config(augment=True), seed)(epoch)
        assert not np.array_equal(one, moved), "each epoch, and each seed, moves them anew"
