"""The arrows of docs/architecture.md, derived from the imports."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import sb3_reinforce

PACKAGE = Path(sb3_reinforce.__file__).parent
PUBLIC_NAMES = "sb3_reinforce"
CORE = {"functional", "policies", "rollout", "update", "distributed", "arguments", "checkpoints"}
#: What each part may import, beside itself.
ALLOWED = {
    "functional": set(),
    "envs": set(),
    "policies": {"functional"},
    "rollout": {"functional", "policies"},
    "vec_env": {"rollout.action_masks", "policies.masked_distribution"},
    "distributed": {"functional"},
    "update": {"functional", "policies", "rollout", "distributed"},
    "arguments": {"functional", "rollout"},
    "checkpoints": {"functional", "policies", "distributed"},
    "reinforce": CORE,
    "lab": {*CORE, "reinforce", "envs"},
    "zoo": {*CORE, "reinforce", "lab", "envs", "vec_env", PUBLIC_NAMES},
}
ENTRANCES = ("sb3_reinforce", "sb3_reinforce.__main__")


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in PACKAGE.rglob("*.py")}


def imported_by(path: Path) -> set[str]:
    """All modules of the package that a file names in an import, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            assert node.level == 0, f"{path}: relative import"
            # "from package import module" is an import of the module
            found |= {name if (name := f"{node.module}.{alias.name}") in MODULES else node.module for alias in node.names}
    return found & set(MODULES)


IMPORTS = {name: imported_by(path) for name, path in MODULES.items()}


@pytest.mark.parametrize("name", sorted(set(MODULES) - set(ENTRANCES)))
def test_imports_point_one_way(name):
    part = name.split(".")[1]
    for other in IMPORTS[name] - {name}:
        in_package = other.removeprefix("sb3_reinforce.")
        allowed = {part, *ALLOWED[part]}
        assert in_package in allowed or in_package.split(".")[0] in allowed, f"{name} imports {other}"


def test_no_file_takes_part_in_a_circle():
    # Raises CycleError, which names the circle
    TopologicalSorter({name: others - {name} for name, others in IMPORTS.items()}).prepare()


def test_functional_imports_nothing_but_arrays_and_tensors():
    for path in (PACKAGE / "functional").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            for name in names:
                top = name.split(".")[0]
                assert top in {"numpy", "torch", "sb3_reinforce"} or top in sys.stdlib_module_names, f"{path.name}: {name}"


@pytest.mark.processes
def test_importing_the_package_needs_none_of_the_extras():
    extras = ["rl_zoo3", "sb3_contrib", "matplotlib", "distributed", "dask", "pandas", "envpool", "optuna"]
    code = (
        f"import sys; sys.modules.update({{name: None for name in {extras}}}); import sb3_reinforce; "
        "sb3_reinforce.REINFORCE('MlpPolicy', 'CartPole-v1', n_episodes=2).learn(1)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_few_files_lie_beside_the_folders():
    assert len(list(PACKAGE.glob("*.py"))) <= 6
    assert len((PACKAGE / "reinforce.py").read_text().splitlines()) <= 560
