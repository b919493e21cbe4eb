"""Complete snapshots of environments, for runs that resume bit for bit.

A snapshot holds, for every wrapper and the bare environment, all attributes that can change: plain
Python values, arrays, random generators (the spaces' too) and MuJoCo's simulation. It consists of
dictionaries with string keys, lists, numbers, strings, None and numpy arrays, nothing else.
"""

import collections
import functools
import types

import gymnasium
import numpy as np
from gymnasium import spaces

from purerl.envs.wrappers import layers

# Attributes that gymnasium sets once and never changes.
_CONSTANT_ATTRIBUTES = frozenset(
    (
        'env',
        'spec',
        'metadata',
        '_metadata',
        '_cached_spec',
        '_saved_kwargs',
        '_ezpickle_args',
        '_ezpickle_kwargs',
    )
)
# Objects without a state that outlives a step: renderers, descriptions of models, geometry,
# OGBench's inverse kinematics, which starts anew from its arguments at each call, and dm_control's
# composer, whose observables (without delays in all tasks here) are read anew at each step.
_STATELESS_PACKAGES = (
    'gymnasium.envs.registration',
    'gymnasium.envs.mujoco.mujoco_rendering',
    'pygame',
    'pathlib',
    'dm_control.mjcf',
    'dm_control.composer',
    'dm_control.mujoco.engine',
    'ogbench.manipspace.controllers',
    'ogbench.manipspace.lie',
    'mujoco',
)
_STATELESS_TYPES = (
    types.FunctionType,
    types.BuiltinFunctionType,
    types.MethodType,
    types.ModuleType,
    type,
    functools.partial,
    np.dtype,
)
# Objects that are captured attribute by attribute: the suite's environments and their tasks.
_COMPOUND_PACKAGES = ('dm_control.rl.control', 'dm_control.suite.base')
# Geometry and names: large, and fixed when the model is compiled (terrain is not).
_CONSTANT_MODEL_FIELDS = ('mesh_', 'tex_', 'skin_', 'flex', 'bvh_', 'oct_', 'mat_tex')
_TYPE = '__type__'
_SKIP = object()


class _UnsupportedError(Exception):
    """An attribute that no snapshot can hold; `args` are its path and its value."""


def env_state(env):
    """Takes a snapshot of an environment.

    Args:
        env: A `gymnasium.Env`: MuJoCo, classic control, OGBench, dm_control, or any other whose
            attributes are plain values, arrays, random generators and spaces.

    Returns:
        A dict of nested dicts, lists, numbers, strings, None and numpy arrays, from which
        `set_env_state` goes on bit for bit.

    Raises:
        ValueError: If an attribute cannot be captured.
    """
    return {'layers': [_layer_state(layer) for layer in layers(env)]}


def set_env_state(env, state):
    """Puts an environment into the state of a snapshot; it is reset first.

    Args:
        env: An environment made as the one that the snapshot was taken of.
        state: What `env_state` returned.

    Raises:
        ValueError: If the snapshot is of another kind of environment.
    """
    names = [type(layer).__name__ for layer in layers(env)]
    saved_names = [layer['class'] for layer in state['layers']]
    if names != saved_names:
        raise ValueError(
            f'the snapshot is of {"<".join(saved_names)}, the environment is {"<".join(names)}'
        )
    # What the first reset creates (compiled models, for one) must be there to be filled.
    env.reset()
    for layer, saved in zip(layers(env), state['layers'], strict=True):
        for name, value in saved['attributes'].items():
            setattr(layer, name, _decode(value, getattr(layer, name, None)))


def check_resumable(env):
    """Refuses an environment that `env_state` cannot capture, before a run depends on it.

    The environment is reset once, since some attributes appear only then, and afterwards stands
    as before.

    Args:
        env: A `gymnasium.Env`.

    Raises:
        ValueError: If an attribute cannot be captured; the message names it.
    """
    before = env_state(env)
    env.reset()
    env_state(env)
    set_env_state(env, before)


def _layer_state(layer):
    attributes = {}
    for name, value in vars(layer).items():
        if name in _CONSTANT_ATTRIBUTES:
            continue
        try:
            encoded = _encode(value, name)
        except _UnsupportedError as error:
            path, unsupported = error.args
            kind = type(unsupported)
            raise ValueError(
                f'a run in this environment cannot be resumed exactly: {type(layer).__name__}.'
                f'{path} is of type {kind.__module__}.{kind.__qualname__}, which no snapshot can '
                'hold'
            ) from None
        if encoded is not _SKIP:
            attributes[name] = encoded
    return {'class': type(layer).__name__, 'attributes': attributes}


