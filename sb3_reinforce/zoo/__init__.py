"""
REINFORCE in RL Zoo: registration, checked hyperparameters, search space, command line.

Importing this package imports nothing of RL Zoo; its functions do.
"""

from pathlib import Path

ALGORITHM = "reinforce"
#: The same class with hyperparameters of its own, whose policies are recurrent.
RECURRENT_ALGORITHM = "reinforce_lstm"
ALGORITHMS = (ALGORITHM, RECURRENT_ALGORITHM)

__all__ = ["ALGORITHM", "ALGORITHMS", "RECURRENT_ALGORITHM", "hyperparams_path", "register", "shipped_configurations"]


def register() -> None:
    """
    Make ``reinforce`` and ``reinforce_lstm`` algorithms of RL Zoo in this process, with their search spaces.

    To be called before RL Zoo parses a command line or an ``ExperimentManager`` is made. May be called again.

    :raises ModuleNotFoundError: If RL Zoo is not installed.
    """
    from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER
    from rl_zoo3.utils import ALGOS

    from sb3_reinforce import REINFORCE
    from sb3_reinforce.zoo import search

    HYPERPARAMS_SAMPLER[ALGORITHM] = search.sample_reinforce_params
    HYPERPARAMS_SAMPLER[RECURRENT_ALGORITHM] = search.sample_reinforce_lstm_params
    for algorithm in ALGORITHMS:
        ALGOS[algorithm] = REINFORCE
        HYPERPARAMS_CONVERTER[algorithm] = search.convert_reinforce_params


def hyperparams_path(algorithm: str = ALGORITHM) -> Path:
    """
    Find the hyperparameters of REINFORCE, to be given to RL Zoo as ``config``.

    :param algorithm: One of ``ALGORITHMS``.
    :return: Path of its file, such as ``reinforce.yml``.
    :raises FileNotFoundError: If the installation is incomplete.
    """
    return find_resource(f"hyperparams/{algorithm}.yml")


def shipped_configurations(algorithm: str) -> dict[str, Path]:
    """
    List the other hyperparameters of an algorithm that come with this package.

    :param algorithm: The algorithm.
    :return: Paths by the short name that ``--conf-file`` takes: ``adam`` is ``reinforce_adam.yml``.
    :raises FileNotFoundError: If the installation is incomplete.
    """
    prefix = f"{algorithm}_"
    paths = sorted(hyperparams_path().parent.glob(f"{prefix}*.yml"))
    return {path.stem.removeprefix(prefix): path for path in paths if path.stem not in ALGORITHMS}


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
