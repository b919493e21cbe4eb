"""Behaviour cloning from images, which are randomly shifted (PixelBC).

Original: philippe-eecs/IDQL @ 7582571, jaxrl5/agents/pixel_bc/pixel_bc_learner.py.

Deviations: the policy may be a plain Gaussian (the original fails); `pixel_keys`, `depth_keys`, the
encoder and the policy are checked when the agent is made, images before anything is compiled; the
learning rate's cosine schedule, which the original's launcher makes and passes in, is the field
`decay_steps`. `create` takes examples and a config instead of spaces and keyword arguments, as
every agent here.
"""

import functools
from typing import Any, ClassVar

import ml_collections
import torch

from purerl.agents.jaxrl5.bc import BCLearner
from purerl.agents.jaxrl5.encoders import PixelMultiplexer, encoder_class
from purerl.agents.jaxrl5.images import augment, check_examples, check_shapes
from purerl.agents.jaxrl5.networks import MLP, Normal, TanhNormal, make_state
from purerl.core import optim, random, trees
from purerl.core.jit import jit
from purerl.core.state import TrainState
from purerl.core.trees import FrozenDict

POLICIES = {'Normal': Normal, 'TanhNormal': TanhNormal}


@trees.dataclass
class PixelBCLearner:
    """Maximum likelihood of the data's actions, with an encoder per camera."""

    actor: TrainState
    rng: torch.Tensor
    entropy_bonus: torch.Tensor | None
    shapes: Any = trees.static()  # (H, W, C, num_stack) of each camera
    config: Any = trees.static()

    needs: ClassVar[frozenset[str]] = frozenset()

    @jit
    def update(self, batch):
        """Shift the images, then update as BC does.

        Args:
            batch: `observations` with images (B, H, W, C, num_stack), and `actions` (B, A).

        Returns:
            The new agent and its info.

        Raises:
            ValueError: if images are missing, of a wrong dtype, or not of the examples' shape.
        """
        pixel_keys, depth_keys = self.config['pixel_keys'], self.config['depth_keys']
        check_shapes(batch['observations'], self.shapes, depth_keys, is_batch=True)
        rng, key = random.split(self.rng)
        observations = augment(key, batch['observations'], pixel_keys, depth_keys)
        return BCLearner.update(self.replace(rng=rng), {**batch, 'observations': observations})

    @jit
    def sample_actions(self, observations):
        """Sample actions; returns (actions, agent).

        Raises:
            ValueError: if images are missing, of a wrong dtype, or not of the examples' shape.
        """
        check_shapes(observations, self.shapes, self.config['depth_keys'])
        return BCLearner.sample_actions(self, observations)

    @jit
    def eval_actions(self, observations):
        """Return the policy's mode; returns (actions, agent).

        Raises:
            ValueError: as `sample_actions`.
        """
        check_shapes(observations, self.shapes, self.config['depth_keys'])
        return BCLearner.eval_actions(self, observations)

    @classmethod
    def create(cls, seed, ex_observations, ex_actions, config):
        """Make an agent from an integer seed and examples (only their shapes and dtypes matter).

        Args:
            seed: integer.
            ex_observations: dict of images (..., H, W, C, num_stack) and possibly a `state`.
            ex_actions: (..., A).
            config: as `get_config` returns it.

        Raises:
            ValueError: if observations or encoder do not fit, `distr_name` is unknown or
                `decay_steps` is below 1.
        """
        distr_name = config['distr_name']
        if distr_name not in POLICIES:
            choices = ', '.join(POLICIES)
            raise ValueError(f'distr_name must be one of {choices}, not {distr_name!r}')
        encoder_cls = encoder_class(config)
        shapes = check_examples(ex_observations, config)
        rng, actor_key = random.split(random.key(seed))

        base_cls = functools.partial(
            MLP,
            hidden_dims=config['hidden_dims'],
            activate_final=True,
            dropout_rate=config['dropout_rate'],
            use_layer_norm=config['use_layer_norm'],
        )
        actor_def = PixelMultiplexer(
            encoder_cls,
            functools.partial(POLICIES[distr_name], base_cls, ex_actions.shape[-1]),
            config['latent_dim'],
            pixel_keys=tuple(config['pixel_keys']),
            depth_keys=tuple(config['depth_keys']),
            has_state='state' in ex_observations,
        )
        actor_lr = config['actor_lr']
        if config['decay_steps'] is not None:
            actor_lr = optim.cosine_decay_schedule(actor_lr, config['decay_steps'])
        bonus = config['entropy_bonus']
        return cls(
            actor=make_state(actor_def, actor_key, ex_observations, tx=optim.adam(actor_lr)),
            rng=rng,
            entropy_bonus=None if bonus is None else torch.tensor(bonus),
            shapes=shapes,
            config=FrozenDict(config),
        )


def get_config():
    """Return the defaults of the original's learner; its published config is in experiments."""
    return ml_collections.ConfigDict(
        {
            'agent_name': 'pixel_bc',  # Name in run folders and logs.
            'actor_lr': 1e-3,  # Learning rate.
            # Updates over which the learning rate falls to 0 along a cosine; None: it is constant.
            'decay_steps': ml_collections.config_dict.placeholder(int),
            'encoder': 'd4pg',  # Encoder of the images: 'd4pg' or 'resnet'.
            'cnn_features': (32, 32, 32, 32),  # Channels of the layers of 'd4pg'.
            'cnn_filters': (3, 3, 3, 3),  # Their windows.
            'cnn_strides': (2, 1, 1, 1),  # Their strides.
            'cnn_padding': 'VALID',  # Their padding: 'VALID' or 'SAME'.
            'latent_dim': 50,  # Size of each camera's latent.
            'pixel_keys': ('pixels',),  # The observations' images, one per camera.
            'depth_keys': (),  # Their depth images: none, or one per camera.
            'hidden_dims': (256, 256),  # Widths of the policy's hidden layers.
            'use_layer_norm': False,  # Whether the policy's input is normalised.
            # Dropout of the hidden layers, or None.
            'dropout_rate': ml_collections.config_dict.placeholder(float),
            'distr_name': 'TanhNormal',  # The policy: 'TanhNormal' or 'Normal'.
            # Weight of the policy's entropy in the loss, or None.
            'entropy_bonus': ml_collections.config_dict.placeholder(float),
        }
    )
