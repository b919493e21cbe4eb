"""Networks and the observation normaliser of the RRD originals.

Source: Stilwell-Git/Randomized-Return-Decomposition @ bc80473, algorithm/ and utils/tf_utils.py.
Kernels are drawn by Xavier's uniform rule, biases are zero; layers have the original's names.
"""

import math
from collections.abc import Sequence

import torch

from purerl.core import nn, trees

_CLIP = 5.0  # normalised observations
_MIN_STD = 1e-2  # of the normaliser, and of SAC's policy
_LOG_STD_MIN, _LOG_STD_MAX = -20.0, 2.0
# log(1 - a^2 + 1e-6), in the order of TensorFlow's optimised graph: the sum of both constants, of
# which float32 keeps 9.5e-7, comes first.
_TANH_ONE = 1.0 + 1e-6
# Eigen's rational approximation: 1 in float32 from the bound on.
_TANH_BOUND = 7.90738964080810547
_TANH_NUMERATOR = (1.394553628e-8, 2.102733560e-5, 3.520756727e-3, 1.340216100e-1)
_TANH_DENOMINATOR = (8.015776984e-7, 3.326951409e-4, 2.597254514e-2, 4.673548340e-1, 1.0)


def dense(features: int) -> nn.Dense:
    """An affine layer with Xavier's uniform initialisation (TensorFlow's default here)."""
    return nn.Dense(features, nn.glorot_uniform())


class Policy(nn.Module):
    """Two hidden layers and `outputs` linear outputs."""

    def __init__(self, hidden_dims: Sequence[int], outputs: int):
        super().__init__()
        self.pi_dense1, self.pi_dense2 = (dense(size) for size in hidden_dims)
        self.pi = dense(outputs)

    def forward(self, observations):
        hidden = torch.relu(self.pi_dense1(observations))
        return self.pi(torch.relu(self.pi_dense2(hidden)))


class Value(nn.Module):
    """Critic Q(s, a) with two hidden layers.

    Args:
        hidden_dims: their widths.
        late_actions: whether the action joins at the second layer (DDPG) or the first.
    """

    def __init__(self, hidden_dims: Sequence[int], late_actions: bool = False):
        super().__init__()
        self.q_dense1, self.q_dense2 = (dense(size) for size in hidden_dims)
        self.q = dense(1)
        self.late_actions = late_actions

    def forward(self, observations, actions):
        if self.late_actions:
            hidden = torch.relu(self.q_dense1(observations))
            hidden = torch.cat([hidden, actions], -1)
        else:
            hidden = torch.relu(self.q_dense1(torch.cat([observations, actions], -1)))
        return self.q(torch.relu(self.q_dense2(hidden))).squeeze(-1)


class TwinValue(nn.Module):
    """Two critics; outputs (2, B), or the first one's alone, (B,)."""

    def __init__(self, hidden_dims: Sequence[int]):
        super().__init__()
        self.value_1, self.value_2 = Value(hidden_dims), Value(hidden_dims)

    def forward(self, observations, actions, only_first=False):
        first = self.value_1(observations, actions)
        return first if only_first else torch.stack([first, self.value_2(observations, actions)])


def check_layers(config, **counts: int) -> None:
    """Refuse widths of another number of layers than a network has.

    Args:
        config: an agent's.
        **counts: how many layers there are, by the config's field.

    Raises:
        ValueError: for the first field.
    """
    for field, count in counts.items():
        if len(config[field]) != count:
            raise ValueError(f'{field}={tuple(config[field])} must be {count} widths of layers')


class LogTemperature(nn.Module):
    """SAC's temperature, by its logarithm."""

    def __init__(self, initial: float):
        super().__init__()
        self.initial = initial
        self.declare('log_alpha')

    def forward(self):
        return self.param('log_alpha', nn.constant(math.log(self.initial)), ())


