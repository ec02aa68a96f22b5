"""What is saved comes back whole, in another process too, and a crash never leaves half a model."""

import io
import os
import pathlib
import stat
import subprocess
import sys

import numpy as np
import pytest
import sb3_contrib
import stable_baselines3
import stable_baselines3.common.save_util
import torch as th
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.env_util import make_vec_env

from sb3_reinforce import REINFORCE

SWITCHES = {
    "n_steps": None,
    "n_episodes": 4,
    "gamma": 0.9,
    "gae_lambda": 1.0,
    "return_type": "episode",
    "discounted_weighting": True,
    "baseline": "leave_one_out",
    "normalize_advantage": True,
    "loss_reduction": "episode",
    "ent_coef": "lin_0.01",
    "entropy_in_return": True,
    "bootstrap_at_time_limit": False,
    "vf_coef": 0.3,
    "critic_epochs": 7,
    "critic_batch_size": 32,
    "critic_learning_rate": "lin_0.02",
    "micro_batch_size": 64,
    "max_rollout_steps": 900,
    "max_grad_norm": 0.7,
}


def optimizer_state(model):
    return [tensor for state in model.policy.optimizer.state.values() for tensor in state.values()]


def assert_equal_models(model, loaded):
    np.testing.assert_array_equal(model.policy.parameters_to_vector(), loaded.policy.parameters_to_vector())
    for own, theirs in zip(optimizer_state(model), optimizer_state(loaded), strict=True):
        assert th.equal(own, theirs)


@pytest.mark.parametrize("baseline", ["value", "leave_one_out", None])
@pytest.mark.parametrize("suffix", ["", ".zip"])
def test_everything_comes_back(baseline, suffix, tmp_path):
    switches = {**SWITCHES, "baseline": baseline}
    model = REINFORCE("MlpPolicy", "CartPole-v1", seed=0, **switches).learn(400)
    model.save(str(tmp_path / f"model{suffix}"))
    assert [path.name for path in tmp_path.iterdir()] == ["model.zip"]
    loaded = REINFORCE.load(tmp_path / "model", env=make_vec_env("CartPole-v1", 1))
    for name, value in switches.items():
        assert getattr(loaded, name) == value, name
    assert loaded.ent_coef_schedule(0.5) == pytest.approx(0.005)
    assert loaded.critic_lr_schedule(0.5) == pytest.approx(0.01)
    assert (loaded._n_updates, loaded.num_timesteps) == (model._n_updates, model.num_timesteps)
    assert_equal_models(model, loaded)
    steps = loaded.num_timesteps
    loaded.learn(400, reset_num_timesteps=False)
    assert loaded.num_timesteps >= steps + 400
    assert not np.array_equal(model.policy.parameters_to_vector(), loaded.policy.parameters_to_vector())


def test_callable_schedules_come_back(tmp_path):
    model = REINFORCE("MlpPolicy", "CartPole-v1", ent_coef=lambda progress: 0.2 * progress, learning_rate=lambda _: 0.007)
    model.save(tmp_path / "model")
    loaded = REINFORCE.load(tmp_path / "model")
    assert loaded.ent_coef_schedule(0.5) == pytest.approx(0.1)
    assert loaded.lr_schedule(0.5) == pytest.approx(0.007)


def test_arguments_can_be_replaced_on_loading(tmp_path):
    REINFORCE("MlpPolicy", "CartPole-v1", ent_coef=0.1).save(tmp_path / "model")
    loaded = REINFORCE.load(
        tmp_path / "model", env=make_vec_env("CartPole-v1", 3), ent_coef="lin_0.5", n_steps=None, n_episodes=5
    )
    assert loaded.ent_coef_schedule(1.0) == 0.5
    assert loaded.n_envs == loaded.rollout_buffer.n_envs == 3
    loaded.learn(10)
    assert len(loaded.ep_info_buffer) == 5
    with pytest.raises(ValueError, match="gamma must be in"):
        REINFORCE.load(tmp_path / "model", gamma=2.0)


