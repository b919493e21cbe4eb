"""Names of the RRD originals' variables: TensorFlow's scopes and the agents' parameters.

Networks stand below `main/` and `target/`, the reward network below `rrd/`; optimisers' slots have
their variables' names and a suffix.
"""

import numpy as np
import torch

from experiments.reference.case import Case, CaseError, flatten
from purerl.core import optim, trees


def base_of(agent):
    """Return a wrapper's base, or the agent itself."""
    return getattr(agent, 'base', agent)


# --- Parameters -----------------------------------------------------------------------------------


def _scopes(agent) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Return, by TensorFlow's scope, a field and the path in its parameters."""
    base, scopes = base_of(agent), {}
    kinds = {'main': '', 'target': 'target_'}
    for scope, prefix in kinds.items():
        if hasattr(base, f'{prefix}actor'):
            scopes[f'{scope}/policy/net'] = (f'{prefix}actor', ())
        if 'value_1' not in base.critic.params:
            scopes[f'{scope}/value/net'] = (f'{prefix}critic', ())
            continue
        value = 'q_value' if hasattr(base, 'temperature') else 'value'
        for i in (1, 2):
            scopes[f'{scope}/{value}_{i}/net'] = (f'{prefix}critic', (f'value_{i}',))
    if hasattr(base, 'temperature'):
        scopes['main/alpha'] = ('temperature', ())
    if hasattr(agent, 'reward'):
        scopes['rrd/net'] = ('reward', ())
    return scopes


def _at(tree, path):
    for name in path:
        tree = tree[name]
    return tree


def _to_scope(scope, params):
    """Name a network's parameters as TensorFlow does: the trunk's layers beside the others."""
    trunk = {
        f'{"r" if scope.startswith("rrd") else "q"}_{name}': value
        for name, value in params.get('trunk', {}).items()
    }
    return {**{name: value for name, value in params.items() if name != 'trunk'}, **trunk}


def scoped(agent, take) -> dict:
    """Return ``{scope/name: take(state)'s leaf}`` of all networks that have what is taken."""
    tree = {}
    for scope, (field, path) in _scopes(agent).items():
        state = getattr(agent if field == 'reward' else base_of(agent), field)
        params = take(state)
        if params is not None:
            named = _to_scope(scope, _at(params, path))
            tree |= {f'{scope}/{name}': leaf for name, leaf in flatten(named).items()}
    return tree


def variables(agent) -> dict:
    """Return an agent's variables under TensorFlow's names."""
    tree = scoped(agent, lambda state: state.params)
    normalizer = base_of(agent).normalizer
    if normalizer is not None:
        tree |= {f'normalizer/normalizer_variables/{n}': x for n, x in statistics(normalizer)}
    return tree


def statistics(normalizer):
    """Return a normaliser's (name, value) pairs."""
    return [(name, getattr(normalizer, name)) for name in ('sum', 'sum_sqr', 'cnt', 'mean', 'std')]


def with_variables(agent, values: dict):
    """Return an agent with the given variables, all of them.

    Raises:
        CaseError: if names or shapes differ.
    """
    expected = variables(agent)
    if values.keys() != expected.keys():
        raise CaseError(f'{sorted(values.keys() ^ expected.keys())[0]}: only on one side')
    for name, value in values.items():
        if value.shape != expected[name].shape:
            raise CaseError(
                f'{name}: shape {tuple(value.shape)}, not {tuple(expected[name].shape)}'
            )
    replaced = {id(leaf): values[name] for name, leaf in expected.items()}
    return trees.map(lambda leaf: replaced.get(id(leaf), leaf), agent)


def widths(case: Case) -> dict:
    """Return the sizes of a recording's layers, by the config's fields."""

    def sizes(*layers):
        found = []
        for layer in layers:
            names = [n for n in case.below('init') if n.endswith(f'/{layer}/bias')]
            found += [len(case.tensors[name]) for name in names[:1]]
        return tuple(found)

    found = {
        'hidden_dims': sizes('q_dense1', 'q_dense2'),
        'reward_hidden_dims': sizes('r_dense1', 'r_dense2'),
        'conv_features': sizes('q_conv1', 'q_conv2', 'q_conv3'),
    }
    found['dense_dim'] = next(iter(sizes('q_dense_act')), None)
    return {field: size for field, size in found.items() if size}


# --- Optimisers -----------------------------------------------------------------------------------


def _optimizers(agent):
    """Return the states with optimisers in the order in which the original makes them."""
    base = base_of(agent)
    states = [getattr(base, name, None) for name in ('actor', 'temperature', 'critic')]
    states.append(getattr(agent, 'reward', None))
    return [state for state in states if state is not None and learns(base, state)]


def learns(base, state) -> bool:
    """Whether the original optimises it: not a temperature with a learning rate of 0."""
    return state is not getattr(base, 'temperature', None) or base.config['alpha_lr'] > 0


def slots(agent, gradients: dict) -> dict:
    """Return the optimisers' variables after a step under TensorFlow's names.

    Args:
        agent: the agent after the step.
        gradients: those of the step by variable; RMSProp keeps its last step in a slot.
    """
    states = _optimizers(agent)
    kept = {id(state): state.opt_state[0] for state in states}

    def moments(field):
        return scoped(agent, lambda state: getattr(kept.get(id(state)), field, None))

    first, second = moments('mu'), moments('nu')
    tree = {f'{name}/Adam': moment for name, moment in first.items()}
    for name, moment in second.items():
        tree[f'{name}/{"Adam_1" if name in first else "RMSProp"}'] = moment
        if name not in first:
            config = base_of(agent).config
            step = gradients[name] / torch.sqrt(moment + config['RMSProp_eps'])
            tree[f'{name}/RMSProp_1'] = config['q_lr'] * step
    adams = [state for state in kept.values() if isinstance(state, optim.ScaleByAdamState)]
    for i, state in enumerate(adams):
        suffix = f'_{i}' if i else ''
        for j, beta in ((1, 0.9), (2, 0.999)):
            tree[f'beta{j}_power{suffix}'] = np.float32(beta ** (state.count.item() + 1))
    return tree
