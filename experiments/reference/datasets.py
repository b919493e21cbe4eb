"""Replays recorded datasets and replay buffers through `purerl.data`.

Each function takes a recorded case (attributes `tensors`, `config`, `seed`, `case`) and yields
(tensor name, computed array) for every recorded result. What the recordings do not state (the
originals' draws at call sites outside the file) is written down beside the subject it belongs to.
"""

import collections
import functools
import re
from collections.abc import Iterator

import gymnasium
import numpy as np

from experiments.reference.case import nested
from purerl.core import trees
from purerl.data import binary, d4rl, episodes
from purerl.data.dataset import Dataset, random_crop
from purerl.data.device import DeviceDataset, initial_key
from purerl.data.goals import GCDataset
from purerl.data.memory_efficient import MemoryEfficientReplayBuffer
from purerl.data.replay import ReplayBuffer

Pairs = Iterator[tuple[str, np.ndarray]]

_STATISTICS = (
    'obs_mean', 'obs_var', 'obs_max', 'obs_min', 'normalized_obs_max', 'normalized_obs_min',
)  # fmt: skip


# --- Names ------------------------------------------------------------------------------------


def _subtree(tensors: dict, prefix: str) -> dict:
    """The tensors below `prefix/`, as nested dicts."""
    start = f'{prefix}/'
    below = {name: tensor for name, tensor in tensors.items() if name.startswith(start)}
    return nested({name.removeprefix(start): tensor for name, tensor in below.items()})


def _named(prefix: str, tree) -> Pairs:
    """Name the leaves of a batch as the recordings do."""
    for path, leaf in trees.leaves_with_path(tree):
        yield '/'.join((prefix, *path)), np.asarray(leaf).copy()  # buffers go on changing


def _children(tensors: dict, prefix: str) -> list[str]:
    """The names right below `prefix/`."""
    below = [name for name in tensors if name.startswith(prefix + '/')]
    return sorted({name[len(prefix) + 1 :].split('/')[0] for name in below})


def _with_unstated_seed(case, replay) -> Pairs:
    """Run `replay(case, seed)` with the seed that the recording leaves open.

    The recorder seeded these subjects with the case's seed, with the one after it or with a fixed
    one, and the file does not say which: the first that reproduces the file counts.
    """
    attempts = {}
    for seed in (case.seed, case.seed + 1, 0, 1):
        attempts[seed] = list(replay(case, seed))
        if all(np.array_equal(array, case.tensors[name]) for name, array in attempts[seed]):
            return iter(attempts[seed])
    return iter(attempts[case.seed])


# --- InFOM ------------------------------------------------------------------------------------


class _RecordingGoals(GCDataset):
    """Remembers the goals that it draws."""

    drawn: dict[str, np.ndarray]

    def sample_goals(self, idxs, kind, rng):
        self.drawn[f'{kind}_goal_idxs'] = goals = super().sample_goals(idxs, kind, rng)
        return goals


def replay_infom_dataset(case) -> Pairs:
    """Replay InFOM's Dataset, GCDataset, ReplayBuffer and random crops."""
    for name, setting in case.config.items():
        if 'batch_size' in setting:
            yield from _replay_batches(case, f'fn/{name}', setting)
        elif 'padding' in setting:
            inputs = _subtree(case.tensors, f'fn/{name}/in')
            crops = random_crop(inputs['imgs'], inputs['crop_froms'], setting['padding'])
            yield f'fn/{name}/out/imgs', crops
        else:
            replay = next(f for call, f in _INFOM_BUFFERS.items() if call in setting['function'])
            yield from replay(case, f'fn/{name}', setting)


