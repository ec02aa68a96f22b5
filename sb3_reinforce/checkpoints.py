"""Files of saved models: written whole or not at all, and checked before they are loaded."""

import base64
import contextlib
import io
import itertools
import json
import os
import pathlib
import secrets
import stat
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from typing import IO, Any, TypeVar

import cloudpickle
import torch as th
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.save_util import open_path
from stable_baselines3.common.type_aliases import GymEnv

from sb3_reinforce.distributed.synchronization import Synchronization
from sb3_reinforce.functional.baselines import Baseline, make_baseline, name_of
from sb3_reinforce.policies.averaging import reset_noise_with_own_generator


def model_path(path: pathlib.Path) -> pathlib.Path:
    """
    Choose the path of a saved model as SB3 does: with ``.zip`` if the path has no suffix.

    If that is a folder, choose a free name beside it, with a warning: a trained model must not be lost.
    """
    wanted = path.with_name(f"{path.name}.zip") if path.suffix == "" else path
    if not wanted.is_dir():
        return wanted
    names = (wanted.with_name(f"{wanted.name}_{number}") for number in itertools.count(2))
    free = next(name for name in names if not name.exists())
    warnings.warn(f"{wanted} is a folder: the model is saved to {free} instead", UserWarning, stacklevel=3)
    return free


@contextlib.contextmanager
def atomic_write(destination: pathlib.Path) -> Iterator[IO[bytes]]:
    """
    Open a new file beside a destination, and replace the destination with it when it is complete.

    Symbolic links are followed, so that they stay links. An existing file keeps its mode and, if permitted, its owner. Raises
    ``OSError`` if the destination cannot be written to, and leaves it unchanged.
    """
    if destination.is_symlink():
        destination = pathlib.Path(os.path.realpath(destination))
    if not destination.parent.is_dir():
        warnings.warn(f"Path '{destination.parent}' does not exist. Will create it.", UserWarning, stacklevel=4)
        destination.parent.mkdir(parents=True, exist_ok=True)
    if destination.exists():
        # Raises if the file is write-protected, even if its folder is not
        with destination.open("ab") as file:
            if not destination.is_file():
                # A device or a pipe, which must not be replaced
                yield file
                return
    unfinished = destination.with_name(f".{secrets.token_hex(4)}.unfinished")
    try:
        with unfinished.open("xb") as file:
            yield file
        if destination.exists():
            old = destination.stat()
            # Only the administrator may change owners, and Windows has none
            with contextlib.suppress(OSError, AttributeError):
                os.chown(unfinished, old.st_uid, old.st_gid)
            unfinished.chmod(stat.S_IMODE(old.st_mode))
        os.replace(unfinished, destination)
    finally:
        unfinished.unlink(missing_ok=True)


def write_file(path: pathlib.Path, content: str | bytes) -> None:
    """Write a file atomically: no reader sees it half-written."""
    with atomic_write(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def check_model_file(path: str | pathlib.Path | io.BufferedIOBase, arguments: Mapping[str, Any]) -> None:
    """
    Refuse a file of another algorithm, or of a model with more or fewer parameters than the arguments require.

    ``arguments`` are the arguments that replace those of the saved model.
    """
    saved = read_attributes(path)
    name = path if isinstance(path, str | pathlib.Path) else "The file"
    if not is_reinforce(saved):
        raise ValueError(f"{name} holds no model of REINFORCE: load it with the class that saved it, or train a new model")
    own_decay = saved.get("policy_averaging")
    decay = arguments.get("policy_averaging", own_decay)
    own_text, text = f"policy_averaging={own_decay!r}", f"policy_averaging={decay!r}"
    _check_parts(name, own_text, text, "moving average of the policy", own_decay is not None, decay is not None)
    own = saved["_saved_baseline"]
    if "baseline" in arguments:
        baseline = make_baseline(arguments["baseline"])
        own_text, text = f"baseline={own['name']}", f"baseline={name_of(baseline)}"
        _check_parts(name, own_text, text, "critic", own["needs_critic"], baseline.needs_critic)
    elif (problem := own["problem"] or _problem_of_pickle(saved.get("baseline"))) is not None:
        raise ValueError(
            f"{name} holds a model whose baseline, {own['name']}, is missing ({problem}): give it to load, as "
            "REINFORCE.load(path, baseline=...)"
        )


def _check_parts(name: Any, own: str, wanted: str, part: str, has_part: bool, needs_part: bool) -> None:
    if has_part != needs_part:
        raise ValueError(
            f"{name} holds a model with {own}, which has {'a' if has_part else 'no'} {part}: it cannot become one with "
            f"{wanted}. Load it as it is, or copy its actor into a new model: "
            "new.policy.load_state_dict(loaded.policy.state_dict(), strict=False)"
        )


def _problem_of_pickle(saved: Any) -> str | None:
    """Return the reason why a saved attribute cannot be loaded; None if it can."""
    try:
        if isinstance(saved, dict):
            cloudpickle.loads(base64.b64decode(saved[":serialized:"]))
    except Exception as error:  # A class may raise anything
        return f"{type(error).__name__}: {error}"
    return None


def describe_baseline(baseline: Baseline, argument: Baseline | str | None) -> dict[str, Any]:
    """
    Return what is saved about a baseline in addition to the ``baseline`` argument.

    ``name``; ``needs_critic``; ``state``: pickled, for a baseline that was made from a name (an instance is itself saved);
    ``problem``: why it is not saved, which causes a warning, or None.
    """
    description = {"name": name_of(baseline), "needs_critic": baseline.needs_critic, "state": None, "problem": None}
    try:
        state = cloudpickle.dumps(baseline if argument is baseline else baseline.state_dict())
    except Exception as error:  # A class may raise anything
        problem = f"it could not be pickled, {type(error).__name__}: {error}"
        warnings.warn(f"The baseline {name_of(baseline)} is not saved with the model: {problem}", UserWarning, stacklevel=3)
        return {**description, "problem": problem}
    has_state = argument is not baseline and len(baseline.state_dict()) > 0
    return {**description, "state": state if has_state else None}


def restore_baseline(argument: Baseline | str | None, saved: Mapping[str, Any] | None) -> Baseline:
    """
    Make the baseline of a model, in the state that was saved with the model if it is the same baseline.

    ``saved`` is what ``describe_baseline`` returned; None for a new model.
    """
    baseline = make_baseline(argument)
    if saved is not None and saved["state"] is not None and saved["name"] == name_of(baseline) and argument is not baseline:
        baseline.load_state_dict(cloudpickle.loads(saved["state"]))
    return baseline


def read_attributes(path: str | pathlib.Path | io.BufferedIOBase) -> Mapping[str, Any]:
    """Read the attributes of a saved model as JSON: pickled attributes are not loaded, but described."""
    file = open_path(path, "r", suffix="zip")
    try:
        with zipfile.ZipFile(file) as archive:
            attributes: dict[str, Any] = json.loads(archive.read("data"))
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path} holds no saved model: it is no zip file") from error
    finally:
        if file is not path:
            file.close()
    return attributes


