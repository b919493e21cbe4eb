"""Replays recordings of the RRD originals' replay buffers."""

import numpy as np

from experiments.reference.case import Case, CaseError
from experiments.reference.compare import Report
from purerl.data.episode_replay import EliteReplay, EpisodeReplay
from purerl.data.frame_replay import FrameReplay
from purerl.data.transition_replay import TransitionReplay

_KINDS = {
    'buffer_transition': TransitionReplay,
    'buffer_rrd': EpisodeReplay,
    'buffer_ircr': EliteReplay,
    'buffer_framestack_dqn': FrameReplay,
    'buffer_framestack_rrd': FrameReplay,
    'buffer_framestack_ircr': FrameReplay,
}


def replay_buffer(case: Case, report: Report) -> None:
    """Fill a buffer with the recorded transitions, and draw with the recorded seeds.

    Raises:
        CaseError: if an input is missing.
    """
    stored = {name: case.take(f'transitions/{name}').numpy() for name in _names(case)}
    ends = stored.get('real_done', stored['done'])
    rows = [_entry(stored, i) for i in range(len(ends))]
    capacity = case.config['buffer_size']
    buffer = _KINDS[case.agent](rows[0], capacity, len(rows))
    counters = []
    for row, end in zip(rows, ends, strict=True):
        buffer.append(row)
        if end:
            buffer.commit()
        counters.append(_counters(buffer, capacity))
    if case.agent == 'buffer_transition' and buffer.pending:
        buffer.commit()  # the original keeps single transitions, of unfinished episodes too
    report.compare('state', 'state/counters_after_each_store', np.array(counters))
    _compare_state(case, report, buffer)
    for op in case.ops:
        report.stage = f'sample/{op["n"]}'
        batch = _sample(case, buffer, op)
        report.compare_tree('batch', f'sample/{op["n"]}', _recorded_names(case, batch))


def _names(case):
    # The newest frame is the last one of the next stack.
    if case.has('transitions/frame_next'):
        frames = case.take('transitions/frame_next').numpy()
        if (frames != case.tensors['transitions/obs_next'][..., -1]).any():
            raise CaseError('transitions/frame_next are not the newest frames')
    return [name for name in case.children('transitions') if name != 'frame_next']


def _entry(stored, i):
    return {
        'observations': stored['obs'][i],
        'actions': stored['acts'][i],
        'rewards': np.float64(stored['rews'][i]),
        'masks': np.float32(1 - stored['done'][i]),
        'next_observations': stored['obs_next'][i],
    }


def _counters(buffer, capacity):
    """Length, transitions and episodes ever stored, episodes dropped (-1 for single transitions).

    The original counts the transitions of an unfinished episode as stored, and makes room for each.
    """
    length, stored = buffer.length + buffer.pending, buffer.stored + buffer.pending
    if isinstance(buffer, TransitionReplay):
        return min(length, capacity), stored, buffer.episodes, -1
    dropped = 0
    while length > capacity:
        length -= buffer.lengths()[dropped]
        dropped += 1
    return length, stored, buffer.episodes, buffer.dropped + dropped


def _compare_state(case, report, buffer):
    if isinstance(buffer, TransitionReplay):
        return
    report.compare('state', 'state/ep_lengths', buffer.lengths())
    report.compare('state', 'state/ep_sum_rews', buffer.returns())
    report.compare('state', 'state/ram_idx', buffer.episode_numbers())
    if not isinstance(buffer, EliteReplay):
        return
    lengths = [len(episode['rewards']) for episode in buffer.elite]
    report.compare('state', 'state/heap_length', np.array(sum(lengths)))
    report.compare('state', 'state/heap_lengths', np.array(lengths))
    report.compare('state', 'state/heap_sum_rews', np.array([e['return'] for e in buffer.elite]))
    report.compare('state', 'state/heap_ram_idx', buffer.elite_numbers())
    low, high = buffer.bounds
    report.compare('state', 'state/fifo_min_val', np.array(low))
    report.compare('state', 'state/fifo_max_val', np.array(high))


def _sample(case, buffer, op):
    settings = {**case.config, **op['kwargs']}
    stream = np.random.RandomState(op['np_seed'])
    size = settings['batch_size']
    if case.agent.endswith('rrd'):
        return buffer.sample_subsequences(
            size,
            stream,
            settings['rrd_batch_size'],
            settings['rrd_sample_size'],
            settings['rrd_bias_correction'],
        )
    if case.agent.endswith('ircr'):
        batch = buffer.sample_returns(size, stream)
        low, high, returns = (batch.pop(k) for k in ('return_low', 'return_high', 'returns'))
        if case.agent == 'buffer_ircr':
            with np.errstate(invalid='ignore'):  # equal returns: NaN, as recorded
                returns = (returns - low) / (high - low)
        return {**batch, 'rewards': returns}
    return buffer.sample(size, stream)


def _recorded_names(case, batch):
    names = {'observations': 'obs', 'next_observations': 'obs_next', 'actions': 'acts'}
    recorded = {}
    for key, value in batch.items():
        lead, plain = ('rrd_', key[4:]) if key.startswith('rrd_') else ('', key)
        if key == 'masks':
            value = (1 - value).astype(case.tensors['sample/0/done'].dtype)
            plain = 'done'
        if value.dtype == np.uint8:
            value = np.float32(value) / np.float32(255)
        if plain in ('rewards', 'done', 'var_coef'):
            value = value[:, None]
        recorded[lead + names.get(plain, plain).replace('rewards', 'rews')] = value
    return recorded


SUBJECTS = dict.fromkeys(_KINDS, replay_buffer)
