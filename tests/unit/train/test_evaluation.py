"""Evaluation: statistics by hand, the chain of keys, and videos."""

import importlib.util

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box

from purerl.core import random
from purerl.envs.make import make
from purerl.envs.wrappers import EpisodeMonitor
from purerl.train import evaluation
from purerl.train.config import RunError
from purerl.train.evaluation import (
    check_renders,
    evaluate,
    evaluate_batched,
    policy_of,
    statistics,
    to_numpy,
    video_grid,
    write_video,
)


class Lengthening(gymnasium.Env):
    """Episode n has n + 1 steps; the reward of a step is the action; observes the step's index."""

    observation_space = Box(-np.inf, np.inf, (1,), np.float32)
    action_space = Box(-1.0, 1.0, (1,), np.float32)
    render_mode = 'rgb_array'

    def __init__(self, start=0):
        self.episode = start - 1

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self.episode = seed - 1
        self.episode += 1
        self.step_count = 0
        return np.zeros(1, dtype=np.float32), {}

    def step(self, action):
        self.step_count += 1
        done = self.step_count == self.episode + 1
        observation = np.full(1, self.step_count, dtype=np.float32)
        info = {'note': 'text', 'x': {'y': np.int64(self.step_count), 'z': np.ones(2)}}
        return observation, float(action[0]), done, False, info

    def render(self):
        return np.full((2, 3, 3), self.step_count, dtype=np.uint8)


def constant(value):
    return lambda observation, key: np.full(1, value, dtype=np.float32)


def test_statistics_are_means_of_the_last_infos_and_spread_of_the_returns():
    stats, trajectories, renders = evaluate(
        constant(0.5), EpisodeMonitor(Lengthening()), 3, random.key(0), keep_trajectories=True
    )
    assert renders == []
    # The returns are 0.5, 1 and 1.5.
    assert stats == {
        'x.y': 2.0,
        'total.timesteps': pytest.approx((1 + 3 + 6) / 3),
        'episode.final_reward': 0.5,
        'episode.return': 1.0,
        'episode.length': 2.0,
        'episode.return_std': pytest.approx(np.sqrt(1 / 6)),
        'episode.return_min': 0.5,
        'episode.return_max': 1.5,
    }
    assert all(type(value) is float for value in stats.values())
    last = trajectories[2]
    np.testing.assert_array_equal(last['observations'], [[0], [1], [2]])
    np.testing.assert_array_equal(last['next_observations'], [[1], [2], [3]])
    np.testing.assert_array_equal(last['rewards'], [0.5, 0.5, 0.5])
    np.testing.assert_array_equal(last['dones'], [False, False, True])
    assert last['infos'][-1]['episode']['length'] == 3


def test_an_environment_without_monitor_gets_one():
    assert evaluate(constant(0.5), Lengthening(), 1, random.key(0))[0]['episode.return'] == 0.5


def test_actions_are_clipped_into_the_bounds():
    stats, trajectories, _ = evaluate(
        constant(7.0), Lengthening(), 1, random.key(0), keep_trajectories=True
    )
    assert stats['episode.return'] == 1.0
    assert trajectories[0]['actions'] == 1.0


def test_the_policy_sees_normalised_observations_and_the_chain_of_keys():
    seen = []

    def policy(observation, key):
        seen.append((observation, key))
        return np.zeros(1, dtype=np.float32)

    evaluate(
        policy, Lengthening(), 2, random.key(7), normalize=lambda x: torch.as_tensor(x) * 10 + 1
    )
    np.testing.assert_array_equal([o for o, _ in seen], [[1], [1], [11]])
    key = random.key(7)
    for _, used in seen:
        key, expected = random.split(key)
        assert torch.equal(used, expected)


def test_a_seed_makes_evaluations_repeatable():
    env = make('Pendulum-v1', seed=1, max_episode_steps=10)

    def noisy(observation, key):
        return random.uniform(key, (1,), -1.0, 1.0).numpy()

    first = evaluate(noisy, env, 2, random.key(0), seed=5)[0]['episode.return_max']
    assert evaluate(noisy, env, 2, random.key(0), seed=5)[0]['episode.return_max'] == first
    assert evaluate(noisy, env, 2, random.key(0), seed=6)[0]['episode.return_max'] != first
    assert evaluate(noisy, env, 2, random.key(1), seed=5)[0]['episode.return_max'] != first


