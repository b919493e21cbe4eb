"""Data-regularised Q (DrQ): soft actor-critic from images, which are randomly shifted.

Paper: Yarats et al., "Image augmentation is all you need: regularizing deep reinforcement learning
from pixels" (ICLR 2021). Original: philippe-eecs/IDQL @ 7582571, jaxrl5/agents/drq/drq_learner.py.

Deviations: target critics hold `num_min_qs` members where that is given (the original fails);
several cameras may be packed, under any names (the original fails); `pixel_keys`, `depth_keys` and
the encoder are checked when the agent is made, images before anything is compiled. `create` takes
examples and a config instead of spaces and keyword arguments, as every agent here.
"""

import functools
from typing import Any, ClassVar

import ml_collections
import torch

from purerl.agents.jaxrl5.encoders import PixelMultiplexer, encoder_class
from purerl.agents.jaxrl5.images import augment, check_examples, check_shapes, unpack
from purerl.agents.jaxrl5.networks import (
    MLP,
    Ensemble,
    StateActionValue,
    TanhNormal,
    Temperature,
    make_state,
)
from purerl.agents.jaxrl5.sac import SACLearner
from purerl.core import optim, random, trees
from purerl.core.jit import jit
from purerl.core.state import TrainState
from purerl.core.trees import FrozenDict


@trees.dataclass
class DrQLearner:
    """SAC with an encoder per camera, which only the critics' loss trains."""

    actor: TrainState
    rng: torch.Tensor
    critic: TrainState
    target_critic: TrainState
    temp: TrainState
    tau: torch.Tensor
    discount: torch.Tensor
    target_entropy: torch.Tensor
    shapes: Any = trees.static()  # (H, W, C, num_stack) of each camera
    config: Any = trees.static()

    needs: ClassVar[frozenset[str]] = frozenset()

    # SAC's steps, on images.
    update_critic = SACLearner.update_critic
    update_actor = SACLearner.update_actor
    update_temperature = SACLearner.update_temperature

    @jit(static_argnames=('utd_ratio',))
    def update(self, batch, utd_ratio: int = 1):
        """Shift the images, then update as SAC does.

        Args:
            batch: images of observations and next observations, or, where next_observations lack
                them, images that hold the newest next frame too: (B, H, W, C, num_stack + 1).
            utd_ratio: critic steps, each on a slice of the batch.

        Returns:
            The new agent and the info of the last steps.

        Raises:
            ValueError: if images are missing, of a wrong dtype, or not of the examples' shape; or
                if the batch does not divide into `utd_ratio` slices.
        """
        pixel_keys, depth_keys = self.config['pixel_keys'], self.config['depth_keys']
        batch = unpack(batch, [*pixel_keys, *depth_keys])
        for name in ('observations', 'next_observations'):
            check_shapes(batch[name], self.shapes, depth_keys, is_batch=True)

        # From before the critics' steps: the policy acts with these until the next update.
        new_agent = self.replace(actor=share_encoder(source=self.critic, target=self.actor))

        rng, key = random.split(new_agent.rng)
        observations = augment(key, batch['observations'], pixel_keys, depth_keys)
        rng, key = random.split(rng)
        next_observations = augment(key, batch['next_observations'], pixel_keys, depth_keys)
        batch = {**batch, 'observations': observations, 'next_observations': next_observations}
        return SACLearner.update(new_agent.replace(rng=rng), batch, utd_ratio)

    @jit
    def sample_actions(self, observations):
        """Sample actions for exploration; returns (actions, agent).

        Raises:
            ValueError: if images are missing, of a wrong dtype, or not of the examples' shape.
        """
        check_shapes(observations, self.shapes, self.config['depth_keys'])
        return SACLearner.sample_actions(self, observations)

    @jit
    def eval_actions(self, observations):
        """Return the policy's mode; returns (actions, agent).

        Raises:
            ValueError: as `sample_actions`.
        """
        check_shapes(observations, self.shapes, self.config['depth_keys'])
        return SACLearner.eval_actions(self, observations)

    @classmethod
    def create(cls, seed, ex_observations, ex_actions, config):
        """Make an agent from an integer seed and examples (only their shapes and dtypes matter).

        Args:
            seed: integer.
            ex_observations: dict of images (..., H, W, C, num_stack) and possibly a `state`.
            ex_actions: (..., A).
            config: as `get_config` returns it.

        Raises:
            ValueError: if observations or encoder do not fit, or more target critics are asked for
                than there are critics.
        """
        action_dim = ex_actions.shape[-1]
        num_qs, num_min_qs = config['num_qs'], config['num_min_qs']
        if num_min_qs is not None and not 1 <= num_min_qs <= num_qs:
            raise ValueError(f'num_min_qs={num_min_qs} must lie between 1 and num_qs={num_qs}')
        encoder_cls = encoder_class(config)
        shapes = check_examples(ex_observations, config)
        target_entropy = config['target_entropy']
        if target_entropy is None:
            target_entropy = -action_dim / 2

        rng, actor_key, critic_key, temp_key = random.split(random.key(seed), 4)
        multiplexer = functools.partial(
            PixelMultiplexer,
            encoder_cls,
            latent_dim=config['latent_dim'],
            pixel_keys=tuple(config['pixel_keys']),
            depth_keys=tuple(config['depth_keys']),
            has_state='state' in ex_observations,
        )

        actor_base_cls = functools.partial(
            MLP, hidden_dims=config['hidden_dims'], activate_final=True
        )
        actor_cls = functools.partial(TanhNormal, actor_base_cls, action_dim)
        actor_def = multiplexer(network_cls=actor_cls, stop_gradient=True)
        tx = optim.adam(config['actor_lr'])
        actor = make_state(actor_def, actor_key, ex_observations, tx=tx)

        critic_base_cls = functools.partial(
            MLP,
            hidden_dims=config['hidden_dims'],
            activate_final=True,
            dropout_rate=config['critic_dropout_rate'],
            use_layer_norm=config['critic_layer_norm'],
        )
        critic_cls = functools.partial(StateActionValue, base_cls=critic_base_cls)

        def critics(num):
            return multiplexer(network_cls=functools.partial(Ensemble, critic_cls, num=num))

        tx = optim.adam(config['critic_lr'])
        critic = make_state(critics(num_qs), critic_key, ex_observations, ex_actions, tx=tx)
        target_critic = TrainState.create(
            critics(num_min_qs or num_qs), trees.map(torch.clone, critic.params), step=0
        )

        temp_def = Temperature(config['init_temperature'])
        temp = make_state(temp_def, temp_key, tx=optim.adam(config['temp_lr']))
        return cls(
            actor=actor,
            rng=rng,
            critic=critic,
            target_critic=target_critic,
            temp=temp,
            tau=torch.tensor(config['tau']),
            discount=torch.tensor(config['discount']),
            target_entropy=torch.tensor(target_entropy),
            shapes=shapes,
            config=FrozenDict(config),
        )


