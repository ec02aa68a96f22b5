"""
The comparisons that README and docs show, as arguments of ``sb3-reinforce compare``, for ``compare.py``.

Each has one or more parts: separate comparisons, each with one budget and one number of seeds, whose runs share a CSV and a
page.
"""

from collections.abc import Mapping
from typing import NamedTuple


class Published(NamedTuple):
    """Scores published by others, with the steps in brackets unless they are a million. None was measured here."""

    tianshou: str = ""
    a2c: str = ""
    ppo: str = ""
    trpo: str = ""


class Comparison(NamedTuple):
    """
    What is compared, and what its page shows.

    :param title: Title of the page.
    :param purpose: First paragraph of the page.
    :param parts: Arguments of ``sb3-reinforce compare`` by the name of the part.
    :param columns: Scores that the page shows, where there are any.
    :param dots: Column to plot, with a dot for each run.
    :param to_threshold: Whether the page shows steps and seconds to the threshold, instead of those of the whole run.
    :param normalised: Whether the page has statistics over the environments, and a figure of them.
    :param published: Published scores by environment; with these, the page has one row for each environment.
    :param figures: Learning curves on the page, by file: a part, or one environment of it (``part/environment``).
    :param stochastic: Environments whose best policy is stochastic, where only the score of sampled actions is kept.
    """

    title: str
    purpose: str
    parts: Mapping[str, str]
    columns: tuple[str, ...] = ("score",)
    dots: str | None = None
    to_threshold: bool = False
    normalised: bool = False
    published: Mapping[str, Published] = {}
    figures: Mapping[str, str] = {}
    stochastic: tuple[str, ...] = ()


#: Tianshou: REINFORCE in examples/mujoco/README.md of thu-ml/tianshou, 10M steps, maximum over the training, ten seeds.
#: The others: benchmark.md of DLR-RM/rl-baselines3-zoo, one run each, deterministic; v2 of LunarLander, v3 of MuJoCo.
PUBLISHED = {
    "CartPole-v1": Published(a2c="500 (500k)", ppo="500 (100k)", trpo="500 (100k)"),
    "Acrobot-v1": Published(a2c="-83.4 (500k)", ppo="-73.5", trpo="-83.1 (100k)"),
    "MountainCar-v0": Published(a2c="-111.3", ppo="-110.4", trpo="-107.3 (100k)"),
    "MountainCarContinuous-v0": Published(a2c="91.2 (100k)", ppo="88.3 (20k)", trpo="92.5 (50k)"),
    "Pendulum-v1": Published(a2c="-163", ppo="-172.2 (100k)", trpo="-174.6 (100k)"),
    "LunarLander-v3": Published(a2c="155.8 (200k)", ppo="242.1", trpo="133.2 (200k)"),
    "LunarLanderContinuous-v3": Published(a2c="84.2 (5M)", ppo="270.9", trpo="262.4 (200k)"),
    "BipedalWalker-v3": Published(a2c="299.8 (5M)", ppo="287.9 (5M)", trpo="182.3"),
    "HalfCheetah-v5": Published("1139", "3041", "5819", "1785"),
    "Hopper-v5": Published("416", "733", "2410", "3618"),
    "Walker2d-v5": Published("441", "582", "3479", "4933"),
    "Swimmer-v5": Published("36", "201", "281.6", "365.7"),
    "Ant-v5": Published("1108", "-44", "1327", "4982"),
    "Humanoid-v5": Published("464", "388 (2M)"),
    "Reacher-v5": Published("-5.5"),
    "InvertedPendulum-v5": Published("1000"),
    "InvertedDoublePendulum-v5": Published("7726"),
}