def _replay_batches(case, prefix: str, setting: dict) -> Pairs:
    tensors = case.tensors
    dataset = Dataset(_subtree(tensors, f'dataset/{setting["dataset"]}'), **setting['settings'])
    dataset.normalize_observations()
    goals = None
    if setting['gc_config'] is not None:
        goals = _RecordingGoals(dataset, setting['gc_config'])
    rng = np.random.RandomState(setting['np_seed'])
    for i in range(setting['n_samples']):
        at = f'{prefix}/out/{i}'
        if setting['given_idxs']:
            idxs = tensors[f'{at}/idxs']
        else:
            idxs = dataset.random_indices(setting['batch_size'], rng)
        if goals is None:
            batch = dataset.sample(len(idxs), rng, idxs)
        else:
            goals.drawn = {}
            batch = goals.sample(len(idxs), rng, idxs)
            yield from _named(at, goals.drawn)
        yield f'{at}/idxs', idxs
        yield from _named(f'{at}/batch', batch)
    yield f'{prefix}/out/next_rand', np.asarray(rng.random_sample())
    for name in _STATISTICS:
        statistic = getattr(dataset, name)  # float64 for images; recorded as float32
        images = statistic.dtype == np.float64
        yield f'{prefix}/out/stats/{name}', statistic.astype(np.float32) if images else statistic
    if f'{prefix}/in/raw_obs' in tensors:
        raw = tensors[f'{prefix}/in/raw_obs']
        yield f'{prefix}/out/norm_obs', dataset.normalize_observations(raw)


def _buffer_state(prefix: str, buffer: ReplayBuffer, size: int | None = None) -> Pairs:
    yield from _named(f'{prefix}/contents', buffer.arrays)
    yield f'{prefix}/initial_locs', buffer.initial_locs
    yield f'{prefix}/terminal_locs', buffer.terminal_locs
    yield f'{prefix}/max_size', np.asarray(buffer.capacity)
    yield f'{prefix}/pointer', np.asarray(buffer.pointer)
    yield f'{prefix}/size', np.asarray(buffer.size if size is None else size)


def _stated_size(setting: dict) -> int:
    return int(re.search(r'size=(\d+)', setting['function']).group(1))


def _replay_add(case, prefix: str, setting: dict) -> Pairs:
    inputs = _subtree(case.tensors, f'{prefix}/in')
    buffer = ReplayBuffer.create(inputs['0'], _stated_size(setting))
    original_size = 0
    for i in sorted(inputs, key=int):
        buffer.add_transition(inputs[i])
        # The original's count: it stays one short of the capacity, a fault that purerl's has not.
        original_size = max(original_size, buffer.pointer)
        yield from _buffer_state(f'{prefix}/out/{i}', buffer, original_size)


def _replay_add_many(case, prefix: str, setting: dict) -> Pairs:
    inputs = _subtree(case.tensors, f'{prefix}/in')
    example = trees.map(lambda array: array[0], inputs['0'])
    buffer = ReplayBuffer.create(example, _stated_size(setting))
    buffer.return_next_actions = 'return_next_actions True' in setting['function']
    for i in sorted(inputs, key=int):
        buffer.add_transitions(inputs[i])
        yield from _buffer_state(f'{prefix}/out/{i}', buffer)
    rng = np.random.RandomState(setting['np_seed'])
    batch_size = int(re.search(r'sample\((\d+)\)', setting['function']).group(1))
    names = [name for name in _children(case.tensors, f'{prefix}/out') if 'sample' in name]
    for name in sorted(names, key=lambda name: int(name.removeprefix('sample'))):
        idxs = buffer.random_indices(batch_size, rng)
        yield f'{prefix}/out/{name}/idxs', idxs
        yield from _named(f'{prefix}/out/{name}/batch', buffer.sample(batch_size, rng, idxs))


def _replay_from_initial(case, prefix: str, setting: dict) -> Pairs:
    count, source = re.search(r"first (\d+) of '(\w+)'", setting['function']).groups()
    arrays = _subtree(case.tensors, f'dataset/{source}')
    initial = {key: array[: int(count)].copy() for key, array in arrays.items()}
    for index, value in re.findall(r'terminals\[(\d+)\]=(\d+)', setting['function']):
        initial['terminals'][int(index)] = float(value)
    buffer = ReplayBuffer.create_from_initial_dataset(initial, _stated_size(setting))
    yield from _buffer_state(f'{prefix}/out/0', buffer)
    buffer.clear()
    yield from _buffer_state(f'{prefix}/out/1', buffer)