class Trunk(nn.Module):
    """The Atari networks' convolutions, with TensorFlow's 'SAME' padding; flat outputs."""

    def __init__(self, features: Sequence[int]):
        super().__init__()
        kernels, strides = (8, 4, 3), (4, 2, 1)
        self.conv1, self.conv2, self.conv3 = (
            nn.Conv(size, kernel, stride, 'SAME', nn.glorot_uniform())
            for size, kernel, stride in zip(features, kernels, strides, strict=True)
        )

    def forward(self, images):
        for conv in (self.conv1, self.conv2, self.conv3):
            images = torch.relu(conv(images))
        return images.flatten(-3)


class ActionValues(nn.Module):
    """Q(s, .) of flat observations; dueling as for images is not part of the original."""

    def __init__(self, hidden_dims: Sequence[int], num_actions: int):
        super().__init__()
        self.q_dense1, self.q_dense2 = (dense(size) for size in hidden_dims)
        self.q = dense(num_actions)

    def forward(self, observations):
        hidden = torch.relu(self.q_dense1(observations))
        return self.q(torch.relu(self.q_dense2(hidden)))


class ImageActionValues(nn.Module):
    """Q(s, .) of images, optionally as base and advantages (Wang et al., 2016)."""

    def __init__(self, features: Sequence[int], dense_dim: int, num_actions: int, dueling: bool):
        super().__init__()
        self.trunk = Trunk(features)
        self.q_dense_act, self.q_act = dense(dense_dim), dense(num_actions)
        self.dueling = dueling
        if dueling:
            self.q_dense_base, self.q_base = dense(dense_dim), dense(1)

    def forward(self, images):
        hidden = self.trunk(images)
        values = self.q_act(torch.relu(self.q_dense_act(hidden)))
        if not self.dueling:
            return values
        base = self.q_base(torch.relu(self.q_dense_base(hidden)))
        return base + values - values.mean(-1, keepdim=True)


class Reward(nn.Module):
    """Reward of a transition of flat observations: a network of (s, a, s - s')."""

    def __init__(self, hidden_dims: Sequence[int]):
        super().__init__()
        self.r_dense1, self.r_dense2 = (dense(size) for size in hidden_dims)
        self.r = dense(1)

    def forward(self, observations, actions, next_observations):
        inputs = torch.cat([observations, actions, observations - next_observations], -1)
        hidden = torch.relu(self.r_dense1(inputs))
        return self.r(torch.relu(self.r_dense2(hidden))).squeeze(-1)


class ImageReward(nn.Module):
    """Reward of a transition of images: a network of (s, s - s') with an output per action."""

    def __init__(self, features: Sequence[int], dense_dim: int, num_actions: int):
        super().__init__()
        self.trunk = Trunk(features)
        self.r_dense_act, self.r_act = dense(dense_dim), dense(num_actions)

    def forward(self, images, actions, next_images):
        hidden = self.trunk(torch.cat([images, images - next_images], -1))
        outputs = self.r_act(torch.relu(self.r_dense_act(hidden)))
        return (outputs * actions).sum(-1)


# --- SAC's policy --------------------------------------------------------------------------------


def gaussian(outputs):
    """Split a policy's outputs (..., 2A) into mean, clipped log-std and floored std."""
    mean, log_std = outputs.chunk(2, -1)
    # torch.clamp has the original's gradient at the bounds: one.
    log_std = log_std.clamp(_LOG_STD_MIN, _LOG_STD_MAX)
    exp = log_std.exp()
    return mean, log_std, torch.where(exp >= _MIN_STD, exp, torch.full_like(exp, _MIN_STD))


def tanh(x):
    """TensorFlow's tanh on a CPU, bit for bit.

    The correction log(1 - a^2) of a density hangs on the last bit of an action a near the bounds:
    another rounding of a = 0.9999 moves it by a thousandth.
    """
    constant = x.detach()
    clipped = constant.clamp(-_TANH_BOUND, _TANH_BOUND)
    square = clipped * clipped
    numerator = square * clipped * _polynomial(square, _TANH_NUMERATOR) + clipped
    value = numerator / _polynomial(square, _TANH_DENOMINATOR)
    # The gradient is 1 - value^2, not that of the approximation.
    return value + (1 - value * value) * (x - constant)