def _encode(value, path):
    """Turns a value into JSON values and arrays; `_SKIP` stands for something without state."""
    if isinstance(value, np.ndarray):
        return _encode_array(value, path)
    if isinstance(value, np.generic) and not isinstance(value, np.str_):
        return {_TYPE: 'scalar', 'value': np.asarray(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return str(value) if isinstance(value, str) else value
    if isinstance(value, list | tuple | collections.deque | set | frozenset):
        return _encode_sequence(value, path)
    if isinstance(value, dict):
        return _encode_dict(value, path)
    if isinstance(value, np.random.Generator):
        return {_TYPE: 'generator', 'state': _encode(value.bit_generator.state, path)}
    if isinstance(value, np.random.RandomState):
        return {_TYPE: 'random_state', 'state': _encode(value.get_state(legacy=False), path)}
    if isinstance(value, gymnasium.Space):
        return {_TYPE: 'space', 'random': _space_random(value, path)}
    if _is_mujoco(value, 'MjData'):
        return _encode_simulation(value)
    if _is_mujoco(value, 'MjModel'):
        return {_TYPE: 'mujoco_model', 'fields': _model_fields(value)}
    if hasattr(value, 'snapshot_state'):  # an emulator, which knows its state itself
        return {_TYPE: 'own', 'state': _encode(value.snapshot_state(), path)}
    if isinstance(value, _STATELESS_TYPES) or _is_of_package(value, _STATELESS_PACKAGES):
        return _SKIP
    if _is_of_package(value, _COMPOUND_PACKAGES):
        return _encode_compound(value, path)
    raise _UnsupportedError(path, value)


def _encode_array(array, path):
    if array.dtype.kind in 'OV':
        raise _UnsupportedError(path, array)
    if array.dtype.kind in 'SU':
        return {_TYPE: 'text_array', 'items': array.tolist(), 'dtype': array.dtype.str}
    return array.copy()


def _encode_sequence(value, path):
    ordered = sorted(value, key=repr) if isinstance(value, set | frozenset) else value
    items = [_encode(item, f'{path}[{index}]') for index, item in enumerate(ordered)]
    if any(item is _SKIP for item in items):
        return _SKIP
    if isinstance(value, list):
        return items
    kind = next(
        kind for kind in (tuple, collections.deque, set, frozenset) if isinstance(value, kind)
    )
    maxlen = {'maxlen': value.maxlen} if kind is collections.deque else {}
    return {_TYPE: kind.__name__, 'items': items, **maxlen}


def _encode_dict(value, path):
    keys = list(value)
    items = [_encode(value[key], f'{path}[{key!r}]') for key in keys]
    if any(item is _SKIP for item in items):
        return _SKIP
    if all(isinstance(key, str) and key != _TYPE for key in keys):
        return dict(zip(map(str, keys), items, strict=True))
    return {_TYPE: 'dict', 'keys': [_encode(key, path) for key in keys], 'items': items}


def _encode_compound(value, path):
    attributes = {
        name: _encode(attribute, f'{path}.{name}') for name, attribute in vars(value).items()
    }
    kept = {name: encoded for name, encoded in attributes.items() if encoded is not _SKIP}
    return {_TYPE: 'compound', 'attributes': kept}


def _decode(value, current):
    """Inverse of `_encode`; what is more than its value (spaces, simulations) is filled in place.

    Args:
        value: Encoded value.
        current: The attribute's present value.

    Returns:
        The attribute's new value.
    """
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, list):
        return [_decode(item, None) for item in value]
    if not isinstance(value, dict):
        return value
    if _TYPE not in value:
        return {key: _decode(item, None) for key, item in value.items()}
    return _DECODERS[value[_TYPE]](value, current)


def _decode_items(value):
    return [_decode(item, None) for item in value['items']]


def _decode_generator(value, current):
    state = _decode(value['state'], None)
    generator = np.random.Generator(getattr(np.random, state['bit_generator'])(0))
    generator.bit_generator.state = state
    return generator


def _decode_random_state(value, current):
    # In place, since tasks of dm_control share theirs with the environment around them.
    known = isinstance(current, np.random.RandomState)
    random_state = current if known else np.random.RandomState(0)
    random_state.set_state(_decode(value['state'], None))
    return random_state


def _decode_space(value, current):
    _set_space_random(current, value['random'])
    return current


def _decode_own(value, current):
    current.restore_snapshot(_decode(value['state'], None))
    return current


def _decode_compound(value, current):
    for name, encoded in value['attributes'].items():
        setattr(current, name, _decode(encoded, getattr(current, name, None)))
    return current


def _decode_simulation(value, current):
    import mujoco

    spec = mujoco.mjtState.mjSTATE_INTEGRATION
    mujoco.mj_setState(current.model, current, value['state'], spec)
    # Contacts and constraints cannot be written; this makes them those of the state, after which
    # the state itself (the solver's warm start) and all derived arrays are put back.
    mujoco.mj_forward(current.model, current)
    mujoco.mj_setState(current.model, current, value['state'], spec)
    _set_fields(current, value['fields'])
    return current


def _decode_model(value, current):
    _set_fields(current, value['fields'])
    _set_fields(current.opt, value['fields']['opt'])
    return current


_DECODERS = {
    'scalar': lambda value, current: value['value'][()],
    'text_array': lambda value, current: np.array(value['items'], dtype=value['dtype']),
    'tuple': lambda value, current: tuple(_decode_items(value)),
    'set': lambda value, current: set(_decode_items(value)),
    'frozenset': lambda value, current: frozenset(_decode_items(value)),
    'deque': lambda value, current: collections.deque(_decode_items(value), value['maxlen']),
    'dict': lambda value, current: dict(
        zip((_decode(key, None) for key in value['keys']), _decode_items(value), strict=True)
    ),
    'generator': _decode_generator,
    'random_state': _decode_random_state,
    'space': _decode_space,
    'own': _decode_own,
    'compound': _decode_compound,
    'mujoco_data': _decode_simulation,
    'mujoco_model': _decode_model,
}


def _children(space):
    if isinstance(space, spaces.Dict):
        return list(space.spaces.values())
    if isinstance(space, spaces.Tuple):
        return list(space.spaces)
    return []


def _space_random(space, path):
    # The public property would seed a space that nothing has drawn from yet.
    return {
        'own': _encode(space._np_random, path),
        'children': [_space_random(child, path) for child in _children(space)],
    }


def _set_space_random(space, random):
    space._np_random = _decode(random['own'], None)
    for child, child_random in zip(_children(space), random['children'], strict=True):
        _set_space_random(child, child_random)


def _is_of_package(value, packages):
    modules = [base.__module__ for base in type(value).__mro__]
    return any(
        module == name or module.startswith(name + '.') for module in modules for name in packages
    )


def _is_mujoco(value, name):
    return type(value).__name__ == name and _is_of_package(value, ('mujoco',))


def _encode_simulation(data):
    import mujoco

    spec = mujoco.mjtState.mjSTATE_INTEGRATION
    state = np.empty(mujoco.mj_stateSize(data.model, spec))
    mujoco.mj_getState(data.model, data, state, spec)
    # Environments read quantities of the step before (centres of mass, for one), which a forward
    # pass from the state would not give back. Arrays whose size varies from step to step belong to
    # the contacts, which each step computes anew.
    blank = mujoco.MjData(data.model)
    fields = {
        name: value
        for name, value in _float_fields(data).items()
        if value.shape == getattr(blank, name).shape
    }
    return {_TYPE: 'mujoco_data', 'state': state, 'fields': fields}


def _model_fields(model):
    fields = {
        name: value
        for name, value in _float_fields(model).items()
        if not name.startswith(_CONSTANT_MODEL_FIELDS)
    }
    options = {
        name: getattr(model.opt, name)
        for name in dir(model.opt)
        if not name.startswith('_') and isinstance(getattr(model.opt, name), float)
    }
    return {**fields, 'opt': {**options, **_float_fields(model.opt)}}


def _float_fields(struct):
    """Returns copies of a MuJoCo structure's writeable, non-empty arrays of floats by name."""
    fields = {}
    for name in dir(struct):
        if name.startswith('_'):
            continue
        value = getattr(struct, name)
        if isinstance(value, np.ndarray) and value.size and value.dtype.kind == 'f':
            fields[name] = value.copy()
    return fields


def _set_fields(struct, fields):
    for name, value in fields.items():
        if isinstance(value, np.ndarray):
            getattr(struct, name)[...] = value
        elif isinstance(value, float):
            setattr(struct, name, value)
