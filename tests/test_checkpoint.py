"""Model files: round trips, every kind of damage, and writes that are interrupted."""

import errno
import fcntl
import io
import json
import mmap
import os
import pickle
import resource
import stat
import subprocess
import sys
import tracemalloc
import zipfile

import numpy as np
import pytest
from oracle import batch, network

from sparsecore import checkpoint
from sparsecore.checkpoint import CheckpointError, CheckpointWarning, load, save
from sparsecore.files import atomic_write, check_writable
from sparsecore.mlp import SparseMLP


@pytest.fixture
def saved(tmp_path):
    model = network(activation="leaky-relu", alpha=0.15)
    model.start_momentum()[:] = np.random.default_rng(0).normal(size=len(model.params))
    path = tmp_path / "model.npz"
    save(model, path, {"epoch": 3, "loss": 0.1})
    return model, path


# --- round trips ----------------------------------------------------------------------------------


def test_a_checkpoint_comes_back_bit_by_bit(saved):
    model, path = saved
    twin, run = load(path)
    assert run == {"epoch": 3, "loss": 0.1}
    assert twin.weights_sha256() == model.weights_sha256()
    np.testing.assert_array_equal(twin.velocity, model.velocity)
    assert twin.velocity.dtype == np.float32
    assert (twin.sizes, twin.activation, twin.alpha, twin.init) == (
        model.sizes, "leaky-relu", 0.15, "he_uniform",
    )  # fmt: skip
    X, _ = batch(model, 20)
    np.testing.assert_array_equal(twin.decision_function(X), model.decision_function(X))


def test_a_model_has_no_run_and_no_velocity(saved, tmp_path):
    model, _ = saved
    save(model, tmp_path / "plain.npz")
    twin, run = load(tmp_path / "plain.npz")
    assert run is None and twin.velocity is None
    assert twin.weights_sha256() == model.weights_sha256()


@pytest.mark.parametrize("sizes", [(1, 1), (3, 1, 2), (5, 4)])
def test_networks_without_connections_come_back(tmp_path, sizes):
    model = SparseMLP(
        sizes, [(np.zeros(n + 1, int), np.zeros(0, int)) for n in sizes[1:]],
        [np.zeros(0)] * (len(sizes) - 1),
    )  # fmt: skip
    save(model, tmp_path / "empty.npz")
    assert load(tmp_path / "empty.npz")[0].weights_sha256() == model.weights_sha256()


def test_floats_of_the_run_come_back_exactly(saved, tmp_path):
    model, _ = saved
    values = np.random.default_rng(0).normal(size=100).tolist()
    save(model, tmp_path / "run.npz", {"values": values})
    assert load(tmp_path / "run.npz")[1] == {"values": values}


def test_there_are_no_pickles_inside(saved):
    _, path = saved
    with np.load(path, allow_pickle=False) as file:
        assert all(file[name].dtype != object for name in file.files)
        assert int(file["format_version"]) == checkpoint.FORMAT_VERSION


# --- damage ---------------------------------------------------------------------------------------


def test_a_file_cut_short(saved):
    _, path = saved
    whole = path.read_bytes()
    shares = (int(share * len(whole)) for share in (0.0, 0.001, 0.1, 0.5, 0.9, 0.999))
    for kept in (*shares, -1, -2, -10, -21, -22, -23, -100):
        path.write_bytes(whole[:kept])
        with pytest.raises(CheckpointError, match=r"model\.npz: not a whole sparsecore model"):
            load(path)


def test_a_flipped_bit_is_found_or_changes_nothing(saved):
    model, path = saved
    whole = bytearray(path.read_bytes())
    rng = np.random.default_rng(1)
    found = 0
    # The last kilobyte or so is the zip's directory, where a bit may mean anything.
    places = [*rng.integers(len(whole), size=300), *range(len(whole) - 1000, len(whole), 3)]
    for place in places:
        bit = 1 << int(rng.integers(8))
        whole[place] ^= bit
        path.write_bytes(whole)
        try:
            twin, run = load(path)
        except CheckpointError:
            found += 1
        else:  # a time stamp, a file attribute, padding
            assert run == {"epoch": 3, "loss": 0.1}
            assert twin.weights_sha256() == model.weights_sha256()
        whole[place] ^= bit
    assert found > 0.5 * len(places)


def zipped(file):
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("readme.txt", "hello")