def _polynomial(x, coefficients):
    result = torch.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        result = result * x + coefficient
    return result


def squashed_sample(outputs, noises):
    """Return actions in [-1, 1] at standard-normal `noises`, and their log-probabilities.

    As in the original the density has the log-std from before its floor, and the tanh's correction
    is log(1 + 1e-6 - a^2).
    """
    mean, log_std, std = gaussian(outputs)
    samples = mean + noises * std
    actions = tanh(samples)
    terms = -0.5 * math.log(2 * math.pi) - log_std - 0.5 * ((samples - mean) / std).square()
    correction = torch.log(_TANH_ONE - actions.square())
    return actions, terms.sum(-1) - correction.sum(-1)


def smaller(values):
    """Minimum of (2, B) values; at a tie the gradient is the first's, as in TensorFlow."""
    return torch.where(values[0] <= values[1], values[0], values[1])


# --- The normaliser ------------------------------------------------------------------------------


@trees.dataclass
class Normalizer:
    """Running statistics of observations; `cnt` has the shape (1,), the others the observations'.

    `mean` and `std` are kept beside the sums that they follow from: both are zero until the first
    update, as in the original.
    """

    sum: torch.Tensor
    sum_sqr: torch.Tensor
    cnt: torch.Tensor
    mean: torch.Tensor
    std: torch.Tensor

    @classmethod
    def create(cls, shape: Sequence[int]) -> 'Normalizer':
        """Make one that has seen no observations, of this shape each."""
        zeros = [torch.zeros(tuple(shape)) for _ in range(4)]
        return cls(zeros[0], zeros[1], torch.zeros(1), *zeros[2:])

    def update(self, observations: torch.Tensor) -> 'Normalizer':
        """Count a batch of observations (B, ...) in.

        The variance is clipped at zero before the root, where rounding may leave it below (the
        original's std becomes NaN).
        """
        total = self.sum + observations.sum(0)
        squares = self.sum_sqr + observations.square().sum(0)
        count = self.cnt + len(observations)
        mean = total / count
        std = (squares / count - mean.square()).clamp(min=0).sqrt().clamp(min=_MIN_STD)
        return Normalizer(total, squares, count, mean, std)

    def normalize(self, observations: torch.Tensor) -> torch.Tensor:
        """Standardise and clip to [-5, 5].

        Before the first update the std is zero: observations become -5, 0 or 5 by their sign (in
        the original, an observation of zero becomes NaN).
        """
        deviations = observations - self.mean
        known = self.std > 0
        scaled = deviations / torch.where(known, self.std, torch.ones_like(self.std))
        return torch.where(known, scaled, deviations.sign() * _CLIP).clamp(-_CLIP, _CLIP)


def as_floats(observations: torch.Tensor) -> torch.Tensor:
    """Scale images (uint8) to [0, 1]; anything else is as it is."""
    if observations.dtype == torch.uint8:
        return observations.to(torch.float32) / 255.0
    return observations


def normalized(normalizer: Normalizer | None, observations: torch.Tensor) -> torch.Tensor:
    """What the networks see: images in [0, 1], standardised where there is a normaliser."""
    observations = as_floats(observations)
    return observations if normalizer is None else normalizer.normalize(observations)


def counted(normalizer: Normalizer | None, batch) -> Normalizer | None:
    """Count a batch's observations and next observations into a normaliser, where there is one."""
    if normalizer is None:
        return None
    both = [as_floats(batch[key]) for key in ('observations', 'next_observations')]
    return normalizer.update(torch.cat(both))


def counted_update(agent):
    """Count an update of an agent, and move its targets if this one is a `train_target`-th."""
    agent = agent.replace(updates=agent.updates + 1)
    every, moved = agent.config['train_target'], agent.update_target()
    if every == 1:
        return moved
    due = agent.updates % every == 0
    return trees.map(
        lambda new, old: old if new is old else torch.where(due, new, old), moved, agent
    )