@pytest.mark.parametrize("replaced", [{"n_episodes": 5}, {"custom_objects": {"n_episodes": 5}}])
def test_a_default_is_not_saved_as_if_it_had_been_chosen(replaced, tmp_path):
    model = REINFORCE("MlpPolicy", "CartPole-v1")
    assert model.n_steps == 256
    model.save(tmp_path / "default")
    loaded = REINFORCE.load(tmp_path / "default", env=make_vec_env("CartPole-v1", 1), **replaced)
    assert loaded.n_steps is None
    assert len(loaded.learn(10).ep_info_buffer) == 5
    assert REINFORCE.load(tmp_path / "default").n_steps == 256
    for chosen in ({"n_steps": 64}, {"custom_objects": {"n_steps": 64}}):
        assert REINFORCE.load(tmp_path / "default", **chosen).n_steps == 64
    # What was chosen is dropped by who says so
    REINFORCE("MlpPolicy", "CartPole-v1", n_steps=256).save(tmp_path / "chosen")
    with pytest.raises(ValueError, match="n_steps=256 and n_episodes=5 are both set"):
        REINFORCE.load(tmp_path / "chosen", **replaced)
    assert REINFORCE.load(tmp_path / "chosen", n_steps=None, **replaced).n_episodes == 5


def test_a_warning_that_was_given_once_comes_again_after_loading(tmp_path):
    with pytest.warns(UserWarning, match="n_episodes=2 is below the number of environments, 3"):
        model = REINFORCE("MlpPolicy", make_vec_env("CartPole-v1", 3), n_episodes=2)
    model.save(tmp_path / "model")
    with pytest.warns(UserWarning, match="n_episodes=2 is below the number of environments, 3"):
        REINFORCE.load(tmp_path / "model", env=make_vec_env("CartPole-v1", 3))


def test_without_an_environment_it_predicts(tmp_path):
    model = REINFORCE("MlpPolicy", "CartPole-v1", seed=0)
    model.save(tmp_path / "model")
    obs = np.ones((5, 4), dtype=np.float32)
    np.testing.assert_array_equal(
        REINFORCE.load(tmp_path / "model").predict(obs, deterministic=True)[0], model.predict(obs, deterministic=True)[0]
    )


@pytest.mark.processes
def test_another_process_can_load(tmp_path):
    model = REINFORCE("MlpPolicy", "CartPole-v1", seed=0, ent_coef=lambda progress: 0.1 * progress).learn(300)
    model.save(tmp_path / "model")
    code = (
        "import sys, numpy as np; from sb3_reinforce import REINFORCE; model = REINFORCE.load(sys.argv[1]);"
        "np.save(sys.argv[2], model.policy.parameters_to_vector()); assert model.ent_coef_schedule(1.0) == 0.1"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "model", tmp_path / "parameters.npy"], check=True)
    np.testing.assert_array_equal(np.load(tmp_path / "parameters.npy"), model.policy.parameters_to_vector())


def test_file_objects_and_new_folders(tmp_path):
    model = REINFORCE("MlpPolicy", "CartPole-v1", seed=0)
    file = io.BytesIO()
    model.save(file)
    file.seek(0)
    assert_equal_models(model, REINFORCE.load(file))
    with pytest.warns(UserWarning, match="Will create it"):
        model.save(tmp_path / "new" / "folder" / "model.zip")
    assert_equal_models(model, REINFORCE.load(tmp_path / "new" / "folder" / "model"))
    (tmp_path / "taken.zip").mkdir()
    for name in ("taken.zip_2", "taken.zip_3"):
        with pytest.warns(UserWarning, match=rf"taken\.zip is a folder: .*{name} instead"):
            model.save(tmp_path / "taken")
        assert_equal_models(model, REINFORCE.load(tmp_path / name))
    assert not list(tmp_path.glob(".*"))


def test_what_is_no_model_at_all_is_said_as_in_sb3(tmp_path):
    (tmp_path / "model.zip").write_text("no model")
    with pytest.raises(ValueError, match="holds no saved model: it is no zip file"):
        REINFORCE.load(tmp_path / "model")


