"""A progress bar that counts the steps actually made: SB3's assumes that every environment is stepped each time."""

from stable_baselines3.common.callbacks import BaseCallback, ConvertCallback, ProgressBarCallback
from stable_baselines3.common.type_aliases import MaybeCallback


class StepsProgressBar(ProgressBarCallback):
    """SB3's progress bar, advanced by ``num_timesteps``."""

    def _on_training_start(self) -> None:
        super()._on_training_start()
        self._steps_before = self.model.num_timesteps

    def _on_step(self) -> bool:
        self.pbar.update(self.num_timesteps - self._steps_before - self.pbar.n)
        return True


def count_steps_in_progress_bars(callback: MaybeCallback, progress_bar: bool) -> MaybeCallback:
    """Replace SB3's progress bar of ``learn``, and the one that RL Zoo's ``--progress`` puts into the callbacks."""
    if isinstance(callback, list):
        callback = [StepsProgressBar() if type(child) is ProgressBarCallback else child for child in callback]
    if not progress_bar:
        return callback
    if isinstance(callback, list):
        return [*callback, StepsProgressBar()]
    return [callback if isinstance(callback, BaseCallback) else ConvertCallback(callback), StepsProgressBar()]