ONE = np.array(1)
FOREIGN = {
    "text": lambda file: file.write(b"epoch,loss\n1,0.5\n"),
    "noise": lambda file: file.write(np.random.default_rng(0).bytes(5000)),
    "empty": lambda file: None,
    "pickle": lambda file: pickle.dump({"weights": [1, 2, 3]}, file),
    "zip": zipped,
    "npz": lambda file: np.savez(file, weights=np.ones(5)),
    "npy": lambda file: np.save(file, np.ones(5)),
    "version only": lambda file: np.savez(file, format_version=ONE),
    "odd version": lambda file: np.savez(file, format_version=[1, 2], about=np.array("{}")),
    "objects": lambda file: np.savez(file, format_version=ONE, about=np.array({"a": 1}, object)),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_foreign_file(tmp_path, kind):
    path = tmp_path / "foreign.npz"
    with path.open("wb") as file:
        FOREIGN[kind](file)
    with pytest.raises(CheckpointError, match=r"foreign\.npz: not a whole sparsecore model file"):
        load(path)


class Exploit:
    def __reduce__(self):
        return os.mkdir, ("exploited",)


def test_a_pickle_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "bad.npz"
    np.savez(path, format_version=np.array(Exploit(), object))
    with pytest.raises(CheckpointError):
        load(path)
    path.write_bytes(pickle.dumps(Exploit()))
    with pytest.raises(CheckpointError):
        load(path)
    assert not (tmp_path / "exploited").exists()


def rewritten(path, **changes):
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    about = json.loads(str(arrays["about"]))
    for name, value in changes.items():
        if name in about:
            about[name] = value
        else:
            arrays[name] = value(arrays[name]) if callable(value) else value
    arrays["about"] = np.array(json.dumps(about))
    np.savez(path, **{name: value for name, value in arrays.items() if value is not None})


def test_a_newer_version_says_so(saved):
    _, path = saved
    rewritten(path, format_version=np.array(checkpoint.FORMAT_VERSION + 1))
    with pytest.raises(CheckpointError, match="format version 2, expected 1; a newer sparsecore"):
        load(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"sizes": lambda a: a[:-1]},
        {"sizes": lambda a: a[:0]},
        {"sizes": lambda a: a * 0},
        {"weight_start": lambda a: a[:-1]},
        {"weight_start": lambda a: a[:0]},
        {"weight_start": lambda a: a + 1},
        {"indptr": lambda a: a[::-1]},
        {"indptr": None},
        {"indices": lambda a: a + 1000},
        {"indices": lambda a: -a},
        {"indices": lambda a: np.zeros_like(a)},
        {"params": lambda a: a[:-1]},
        {"params": lambda a: a[:3]},
        {"params": lambda a: a[None]},
        {"velocity": lambda a: a[:-1]},
        {"velocity": lambda a: a[:1]},
        {"velocity": lambda a: np.where(np.arange(len(a)) == 3, np.inf, a)},
        {"params": lambda a: np.where(np.arange(len(a)) == 3, np.nan, a)},
        {"params": lambda a: np.where(np.arange(len(a)) == len(a) - 1, -np.inf, a)},
        {"sizes": lambda a: np.array([2**30, *a[1:]])},
        {"sizes": lambda a: a.astype(float)},
        {"activation": "gelu"},
        {"init": "zeros"},
        {"alpha": "steep"},
        {"run": ["estimator", "config", "rank"]},
    ],
)
def test_contents_that_are_not_a_network(saved, changes):
    _, path = saved
    rewritten(path, **changes)
    with pytest.raises(CheckpointError, match="not a whole sparsecore model file"):
        load(path)


def announced(name, header):
    """Return a file whose member `name` says of itself what `header` does."""
    content = io.BytesIO()
    np.lib.format.write_array_header_1_0(content, header)
    return {f"{name}.npy": content.getvalue()}


@pytest.mark.parametrize("name", ["params", "indices", "sizes", "about"])
@pytest.mark.parametrize("how", ["header", "member", "compressed"])
def test_what_a_file_announces_is_not_allocated(saved, tmp_path, name, how):
    _, path = saved
    with zipfile.ZipFile(path) as archive:
        members = {info: archive.read(info) for info in archive.namelist()}
    header = {"descr": "<f4", "fortran_order": False, "shape": (2**31,)}
    members |= announced(name, header)
    if how == "compressed":
        members[f"{name}.npy"] += bytes(2**25)
    kind = zipfile.ZIP_DEFLATED if how == "compressed" else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", kind) as archive:
        for member, content in members.items():
            archive.writestr(member, content)
            if how == "member" and member == f"{name}.npy":
                archive.infolist()[-1].file_size = 2**31
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match="not a whole sparsecore model file"):
            load(path)
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("about", ["[]", "{}", "3", "{", '{"activation": "relu"}'])
def test_descriptions_that_are_not_one(saved, about):
    _, path = saved
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    np.savez(path, **{**arrays, "about": np.array(about)})
    with pytest.raises(CheckpointError, match="not a whole sparsecore model file"):
        load(path)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.npz"):
        load(tmp_path / "nothing.npz")