_INFOM_BUFFERS = {
    'create_from_initial_dataset': _replay_from_initial,
    'add_transitions': _replay_add_many,
    'add_transition': _replay_add,
}


# --- jaxrl5 -----------------------------------------------------------------------------------


def replay_jaxrl5_dataset(case) -> Pairs:
    """Replay jaxrl5's Dataset, ReplayBuffer, D4RLDataset and BinaryDataset."""
    yield from _JAXRL5_SUBJECTS[case.case](case)


def _replay_core(case) -> Pairs:
    arrays = _subtree(case.tensors, 'fn/data')
    for name in _children(case.tensors, 'fn'):
        prefix = f'fn/{name}/out'
        for pattern, replay in _CORE.items():
            match = re.fullmatch(pattern, name)
            if match:
                yield from replay(case, arrays, prefix, *match.groups())


def _length(tensors: dict, name: str) -> int:
    return len(tensors[name])


def _core_boundaries(case, arrays, prefix) -> Pairs:
    yield from _named(prefix, episodes.boundaries(arrays)._asdict())


def _core_filter(case, arrays, prefix, kind, value) -> Pairs:
    if kind == 'top':
        kept = episodes.filter_returns(arrays, take_top=float(value))
    else:
        threshold = case.tensors[prefix.removesuffix('out') + 'in/threshold']
        kept = episodes.filter_returns(arrays, threshold=float(threshold))
    yield f'{prefix}/index', kept['index']


def _core_normalize(case, arrays, prefix, scaling) -> Pairs:
    yield f'{prefix}/rewards', episodes.normalize_returns(arrays, float(scaling))['rewards']


def _core_sample(case, arrays, prefix, seed) -> Pairs:
    dataset, rng = Dataset(arrays), np.random.default_rng(int(seed))

    def draw(name):
        size = _length(case.tensors, f'{prefix}/{name}/index')
        return f'{prefix}/{name}/index', dataset.sample(size, rng, keys=['index'])['index']

    yield from (draw(i) for i in range(3))
    keys = list(_subtree(case.tensors, f'{prefix}/3_keys'))
    size = _length(case.tensors, f'{prefix}/3_keys/actions')
    yield from _named(f'{prefix}/3_keys', dataset.sample(size, rng, keys=keys))
    given = np.array([0, len(dataset) - 1, 2])  # the call with indices, which draws nothing
    yield from _named(f'{prefix}/4_indx', dataset.sample(3, rng, given, keys=['rewards']))
    yield draw(5)
    rng = np.random.default_rng(int(seed))
    yield draw('reseeded')


def _core_sample_jax(case, arrays, prefix, seed) -> Pairs:
    device = DeviceDataset.create(arrays)
    rng = initial_key(None if seed == 'none' else int(seed))
    # The original's first call decides the batch size of all later ones.
    batch_size = _length(case.tensors, f'{prefix}/0/index')
    for i in sorted(set(_children(case.tensors, prefix)) - {'other_size'}, key=int):
        rng, batch = device.sample_next(rng, batch_size)
        yield f'{prefix}/{i}/key_after', rng.numpy()
        for key in ('index', 'rewards'):
            yield f'{prefix}/{i}/{key}', batch[key].numpy()
    rng, batch = device.sample_next(rng, batch_size)
    yield f'{prefix}/other_size/index', batch['index'].numpy()


def _core_sample_jax_keys(case, arrays, prefix, seed) -> Pairs:
    keys = list(_subtree(case.tensors, prefix))
    device = DeviceDataset.create({key: arrays[key] for key in keys})
    batch_size = _length(case.tensors, f'{prefix}/{keys[0]}')
    yield from _named(prefix, device.sample_next(initial_key(int(seed)), batch_size)[1])


