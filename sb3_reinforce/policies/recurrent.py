"""Recurrent policies: sb3-contrib's, with an optional critic. Needs sb3-contrib."""

from typing import Any

import torch as th
from sb3_contrib.common.recurrent.policies import (
    RecurrentActorCriticCnnPolicy,
    RecurrentActorCriticPolicy,
    RecurrentMultiInputActorCriticPolicy,
)
from torch import nn

from sb3_reinforce.policies.actor_critic import OptionalCriticMixin


class LstmMixin(OptionalCriticMixin):
    """
    Adds ``use_critic`` to an actor-critic policy of sb3-contrib, and lets ``save`` and ``load`` preserve the size of the LSTM.

    The biases of the forget gates start at 1 instead of about 0: the hidden state persists until the policy learns to reset it
    (Gers et al. 2000; Jozefowicz et al. 2015).

    :param use_critic: Whether to build a critic. Without it, the policy has only an actor, and its values are 0.
    :raises ValueError: If both ``shared_lstm`` and ``enable_critic_lstm`` are True.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if kwargs.get("shared_lstm", False) and kwargs.get("enable_critic_lstm", True):
            raise ValueError(
                "policy_kwargs: shared_lstm=True gives the critic the actor's LSTM, enable_critic_lstm=True (the default) a "
                "separate one: set enable_critic_lstm=False"
            )
        super().__init__(*args, **kwargs)
        assert isinstance(self, RecurrentActorCriticPolicy)
        for lstm in filter(None, (self.lstm_actor, self.lstm_critic)):
            open_forget_gates(lstm)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        assert isinstance(self, RecurrentActorCriticPolicy)
        return {
            **super()._get_constructor_parameters(),
            "lstm_hidden_size": self.lstm_output_dim,
            "n_lstm_layers": self.lstm_actor.num_layers,
            "shared_lstm": self.shared_lstm,
            "enable_critic_lstm": self.enable_critic_lstm,
            "lstm_kwargs": self.lstm_kwargs,
        }


def open_forget_gates(lstm: nn.LSTM) -> None:
    """Set the forget biases of an LSTM, if it has biases, to 1."""
    forget = slice(lstm.hidden_size, 2 * lstm.hidden_size)
    with th.no_grad():
        for name, parameter in lstm.named_parameters():
            if name.startswith("bias_"):
                # PyTorch has two biases, which are summed
                parameter[forget] = 1.0 if name.startswith("bias_ih") else 0.0


class MlpLstmPolicy(LstmMixin, RecurrentActorCriticPolicy):
    """sb3-contrib's ``RecurrentActorCriticPolicy`` with the additional argument ``use_critic``."""


class CnnLstmPolicy(LstmMixin, RecurrentActorCriticCnnPolicy):
    """sb3-contrib's ``RecurrentActorCriticCnnPolicy`` with the additional argument ``use_critic``."""


class MultiInputLstmPolicy(LstmMixin, RecurrentMultiInputActorCriticPolicy):
    """sb3-contrib's ``RecurrentMultiInputActorCriticPolicy`` with the additional argument ``use_critic``."""
