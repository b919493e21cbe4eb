"""What every agent and launcher does on another device than the CPU.

    python -m tests.device_checks                                  on a second one, made of the CPU
    python -m tests.device_checks --device=cuda --jit=inductor     on a GPU
    python -m tests.device_checks sac experiments.rrd              these cases only

Prints a line of JSON for each case: its name, and the traceback if it failed, else null.

Tensors of the `SecondDevice` hold CPU tensors, are refused by operations together with others, and
have no `numpy`, as those of a GPU. So code that mixes devices fails here as it would there. It is a
process of its own because backends are set up once in each.
"""

import argparse
import contextlib
import functools
import importlib
import json
import os
import tempfile
import traceback
import warnings

import numpy as np
import torch
import torch._lazy.ts_backend
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from experiments import evaluate
from purerl.agents.infom import encoders
from purerl.agents.infom.networks import MLP
from purerl.core import jit, trees
from purerl.train import benchmark, collect
from purerl.train.config import load_agent
from tests.unit.agents import test_agents, test_rrd

SECOND = 'lazy'  # a backend that every build of torch knows, and nothing else uses
aten = torch.ops.aten


class SecondTensor(torch.Tensor):
    """A tensor of the second device."""

    @staticmethod
    def __new__(cls, held):
        return torch.Tensor._make_wrapper_subclass(
            cls, held.shape, strides=held.stride(), dtype=held.dtype, device=f'{SECOND}:0'
        )

    def __init__(self, held):
        self.held = held

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


class SecondDevice(TorchDispatchMode):
    """Creates tensors on the second device where they are asked for."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        device = kwargs.get('device')
        if device is not None and torch.device(device).type == SECOND:
            return _run(func, args, kwargs)
        return func(*args, **kwargs)


def _run(func, args, kwargs):
    """Run an operation on what its tensors hold."""
    args, kwargs = pytree.tree_map_only(torch.Tensor, _held_here, (args, kwargs))
    tensors = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    wrappers = {id(x.held): x for x in tensors if isinstance(x, SecondTensor)}
    moves = func in (aten._to_copy.default, aten.copy_.default)
    if not moves and any(not isinstance(x, SecondTensor) and x.ndim for x in tensors):
        shapes = [(x.device.type, tuple(x.shape)) for x in tensors]
        raise RuntimeError(f'{func} takes tensors of one device, got {shapes}')
    target = kwargs.get('device')
    if target is not None:
        kwargs = {**kwargs, 'device': 'cpu'}
    args, kwargs = pytree.tree_map_only(SecondTensor, lambda x: x.held, (args, kwargs))
    results = func(*args, **kwargs)
    if torch.Tag.inplace_view in func.tags:
        (wrapper,) = [x for x in tensors if isinstance(x, SecondTensor)]
        wrapper.data = SecondTensor(results)  # takes over its new shape
    stays = torch.device(target).type == SECOND if target is not None else bool(wrappers)
    if not stays or (func is aten.copy_.default and id(args[0]) not in wrappers):
        return results

    def wrap(held):
        return wrappers[id(held)] if id(held) in wrappers else SecondTensor(held)

    return pytree.tree_map_only(torch.Tensor, wrap, results)


def _held_here(x):
    """Take over what torch.tensor(..., device=...) has made behind the mode's back."""
    return SecondTensor(x.cpu()) if x.device.type == SECOND and type(x) is torch.Tensor else x


# --- What is checked ------------------------------------------------------------------------------


SMALL_IMAGES = {
    'cnn_features': (2,),
    'cnn_filters': (3,),
    'cnn_strides': (4,),
    'hidden_dims': (8,),
    'latent_dim': 4,
}
OFFLINE = [
    '--env_name=Pendulum-v1',
    '--pretraining_dataset={dataset}',
    '--pretraining_steps=2',
    '--finetuning_steps=4',
    '--log_interval=2',
    '--eval_episodes=1',
    '--agent.batch_size=8',
    '--agent.actor_hidden_dims=8',
    '--agent.value_hidden_dims=8',
]
LAUNCHES = {
    'online': [
        '--env_name=Pendulum-v1',
        '--device_replay',
        '--num_seeds=2',
        '--max_steps=12',
        '--start_training=8',
        '--eval_episodes=1',
        '--agent.hidden_dims=8',
    ],
    'pretrain_finetune': [
        '--agent=purerl/agents/infom/hilp.py',
        *OFFLINE,
        '--agent.num_latent_inference_samples=16',
    ],
    'offline': [
        '--agent=purerl/agents/infom/mbpo_rebrac.py',
        *OFFLINE,
        '--agent.transition_hidden_dims=8',
        '--agent.reward_hidden_dims=8',
        '--agent.num_model_rollouts=8',
        '--agent.model_buffer_size=30',
    ],
    'offline_to_online': [
        '--agent=purerl/agents/jaxrl5/ddpm_iql.py',
        '--env_name=Pendulum-v1',
        '--dataset={dataset}',
        '--max_steps=3',
        '--log_interval=2',
        '--online_max_steps=6',
        '--device_replay',
        '--online_start_training=3',
        '--online_batch_size=4',
        '--train_actor_finetuning',
        '--eval_episodes=1',
        '--online_eval_episodes=1',
        '--batch_size=8',
        '--agent.critic_hidden_dims=8',
        '--agent.actor_hidden_dims=8',
        '--agent.N=2',
        '--agent.T=2',
    ],
    'rrd': [
        '--alg=rrd',
        '--env=Pendulum-v1',
        '--device_replay',
        '--num_seeds=2',
        '--epochs=1',
        '--cycles=2',
        '--iterations=2',
        '--timesteps=10',
        '--train_batches=2',
        '--test_rollouts=1',
        '--test_timesteps=12',
        '--warmup=15',
        '--batch_size=8',
        '--hidden_dims=8,8',
        '--rrd_batch_size=8',
        '--rrd_sample_size=4',
        '--reward_hidden_dims=8,8',
    ],
}