# --- writing --------------------------------------------------------------------------------------


def test_an_interrupted_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    for error in (ValueError, KeyboardInterrupt):
        with pytest.raises(error), atomic_write(path) as file:
            file.write(b"new and longer")
            raise error
        assert path.read_bytes() == b"old"
        assert os.listdir(tmp_path) == ["file"], "no temporary file is left"


def killed(path, code="os._exit(9)"):
    program = (
        "import os, sys, time\n"
        "from sparsecore.files import atomic_write\n"
        "with atomic_write(sys.argv[1]) as file:\n"
        "    file.write(b'new' * 100000)\n"
        "    file.flush()\n"
        f"    {code}\n"
    )
    return subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE)


def test_writers_of_names_that_begin_alike_keep_apart(tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", lambda *asked: None)  # as between the nodes of some disks
    first, second = (tmp_path / f"{'long' * 10}.worker{rank}" for rank in range(2))
    with atomic_write(first) as file:
        with atomic_write(second) as other:
            other.write(b"second")
        file.write(b"first")
    assert (first.read_bytes(), second.read_bytes()) == (b"first", b"second")


def test_lack_of_memory_is_no_damage(tmp_path, monkeypatch):
    path = tmp_path / "model.npz"
    checkpoint.save(SparseMLP.erdos_renyi((600, 600, 10), density=1.0), path)

    def refuse(*asked, **how):
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(mmap, "mmap", refuse)
    with pytest.raises(MemoryError, match="bytes"):
        checkpoint.load(path)


@pytest.mark.parametrize("name", ["file", "x" * 255, "a [*] ε" * 20])
def test_a_killed_process_leaves_the_old_file_and_the_next_writer_tidies_up(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"old")
    other = tmp_path / ".file.mine.tmp"
    other.touch()
    assert killed(path).wait(60) == 9
    assert path.read_bytes() == b"old"
    assert len(os.listdir(tmp_path)) == 3, "the temporary file is left"
    alive = killed(path, "print('here', flush=True); time.sleep(60)")
    try:
        alive.stdout.readline()
        left = set(os.listdir(tmp_path)) - {name, other.name}
        assert len(left) == 1, "the dead one's is gone"
        with atomic_write(path) as file:
            file.write(b"newer")
        assert set(os.listdir(tmp_path)) == {name, other.name, *left}, "who lives keeps his own"
    finally:
        alive.kill()
        alive.wait()
        alive.stdout.close()
    with atomic_write(path) as file:
        file.write(b"newest")
    assert set(os.listdir(tmp_path)) == {name, other.name}


def made(kind, folder):
    path = folder / "out"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "link to a pipe":
        os.mkfifo(folder / "pipe")
        path.symlink_to("pipe")
    elif kind == "folder":
        path.mkdir()
    elif kind == "read-only file":
        path.touch(0o444)
    elif kind == "long name":
        return folder / ("x" * 256)
    elif kind == "file as folder":
        path.touch()
        return path / "out"
    elif kind == "loop of links":
        path.symlink_to("out")
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("pipe", "expected a regular file, got a pipe, socket or device"),
        ("link to a pipe", "expected a regular file, got a pipe, socket or device"),
        ("folder", "expected a regular file, got a folder"),
        ("read-only file", "expected a file that is not read-only"),
        ("long name", "File name too long"),
        ("file as folder", "expected a folder that can be written, got .*out"),
        ("loop of links", "symbolic links"),
    ],
)
def test_what_cannot_be_replaced_is_refused_before_anything_is_written(tmp_path, kind, message):
    path = made(kind, tmp_path)

    def there():  # not when it was read: following a link is reading it
        stats = ((p.name, p.lstat()) for p in tmp_path.iterdir())
        return {(name, s.st_ino, s.st_mode, s.st_size, s.st_mtime_ns) for name, s in stats}

    before = there()
    with pytest.raises(OSError, match=r"expected a .*folder"):
        check_writable("/")
    for write in (check_writable, lambda path: save(network(), path)):
        with pytest.raises(OSError, match=f"{message}.*{path.name}"):
            write(path)
    assert before == there()


def test_links_are_followed_and_modes_kept(tmp_path):
    target, link = tmp_path / "folder" / "target", tmp_path / "link"
    link.symlink_to(target)
    for mode in (0o600, 0o664):
        with atomic_write(link) as file:
            file.write(b"first")
        target.chmod(mode)
        with atomic_write(link) as file:
            file.write(f"{mode}".encode())
        assert link.is_symlink() and target.read_text() == f"{mode}"
        assert stat.S_IMODE(target.stat().st_mode) == mode