ON_POLICY = "reinforce reinforce-adam a2c ppo trpo"
EARLIER_ENTRIES = "--conf-file " + " ".join(f"{algo}=logs/earlier_entries/{algo}.yml" for algo in ("a2c", "ppo", "trpo"))
FEW_STEPS = (
    "--algos reinforce a2c ppo trpo --variant trpo-mc algo:trpo gae_lambda:1.0 --seeds 5 --n-evaluations 10 "
    "--eval-episodes 5 --final-episodes 30"
)
#: The class with its own defaults, in the environments of the lectures.
DEFAULTS = "--conf-file reinforce=benchmarks/class_defaults.yml"
COURSE = (
    "n_envs:1 gamma:1.0 baseline:None normalize_advantage:True loss_reduction:episode learning_rate:0.01 "
    '"policy_kwargs:dict(net_arch=[16], activation_fn=nn.ReLU)"'
)
PIXELS = (
    "policy:CnnPolicy n_envs:4 n_steps:64 learning_rate:0.001 ent_coef:lin_0.02 micro_batch_size:256 "
    "\"env_wrapper:[{'gymnasium.wrappers.AddRenderObservation': {'render_only': True}}, "
    "{'stable_baselines3.common.atari_wrappers.WarpFrame': {'width': 100, 'height': 40}}]\""
)

