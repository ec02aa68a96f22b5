"""
REINFORCE in RL Zoo: registration, checked hyperparameters, search space, command line.

Importing this package imports nothing of RL Zoo; its functions do.
"""

from pathlib import Path

ALGORITHM = "reinforce"

__all__ = ["ALGORITHM", "hyperparams_path", "register", "shipped_configurations"]


def register() -> None:
    """
    Make ``reinforce`` an algorithm of RL Zoo in this process, with its search space.

    To be called before RL Zoo parses a command line or an ``ExperimentManager`` is made. May be called again.

    :raises ModuleNotFoundError: If RL Zoo is not installed.
    """
    from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER
    from rl_zoo3.utils import ALGOS

    from sb3_reinforce import REINFORCE
    from sb3_reinforce.zoo.search import convert_reinforce_params, sample_reinforce_params

    ALGOS[ALGORITHM] = REINFORCE
    HYPERPARAMS_SAMPLER[ALGORITHM] = sample_reinforce_params
    HYPERPARAMS_CONVERTER[ALGORITHM] = convert_reinforce_params


def hyperparams_path() -> Path:
    """
    Find the hyperparameters of REINFORCE, to be given to RL Zoo as ``config``.

    :return: Path of ``reinforce.yml``.
    :raises FileNotFoundError: If the installation is incomplete.
    """
    return find_resource("hyperparams/reinforce.yml")


def shipped_configurations(algorithm: str) -> dict[str, Path]:
    """
    List the other hyperparameters of an algorithm that come with this package.

    :param algorithm: The algorithm.
    :return: Paths by the short name that ``--conf-file`` takes: ``adam`` is ``reinforce_adam.yml``.
    :raises FileNotFoundError: If the installation is incomplete.
    """
    prefix = f"{algorithm}_"
    paths = sorted(hyperparams_path().parent.glob(f"{prefix}*.yml"))
    return {path.stem.removeprefix(prefix): path for path in paths}


def find_resource(name: str) -> Path:
    """
    Find a file that lies at the root of the repository, and beside this module in a wheel.

    :param name: Path relative to the root of the repository.
    :return: Path of the file.
    :raises FileNotFoundError: If it is in neither place.
    """
    here = Path(__file__).parent
    for path in (here / name, here.parents[1] / name):
        if path.is_file():
            return path
    raise FileNotFoundError(
        f"{name} belongs to sb3-reinforce, but is neither in {here} nor in {here.parents[1]}: reinstall it"
    )
