"""REINFORCE as an SB3 algorithm: one constructor, one rollout, one update."""

import warnings
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from stable_baselines3.common.utils import explained_variance, update_learning_rate
from stable_baselines3.common.vec_env import VecEnv

from sb3_reinforce.arguments import DerivedArguments, check_arguments, check_env_type, check_spaces, explain_few_updates
from sb3_reinforce.checkpoints import SavedWhole, restore_baseline
from sb3_reinforce.distributed.partition import Partition
from sb3_reinforce.distributed.process_group import join_process_group
from sb3_reinforce.distributed.synchronization import Synchronization
from sb3_reinforce.functional.baselines import Baseline, NoBaseline, name_of
from sb3_reinforce.functional.returns import Array
from sb3_reinforce.policies.actor_critic import CnnPolicy, MlpPolicy, MultiInputPolicy
from sb3_reinforce.policies.averaging import make_averaged_policy, reset_noise_with_own_generator
from sb3_reinforce.policies.construction import RECURRENT_POLICIES, check_policy_class, import_recurrent_policy, make_policy
from sb3_reinforce.policies.inspection import explain_overridden_features
from sb3_reinforce.policies.masked_distribution import MASK_KEY, NO_MASKS, has_action_mask, take_action_masks, use_action_masks
from sb3_reinforce.rollout.batch import EpisodeBatch, NumpyObs
from sb3_reinforce.rollout.budget import EXPECTED_EPISODE_STEPS, EpisodeQuota, explain_cut, find_bound, find_time_limit
from sb3_reinforce.rollout.buffers import DictEpisodeRolloutBuffer, EpisodeRolloutBuffer, choose_buffer_class
from sb3_reinforce.rollout.collector import Rollout, RolloutSettings, collect_episodes
from sb3_reinforce.rollout.common_starts import choose_common_starts
from sb3_reinforce.rollout.progress_bar import count_steps_in_progress_bars
from sb3_reinforce.update import make_evaluator
from sb3_reinforce.update.advantages import compute_advantages, evaluate_rollout
from sb3_reinforce.update.critic import fit_critic
from sb3_reinforce.update.evaluator import PolicyEvaluator
from sb3_reinforce.update.policy_step import PolicyGradient, clipped_norm, compute_gradient, natural_step, unchanged_by_failure

SelfREINFORCE = TypeVar("SelfREINFORCE", bound="REINFORCE")


