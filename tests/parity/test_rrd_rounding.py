"""What counts as rounding in the recordings of RRD's family, and that nothing else does."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments.reference import squashing
from experiments.reference.case import load
from experiments.reference.replay import replay
from purerl.agents.rrd import networks

RECORDINGS = Path(__file__).parent / 'recordings' / 'rrd'


def nudged(name, tensor, by=1e-2):
    """A recording with the last entry of one tensor off."""
    case = load(RECORDINGS / f'{name}.safetensors')
    array = case.tensors[tensor].copy()
    array.reshape(-1)[-1] += by
    return dataclasses.replace(case, tensors={**case.tensors, tensor: array})


@pytest.mark.parametrize(
    ('name', 'tensor', 'by'),
    [
        ('rrd_sac__default', 'info/3/Q_loss', 1e-3),
        ('rrd_sac__default', 'info/5/Q_loss', 1e-2),
        ('rrd_sac__default', 'info/1/Pi_loss', 1e-2),
        ('rrd_sac__default', 'info/2/R_loss', 1e-3),
        ('rrd_sac__default', 'eval/5/q_t', 1e-2),
        ('rrd_sac__default', 'eval/5/pi_next_log_p', 1e-2),
        ('rrd_sac__default', 'eval/5/pi_next_act', 1e-2),
        ('rrd_sac__default', 'grad/0/main/policy/net/pi/bias', 1e-2),
        ('rrd_sac__default', 'params/5/main/policy/net/pi_dense1/bias', 1e-2),
        ('rrd_sac__default', 'final/rrd/net/r/kernel', 1e-2),
        ('rrd_sac__default', 'opt/5/main/q_value_1/net/q/bias/Adam', 1e-2),
        ('rrd_sac__default', 'actions/1/out', 1e-2),
        ('sac__default', 'info/4/Pi_loss', 1e-2),
        ('ircr_sac__default', 'params/5/main/alpha/log_alpha', 1e-2),
        ('td3__default', 'opt/8/main/value_1/net/q/bias/Adam', 1e-2),
        ('ddpg__default', 'info/2/Q_reg_loss', 1e-2),
    ],
)
def test_a_nudged_number_is_no_rounding(name, tensor, by):
    report = replay(nudged(name, tensor, by), 'off')
    assert any(failure.startswith(tensor) for failure in report.failures), report.failures


def test_a_wrong_loss_is_no_rounding(monkeypatch):
    """The density with the correction of Haarnoja's code: off where actions are close to 1."""

    def correction(outputs, noises):
        mean, log_std, std = networks.gaussian(outputs)
        actions = networks.tanh(mean + noises * std)
        terms = -0.5 * np.log(2 * np.pi) - log_std - 0.5 * noises.square()
        return actions, terms.sum(-1) - torch.log(1 - actions.square() + 2e-6).sum(-1)

    monkeypatch.setattr(networks, 'squashed_sample', correction)
    assert not replay(load(RECORDINGS / 'rrd_sac__default.safetensors'), 'off').passed


# --- Explaining a loss by single actions' last bits -----------------------------------------------


def density(actions):
    return torch.log(1.0 + 1e-6 - actions.square()).mean().item()


def test_neighbouring_samples_actions_explain_a_loss():
    samples = torch.tensor([0.3, -5.2, 6.1, 1.0])
    wanted = networks.tanh(samples)
    wanted[2] = squashing._neighbours(samples[2])[0]
    found = squashing._nearest(samples, density, density(wanted))
    assert torch.equal(found, wanted)


def test_a_loss_that_no_last_bit_explains_stays_unexplained():
    samples = torch.tensor([0.3, -2.2, 1.1, 1.0])
    own = networks.tanh(samples)
    found = squashing._nearest(samples, density, density(own) + 1e-2)
    assert abs(density(found) - density(own)) < 1e-4


def test_only_near_actions_are_replaced():
    x = torch.tensor([0.5, -4.0])
    near, far = networks.tanh(x) + 1e-6, networks.tanh(x) + 1e-2
    with squashing.using([far, near]):
        assert torch.equal(networks.tanh(x), near)
    with squashing.using([far]):
        assert torch.equal(networks.tanh(x), networks.tanh(x.clone()))
    assert not torch.equal(networks.tanh(x), near)