@pytest.mark.parametrize("damage", [b"", b"not a zip", None])
def test_of_two_checkpoints_the_older_one_is_used_if_the_newest_is_damaged(tmp_path, damage):
    path, model = tmp_path / "run.npz", network()
    for step in range(3):
        save(model, path, {"step": step})
        assert load(path)[1] == checkpoint.latest(path)[1] == {"step": step}
    assert sorted(os.listdir(tmp_path)) == ["run.npz", "run.npz.previous"]
    path.write_bytes(path.read_bytes()[:-1] if damage is None else damage)
    with pytest.raises(CheckpointError):
        load(path)
    with pytest.warns(CheckpointWarning, match=r"run\.npz: not a whole .*run\.npz\.previous, the"):
        assert checkpoint.latest(path)[1] == {"step": 1}
    save(model, path, {"step": 3})
    rewritten(path, format_version=np.array(2))
    with pytest.raises(CheckpointError, match="format version 2"):  # whole, but not for us
        checkpoint.latest(path)


@pytest.mark.parametrize("died_at", ["link", "replace"])
def test_at_any_moment_of_a_save_one_checkpoint_is_whole(tmp_path, monkeypatch, died_at):
    path, model = tmp_path / "run.npz", network()
    for step in range(2):
        save(model, path, {"step": step})
    path.write_bytes(b"damaged")  # so the older one is all there is

    def die(*args, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, died_at, die)
        save(model, path, {"step": 2})
    with pytest.warns(CheckpointWarning):
        assert checkpoint.latest(path)[1] == {"step": 0}
    save(model, path, {"step": 2})
    assert checkpoint.latest(path)[1] == {"step": 2}


def test_a_model_is_kept_alone(tmp_path):
    for seed in range(2):
        save(network(seed=seed), tmp_path / "model.npz")
    assert os.listdir(tmp_path) == ["model.npz"]


def test_an_interrupt_just_after_the_rename_is_an_interrupt(tmp_path, monkeypatch):
    replace = os.replace

    def interrupted(*paths):
        replace(*paths)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt) as found, atomic_write(tmp_path / "file") as file:
        file.write(b"new")
    assert found.value.__context__ is None
    assert (tmp_path / "file").read_bytes() == b"new" and len(os.listdir(tmp_path)) == 1


def test_a_full_disk_is_an_error_that_names_the_file(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"File too large: .*model\.npz"):
            save(network(), tmp_path / "model.npz")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not os.listdir(tmp_path)


def test_a_network_that_is_not_finite_is_not_saved(saved):
    model, path = saved
    before, broken = path.read_bytes(), model.copy()
    broken.params[0] = np.nan
    with pytest.raises(ValueError, match="a weight, bias or velocity is not finite"):
        save(broken, path)
    assert path.read_bytes() == before


def test_a_failed_save_leaves_the_old_model(saved, monkeypatch):
    model, path = saved
    before = path.read_bytes()
    other = network(seed=1)

    def break_down(file, **arrays):
        file.write(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(np, "savez", break_down)
    with pytest.raises(OSError, match="no space left"):
        save(other, path)
    assert path.read_bytes() == before
    assert load(path)[0].weights_sha256() == model.weights_sha256()


def test_a_written_file_is_whole_and_readable_by_others(tmp_path):
    path = tmp_path / "new" / "folder" / "file"
    umask = os.umask(0o027)
    try:
        with atomic_write(path) as file:
            file.write(b"content")
            assert not path.exists(), "nothing is there before it is whole"
    finally:
        os.umask(umask)
    assert path.read_bytes() == b"content"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


@pytest.mark.parametrize("value", [10**6, 2**64 - 1])
def test_pointers_that_lead_outside_are_refused(saved, value):
    _, path = saved
    rewritten(path, indptr=lambda a: np.array([0, value, *a[2:]], "u8"))
    with pytest.raises(CheckpointError, match="indptr: decreases"):
        load(path)


def test_a_file_is_on_the_disk_before_it_takes_another_s_place(tmp_path, monkeypatch):
    path, done = tmp_path / "file", []
    path.write_bytes(b"old")

    def note(name):
        call = getattr(os, name)

        def noted(*args):
            done.extend((name, new.read_bytes()) for new in tmp_path.glob(".file.*.tmp"))
            return call(*args)

        monkeypatch.setattr(os, name, noted)

    note("fsync")
    note("replace")
    with atomic_write(path) as file:
        file.write(b"new")
    assert done == [("fsync", b"new"), ("replace", b"new")]