def is_reinforce(saved: Mapping[str, Any]) -> bool:
    """Tell from its attributes whether ``SavedWhole.save`` saved a model: SB3 does not save the name of the class."""
    return "_saved_baseline" in saved


SelfSaved = TypeVar("SelfSaved", bound="SavedWhole")


class SavedWhole(OnPolicyAlgorithm):
    """Saves and loads REINFORCE: whole files, with the moving average and the state of the baseline beside the policy."""

    policy_averaging: float | None
    baseline: Baseline | str | None
    _baseline: Baseline
    _synchronization: Synchronization
    policy_average: Any

    def _excluded_save_params(self) -> list[str]:
        own = ["_rng", "policy_average", "distributed", "_synchronization", "_warned", "_baseline"]
        return super()._excluded_save_params() + own

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        state_dicts, tensors = super()._get_torch_save_params()
        return ([*state_dicts, "policy_average"] if self.policy_averaging is not None else state_dicts), tensors

    def save(
        self,
        path: str | pathlib.Path | io.BufferedIOBase,
        exclude: Iterable[str] | None = None,
        include: Iterable[str] | None = None,
    ) -> None:
        """
        Save the model, as ``BaseAlgorithm.save`` does.

        The file is written beside its destination and then moved there, so that whatever happens in between, the destination
        holds either the old model or the new one. With several processes, only process 0 writes.

        :param path: Path of the file, to which ``.zip`` is added, or a file-like object.
        :param exclude: Names of attributes to exclude, in addition to the default ones.
        :param include: Names of attributes to save even if they are excluded.
        """
        if self._synchronization.processes.rank > 0:
            return
        self._saved_baseline = describe_baseline(self._baseline, self.baseline)
        if self._saved_baseline["problem"] is not None:
            exclude = [*(exclude or ()), "baseline"]
        if not isinstance(path, str | pathlib.Path):
            super().save(path, exclude, include)
            return
        with atomic_write(model_path(pathlib.Path(path))) as file:
            super().save(file, exclude, include)  # type: ignore[arg-type]

    @classmethod
    def load(
        cls: type[SelfSaved],
        path: str | pathlib.Path | io.BufferedIOBase,
        env: GymEnv | None = None,
        device: th.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        **kwargs: Any,
    ) -> SelfSaved:
        """
        Load a model, as ``BaseAlgorithm.load`` does, with the same arguments.

        :raises ValueError: If the file holds a model of another algorithm, or one that lacks what the arguments require.
        """
        replaced = {**(custom_objects or {}), **kwargs}
        check_model_file(path, replaced)
        try:
            return super().load(path, env, device, custom_objects, print_system_info, force_reset, **kwargs)
        except RuntimeError as error:
            if not replaced or "state_dict" not in str(error):
                raise
            words = ", ".join(f"{name}={value!r}" for name, value in replaced.items())
            raise ValueError(f"{path} holds parameters that do not fit a model with {words}: load it as it is") from error

    def set_parameters(
        self, load_path_or_dict: str | dict[str, Any], exact_match: bool = True, device: th.device | str = "auto"
    ) -> None:
        """
        Load parameters from a file or a dictionary, as ``BaseAlgorithm.set_parameters`` does, with the same arguments.

        :raises ValueError: If the file holds a model of another algorithm, or with more or fewer parameters than this one.
        """
        if exact_match and not isinstance(load_path_or_dict, dict):
            check_model_file(load_path_or_dict, vars(self))
        super().set_parameters(load_path_or_dict, exact_match, device)
        if self.use_sde and self.policy_averaging is not None:
            # The noise is not saved, and before loading it was drawn with the initial standard deviation
            reset_noise_with_own_generator(self.policy_average.module)
