"""Records a JAX agent in the reference-case format, for replaying it through purerl.

    recorder = Recorder('infom', 'rebrac', 'my_fork', seed=0, config=config)
    recorder.run(agent, ops=[('pretrain', batch, {}), ('finetune', batch, {'full_update': True})],
                 examples=(ex_observations, ex_actions))
    recorder.save('recordings/rebrac__my_fork.safetensors')

`run` drives an agent; `add` stores anything else under the names of docs/reference_cases.md.
Nothing here imports JAX: arrays are whatever numpy can read.
"""

import dataclasses
import importlib.metadata
import json
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from experiments.reference.case import flatten
from experiments.reference.compare import conditioning_of

_PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'distrax', 'numpy')


@dataclasses.dataclass(frozen=True)
class View:
    """Where a family's agents keep what is recorded.

    Attributes:
        params, opt: trees of all parameters and of the optimiser's state, under recorded names.
        act: ``(agent, call) -> {name: value}``, the results of one entry of ``actions``.
        step: the number of optimiser steps, or None where it is not recorded.
    """

    params: Callable[[Any], Mapping]
    opt: Callable[[Any], Mapping]
    act: Callable[[Any, Mapping], Mapping]
    step: Callable[[Any], Any] | None = None


def _infom_act(agent, call):
    inputs = {name: value for name, value in call.items() if name != 'key'}
    return {'out': agent.sample_actions(seed=call['key'], **inputs)}


def _jaxrl5_act(agent, call):
    agent = agent.replace(rng=call['key'], **call.get('replace', {}))
    result = getattr(agent, call['call'])(call['observations'])
    if not isinstance(result, tuple):
        return {'out': result}
    return {'out': result[0], 'key_out': result[1].rng}


def _states(agent, attribute):
    """That attribute of every field that is a train state and has it."""
    names = [field.name for field in dataclasses.fields(agent)]
    values = {name: getattr(getattr(agent, name), attribute, None) for name in names}
    return {name: value for name, value in values.items() if value is not None}


VIEWS = {
    'infom': View(
        params=lambda agent: agent.network.params,
        opt=lambda agent: agent.network.opt_state[0]._asdict(),
        act=_infom_act,
        step=lambda agent: agent.network.step,
    ),
    'jaxrl5': View(
        params=lambda agent: _states(agent, 'params'),
        opt=lambda agent: _states(agent, 'opt_state'),
        act=_jaxrl5_act,
    ),
}
VIEWS['idql'] = VIEWS['jaxrl5']