def test_video_episodes_are_rendered_and_left_out_of_the_statistics():
    stats, trajectories, renders = evaluate(
        constant(1.0), Lengthening(6), 1, random.key(0), video_episodes=2, video_frame_skip=3
    )
    assert stats['episode.length'] == 7
    assert trajectories == []  # they were not asked for
    # Episodes of 8 and 9 steps: every third one and the last.
    assert [render[:, 0, 0, 0].tolist() for render in renders] == [[3, 6, 8], [3, 6, 9]]


def test_filming_the_first_episode_changes_no_figure():
    stats, trajectories, renders = evaluate(
        constant(1.0),
        Lengthening(6),
        2,
        random.key(0),
        video_frame_skip=3,
        film_first=True,
        keep_trajectories=True,
    )
    expected, _, none = evaluate(constant(1.0), Lengthening(6), 2, random.key(0))
    assert (stats, none) == (expected, [])
    assert [len(trajectory['dones']) for trajectory in trajectories] == [7, 8]
    assert [render[:, 0, 0, 0].tolist() for render in renders] == [[3, 6, 7]]


def test_impossible_evaluations_are_refused():
    with pytest.raises(ValueError, match='at least one episode'):
        evaluate(constant(0.0), Lengthening(), 0, random.key(0))
    with pytest.raises(ValueError, match='render_mode=None this one renders NoneType'):
        evaluate(constant(0.0), make('Pendulum-v1'), 1, random.key(0), video_episodes=1)


class Modeless(Lengthening):
    """Renders arrays without a mode, as OGBench's manipulation environments do."""

    render_mode = None


class Broken(Lengthening):
    def render(self):
        raise RuntimeError('an OpenGL platform library has not been loaded')


class Mute(Lengthening):
    def render(self):
        return None


def test_what_counts_is_what_render_returns():
    check_renders(Modeless())
    _, _, renders = evaluate(constant(1.0), Modeless(), 1, random.key(0), video_episodes=1)
    assert renders[0].shape == (1, 2, 3, 3)
    with pytest.raises(ValueError, match=r'an OpenGL platform .*MUJOCO_GL=egl'):
        check_renders(Broken())
    with pytest.raises(ValueError, match="render_mode='rgb_array' this one renders NoneType"):
        check_renders(Mute())


def test_statistics_leave_out_what_is_no_number():
    info = {'episode': {'return': 2.0}, 'goal': None, 'name': 'a', 'qpos': np.ones(3), 'xs': [1.0]}
    assert statistics([info]) == {
        'episode.return': 2.0,
        'episode.return_std': 0.0,
        'episode.return_min': 2.0,
        'episode.return_max': 2.0,
    }


def test_batched_evaluation_covers_the_same_episodes():
    batches = []

    def policy(observations, key):
        batches.append(observations[:, 0].tolist())
        return np.full((len(observations), 1), 0.5, dtype=np.float32)

    stats = evaluate_batched(policy, [Lengthening(), Lengthening()], 4, random.key(0), seed=1)
    # Seeds 1 and 2 make episodes of 2 and 3 steps, then of 3 and 4.
    assert stats['episode.length'] == (2 + 3 + 3 + 4) / 4
    assert stats['episode.return_max'] == 2.0
    assert batches[:3] == [[0, 0], [1, 1], [2, 2]]
    assert len(batches) == 3 + 4
    with pytest.raises(ValueError, match='3 episodes are not a multiple of 2'):
        evaluate_batched(policy, [Lengthening(), Lengthening()], 3, random.key(0))


class SampleAgent:
    def sample_actions(self, observations, seed, temperature, latents=0.0):
        return observations + seed[0] + temperature + latents


