"""
PyTorch's LSTM over whole sequences, with a second derivative that is fast enough for natural steps.

The layer (Hochreiter & Schmidhuber 1997; Gers et al. 2000), in PyTorch's order of gates, from the zero state::

    i, f, g, o = sigmoid, sigmoid, tanh, sigmoid of inputs @ weight_ih.T + hidden @ weight_hh.T + bias
    cell = f * cell + i * g
    hidden = o * tanh(cell)

PyTorch's forward and backward passes are fast, but its second derivative takes tens of times as long on a CPU, and cuDNN has
none. A Fisher-vector product needs only the change of the outputs for a change of the weights: here six operations per step.
"""

from typing import Any, NamedTuple

import torch as th
from torch import nn

#: Largest first derivative at which second derivatives are computed: zero up to rounding errors.
ROUNDING = 1e-4


def run_lstm(lstm: nn.LSTM, inputs: th.Tensor) -> th.Tensor:
    """
    Run an LSTM from the zero state.

    Second derivatives are available at a stationary point only, such as the divergence of a policy from itself: where the
    derivative with respect to the outputs is zero, they are ``J.T @ H @ J``, with J the derivative of the outputs and H the
    second derivative with respect to the outputs (Martens & Sutskever 2011, section 3). Elsewhere they raise an error.

    :param lstm: LSTM with time as the first dimension.
    :param inputs: Shape ``(n_steps, n_sequences, n_inputs)``.
    :return: Outputs of the last layer, shape ``(n_steps, n_sequences, n_outputs)``.
    """
    outputs: th.Tensor
    if not th.is_grad_enabled():
        outputs = lstm(inputs)[0]
        return outputs
    if not is_plain(lstm):
        # cuDNN differentiates in training mode only, and not twice
        with th.backends.cudnn.flags(enabled=False):
            outputs = lstm(inputs)[0]
        return outputs
    for layer in range(lstm.num_layers):
        inputs = LstmLayer.apply(inputs, *(getattr(lstm, f"{name}_l{layer}") for name in LayerWeights._fields))  # type: ignore[no-untyped-call]
    return inputs


def is_plain(lstm: nn.LSTM) -> bool:
    """
    Tell whether an LSTM is a stack of layers as described above.

    :param lstm: Any LSTM.
    :return: False if it is bidirectional, batch-first, has projections or no biases, or if dropout is active.
    """
    is_random = lstm.training and lstm.dropout > 0.0
    return type(lstm) is nn.LSTM and lstm.bias and not (lstm.bidirectional or lstm.batch_first or lstm.proj_size or is_random)


class LayerWeights(NamedTuple):
    """
    The parameters of a layer.

    :param weight_ih: Shape ``(4 * n_units, n_inputs)``.
    :param weight_hh: Shape ``(4 * n_units, n_units)``.
    :param bias_ih: Shape ``(4 * n_units,)``.
    :param bias_hh: Shape ``(4 * n_units,)``.
    """

    weight_ih: th.Tensor
    weight_hh: th.Tensor
    bias_ih: th.Tensor
    bias_hh: th.Tensor