class Recorder:
    """Collects one recording.

    Args:
        system: the family, one of `VIEWS`; it decides where purerl looks for the agent.
        agent: the agent's module in purerl (``rebrac``); a fork's own name once it is ported.
        case: a name for this run.
        seed: from which the agent was created.
        config: the full config, of values that JSON can hold (a ConfigDict will do).
        metadata: further entries of the header: ``notes``, ``source``; other than strings become
            JSON (``encoder_overrides``, ``init_perturbed``).
    """

    def __init__(self, system: str, agent: str, case: str, seed: int, config, **metadata):
        if system not in VIEWS:
            raise ValueError(f'system must be one of {", ".join(sorted(VIEWS))}, got {system!r}')
        self._view = VIEWS[system]
        self._metadata = {
            'system': system,
            'agent': agent,
            'case': case,
            'seed': str(int(seed)),
            'config': config.to_dict() if hasattr(config, 'to_dict') else dict(config),
            'ops': [],
            'versions': _versions(),
            **metadata,
        }
        self._tensors: dict[str, np.ndarray] = {}
        # What is ill-conditioned is replayed op by op.
        conditioning = conditioning_of(system, agent, self._metadata['config'])
        self._keep_all_params = conditioning is not None and conditioning.resume

    def add(self, name: str, tree) -> None:
        """Store a tensor, or a tree of them below ``name/``.

        Raises:
            ValueError: if there is one of that name already.
        """
        for path, leaf in flatten(_plain(tree)).items():
            full = f'{name}/{path}' if path else name
            if full in self._tensors:
                raise ValueError(f'{full} is recorded already')
            self._tensors[full] = _as_array(leaf)

    def run(
        self,
        agent,
        ops: Sequence[tuple[str, Mapping | None, Mapping]],
        examples: tuple | None = None,
        actions: Sequence[Mapping] = (),
    ):
        """Run and record an agent that was just created from the seed.

        Args:
            agent: the JAX agent; its key is its field ``rng``.
            ops: ``(method, batch, keyword arguments)`` in the order to run; a batch of None for
                methods that take none. Methods return ``(agent, info)`` or an agent.
            examples: (observations, actions) given to ``create``, where purerl needs them
                (InFOM's agents; jaxrl5's take sizes from the config).
            actions: calls for the final agent. InFOM: the arguments of ``sample_actions``, with
                the key under ``key``. jaxrl5: ``call`` (the method), ``key``, ``observations``,
                ``replace`` (fields to change first).

        Returns:
            The agent after the last op.
        """
        if examples is not None:
            self.add('example', dict(zip(('observations', 'actions'), examples, strict=True)))
        self.add('init', self._view.params(agent))
        self.add('key/init', agent.rng)
        for t, (call, batch, kwargs) in enumerate(ops):
            keep_params = self._keep_all_params or t in (0, len(ops) - 1)
            agent = self._run_op(agent, t, call, batch, kwargs, keep_params)
        self.add(f'opt/{len(ops) - 1}', self._view.opt(agent))
        self.add('key/final', agent.rng)
        if self._view.step is not None:
            self.add('step/final', self._view.step(agent))
        for n, call in enumerate(actions):
            self._act(agent, n, call)
        return agent

    def _run_op(self, agent, t, call, batch, kwargs, keep_params):
        self._metadata['ops'].append({'call': call, 'kwargs': dict(kwargs)})
        self.add(f'key/{t}', agent.rng)
        if batch is not None:
            self.add(f'batch/{t}', batch)
        result = getattr(agent, call)(*([] if batch is None else [batch]), **kwargs)
        if result is None:  # InFOM's target_reset changes the agent in place
            result = agent
        agent, info = result if isinstance(result, tuple) else (result, {})
        self.add(f'info/{t}', info)
        if keep_params:
            self.add(f'params/{t}', self._view.params(agent))
        return agent

    def _act(self, agent, n, call):
        results = self._view.act(agent, call)
        how = {name: call[name] for name in ('call', 'replace') if name in call}
        if how:
            how = {'replace': {}, **how, 'returns_tuple': 'key_out' in results}
            self._metadata.setdefault('actions', []).append(how)
        inputs = {name: value for name, value in call.items() if name not in how}
        self.add(f'actions/{n}', {**inputs, **results})

    def save(self, path: str | pathlib.Path) -> None:
        """Write the recording; the folder is made if it is missing."""
        path = pathlib.Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        metadata = {
            key: value if isinstance(value, str) else json.dumps(value)
            for key, value in self._metadata.items()
        }
        save_file(self._tensors, path, metadata)


def _plain(tree):
    """Turn mappings of any kind (FrozenDict) into dicts."""
    if isinstance(tree, Mapping):
        return {str(name): _plain(child) for name, child in tree.items()}
    if isinstance(tree, tuple) and hasattr(tree, '_fields'):
        return {name: _plain(getattr(tree, name)) for name in tree._fields}
    if isinstance(tree, list | tuple):
        return {str(i): _plain(child) for i, child in enumerate(tree)}
    return tree


def _as_array(value) -> np.ndarray:
    if 'key<' in str(getattr(value, 'dtype', '')):  # JAX's typed keys
        value = sys.modules['jax'].random.key_data(value)
    array = np.asarray(value)
    if array.dtype == np.bool_:
        return np.array(array, np.uint8)
    if array.dtype == np.uint32:  # keys and random bits
        return np.array(array, np.int64)
    if array.dtype == np.float64:  # JAX computes in float32
        return np.array(array, np.float32)
    return np.array(array, order='C')


def _versions() -> dict[str, Any]:
    """Versions of the packages at hand, and the flags on which a replay depends."""
    versions: dict[str, Any] = {'python': sys.version.split()[0]}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    if 'jax' in sys.modules:
        config = sys.modules['jax'].config
        versions['jax_threefry_partitionable'] = bool(config.jax_threefry_partitionable)
        versions['jax_enable_x64'] = bool(config.jax_enable_x64)
    if 'flax' in sys.modules:
        config = sys.modules['flax'].config
        versions['flax_fix_rng_separator'] = bool(config.flax_fix_rng_separator)
    return versions
