"""Files of saved models: written whole or not at all, and checked before they are loaded."""

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
from collections.abc import Iterator, Mapping
from typing import IO, Any

from stable_baselines3.common.save_util import open_path


def model_path(path: pathlib.Path) -> pathlib.Path:
    """
    Choose where a model is saved, as SB3 does.

    :param path: That the user gave.
    :return: The same, with ``.zip`` if it has no suffix. If that is a folder, a free name beside it, with a warning: what was
        trained must not be lost.
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
    Open a new file beside a destination, and put it in the destination's place when it is complete.

    Symbolic links are followed, so that they stay links, and an existing file keeps its mode and, as far as it is allowed,
    its owner.

    :param destination: The file.
    :return: Context manager that gives the file to write to.
    :raises OSError: If the destination cannot be written to; it is then as before.
    """
    if destination.is_symlink():
        destination = pathlib.Path(os.path.realpath(destination))
    if not destination.parent.is_dir():
        warnings.warn(f"Path '{destination.parent}' does not exist. Will create it.", UserWarning, stacklevel=4)
        destination.parent.mkdir(parents=True, exist_ok=True)
    if destination.exists():
        # Raises if the file is write-protected, which its folder need not be
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
            # Only the administrator may give files away, and Windows has no owners
            with contextlib.suppress(OSError, AttributeError):
                os.chown(unfinished, old.st_uid, old.st_gid)
            unfinished.chmod(stat.S_IMODE(old.st_mode))
        os.replace(unfinished, destination)
    finally:
        unfinished.unlink(missing_ok=True)


def check_model_file(path: str | pathlib.Path | io.BufferedIOBase, arguments: Mapping[str, Any]) -> None:
    """
    Refuse a file of another algorithm, or of a model with more or fewer parameters than the arguments ask for.

    :param path: Of a saved model, as ``load`` takes it.
    :param arguments: Those that the loaded model is to have instead of its own.
    :raises ValueError: Says what the file holds, and what to do.
    """
    saved = read_attributes(path)
    name = path if isinstance(path, str | pathlib.Path) else "The file"
    if not is_reinforce(saved):
        raise ValueError(f"{name} holds no model of REINFORCE: load it with the class that saved it, or train a new model")
    for argument, kept, has_parameters in (
        ("baseline", "critic", lambda value: value == "value"),
        ("policy_averaging", "moving average of the policy", lambda value: value is not None),
    ):
        own = saved.get(argument)
        wanted = arguments.get(argument, own)
        if has_parameters(own) != has_parameters(wanted):
            raise ValueError(
                f"{name} holds a model with {argument}={own!r}, which has {'a' if has_parameters(own) else 'no'} {kept}: it "
                f"cannot become one with {argument}={wanted!r}. Load it as it is, or copy its actor into a new model: "
                "new.policy.load_state_dict(loaded.policy.state_dict(), strict=False)"
            )


def read_attributes(path: str | pathlib.Path | io.BufferedIOBase) -> Mapping[str, Any]:
    """
    Read the attributes of a saved model as JSON: what was pickled stays closed.

    :param path: Of a saved model, as ``load`` takes it.
    :return: The attributes by name; what is no JSON as a description.
    :raises ValueError: If it is no zip file, as in SB3.
    """
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
    """
    Tell whether a model is one of REINFORCE. SB3 does not save the name of the class.

    :param saved: Attributes of a saved model.
    :return: Whether they hold an argument that no algorithm of SB3 or sb3-contrib has.
    """
    return "return_type" in saved