class _Run:
    """
    A forward pass of a layer, and what its derivatives are computed from.

    :param inputs: Shape ``(n_steps, n_sequences, n_inputs)``.
    :param weights: The layer's parameters.
    """

    def __init__(self, inputs: th.Tensor, weights: LayerWeights) -> None:
        self.arguments = [argument.detach().requires_grad_() for argument in (inputs, *weights)]
        self.inputs, self.weights = self.arguments[0], LayerWeights(*self.arguments[1:])
        zero_state = inputs.new_zeros((1, inputs.shape[1], weights.weight_hh.shape[1]))
        with th.enable_grad():
            self.hidden = th.lstm(
                self.inputs,
                (zero_state, zero_state),
                self.weights,
                has_biases=True,
                num_layers=1,
                dropout=0.0,
                # Without it cuDNN does not differentiate; with one layer and no dropout it changes nothing else
                train=True,
                bidirectional=False,
                batch_first=False,
            )[0]
        self._partials: tuple[th.Tensor, ...] | None = None

    def gradient(self, grad_hidden: th.Tensor, needs_inputs: bool) -> tuple[th.Tensor | None, ...]:
        """Derivatives with respect to the inputs (None if they are not needed), and to each of the weights."""
        of_what = self.arguments if needs_inputs else self.arguments[1:]
        gradient = th.autograd.grad(self.hidden, of_what, grad_hidden, retain_graph=True)
        return gradient if needs_inputs else (None, *gradient)

    @th.no_grad()
    def change_of_hidden(self, of_inputs: th.Tensor | None, of_weights: LayerWeights) -> th.Tensor:
        """First-order change of the hidden states for a change of inputs (None for none) and weights (Pearlmutter 1994)."""
        of_gates, of_cell, forget = self.partials
        gate_changes = _affine(self.inputs, self.before, of_weights)
        if of_inputs is not None:
            gate_changes += of_inputs @ self.weights.weight_ih.T
        four_changes = gate_changes.view_as(of_gates)
        changes = th.empty_like(self.before)
        change = cell_change = th.zeros_like(changes[0])
        recurrent = self.weights.weight_hh.T
        changes_ifg, changes_o, of_ifg, of_o = (
            four_changes[:, :, :3],
            four_changes[:, :, 3],
            of_gates[:, :, :3],
            of_gates[:, :, 3],
        )
        parts = (gate_changes, changes_ifg, changes_o, of_ifg, of_o, of_cell, forget, changes)
        for gates, ifg, o, ifg_part, o_part, cell_part, f, new_change in zip(*(p.unbind(0) for p in parts), strict=True):
            gates.addmm_(change, recurrent)
            cell_change = ifg.mul_(ifg_part).sum(dim=1).addcmul_(cell_change, f)
            change = th.mul(cell_change, cell_part, out=new_change).addcmul_(o, o_part)
        return changes

    @property
    def before(self) -> th.Tensor:
        """Hidden state before each step."""
        return th.cat([th.zeros_like(self.hidden[:1]), self.hidden.detach()[:-1]])

    @property
    def partials(self) -> tuple[th.Tensor, ...]:
        """
        Derivatives at each step: of the cell with respect to the gates i, f, g, and of hidden with respect to o, before their
        activations, shape ``(n_steps, n_sequences, 4, n_units)``; of hidden with respect to the cell; and the forget gate.
        """
        if self._partials is None:
            gates = _affine(self.inputs, self.before, self.weights)
            i, f, g, o = gates.view(*gates.shape[:2], 4, -1).unbind(2)
            i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
            # The zero state comes first
            cells = th.cat([th.zeros_like(i[:1]), i * g])
            for forget, last, new in zip(f, cells[:-1], cells[1:], strict=True):
                new.addcmul_(forget, last)
            tanh_cells = cells[1:].tanh()
            of_cell = o * (1 - tanh_cells.square())
            of_gates = [g * i * (1 - i), cells[:-1] * f * (1 - f), i * (1 - g.square()), tanh_cells * o * (1 - o)]
            self._partials = th.stack(of_gates, dim=2), of_cell, f
        return self._partials


def _affine(inputs: th.Tensor, before: th.Tensor, weights: LayerWeights) -> th.Tensor:
    """The gates before their activations, or their change for a change of weights."""
    return inputs @ weights.weight_ih.T + before @ weights.weight_hh.T + (weights.bias_ih + weights.bias_hh)


class LstmLayer(th.autograd.Function):
    """The hidden states of a layer as a function of inputs and ``LayerWeights``."""

    @staticmethod
    def forward(ctx: Any, inputs: th.Tensor, *weights: th.Tensor) -> th.Tensor:
        """See ``_Run``."""
        ctx.run = _Run(inputs, LayerWeights(*weights))
        ctx.save_for_backward(inputs, *weights)
        hidden: th.Tensor = ctx.run.hidden.detach()
        return hidden

    @staticmethod
    def backward(ctx: Any, *grad_outputs: th.Tensor) -> Any:
        """See ``_Run.gradient``."""
        return _LstmGradient.apply(ctx.run, ctx.needs_input_grad[0], *grad_outputs, *ctx.saved_tensors)  # type: ignore[no-untyped-call]


class _LstmGradient(th.autograd.Function):
    """The gradient of ``LstmLayer`` as a function of the derivative with respect to the hidden states."""

    @staticmethod
    def forward(ctx: Any, run: _Run, needs_inputs: bool, grad_hidden: th.Tensor, *arguments: th.Tensor) -> Any:
        """``arguments`` are passed so that second derivatives with respect to them can be requested, too."""
        ctx.run = run
        ctx.largest = float(grad_hidden.abs().max())
        ctx.set_materialize_grads(False)
        return run.gradient(grad_hidden, needs_inputs)

    @staticmethod
    def backward(ctx: Any, *directions: th.Tensor | None) -> Any:
        """The derivative with respect to ``grad_hidden``; where that is zero, those with respect to ``arguments`` are, too."""
        if ctx.largest > ROUNDING:
            raise NotImplementedError("LstmLayer has second derivatives only where its first derivative is zero")
        of_inputs, *of_weights = directions
        changes = (th.zeros_like(w) if v is None else v for v, w in zip(of_weights, ctx.run.weights, strict=True))
        return None, None, ctx.run.change_of_hidden(of_inputs, LayerWeights(*changes)), *(None,) * 5