def _core_split(case, arrays, prefix, seed, ratio) -> Pairs:
    rng = np.random.default_rng(int(seed))
    train, test = episodes.split(arrays, float(ratio), rng)
    yield f'{prefix}/train_index', train['index']
    yield f'{prefix}/test_index', test['index']
    size = _length(case.tensors, f'{prefix}/parent_sample_after/index')
    after = Dataset(arrays).sample(size, rng, keys=['index'])
    yield from _named(f'{prefix}/parent_sample_after', after)
    yield from _child_sample_jax(case, train, f'{prefix}/train_sample_jax_index', 'index')


def _child_sample_jax(case, arrays, name, key) -> Pairs:
    """The first ``sample_jax`` of a part of a split, which the original leaves unseeded."""
    device = DeviceDataset.create({key: arrays[key]})
    batch = device.sample_next(initial_key(None), _length(case.tensors, name))[1]
    yield name, batch[key].numpy()


def _core_pipeline(case, arrays, prefix) -> Pairs:
    """The launcher's order: filter, normalise, split."""
    arrays = episodes.normalize_returns(episodes.filter_returns(arrays, take_top=_TAKE_TOP))

    def replay(case, seed):
        train, test = episodes.split(arrays, 0.95, np.random.default_rng(seed))
        yield f'{prefix}/train_index', train['index']
        yield f'{prefix}/train_rewards', train['rewards']
        yield f'{prefix}/test_index', test['index']

    return _with_unstated_seed(case, replay)


_TAKE_TOP = 50  # per cent of the episodes, in the subjects that filter without saying by what

_CORE = {
    r'boundaries': _core_boundaries,
    r'filter_(top|threshold)_?(.*)': _core_filter,
    r'normalize_returns_(.*)': _core_normalize,
    r'pipeline': _core_pipeline,
    r'sample_jax_keys_seed(\d+)': _core_sample_jax_keys,
    r'sample_jax_seed_(\w+)': _core_sample_jax,
    r'sample_seed(\d+)': _core_sample,
    r'split_seed(\d+)_(.*)': _core_split,
}


def _replay_buffers(case) -> Pairs:
    for name in _children(case.tensors, 'fn'):
        if name == 'ring':
            yield from _with_unstated_seed(case, _ring)
        elif name == 'dict_ring':
            yield from _with_unstated_seed(case, _dict_ring)
        elif name.startswith('iterator'):
            yield from _with_unstated_seed(case, functools.partial(_iterator, name=name))


def _ring(case, seed: int) -> Pairs:
    steps = _subtree(case.tensors, 'fn/steps')
    buffer = _buffer_for(steps, case.config['capacity'])
    rng = np.random.default_rng(seed)
    for i in range(len(steps['rewards'])):
        buffer.insert(_row(steps, i))
        at = f'fn/ring/out/after{i + 1}'
        if f'{at}/size' not in case.tensors:
            continue
        yield f'{at}/insert_index', np.asarray(buffer.pointer)
        yield f'{at}/size', np.asarray(buffer.size)
        yield from _named(f'{at}/stored', trees.map(lambda a: a[: buffer.size], buffer.arrays))
        for sample in ('sample0', 'sample1'):
            recorded = _subtree(case.tensors, f'{at}/{sample}')
            batch = buffer.sample(len(recorded['rewards']), rng, keys=recorded)
            yield from _named(f'{at}/{sample}', batch)


def _iterator(case, seed: int, name: str) -> Pairs:
    """The original's iterator: a queue of batches that is filled before each is handed out."""
    steps = _subtree(case.tensors, 'fn/steps')
    buffer = _buffer_for(steps, case.config['capacity'])
    rng = np.random.default_rng(seed)
    length = int(name.removeprefix('iterator').removeprefix('_queue') or 2)
    queue = collections.deque()
    for i in range(len(steps['rewards'])):
        buffer.insert(_row(steps, i))
        at = f'fn/{name}/out/after{i + 1}/rewards'
        if at not in case.tensors:
            continue
        while len(queue) < length:
            queue.append(buffer.sample(len(case.tensors[at]), rng, keys=['rewards']))
        yield at, queue.popleft()['rewards']