def share_encoder(source: TrainState, target: TrainState) -> TrainState:
    """Return `target` with the encoders' parameters of `source`."""
    shared = {name: params for name, params in source.params.items() if 'encoder' in name}
    return target.replace(params={**target.params, **shared})


def get_config():
    """Return the defaults of the original's learner; its published config is in experiments."""
    return ml_collections.ConfigDict(
        {
            'agent_name': 'drq',  # Name in run folders and logs.
            'actor_lr': 3e-4,  # Learning rate of the policy.
            'critic_lr': 3e-4,  # Learning rate of the critics and the encoders.
            'temp_lr': 3e-4,  # Learning rate of the temperature.
            'encoder': 'd4pg',  # Encoder of the images: 'd4pg' or 'resnet'.
            'cnn_features': (32, 32, 32, 32),  # Channels of the layers of 'd4pg'.
            'cnn_filters': (3, 3, 3, 3),  # Their windows.
            'cnn_strides': (2, 1, 1, 1),  # Their strides.
            'cnn_padding': 'VALID',  # Their padding: 'VALID' or 'SAME'.
            'latent_dim': 50,  # Size of each camera's latent.
            'pixel_keys': ('pixels',),  # The observations' images, one per camera.
            'depth_keys': (),  # Their depth images: none, or one per camera.
            'hidden_dims': (256, 256),  # Widths of all hidden layers.
            'discount': 0.99,  # Discount factor.
            'tau': 0.005,  # Rate of the target critics.
            'num_qs': 2,  # Critics.
            # Critics drawn for each target (REDQ); None uses all of them.
            'num_min_qs': ml_collections.config_dict.placeholder(int),
            # Dropout of the critics (DroQ), or None.
            'critic_dropout_rate': ml_collections.config_dict.placeholder(float),
            'critic_layer_norm': False,  # Whether the critics' inputs are normalised (DroQ).
            # Target entropy; None: half of minus the action's size.
            'target_entropy': ml_collections.config_dict.placeholder(float),
            'init_temperature': 1.0,  # Temperature at the start.
            'backup_entropy': True,  # Whether targets contain the next action's entropy.
        }
    )


def get_settings():
    """Return the defaults that the flags of `experiments.online` have for images."""
    return {
        'env_name': 'cheetah_run',
        'image_size': 64,
        'start_training': 1000,
        'max_steps': 500_000,
    }