def test_a_failure_while_saving_leaves_the_old_model(tmp_path, monkeypatch):
    old = REINFORCE("MlpPolicy", "CartPole-v1", seed=0)
    old.save(tmp_path / "model")
    written = []

    def failing_save(*args, **kwargs):
        written.append(True)
        raise OSError("no space left on device")

    monkeypatch.setattr(stable_baselines3.common.save_util.th, "save", failing_save)
    with pytest.raises(OSError, match="no space left"):
        REINFORCE("MlpPolicy", "CartPole-v1", seed=1).save(tmp_path / "model")
    monkeypatch.undo()
    assert written
    assert [path.name for path in tmp_path.iterdir()] == ["model.zip"]
    assert_equal_models(old, REINFORCE.load(tmp_path / "model"))


@pytest.mark.processes
def test_a_crash_while_saving_leaves_the_old_model(tmp_path):
    REINFORCE("MlpPolicy", "CartPole-v1", seed=0).save(tmp_path / "model")
    before = (tmp_path / "model.zip").read_bytes()
    code = (
        "import os, sys, zipfile; from sb3_reinforce import REINFORCE; model = REINFORCE('MlpPolicy', 'CartPole-v1', seed=1);"
        "zipfile.ZipFile.close = lambda self: os._exit(9); model.save(sys.argv[1])"
    )
    assert subprocess.run([sys.executable, "-c", code, tmp_path / "model"]).returncode == 9
    assert (tmp_path / "model.zip").read_bytes() == before
    REINFORCE.load(tmp_path / "model")
    assert any(path.name.endswith(".unfinished") for path in tmp_path.iterdir()), "the crash came too early"


def files_in(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir())


@pytest.mark.parametrize("chain", [["run/model.zip"], ["middle.zip", "run/other.zip", "model.zip"]])
@pytest.mark.parametrize("is_dangling", [False, True])
@pytest.mark.parametrize("is_absolute", [False, True])
def test_save_writes_through_links(chain, is_dangling, is_absolute, tmp_path):
    (tmp_path / "run").mkdir()
    link = tmp_path / "latest.zip"
    for target in chain:
        link.symlink_to(link.parent / target if is_absolute else target)
        link = link.parent / target
    if not is_dangling:
        link.write_bytes(b"old")
    before = set(files_in(tmp_path))
    model = REINFORCE("MlpPolicy", "CartPole-v1", seed=0)
    model.save(tmp_path / "latest")
    assert (tmp_path / "latest.zip").is_symlink() and not link.is_symlink()
    assert set(files_in(tmp_path)) == before | {str(link.relative_to(tmp_path))}
    assert_equal_models(model, REINFORCE.load(link))


def test_a_dangling_link_into_a_folder_that_is_gone_is_saved_through(tmp_path):
    (tmp_path / "latest.zip").symlink_to("gone/model.zip")
    with pytest.warns(UserWarning, match="gone' does not exist. Will create it"):
        REINFORCE("MlpPolicy", "CartPole-v1").save(tmp_path / "latest.zip")
    assert files_in(tmp_path) == ["gone/model.zip", "latest.zip"]


def test_the_best_model_of_an_evaluation_is_saved_through_a_link_and_keeps_its_mode(tmp_path):
    target = tmp_path / "shared.zip"
    target.write_bytes(b"old")
    target.chmod(0o640)
    (tmp_path / "best").mkdir()
    (tmp_path / "best/best_model.zip").symlink_to(target)
    callback = EvalCallback(
        make_vec_env("CartPole-v1", 1), best_model_save_path=str(tmp_path / "best"), eval_freq=100, verbose=0
    )
    REINFORCE("MlpPolicy", "CartPole-v1", n_steps=50).learn(200, callback=callback)
    assert files_in(tmp_path) == ["best/best_model.zip", "shared.zip"]
    assert (tmp_path / "best/best_model.zip").is_symlink()
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    REINFORCE.load(target)


