"""
REINFORCE in RL Zoo: registration, checked hyperparameters, search space, command line.

Importing this package does not import RL Zoo; calling its functions does.
"""

from pathlib import Path

ALGORITHM = "reinforce"
#: The same class with recurrent policies and separate hyperparameters.
RECURRENT_ALGORITHM = "reinforce_lstm"
ALGORITHMS = (ALGORITHM, RECURRENT_ALGORITHM)

__all__ = ["ALGORITHM", "ALGORITHMS", "RECURRENT_ALGORITHM", "hyperparams_path", "register", "shipped_configurations"]


def register() -> None:
    """
    Register ``reinforce`` and ``reinforce_lstm`` with RL Zoo in this process, with their search spaces.

    Call this before RL Zoo parses a command line or an ``ExperimentManager`` is created. It may be called more than once.

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
    Return the path of REINFORCE's hyperparameters, for RL Zoo's ``config``.

    :param algorithm: One of ``ALGORITHMS``.
    :return: Path of the file, such as ``reinforce.yml``.
    :raises FileNotFoundError: If the installation is incomplete.
    """
    return find_resource(f"hyperparams/{algorithm}.yml")


def shipped_configurations(algorithm: str) -> dict[str, Path]:
    """
    List an algorithm's other hyperparameter files in this package.

    :param algorithm: One of RL Zoo's algorithms.
    :return: Paths by the short name that ``--conf-file`` accepts: ``adam`` is ``reinforce_adam.yml``.
    :raises FileNotFoundError: If the installation is incomplete.
    """
    prefix = f"{algorithm}_"
    paths = sorted(hyperparams_path().parent.glob(f"{prefix}*.yml"))
    return {path.stem.removeprefix(prefix): path for path in paths if path.stem not in ALGORITHMS}


def find_resource(name: str) -> Path:
    """
    Find a file at the root of the repository or, in a wheel, beside this module.

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