def _dict_ring(case, seed: int) -> Pairs:
    inputs = _subtree(case.tensors, 'fn/dict_steps')
    recorded = _subtree(case.tensors, 'fn/dict_ring/out')
    steps = [_dict_step(inputs[i], int(i), recorded) for i in sorted(inputs, key=int)]
    capacity = len(recorded['stored']['rewards'])
    buffer = ReplayBuffer.create(steps[0], capacity)
    for step in steps:
        buffer.insert(step)
    rng = np.random.default_rng(seed)
    yield from _named('fn/dict_ring/out/stored', buffer.arrays)
    batch = buffer.sample(len(recorded['sample']['rewards']), rng)
    yield from _named('fn/dict_ring/out/sample', batch)


def _dict_step(observations: dict, i: int, recorded: dict) -> dict:
    """Complete a recorded step: only its observations are in the file, the rest is set by rule."""
    width = recorded['stored']['actions'].shape[1:]
    return {
        **observations,
        'actions': np.full(width, i, dtype=np.float32),
        'rewards': np.float32(i),
        'masks': np.float32(1),
        'dones': False,
    }


def _buffer_for(steps: dict, capacity: int) -> ReplayBuffer:
    return ReplayBuffer.create(_row(steps, 0), capacity)


def _row(steps: dict, i: int) -> dict:
    row = trees.map(lambda array: array[i], steps)
    return {**row, 'dones': bool(row['dones'])}


def _replay_d4rl(case) -> Pairs:
    raw = _subtree(case.tensors, 'fn/raw')
    default = d4rl.to_dataset(raw)
    subjects = {
        'default': lambda: default,
        'split_source': lambda: default,
        'mjrl_fallback': lambda: default,  # the original's second source of the same arrays
        'no_clip': lambda: d4rl.to_dataset(raw, clip_to_eps=False),
        'antmaze_rewards': lambda: d4rl.shape_rewards(default, 'antmaze'),
        'locomotion_rewards': lambda: d4rl.shape_rewards(default, 'hopper'),
        'filtered': lambda: episodes.filter_returns(default, take_top=_TAKE_TOP),
    }
    for name in _children(case.tensors, 'fn'):
        if name in subjects:
            yield from _named(f'fn/{name}/out', subjects[name]())
        elif name.startswith('eps_'):
            eps = float(name.removeprefix('eps_'))
            yield from _named(f'fn/{name}/out', d4rl.to_dataset(raw, eps=eps))
        elif re.fullmatch(r'split_[\d.]+', name):
            yield from _d4rl_split(case, default, name)


def _d4rl_split(case, arrays, name: str) -> Pairs:
    ratio = float(name.removeprefix('split_'))
    train, test = episodes.split(arrays, ratio, np.random.default_rng(case.seed))
    yield from _named(f'fn/{name}/out/train', train)
    yield from _named(f'fn/{name}/out/test', test)
    at = f'fn/{name}/out/train_sample_jax'
    for key in train:
        yield from _child_sample_jax(case, train, f'{at}/{key}', key)


def _replay_binary(case) -> Pairs:
    demonstrations = _trajectories(case, 'fn/expert')
    for trajectory in demonstrations:
        for key in ('observations', 'next_observations'):
            trajectory[key] = [{'state_observation': row} for row in trajectory[key]]
    rollouts = _trajectories(case, 'fn/bc')
    subjects = {
        'default': {},
        'no_clip': {'clip_to_eps': False, 'remove_terminals': False},
        'keep_terminals': {'remove_terminals': False},
    }
    for name in _children(case.tensors, 'fn'):
        if name in subjects or name.startswith('eps_'):
            options = subjects.get(name) or {}
            if name.startswith('eps_'):
                options = {'eps': float(name.removeprefix('eps_'))}
            arrays = binary.to_dataset(demonstrations, rollouts, **options)
            yield from _named(f'fn/{name}/out', arrays)
        elif name == 'expert_only':
            yield from _named(f'fn/{name}/out', binary.to_dataset(demonstrations, None))