@pytest.mark.parametrize("umask, mode", [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_a_new_file_has_the_mode_of_new_files_and_an_old_one_keeps_its_own(umask, mode, tmp_path):
    model, path = REINFORCE("MlpPolicy", "CartPole-v1"), tmp_path / "model.zip"
    old_umask = os.umask(umask)
    try:
        model.save(path)
        assert stat.S_IMODE(path.stat().st_mode) == mode
        path.chmod(0o604)
        model.save(path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o604
    finally:
        os.umask(old_umask)


# chown to another owner is refused to ordinary users, and Windows has no owners
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only the administrator may give files away")
def test_a_file_keeps_its_owner(tmp_path):
    (tmp_path / "model.zip").touch()
    os.chown(tmp_path / "model.zip", 1234, 5678)
    REINFORCE("MlpPolicy", "CartPole-v1").save(tmp_path / "model.zip")
    status = (tmp_path / "model.zip").stat()
    assert (status.st_uid, status.st_gid) == (1234, 5678)


# The administrator may write to every file, and Windows has other rules
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="nothing is write-protected for the administrator")
def test_a_write_protected_file_is_refused(tmp_path):
    (tmp_path / "model.zip").write_bytes(b"old")
    (tmp_path / "model.zip").chmod(0o444)
    with pytest.raises(PermissionError, match=r"model\.zip"):
        REINFORCE("MlpPolicy", "CartPole-v1").save(tmp_path / "model.zip")
    assert (tmp_path / "model.zip").read_bytes() == b"old"


def test_names_may_be_as_long_as_the_file_system_allows(tmp_path):
    model = REINFORCE("MlpPolicy", "CartPole-v1", seed=0)
    longest = os.pathconf(tmp_path, "PC_NAME_MAX")
    for name in ("m" * (longest - 4), "m" * (longest - 4) + ".zip", "\u00e9" * (longest // 2 - 4) + ".zip"):
        for _ in range(2):
            model.save(tmp_path / name)
        assert_equal_models(model, REINFORCE.load(tmp_path / name))


def test_a_pipe_is_written_to_and_stays_a_pipe(tmp_path):
    # What fits into a pipe
    model = REINFORCE("MlpPolicy", "CartPole-v1", baseline=None, policy_kwargs={"net_arch": [2]})
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "model.zip").symlink_to("pipe")
    with open(os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK), "rb") as pipe:
        model.save(tmp_path / "model.zip")
        assert_equal_models(model, REINFORCE.load(io.BytesIO(pipe.read())))
    assert (tmp_path / "pipe").is_fifo()


def test_a_failure_while_saving_through_a_link_leaves_link_and_model(tmp_path, monkeypatch):
    target = tmp_path / "model.zip"
    target.write_bytes(b"old")
    (tmp_path / "latest.zip").symlink_to("model.zip")
    for name in ("chmod", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, failing)
            with pytest.raises(OSError, match="no space left"):
                REINFORCE("MlpPolicy", "CartPole-v1").save(tmp_path / "latest")
        assert files_in(tmp_path) == ["latest.zip", "model.zip"]
        assert (tmp_path / "latest.zip").is_symlink() and target.read_bytes() == b"old"


def failing(*args, **kwargs):
    raise OSError("no space left on device")


def test_a_model_saved_with_a_suffix_of_its_own_keeps_it(tmp_path, monkeypatch):
    model = REINFORCE("MlpPolicy", "CartPole-v1", seed=0)
    monkeypatch.chdir(tmp_path)
    model.save("model.v1")
    assert pathlib.Path("model.v1").exists()
    assert_equal_models(model, REINFORCE.load("model.v1"))


OTHER_ALGORITHMS = {
    "A2C": (stable_baselines3.A2C, "MlpPolicy", "CartPole-v1"),
    "PPO": (stable_baselines3.PPO, "MlpPolicy", "CartPole-v1"),
    "TRPO": (sb3_contrib.TRPO, "MlpPolicy", "CartPole-v1"),
    "RecurrentPPO": (sb3_contrib.RecurrentPPO, "MlpLstmPolicy", "CartPole-v1"),
    "MaskablePPO": (sb3_contrib.MaskablePPO, "MlpPolicy", "sb3_reinforce/TMaze-v0"),
    "DQN": (stable_baselines3.DQN, "MlpPolicy", "CartPole-v1"),
    "SAC": (stable_baselines3.SAC, "MlpPolicy", "Pendulum-v1"),
    "ARS": (sb3_contrib.ARS, "MlpPolicy", "CartPole-v1"),
    "CrossQ": (sb3_contrib.CrossQ, "MlpPolicy", "Pendulum-v1"),
}


@pytest.mark.parametrize("name", OTHER_ALGORITHMS)
def test_a_file_of_another_algorithm_is_refused(name, tmp_path):
    algorithm, policy, env = OTHER_ALGORITHMS[name]
    algorithm(policy, env).save(tmp_path / "model")
    message = "model holds no model of REINFORCE: load it with the class that saved it"
    with pytest.raises(ValueError, match=message):
        REINFORCE.load(tmp_path / "model")
    with pytest.raises(ValueError, match=message):
        REINFORCE("MlpPolicy", env).set_parameters(str(tmp_path / "model"))
    with open(tmp_path / "model.zip", "rb") as file, pytest.raises(ValueError, match="The file holds no model of REINFORCE"):
        REINFORCE.load(file)


def test_a_file_is_looked_into_without_running_what_was_pickled_into_it(tmp_path):
    class Unpickled:
        def __reduce__(self):
            return (pytest.fail, ("it was unpickled",))

    model = stable_baselines3.PPO("MlpPolicy", "CartPole-v1")
    model.stowaway = Unpickled()
    model.save(tmp_path / "model")
    with pytest.raises(ValueError, match="holds no model of REINFORCE"):
        REINFORCE.load(tmp_path / "model")


@pytest.mark.parametrize(
    "own, other, message",
    [
        ({"baseline": "value"}, {"baseline": None}, "baseline='value', which has a critic.* baseline=None"),
        ({"baseline": "mean"}, {"baseline": "value"}, "baseline='mean', which has no critic.* baseline='value'"),
        ({"policy_averaging": 0.5}, {"policy_averaging": None}, "policy_averaging=0.5, which has a moving average"),
        ({}, {"policy_averaging": 0.5}, "policy_averaging=None, which has no moving average.* policy_averaging=0.5"),
    ],
)
def test_a_file_that_has_more_or_less_than_is_asked_for_is_refused(own, other, message, tmp_path):
    saved = REINFORCE("MlpPolicy", "CartPole-v1", seed=0, **own)
    saved.save(tmp_path / "model.zip")
    with pytest.raises(ValueError, match=rf"model\.zip holds a model with {message}.*load_state_dict"):
        REINFORCE.load(tmp_path / "model.zip", **other)
    with pytest.raises(ValueError, match=message):
        REINFORCE.load(tmp_path / "model.zip", None, "cpu", other)
    REINFORCE.load(tmp_path / "model.zip", custom_objects=other, **{"baseline": "value", "policy_averaging": None, **own})
    model = REINFORCE("MlpPolicy", "CartPole-v1", seed=1, **other)
    before = model.policy.parameters_to_vector()
    with pytest.raises(ValueError, match=message):
        model.set_parameters(str(tmp_path / "model.zip"))
    np.testing.assert_array_equal(model.policy.parameters_to_vector(), before)
    # What the message advises
    model.policy.load_state_dict(saved.policy.state_dict(), strict=False)
    observation = np.ones(4, dtype=np.float32)
    distributions = [policy.get_distribution(th.as_tensor(observation)[None]) for policy in (model.policy, saved.policy)]
    assert th.equal(distributions[0].distribution.probs, distributions[1].distribution.probs)


@pytest.mark.parametrize(
    "own, other, words",
    [
        ({}, {"use_sde": True}, "use_sde=True"),
        ({"use_sde": True}, {"custom_objects": {"use_sde": False}}, "use_sde=False"),
        (
            {},
            {"gamma": 0.5, "custom_objects": {"policy_kwargs": {"net_arch": [4]}}},
            "policy_kwargs={'net_arch': .4.}, gamma=0.5",
        ),
    ],
)
def test_arguments_that_ask_for_other_parameters_are_named(own, other, words, tmp_path):
    REINFORCE("MlpPolicy", "Pendulum-v1", **own).save(tmp_path / "model.zip")
    with pytest.raises(
        ValueError, match=rf"model\.zip holds parameters that do not fit a model with {words}: load it as it is"
    ):
        REINFORCE.load(tmp_path / "model.zip", **other)


def test_a_baseline_may_change_on_loading_if_both_do_without_a_critic(tmp_path):
    REINFORCE("MlpPolicy", "CartPole-v1", baseline="mean").save(tmp_path / "model")
    assert REINFORCE.load(tmp_path / "model", baseline="leave_one_out").baseline == "leave_one_out"
