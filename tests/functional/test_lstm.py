"""The LSTM layer has PyTorch's outputs and derivatives, the second ones where the first are zero."""

import numpy as np
import pytest
import torch as th
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sb3_reinforce.functional.lstm import LstmLayer, is_plain, run_lstm


def make(n_layers=1, n_inputs=3, n_units=4, n_steps=6, n_sequences=2, **kwargs):
    th.manual_seed(0)
    lstm = nn.LSTM(n_inputs, n_units, n_layers, **kwargs).double()
    inputs = th.randn(n_steps, n_sequences, n_inputs, dtype=th.float64, requires_grad=True)
    return lstm, inputs, [inputs, *lstm.parameters()]


def flat(tensors):
    return th.cat([tensor.reshape(-1) for tensor in tensors]).detach()


SHAPES = {
    "n_layers": st.integers(1, 3),
    "n_inputs": st.integers(1, 4),
    "n_units": st.integers(1, 5),
    "n_steps": st.integers(1, 8),
    "n_sequences": st.integers(1, 4),
}


@settings(max_examples=30, deadline=None)
@given(shape=st.fixed_dictionaries(SHAPES))
def test_outputs_and_gradients_are_pytorchs(shape):
    lstm, inputs, arguments = make(**shape)
    ours, theirs = run_lstm(lstm, inputs), lstm(inputs)[0]
    weights = th.randn_like(theirs)
    np.testing.assert_allclose(ours.detach(), theirs.detach(), atol=1e-14)
    gradients = [flat(th.autograd.grad((weights * outputs).sum(), arguments)) for outputs in (ours, theirs)]
    np.testing.assert_allclose(*gradients, atol=1e-12)
    with th.no_grad():
        np.testing.assert_array_equal(run_lstm(lstm, inputs), lstm(inputs)[0])


@settings(max_examples=30, deadline=None)
@given(shape=st.fixed_dictionaries(SHAPES), with_inputs=st.booleans())
def test_second_derivatives_at_a_stationary_point_are_pytorchs(shape, with_inputs):
    lstm, inputs, arguments = make(**shape)
    arguments = arguments if with_inputs else arguments[1:]
    inputs = inputs if with_inputs else inputs.detach()
    products = []
    for outputs in (run_lstm(lstm, inputs), lstm(inputs)[0]):
        th.manual_seed(1)
        curvature = th.rand_like(outputs)
        # Stationary where the outputs are what they are
        distance = (curvature * (outputs - outputs.detach()).square()).sum() + (outputs - outputs.detach()).sum().square()
        gradient = th.autograd.grad(distance, arguments, create_graph=True)
        along = sum((part * th.randn_like(part)).sum() for part in gradient)
        products.append(flat(th.autograd.grad(along, arguments, retain_graph=True)))
        # Asked again, as by conjugate gradients
        np.testing.assert_array_equal(flat(th.autograd.grad(along, arguments)), products[-1])
    np.testing.assert_allclose(*products, atol=1e-12)
    assert products[0].abs().max() > 0.0


def test_elsewhere_there_are_no_second_derivatives():
    lstm, inputs, arguments = make()
    gradient = th.autograd.grad(run_lstm(lstm, inputs).sum(), arguments, create_graph=True)
    with pytest.raises(NotImplementedError, match="only where its first derivative is zero"):
        th.autograd.grad(flat_with_graph(gradient).sum(), arguments)


def flat_with_graph(tensors):
    return th.cat([tensor.reshape(-1) for tensor in tensors])


@pytest.mark.parametrize("kwargs", [{"bias": False}, {"proj_size": 2}, {"bidirectional": True}], ids=str)
def test_other_lstms_are_pytorchs_own(kwargs):
    lstm, inputs, _ = make(**kwargs)
    assert not is_plain(lstm)
    th.testing.assert_close(run_lstm(lstm, inputs), lstm(inputs)[0])
    lstm, inputs, _ = make(n_layers=2, dropout=0.5)
    assert not is_plain(lstm) and is_plain(lstm.eval())
    assert LstmLayer.__name__ in run_lstm(lstm, inputs).grad_fn.name()


def test_cudnn_is_asked_for_what_it_can_do(monkeypatch):
    """It differentiates in training mode only, and has no second derivative; here there is none, so it is what is asked."""
    original, asked = th.lstm, []
    monkeypatch.setattr(th, "lstm", lambda *args, **kwargs: (asked.append(kwargs["train"]), original(*args, **kwargs))[1])
    lstm, inputs, _ = make(n_layers=2)
    run_lstm(lstm.eval(), inputs)
    assert asked == [True, True]

    lstm, inputs, _ = make(bidirectional=True)
    lstm.register_forward_pre_hook(lambda *_: asked.append(th.backends.cudnn.enabled))
    run_lstm(lstm.eval(), inputs)
    with th.no_grad():
        run_lstm(lstm, inputs)
    assert asked[2:] == [False, True]
    assert th.backends.cudnn.enabled