def _trajectories(case, prefix: str) -> list:
    trajectories = _subtree(case.tensors, prefix)
    return [trajectories[i] for i in sorted(trajectories, key=int)]


def _replay_memory_efficient(case) -> Pairs:
    return _with_unstated_seed(case, _image_ring)


def _image_ring(case, seed: int) -> Pairs:
    """Steps of episodes whose frames are recorded one by one, and samples in between."""
    capacity, num_stack = case.config['capacity'], case.config['num_stack']
    steps = list(_image_steps(_subtree(case.tensors, 'fn/input'), num_stack))
    stack = gymnasium.spaces.Box(0, 255, steps[0]['observations']['pixels'].shape, np.uint8)
    actions = gymnasium.spaces.Box(-1, 1, steps[0]['actions'].shape, np.float32)
    buffer = MemoryEfficientReplayBuffer.from_spaces(
        gymnasium.spaces.Dict({'pixels': stack}), actions, capacity
    )
    rng = np.random.default_rng(seed)
    across: dict = {}  # rows whose frames lie across the ring's end, which the original misreads
    for i, step in enumerate(steps):
        buffer.insert(step)
        for row in np.flatnonzero(buffer.is_drawable[:num_stack]):
            across.setdefault(int(buffer['rewards'][row]), (i + 1, row))
        at = f'fn/buffer/out/after{i + 1}'
        if f'{at}/size' not in case.tensors:
            continue
        yield f'{at}/insert_index', np.asarray(buffer.pointer)
        yield f'{at}/size', np.asarray(buffer.size)
        yield f'{at}/is_correct_index', buffer.is_drawable.copy()
        stored = {**buffer.arrays, 'pixels': buffer.arrays['observations']['pixels']}
        for key in ('dones', 'pixels', 'rewards'):
            yield f'{at}/stored/{key}', stored[key][: buffer.size].copy()
        for name, options in _IMAGE_SAMPLES.items():
            recorded = case.tensors[f'{at}/{name}/indices']
            idxs = buffer.random_indices(len(recorded), rng)
            yield f'{at}/{name}/indices', idxs
            batch = buffer.sample(len(idxs), rng, idxs, **options)
            for key, array in _named(f'{at}/{name}/batch', batch):
                yield key, _misread(case, key, array, buffer['rewards'][idxs], across, steps)
    wrong = [(after, row, step, 0) for step, (after, row) in across.items()]
    yield 'fn/buffer/out/wrong_stacks', np.array(wrong, dtype=np.int64)


def _misread(case, name, array, numbers, across, steps):
    """Put the recording's images where they are marked as wrong and purerl's are the right ones."""
    *_, entry, key = name.split('/')
    if key != 'pixels':
        return array
    for k, number in enumerate(numbers.astype(int)):
        right = steps[number][entry]['pixels']
        if number in across and np.array_equal(array[k][..., : right.shape[-1]], right):
            array[k] = case.tensors[name][k]
    return array


_IMAGE_SAMPLES: dict = {
    'sample0': {},
    'sample1': {'pack': True},
    'sample2': {'keys': ['observations', 'actions']},
}


def _image_steps(inputs: dict, num_stack: int):
    start = number = 0
    for length in inputs['episode_lengths']:
        frames = inputs['frames']['pixels'][start : start + length + 1]
        start += length + 1
        for i in range(length):
            # The first frame is repeated before the episode.
            now, following = (
                np.stack([frames[max(j, 0)] for j in range(t - num_stack + 1, t + 1)], -1)
                for t in (i, i + 1)
            )
            yield {
                'observations': {'pixels': now},
                'actions': inputs['actions'][number],
                'rewards': np.float32(number),
                'masks': np.float32(i < length - 1),
                'dones': bool(i == length - 1),
                'next_observations': {'pixels': following},
            }
            number += 1


_JAXRL5_SUBJECTS = {
    'binary': _replay_binary,
    'core': _replay_core,
    'replay_buffer': _replay_buffers,
    'memory_efficient_wrap': _replay_memory_efficient,
    'd4rl': _replay_d4rl,
}