def test_policy_of_passes_key_temperature_and_further_inputs():
    policy = policy_of(SampleAgent(), temperature=0.25, latents=100.0)
    result = policy(torch.zeros(2), torch.tensor([5, 6]))
    assert isinstance(result, np.ndarray)
    np.testing.assert_array_equal(result, [105.25, 105.25])


class CountingAgent:
    def __init__(self, calls=0):
        self.calls = calls

    def eval_actions(self, observations):
        return torch.full((1,), float(self.calls)), CountingAgent(self.calls + 1)


def test_policy_of_threads_an_agent_that_acts_with_its_own_key():
    agent = CountingAgent()
    policy = policy_of(agent)
    assert [policy(None, None).item() for _ in range(3)] == [0, 1, 2]
    assert agent.calls == 0


class BareAgent:
    def eval_actions(self, observations):
        return torch.ones(2)


def test_policy_of_takes_actions_that_come_alone():
    np.testing.assert_array_equal(policy_of(BareAgent())(None, None), [1.0, 1.0])


def test_to_numpy_detaches():
    assert to_numpy(torch.ones(1, requires_grad=True)) == np.ones(1)


def test_the_grid_pads_with_dimmed_frames_borders_and_black_cells():
    long = np.full((2, 2, 2, 3), 100, dtype=np.uint8)
    short = np.full((1, 2, 2, 3), 80, dtype=np.uint8)
    grid = video_grid([long, short, long])
    assert grid.shape == (2, 8, 8, 3)
    row = [0, 100, 100, 0, 0, 80, 80, 0]
    np.testing.assert_array_equal(grid[0, 1, :, 0], row)
    np.testing.assert_array_equal(grid[1, 1, :, 0], [0, 100, 100, 0, 0, 40, 40, 0])
    np.testing.assert_array_equal(grid[0, 0], np.zeros((8, 3)))
    np.testing.assert_array_equal(grid[0, 5, :, 0], [0, 100, 100, 0, 0, 0, 0, 0])
    with pytest.raises(ValueError, match='no rendered episodes'):
        video_grid([])
    with pytest.raises(ValueError, match=r'uint8, not .*float32'):
        video_grid([long.astype(np.float32)])


def renders_of(lengths, size=(31, 20)):
    rng = np.random.RandomState(0)
    return [rng.randint(256, size=(t, *size, 3)).astype(np.uint8) for t in lengths]


def test_mp4_can_be_read_back(tmp_path):
    import imageio_ffmpeg

    path = write_video(tmp_path / 'video.mp4', renders_of([4, 6]), fps=10)
    reader = imageio_ffmpeg.read_frames(str(path))
    meta = next(reader)
    # Two columns of 20 + 2 pixels; the height of 31 + 2 becomes even.
    assert meta['size'] == (44, 34)
    assert meta['fps'] == 10
    assert len(list(reader)) == 6
    assert [file.name for file in tmp_path.iterdir()] == ['video.mp4']


def test_without_ffmpeg_a_gif_is_written(tmp_path, monkeypatch):
    from PIL import Image

    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        'find_spec',
        lambda name: None if name == 'imageio_ffmpeg' else find_spec(name),
    )
    path = write_video(tmp_path / 'video.mp4', renders_of([5]))
    assert path.name == 'video.gif'
    with Image.open(path) as image:
        assert (image.n_frames, image.size) == (5, (22, 33))


@pytest.mark.parametrize('suffix', ['mp4', 'gif'])
def test_a_full_disk_is_one_line(tmp_path, monkeypatch, suffix):
    def write(*_):
        raise OSError('Broken pipe\n\nFFMPEG COMMAND: ...')

    monkeypatch.setattr(evaluation, f'_write_{suffix}', write)
    with pytest.raises(RunError, match=rf'a\.{suffix} could not be written \(Broken pipe\); free'):
        write_video(tmp_path / f'a.{suffix}', renders_of([2]))


def test_without_any_package_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'purerl\[plot\]'"):
        write_video(tmp_path / 'video.mp4', renders_of([2]))
    with pytest.raises(ValueError, match=r"pip install 'purerl\[plot\]'"):
        check_renders(None)