class REINFORCE(SavedWhole, DerivedArguments):
    """
    REINFORCE, the Monte Carlo policy gradient (Williams 1992; Sutton & Barto 2018, section 13.3 and 13.4).

    An update collects whole episodes with the current policy, computes their returns, subtracts a baseline, takes one gradient
    step on ``-(advantage * log_prob)`` minus the entropy bonus, throws the data away, and only then fits the learned baseline,
    if there is one. With ``natural_gradient``, the length of that step is set by how much it changes the policy.

    An episode counts if it *started* while the budget (``n_steps`` or ``n_episodes``) was open, and every counted episode
    is finished and used whole, unless it reaches ``max_rollout_steps``.

    With ``n_episodes``, ``loss_reduction="episode"``, an unbiased baseline (all but ``"mean"``) and
    ``bootstrap_at_time_limit=False``, the expected gradient, before clipping and before any optimizer, is that of the
    discounted objective (with ``discounted_weighting=True`` or ``gamma=1``). The defaults give the estimator that every
    library uses, a mean over steps that does not discount the states; it is the gradient of no objective.
    ``docs/exactness.md`` has the exact conditions and the known biases.

    :param policy: The policy model to use (MlpPolicy, CnnPolicy, MultiInputPolicy, or any actor-critic policy class;
        recurrent: MlpLstmPolicy, CnnLstmPolicy, MultiInputLstmPolicy, which need sb3-contrib)
    :param env: The environment to learn from (if registered in Gym, can be str)
    :param learning_rate: Step size of the policy, in any form that ``ent_coef`` takes. With one gradient step per rollout, ten
        times PPO's default or more is usual.
    :param n_steps: Budget of a rollout in steps of each environment: episodes that start before it is used up are finished,
        and an environment that is done waits for the others. The number of episodes is random, which biases the mean over
        episodes by O(1 / number) and, with a baseline that compares episodes, their sum as well. 256 if neither ``n_steps``
        nor ``n_episodes`` is given.
    :param n_episodes: Budget of a rollout in episodes, over all environments, in the order in which they start (at the same
        step: in the order of the environments).
    :param episodes_per_start: Number of episodes that start from the same seed, in waves if there are more episodes than
        environments, which must be those of a ``DummyVecEnv`` or ``SubprocVecEnv``. Divides ``n_episodes``. The gradient stays
        unbiased, because actions are drawn independently of the environment's noise. None: random starts.
    :param gamma: Discount factor inside the return, in [0, 1].
    :param gae_lambda: 1 is Monte Carlo. Below 1 the advantage is Schulman et al.'s generalized estimate: it needs
        ``baseline="value"``, is biased by the critic, and is no longer REINFORCE.
    :param return_type: ``"reward_to_go"``: each action is credited with the rewards that follow it (Sutton & Barto 2018, eq.
        13.8). ``"episode"``: with the return of the whole episode (Williams 1992), which is noisier and has the same
        expectation with ``discounted_weighting=True``.
    :param discounted_weighting: Weight step t by ``gamma**t``, as the gradient of the discounted objective does (Sutton &
        Barto 2018, section 13.3). Off by default, as in other libraries, since it makes late steps count for almost nothing.
        Makes no difference with ``return_type="episode"``.
    :param baseline: What is subtracted from the returns: ``"value"``: learned V(s); ``"leave_one_out"``: mean over the other
        episodes; ``"time_step"``: mean over the other episodes at the same time step; ``"mean"``: mean of the batch, biased
        because it contains the episode's own return; None: nothing; ``"moving_average"``, ``"linear"``, ``"optimal"``,
        ``"greedy"``, ``"group"``: see ``docs/baselines.md``. Or a custom baseline: an instance of a subclass of
        ``functional.baselines.Baseline``, or its class path, ``"my_module:MyBaseline"``.
    :param normalize_advantage: Subtract the mean of the advantages and divide by their standard deviation: the step no longer
        depends on the scale of the rewards, but is biased for finite batches.
    :param loss_reduction: ``"step"``: mean over all steps, as in A2C; ``"episode"``: sum over the steps of an episode, mean
        over episodes, as in the policy gradient theorem. They differ by the mean episode length, which is random.
    :param ent_coef: Coefficient of the entropy bonus: a float, a function of the progress remaining, or ``"lin_0.01"`` for a
        linear decay from 0.01 to 0. As a term of the loss, the bonus does not follow the gradient of any objective.
    :param entropy_in_return: Instead of the bonus in the loss, add ``-ent_coef * log_prob`` of each action to its reward (the
        maximum-entropy objective, Levine 2018, eq. 9): its gradient is exact where the gradient of the return is.
    :param bootstrap_at_time_limit: Bootstrap an episode that a time limit cut (``TimeLimit.truncated``) with the value of its
        true final observation, once a critic has been fitted. Otherwise the time limit is the end of the episode (the
        finite-horizon objective).
    :param vf_coef: Coefficient of the critic's loss in its separate gradient steps.
    :param critic_epochs: Passes over the rollout to fit the critic, after the policy's step. More passes fit better and take
        longer.
    :param critic_batch_size: Steps per gradient step of the critic; None for the whole rollout.
    :param critic_learning_rate: Step size of the critic, in any form that ``ent_coef`` takes; None for ``learning_rate``.
    :param natural_gradient: Take the policy's step along the natural gradient (Kakade 2001), scaled to change the policy by
        ``target_kl`` whatever the size of the gradient, which biases the expected step. ``learning_rate`` and
        ``max_grad_norm`` then apply only to the critic.
    :param target_kl: With ``natural_gradient``, the target KL divergence of each step (its quadratic estimate, in nats), in
        any form that ``ent_coef`` takes. As in sb3-contrib's TRPO, it is a mean over steps and over the dimensions of a Box or
        MultiBinary action. Larger values learn faster, smaller ones more steadily. The exact divergence stays below 1.5 times
        this value.
    :param cg_max_steps: With ``natural_gradient``, maximum number of conjugate gradient steps to find the direction; 10 as in
        TRPO (Schulman et al. 2015, appendix C).
    :param cg_damping: With ``natural_gradient``, damping added to the diagonal of the Fisher matrix of that divergence; 0.1 as
        in TRPO. It turns the direction towards the gradient and, unlike in TRPO, does not change the length of the step.
    :param fisher_max_steps: With ``natural_gradient``, number of steps from which the Fisher matrix is estimated, a random
        subset (for a recurrent policy: whole episodes). More steps take longer. None for all.
    :param policy_averaging: Decay in (0, 1) of an exponential moving average of the policy's parameters over updates (Polyak &
        Juditsky 1992). ``predict`` uses the average, while ``policy`` acts and learns. 0.8 averages over about five updates.
    :param micro_batch_size: Number of steps per micro-batch: the gradient is summed over micro-batches, the same gradient in
        bounded memory. None for a single one, or for smaller ones where the logits would take more than 32 MiB. For a
        recurrent policy, they consist of whole episodes.
    :param max_rollout_steps: Bound on the steps of each environment in one rollout. Episodes still running are cut there with
        a warning, which biases the gradient. None for no bound if all environments have a time limit, else for 50,000 steps
        beyond ``n_steps``, or beyond ``n_episodes`` episodes of 1,000 steps.
    :param max_grad_norm: Maximum norm of the policy's gradient and, separately, of the critic's. Clipping biases the expected
        step against rare large rewards. ``float("inf")`` for no clipping.
    :param use_masking: Whether to use action masks (``rollout.action_masks.find_mask_source`` lists their sources). Invalid
        actions have probability 0 and no part in the gradient. Discrete, MultiDiscrete or MultiBinary actions only.
    :param distributed: Whether this is one of several processes, started by torchrun, that train one policy with one gradient.
        ``n_steps`` stays a budget per environment, ``n_episodes`` is the total. Process 0 runs callbacks and writes logs and
        files. Not saved.
    :param use_sde: Whether to use generalized State Dependent Exploration (gSDE). Unless ``sde_sample_freq=1`` the gradient is
        biased: steps that share a noise matrix are scored as if each had its own (``docs/exactness.md``).
    :param sde_sample_freq: Sample a new noise matrix of gSDE every n steps, and at the start of every episode; -1: only then.
    :param rollout_buffer_class: Subclass of ``EpisodeRolloutBuffer`` or ``DictEpisodeRolloutBuffer``; None to choose.
    :param rollout_buffer_kwargs: Keyword arguments to pass to the rollout buffer on creation.
    :param stats_window_size: Counted episodes over which the logged success rate, episode length and reward are averaged.
    :param tensorboard_log: the log location for tensorboard (if None, no logging)
    :param policy_kwargs: additional arguments to be passed to the policy on creation
    :param verbose: 0 for no output, 1 for info messages (such as device or wrappers used), 2 for debug messages
    :param seed: Seed for the pseudo random generators
    :param device: Device (cpu, cuda, ...) on which the code should be run; ``"auto"`` for the GPU if possible.
    :param _init_setup_model: Whether or not to build the network at the creation of the instance
    :raises ValueError: If an argument is out of its range or two arguments contradict each other; the message names them.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        policy.__name__: policy for policy in (MlpPolicy, CnnPolicy, MultiInputPolicy)
    }
    rollout_buffer: EpisodeRolloutBuffer | DictEpisodeRolloutBuffer

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str,
        learning_rate: float | str | Schedule = 5e-3,
        n_steps: int | None = None,
        n_episodes: int | None = None,
        episodes_per_start: int | None = None,
        gamma: float = 0.99,
        gae_lambda: float = 1.0,
        return_type: Literal["reward_to_go", "episode"] = "reward_to_go",
        discounted_weighting: bool = False,
        baseline: str | Baseline | None = "value",
        normalize_advantage: bool = False,
        loss_reduction: Literal["step", "episode"] = "step",
        ent_coef: float | str | Schedule = 0.0,
        entropy_in_return: bool = False,
        bootstrap_at_time_limit: bool = True,
        vf_coef: float = 0.5,
        critic_epochs: int = 3,
        critic_batch_size: int | None = None,
        critic_learning_rate: float | str | Schedule | None = None,
        natural_gradient: bool = False,
        target_kl: float | str | Schedule = 0.01,
        cg_max_steps: int = 10,
        cg_damping: float = 0.1,
        fisher_max_steps: int | None = 2_000,
        policy_averaging: float | None = None,
        micro_batch_size: int | None = None,
        max_rollout_steps: int | None = None,
        max_grad_norm: float = 0.5,
        use_masking: bool = False,
        distributed: bool = False,
        use_sde: bool = False,
        sde_sample_freq: int = -1,
        rollout_buffer_class: type[RolloutBuffer] | None = None,
        rollout_buffer_kwargs: dict[str, Any] | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
    ):
        super().__init__(
            policy,
            env,
            learning_rate=learning_rate,  # type: ignore[arg-type]
            n_steps=n_steps,  # type: ignore[arg-type]
            gamma=gamma,
            gae_lambda=gae_lambda,
            ent_coef=ent_coef,  # type: ignore[arg-type]
            vf_coef=vf_coef,
            max_grad_norm=max_grad_norm,
            use_sde=use_sde,
            sde_sample_freq=sde_sample_freq,
            rollout_buffer_class=rollout_buffer_class,
            rollout_buffer_kwargs=rollout_buffer_kwargs,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs=policy_kwargs,
            verbose=verbose,
            seed=seed,
            device=device,
            _init_setup_model=False,
            supported_action_spaces=(spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary),
        )
        self.n_episodes = n_episodes
        self.episodes_per_start = episodes_per_start
        self.return_type = return_type
        self.discounted_weighting = discounted_weighting
        self.baseline = baseline
        self._baseline: Baseline = NoBaseline()
        self.normalize_advantage = normalize_advantage
        self.loss_reduction = loss_reduction
        self.entropy_in_return = entropy_in_return
        self.bootstrap_at_time_limit = bootstrap_at_time_limit
        self.critic_epochs = critic_epochs
        self.critic_batch_size = critic_batch_size
        self.critic_learning_rate = critic_learning_rate
        self.natural_gradient = natural_gradient
        self.target_kl = target_kl
        self.cg_max_steps = cg_max_steps
        self.cg_damping = cg_damping
        self.fisher_max_steps = fisher_max_steps
        self.policy_averaging = policy_averaging
        self.micro_batch_size = micro_batch_size
        self.max_rollout_steps = max_rollout_steps
        self.use_masking = use_masking
        self.distributed = distributed
        self._synchronization = Synchronization()
        self._warned: set[str] = set()
        self._time_limit: int | None = None

        if _init_setup_model:
            self._setup_model()

    @staticmethod
    def _wrap_env(env: GymEnv, verbose: int = 0, monitor_wrapper: bool = True) -> VecEnv:
        check_env_type(env)
        return OnPolicyAlgorithm._wrap_env(env, verbose, monitor_wrapper)

    def _setup_model(self) -> None:
        if self.distributed:
            self._synchronization = Synchronization(join_process_group(self.device))
            self.device = self._synchronization.processes.device_of(self.device)
        self._check_arguments()
        check_policy_class(self.policy_class)
        check_spaces(self.observation_space, self.action_space)
        self._setup_lr_schedule()
        self.set_random_seed(self.seed)
        self._setup_rollout_buffer()
        self._setup_policy()
        self._maybe_recommend_cpu(MlpPolicy.__name__)

    def _check_arguments(self) -> None:
        self._baseline = restore_baseline(self.baseline, vars(self).pop("_saved_baseline", None))
        n_processes = self._synchronization.processes.size
        n_envs = None if self.env is None else self.n_envs * n_processes
        arguments = {**vars(self), "n_steps": self.n_steps, "baseline": self._baseline}
        for warning in check_arguments(arguments, n_envs, n_processes):
            self._warn_once(warning, warning)

    def _setup_rollout_buffer(self) -> None:
        self.rollout_buffer_class = choose_buffer_class(self.rollout_buffer_class, self.observation_space)
        self.rollout_buffer = self.rollout_buffer_class(
            self.n_steps or EXPECTED_EPISODE_STEPS,
            self.observation_space,
            self.action_space,
            device=self.device,
            gamma=self.gamma,
            gae_lambda=self.gae_lambda,
            n_envs=self.n_envs,
            **self.rollout_buffer_kwargs,
        )
        if self.use_masking and has_action_mask(self.observation_space):
            self.rollout_buffer.mask_key = MASK_KEY

    def _setup_policy(self) -> None:
        policy = make_policy(
            self.policy_class,  # type: ignore[arg-type]
            self.observation_space,
            self.action_space,
            self.lr_schedule,
            use_masking=self.use_masking,
            use_sde=self.use_sde,
            has_critic=self._baseline.needs_critic,
            policy_kwargs=self.policy_kwargs,
        )
        self.policy = policy.to(self.device)
        # Refuses a policy that cannot be evaluated, before anything is collected
        make_evaluator(self.policy)
        self._warn_once("extract_features", explain_overridden_features(self.policy))
        if self.policy_averaging is not None:
            self.policy_average = make_averaged_policy(self.policy, self.policy_averaging)

    @property
    def averaged_policy(self) -> ActorCriticPolicy:
        """The policy that ``predict`` uses: the moving average over updates, or ``policy`` itself without one."""
        return self.policy if self.policy_averaging is None else self.policy_average.module

    def _get_policy_from_name(self, policy_name: str) -> type[BasePolicy]:
        if policy_name in RECURRENT_POLICIES:
            return import_recurrent_policy(policy_name)
        return super()._get_policy_from_name(policy_name)

    def set_random_seed(self, seed: int | None = None) -> None:
        """
        Seed the generators of Python, NumPy, PyTorch and the environment, and the model's, which samples the actions.

        :param seed: The seed; None to seed only the model's generator, from PyTorch's. Each process offsets it as if its
            environments followed those of the preceding processes.
        """
        if seed is not None:
            seed = (seed + self._synchronization.processes.rank * self.n_envs) % 2**32
        super().set_random_seed(seed)
        self._rng = np.random.default_rng(int(th.randint(2**63 - 1, ())) if seed is None else seed)

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        """
        Collect whole episodes with the current policy: those that start while the budget is open.

        While the last episodes finish, the other environments are idle, neither stepped nor counted; callbacks find which in
        the local ``is_idle``. A ``VecEnv`` that can only step all environments (any but a ``DummyVecEnv`` or ``SubprocVecEnv``
        in SB3's own wrappers) steps them too: these steps count in ``num_timesteps`` but are not used.

        :param n_rollout_steps: The budget in steps per environment; unused if ``n_episodes`` is set.
        :return: True if all counted episodes are complete (or were cut at the bound), False if the callback stopped early.
        :raises ValueError: If a reward or an observation is NaN or infinite, or an action mask is missing or cannot be used;
            names the environment and the step.
        :raises ProcessError: If anything fails in any of several processes.
        """
        assert self._last_obs is not None, "No previous observation was provided"
        assert isinstance(rollout_buffer, EpisodeRolloutBuffer | DictEpisodeRolloutBuffer)
        # Switch to eval mode (this affects batch norm / dropout)
        self.policy.set_training_mode(False)
        # Callbacks find these throughout the rollout, as in SB3's loop
        callback.update_locals(locals())
        synchronization = self._synchronization
        synchronization.begin_rollout(self)
        with synchronization.processes.failing_together():
            rollout = self._collect(env, callback, rollout_buffer, n_rollout_steps)
            if rollout is not None:
                self._evaluate_rollout(rollout_buffer)
                callback.update_locals(locals())
                callback.on_rollout_end()
            goes_on, infos = rollout is not None, [] if rollout is None else rollout.infos
            return synchronization.finish_rollout(self, goes_on, infos)

    def _collect(
        self,
        env: VecEnv,
        callback: BaseCallback,
        rollout_buffer: EpisodeRolloutBuffer | DictEpisodeRolloutBuffer,
        n_rollout_steps: int,
    ) -> Rollout | None:
        processes = self._synchronization.processes
        n_envs = env.num_envs * processes.size
        bound = find_bound(self.max_rollout_steps, self._time_limit, self.n_steps, self.n_episodes, n_envs)
        # All episodes of a start are collected in the same process
        each, n_episodes = self.episodes_per_start or 1, self.n_episodes
        n_episodes = None if n_episodes is None else each * processes.share(n_episodes // each)
        quota = EpisodeQuota(n_rollout_steps, n_episodes)
        starts = choose_common_starts(n_episodes, self.episodes_per_start, self._baseline)
        bootstraps = self._baseline.needs_critic and self.bootstrap_at_time_limit
        settings = RolloutSettings(bound, bootstraps, self._rng, self.use_masking)
        rollout = collect_episodes(self, env, callback, rollout_buffer, quota, settings, starts)
        if rollout is None:
            return None
        if rollout.n_cut > 0:
            has_value = self._baseline.needs_critic and self.critic_is_fitted
            self._warn_once("max_rollout_steps", explain_cut(bound, rollout.n_cut, has_value))
        self.logger.record("rollout/episodes", rollout.n_episodes)
        self.logger.record("rollout/discarded_fraction", 1.0 - rollout_buffer.n_counted_steps / rollout.n_steps)
        if self._total_timesteps > 0:
            # As learn will do, so that callbacks see the update's entropy coefficient in the returns
            self._update_current_progress_remaining(self.num_timesteps, self._total_timesteps)
        return rollout

    def _evaluate_rollout(self, rollout_buffer: EpisodeRolloutBuffer | DictEpisodeRolloutBuffer) -> None:
        """Evaluate the policy that acted, as the update needs it. SB3's arrays in the buffer follow from the outputs."""
        evaluator, batch = make_evaluator(self.policy, self.micro_batch_size), rollout_buffer.whole_episodes()
        outputs = evaluate_rollout(evaluator, batch, self._baseline, self.critic_is_fitted, self.entropy_in_return)
        rollout_buffer.set_outputs(outputs, evaluator, self.estimator, self._ent_coef_in_return)

    @property
    def _ent_coef_in_return(self) -> float:
        return self.ent_coef_schedule(self._current_progress_remaining) if self.entropy_in_return else 0.0

    def _warn_once(self, key: str, message: str | None) -> None:
        if message is not None and key not in self._warned:
            self._warned.add(key)
            warnings.warn(message, UserWarning, stacklevel=3)

    def predict(
        self,
        observation: NumpyObs,
        state: tuple[Array, ...] | None = None,
        episode_start: Array | None = None,
        deterministic: bool = False,
        action_masks: Any = None,
    ) -> tuple[Array, tuple[Array, ...] | None]:
        """
        Choose actions with ``averaged_policy``, as ``BaseAlgorithm.predict`` does with ``policy``.

        :param action_masks: Valid actions, shape ``(n_options,)``, or ``(n_envs, n_options)`` for several observations. With
            ``use_masking``, not needed for observations that contain their mask.
        :return: The actions, and the next hidden states of a recurrent policy.
        :raises ValueError: If a mask has the wrong shape or type, or allows no action.
        """
        policy = self.averaged_policy
        observation, masks = take_action_masks(policy, observation, action_masks)
        if self.use_masking and masks is None:
            self._warn_once("no masks", NO_MASKS)
        with use_action_masks(policy, masks):
            return policy.predict(observation, state, episode_start, deterministic)

    def _update_current_progress_remaining(self, num_timesteps: int, total_timesteps: int) -> None:
        # The last rollout finishes its episodes beyond total_timesteps, where schedules are not defined
        super()._update_current_progress_remaining(min(num_timesteps, total_timesteps), total_timesteps)

    def train(self) -> None:
        """
        Take one gradient step on the counted episodes, then fit the learned baseline on their returns.

        Batch normalisation and dropout stay in evaluation mode, as while acting. After any exception, policy, optimizer,
        average and ``_n_updates`` are as before the update.

        :raises ValueError: If a loss or a gradient is NaN or infinite.
        """
        self.policy.set_training_mode(False)
        averages = [] if self.policy_averaging is None else [self.policy_average]
        processes = self._synchronization.processes
        with unchanged_by_failure(self.policy, self.policy.optimizer, *averages), processes.failing_together():
            self._update()
            for average in averages:
                average.update_parameters(self.policy)
                if self.use_sde:
                    reset_noise_with_own_generator(self.averaged_policy)
            self._n_updates += 1
        # The policy that acted is gone
        self.rollout_buffer.evaluator = None
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")

    def _update(self) -> None:
        ent_coef = self.ent_coef_schedule(self._current_progress_remaining)
        self._update_learning_rate(self.policy.optimizer)
        if self.rollout_buffer.outputs is None:
            # Filled by hand
            self._evaluate_rollout(self.rollout_buffer)
        batch, evaluator = self.rollout_buffer.whole_episodes(), make_evaluator(self.policy, self.micro_batch_size)
        if self.micro_batch_size is not None:
            self._warn_once("micro_batch_size", evaluator.explain_long_episode(batch.episode_lengths))

        processes = self._synchronization.processes
        advantages = compute_advantages(batch, self.estimator, evaluator, self._ent_coef_in_return, processes)
        targets, partition = advantages.targets, advantages.partition
        if self._baseline.compares_episodes and len(partition.episode_lengths) == 1:
            self._warn_once(
                "one episode",
                f"A rollout held a single episode, which baseline={name_of(self._baseline)} has nothing to compare with: no "
                "baseline was used. Raise n_steps, or use n_episodes.",
            )
        self.logger.record("train/return_mean", targets.rewards_to_go.mean())
        self.logger.record("train/return_std", targets.rewards_to_go.std())
        self.logger.record("train/advantage_std", targets.advantages.std())

        local_targets, ent_coef_in_loss = advantages.local_targets, 0.0 if self.entropy_in_return else ent_coef
        gradient = compute_gradient(evaluator, batch, local_targets, ent_coef_in_loss, processes)
        self._policy_step(evaluator, batch, gradient, partition)
        if (values := advantages.episodes.values) is not None:
            self.logger.record("train/explained_variance", explained_variance(values, targets.rewards_to_go))
            update_learning_rate(self.policy.optimizer, self.critic_lr_schedule(self._current_progress_remaining))
            settings = (self.critic_epochs, self.critic_batch_size, self.vf_coef, self.max_grad_norm)
            rng = self._rng if self.critic_batch_size is None else processes.broadcast(self._rng)
            returns, actor_parameters = local_targets.rewards_to_go, gradient.parameters
            value_loss = fit_critic(evaluator, batch, returns, actor_parameters, rng, *settings, partition, processes)
            if value_loss is not None:
                self.logger.record("train/value_loss", value_loss)
        self._baseline.fit(advantages.episodes)

        self.logger.record("train/ent_coef", ent_coef)
        if hasattr(self.policy, "log_std"):
            self.logger.record("train/std", th.exp(self.policy.log_std).mean().item())

    def _policy_step(
        self, evaluator: PolicyEvaluator, batch: EpisodeBatch, gradient: PolicyGradient, partition: Partition
    ) -> None:
        """Take the policy step of the update."""
        self.logger.record("train/policy_loss", gradient.policy_loss)
        self.logger.record("train/entropy_loss", -gradient.entropy)
        max_grad_norm = float("inf") if self.natural_gradient else self.max_grad_norm
        self.logger.record("train/grad_norm", clipped_norm(gradient, max_grad_norm))
        if not self.natural_gradient:
            self.policy.optimizer.step()
            return
        target_kl = self.target_kl_schedule(self._current_progress_remaining)
        settings = (target_kl, self.cg_max_steps, self.cg_damping, self.fisher_max_steps)
        step = natural_step(evaluator, batch, gradient, *settings, self._rng, partition, self._synchronization.processes)
        if step.skipped is not None:
            self._warn_once("skipped", f"A natural step was skipped, and the policy left as it was: {step.skipped}.")
        self.logger.record("train/target_kl", target_kl)
        self.logger.record("train/kl", step.kl)
        self.logger.record("train/shortenings", step.n_shortenings)
        self.logger.record("train/curvature", step.curvature)

    def learn(
        self: SelfREINFORCE,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 10,
        tb_log_name: str = "REINFORCE",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfREINFORCE:
        """
        Train, as ``BaseAlgorithm.learn`` does.

        :param total_timesteps: Total steps of all environments. As in SB3, a rollout that has begun is finished: the last one
            may exceed this number, however few steps are left.
        :return: The model.
        :raises ValueError: If a reward, an observation, a loss or a gradient is NaN or infinite; or if processes differ.
        :raises ProcessError: If anything fails in any of several processes, or one of them is gone.
        """
        assert self.env is not None
        self._time_limit = find_time_limit(self.env)
        processes = self._synchronization.processes
        self._synchronization.start(self, total_timesteps)
        if processes.rank > 0:
            callback, progress_bar = None, False
        elif reset_num_timesteps and self.n_steps is not None and self.n_episodes is None:
            n_envs = self.n_envs * processes.size
            if (warning := explain_few_updates(total_timesteps, self.n_steps, n_envs)) is not None:
                warnings.warn(warning, UserWarning, stacklevel=2)
        return super().learn(
            total_timesteps=total_timesteps,
            callback=count_steps_in_progress_bars(callback, progress_bar),
            log_interval=log_interval,
            tb_log_name=tb_log_name,
            reset_num_timesteps=reset_num_timesteps,
        )