class Checks:
    """What is checked on a device.

    Attributes:
        device: its name.
        mode: the compilation mode there.
        folder: for files.
    """

    def __init__(self, device: str, mode: str, folder: str):
        self.device = device
        self.mode = mode
        self.folder = folder
        self.dataset = f'{folder}/pendulum.hdf5'
        collect.collect('Pendulum-v1', self.dataset, policy='random', num_transitions=400)

    def on_device(self):
        """Return the context in which there is such a device."""
        return SecondDevice() if self.device == SECOND else contextlib.nullcontext()

    def cases(self):
        """Return the checks by name."""
        cases = {name: functools.partial(self.agent, name) for name in test_agents.CASES}
        for name in test_rrd.CASES:
            cases[f'rrd/{name}'] = functools.partial(self.rrd_agent, name)
        cases['drq'] = functools.partial(self.image_agent, 'drq', 1)
        cases['pixel_bc'] = functools.partial(self.image_agent, 'pixel_bc')
        for name in LAUNCHES:
            cases[f'experiments.{name}'] = functools.partial(self.launcher, name)
        return cases

    def agent(self, name):
        """Every kind of step of an agent that learns from vectors."""
        encoders.encoder_modules['mlp'] = functools.partial(
            MLP, hidden_dims=(16, 8), layer_norm=True
        )
        batch = test_agents.make_batch()
        for step in test_agents.CASES[name].steps.values():
            self._step(test_agents.make_agent(name), batch, step)

    def rrd_agent(self, name):
        """Updates, statistics and acting of an agent of RRD's family."""

        def step(agent, batch):
            agent, info = agent.update_normalizer(batch).update(batch)
            actions, agent = agent.sample_actions(batch['observations'])
            return agent, (info, actions, agent.eval_actions(batch['observations'])[0])

        self._step(test_rrd.make_agent(name), test_rrd.make_batch(name), step)

    def image_agent(self, name, *utd_ratio):
        """Updates and acting of an agent that learns from images."""
        spec = load_agent(f'purerl/agents/jaxrl5/{name}.py', SMALL_IMAGES)
        example = trees.map(lambda x: torch.from_numpy(x)[None], benchmark.example_of(spec.config))

        def step(agent, batch):
            agent, info = agent.update(batch, *utd_ratio)
            actions, agent = agent.sample_actions(trees.index(batch['observations'], 0))
            return agent, (info, actions)

        agent = spec.agent_class.create(0, *example, spec.config)
        self._step(agent, benchmark.synthetic_batch(spec, 4), step)

    def _step(self, agent, batch, step):
        """A step from a batch on the CPU gives what it gives there, on the agent's device."""
        expected = step(agent, batch)
        with self.on_device():
            found = step(trees.device_put(agent, self.device), batch)
            devices = {leaf.device.type for leaf in trees.leaves(found)}
            assert devices == {self.device}, f'there are results on {devices}'
            found = trees.device_put(found, 'cpu')
        if self.device == SECOND:
            test_agents.assert_close(found, expected)
            return
        # A GPU rounds otherwise, and Adam's first step magnifies that to the learning rate.
        pairs = zip(trees.leaves_with_path(found[1]), trees.leaves(expected[1]), strict=True)
        for (path, x), y in pairs:
            torch.testing.assert_close(x, y, rtol=1e-3, atol=1e-3, msg='/'.join(path))

    def launcher(self, name):
        """A run, and the evaluation of its checkpoint on the CPU and on the device."""
        flags = [
            f'--device={self.device}',
            f'--jit={self.mode}',
            f'--save_dir={self.folder}',
            f'--run_name={name}',
            '--notqdm',
            '--notensorboard',
            *[flag.format(dataset=self.dataset) for flag in LAUNCHES[name]],
        ]
        with self.on_device():
            importlib.import_module(f'experiments.{name}').main([name, *flags])
            for device in ('cpu', self.device):
                flags = [f'--run={self.folder}/{name}', '--episodes=1', f'--device={device}']
                result = evaluate.main(['evaluate', *flags])
                assert all(np.isfinite(row['episode.return']) for row in result['statistics'])


def main():
    """Run the checks that are asked for."""
    parser = argparse.ArgumentParser()
    parser.add_argument('--device', default=SECOND)
    parser.add_argument('--jit', default='off', choices=jit.MODES)
    parser.add_argument('names', nargs='*', help='all of them by default')
    arguments = parser.parse_args()
    warnings.simplefilter('ignore')
    jit.set_mode(arguments.jit)
    if arguments.device == SECOND:
        torch._lazy.ts_backend.init()
        # Evaluations choose to trace, which cannot be done with these tensors.
        jit.use_mode = lambda mode: contextlib.nullcontext()
    with tempfile.TemporaryDirectory() as folder:
        cases = Checks(arguments.device, arguments.jit, folder).cases()
        for name in arguments.names or cases:
            error = None
            with open(os.devnull, 'w') as nowhere, contextlib.redirect_stdout(nowhere):
                try:
                    cases[name]()
                except (Exception, SystemExit):  # whatever it is, the case has failed
                    error = traceback.format_exc()
            print(json.dumps([name, error]), flush=True)


if __name__ == '__main__':
    main()