COMPARISONS = {
    "zoo_table": Comparison(
        "RL Zoo's environments",
        "Scores of the entries of `hyperparams/reinforce.yml`: the policy of one run after 100,000, 300,000 and a million "
        "steps (30 episodes) and at its end (100 episodes), with deterministic actions unless sampled actions are named; "
        "mean over the seeds and a 95 % interval (Student's). Step sizes that decay with the whole budget have hardly decayed "
        "after 100,000 steps. Adam: the textbook's step, `hyperparams/reinforce_adam.yml`, at the end of the same budget "
        "(five million steps on BipedalWalker-v3). Published scores are cited, not measured here: REINFORCE in "
        "Tianshou (10M steps, maximum over training), and A2C, PPO and TRPO in RL Zoo "
        "(one run, a million steps or the number in brackets). Older versions of an environment are not quite the same task.",
        {
            "entries": "--algos reinforce --seeds 5 --n-evaluations 10 --eval-episodes 30 --env CartPole-v1 Acrobot-v1 "
            "MountainCar-v0 MountainCarContinuous-v0 Pendulum-v1 LunarLander-v3 LunarLanderContinuous-v3 HalfCheetah-v5 "
            "Hopper-v5 Walker2d-v5 Swimmer-v5 Reacher-v5 InvertedPendulum-v5 InvertedDoublePendulum-v5 Taxi-v4 Ant-v5 "
            "sb3_reinforce/AliasedGridworld-v0 sb3_reinforce/RockPaperScissors-v0 sb3_reinforce/PixelCopter-v0",
            # Three seeds only, since these runs are long
            "long": "--algos reinforce --seeds 3 --n-evaluations 10 --eval-episodes 30 --env BipedalWalker-v3 Humanoid-v5",
            "adam": "--algos reinforce-adam --seeds 5 --env CartPole-v1 Acrobot-v1 MountainCar-v0 MountainCarContinuous-v0 "
            "Pendulum-v1 LunarLander-v3 LunarLanderContinuous-v3 HalfCheetah-v5 Hopper-v5 Walker2d-v5 Reacher-v5 Ant-v5 "
            "Humanoid-v5 BipedalWalker-v3",
        },
        dots="score",
        published=PUBLISHED,
        stochastic=("sb3_reinforce/AliasedGridworld-v0", "sb3_reinforce/RockPaperScissors-v0"),
    ),
    "time_to_threshold": Comparison(
        "Time to 475 on CartPole-v1",
        "Steps and seconds of training until the score is reached, one thread: medians over the seeds, where a run that never "
        "reaches it counts as longer than any other. PPO uses RL Zoo's entry, REINFORCE the entry of "
        "`hyperparams/reinforce_adam.yml`, the textbook's step. An evaluation has five episodes.",
        {
            "cartpole": "--env CartPole-v1 --algos reinforce-adam ppo --seeds 20 -n 100000 --n-evaluations 50 "
            "--eval-episodes 5 --final-episodes 20 --threshold CartPole-v1=475 --jobs 1"
        },
        dots="seconds_to_threshold",
        to_threshold=True,
    ),
    "recurrent": Comparison(
        "Recurrent policies, on tasks that need them",
        "Steps and seconds of training until the threshold is reached, one thread: medians over the seeds, where a run that "
        "never reaches it counts as longer than any other. REINFORCE uses its entry in `hyperparams/reinforce_lstm.yml`, "
        "the MLP the same entry without the LSTM, RecurrentPPO (ppo_lstm) RL Zoo's entry.",
        {
            "tmaze": "--env sb3_reinforce/TMaze-v0 --algos reinforce_lstm --seeds 5 -n 300000 "
            "--conf-file reinforce=hyperparams/reinforce_lstm.yml --variant mlp policy:MlpPolicy policy_kwargs:dict() "
            "--threshold sb3_reinforce/TMaze-v0=0.95 --n-evaluations 30 --eval-episodes 100",
            "tmaze-masked": "--env sb3_reinforce/TMazeMasked-v0 --algos reinforce_lstm --seeds 5 -n 300000 "
            "--conf-file reinforce=hyperparams/reinforce_lstm.yml --variant mlp policy:MultiInputPolicy policy_kwargs:dict() "
            "--variant no-masks use_masking:False --threshold sb3_reinforce/TMazeMasked-v0=0.95 --n-evaluations 30 "
            "--eval-episodes 100",
            "tmaze-50": "--env sb3_reinforce/TMaze50-v0 --algos reinforce_lstm --seeds 5 -n 2000000 "
            "--threshold sb3_reinforce/TMaze50-v0=0.95 --n-evaluations 40 --eval-episodes 100",
            "cartpole": "--env CartPoleNoVel-v1 --algos reinforce_lstm ppo_lstm --seeds 5 -n 1000000 "
            "--conf-file reinforce=hyperparams/reinforce_lstm.yml --variant mlp policy:MlpPolicy policy_kwargs:dict() "
            "--threshold CartPoleNoVel-v1=475 --n-evaluations 50 --eval-episodes 100",
        },
        dots="steps_to_threshold",
        to_threshold=True,
    ),
    "masks": Comparison(
        "With action masks",
        "REINFORCE's entry with and without action masks.",
        {"taxi": "--env Taxi-v4 --algos reinforce --variant no-masks use_masking:False --seeds 3 -n 500000"},
    ),
    "lectures": Comparison(
        "Runs for the pages on lectures",
        "Scores over 100 episodes for each seed and, where a course asks for it, their mean minus their standard deviation: "
        "mean over the seeds, lowest and highest.",
        {
            "corridor": "--env sb3_reinforce/AliasedGridworld-v0 --algos reinforce dqn --seeds 3 -n 50000 "
            "--variant no-bonus ent_coef:0.0 --variant small-bonus ent_coef:0.02 "
            "--variant large-bonus ent_coef:0.5 --variant large-bonus-to-0 ent_coef:lin_0.5",
            "dice": "--env sb3_reinforce/RockPaperScissors-v0 --algos reinforce --seeds 3 -n 50000",
            "cartpole": f"--env CartPole-v1 --algos reinforce --seeds 3 -n 100000 {DEFAULTS} "
            f"--variant course n_episodes:1 {COURSE} --variant course-8-episodes n_episodes:8 {COURSE}",
            "copter": "--env sb3_reinforce/PixelCopter-v0 --algos reinforce --seeds 3 -n 1000000",
            "image": f"--env sb3_reinforce/AliasedGridworld-v0 --env-kwargs render_mode:rgb_array --algos --seeds 3 -n 8000 "
            f"--variant pixels {PIXELS}",
            "few-steps": "--env CartPole-v1 --algos reinforce dqn ars --seeds 3 -n 20000 --n-evaluations 4",
        },
        columns=("sampled_score", "sampled_score_minus_std", "score", "score_minus_std"),
    ),
    "classic": Comparison(
        "Classic control and LunarLander, 60 seconds each",
        "REINFORCE uses this package's hyperparameters, the others RL Zoo's.",
        {
            "seconds": "--env CartPole-v1 Acrobot-v1 Pendulum-v1 MountainCarContinuous-v0 LunarLander-v3 --algos "
            f"{ON_POLICY} ars dqn --seeds 5 --seconds 60 --jobs 2 --eval-episodes 5 --final-episodes 50"
        },
        normalised=True,
        figures={"classic_pendulum.png": "seconds/Pendulum-v1"},
    ),
    # After: python benchmarks/earlier_entries.py --algos a2c ppo trpo --env HalfCheetah-v5 Hopper-v5 Swimmer-v5 Walker2d-v5 \
    #     Ant-v5
    "equal_steps": Comparison(
        "Equal steps: 100,000 in classic control, 300,000 elsewhere",
        "REINFORCE uses this package's hyperparameters, the others RL Zoo's (on MuJoCo those for version 4, "
        "`benchmarks/earlier_entries.py`). `trpo-mc` is TRPO with `gae_lambda=1`: Monte Carlo returns. The area is the mean "
        "score of the evaluations during training, weighted by the steps between them.",
        {
            "classic": f"--env CartPole-v1 Acrobot-v1 Pendulum-v1 MountainCarContinuous-v0 {FEW_STEPS} -n 100000",
            "box2d": f"--env LunarLander-v3 {FEW_STEPS} -n 300000",
            "mujoco": f"--env HalfCheetah-v5 Hopper-v5 Swimmer-v5 Walker2d-v5 Ant-v5 {FEW_STEPS} -n 300000 {EARLIER_ENTRIES}",
        },
        columns=("score", "area"),
        normalised=True,
    ),
    "mujoco": Comparison(
        "MuJoCo, 300 seconds each",
        "REINFORCE uses this package's hyperparameters, the others RL Zoo's for version 4, since there are none for version 5 "
        "(`benchmarks/earlier_entries.py` writes them under the current names).",
        {
            "seconds": f"--env HalfCheetah-v5 Hopper-v5 Swimmer-v5 Walker2d-v5 --algos {ON_POLICY} {EARLIER_ENTRIES} "
            "--seeds 3 --seconds 300 --jobs 2 --eval-episodes 5 --final-episodes 30"
        },
        normalised=True,
    ),
    "monte_carlo": Comparison(
        "What Monte Carlo costs",
        "REINFORCE's entries, unchanged and with `gae_lambda` below 1; 300,000 steps. The area is the mean score of the "
        "evaluations during training, weighted by the steps between them.",
        {
            "lambda": "--env Hopper-v5 Walker2d-v5 HalfCheetah-v5 LunarLander-v3 --algos reinforce --seeds 5 -n 300000 "
            "--variant lambda-99 gae_lambda:0.99 --variant lambda-97 gae_lambda:0.97 --variant lambda-95 "
            "gae_lambda:0.95 --n-evaluations 10 --eval-episodes 5 --final-episodes 30 --jobs 2"
        },
        columns=("score", "area"),
        figures={"monte_carlo.png": "lambda"},
    ),
    "baselines": Comparison(
        "Five baselines",
        "REINFORCE's entries with each baseline; all other settings are unchanged.",
        {
            "steps": "--env CartPole-v1 LunarLander-v3 --algos --variant value baseline:value "
            "--variant leave-one-out baseline:leave_one_out --variant time-step baseline:time_step "
            "--variant mean baseline:mean --variant no-baseline baseline:None --seeds 5 -n 200000 --jobs 2 "
            "--n-evaluations 10 --final-episodes 50"
        },
        columns=("score", "sampled_score"),
        normalised=True,
    ),
}
