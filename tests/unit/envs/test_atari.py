"""Atari preprocessing: frames, no-ops, time limits, lives, snapshots."""

import gymnasium
import numpy as np
import pytest

from purerl.envs import atari
from purerl.envs.episodic import EpisodicRewards, check_actions, make_episodic
from purerl.envs.snapshot import check_resumable, env_state, set_env_state
from purerl.train.evaluation import check_renders


class Game:
    """Counts its frames: the n-th screen is all n; ends after `length` steps; a life per 5."""

    num_actions = 3

    def __init__(self, length=100):
        self.length, self.frame, self.resets, self.actions = length, 0, 0, []

    @property
    def lives(self):
        return 20 - self.frame // 5

    def reset(self):
        self.frame, self.resets = 0, self.resets + 1

    def step(self, action):
        self.frame += 1
        self.actions.append(action)
        return 1.0, self.frame >= self.length

    def screen(self):
        return np.full((210, 160, 3), self.frame, np.uint8)

    def seed(self, seed):
        self.frame = 0


def shown(observation):
    return observation[0, 0].tolist()


def test_frames_no_ops_and_stack():
    env = atari.AtariEnv(Game(), 50, noop=10, frames=3)
    observation, _ = env.reset()
    assert observation.shape == (84, 84, 3) and observation.dtype == np.uint8
    assert shown(observation) == [8, 9, 10]
    assert env.game.actions == [0] * 10
    observation, reward, terminated, truncated, _ = env.step(2)
    assert shown(observation) == [9, 10, 11] and reward == 1
    assert not (terminated or truncated) and env.game.actions[-1] == 2


def test_the_time_limit_truncates_and_the_games_end_terminates():
    env = atari.AtariEnv(Game(length=16), 50, noop=0, frames=2)
    env.reset()
    ends = [env.step(0)[2:4] for _ in range(14)]
    assert ends == [(False, False)] * 13 + [(True, False)]
    env = atari.AtariEnv(Game(), 3, noop=0, frames=2)
    env.reset()
    assert [env.step(0)[2:4] for _ in range(3)] == [(False, False)] * 2 + [(False, True)]


def test_a_game_that_ends_during_the_no_ops_starts_again():
    class Short(Game):
        def reset(self):
            super().reset()
            self.length = 2 if self.resets < 3 else 100

    env = atari.AtariEnv(Short(), 50, noop=8, frames=2)
    assert shown(env.reset()[0]) == [7, 8]
    assert env.game.resets == 3


def test_lives_end_episodes_and_the_game_goes_on():
    env = atari.AtariEnv(Game(), 50, noop=0, frames=2, life_loss_ends=True)
    env.reset()
    ends = [env.step(0)[2] for _ in range(3)]
    assert ends == [False, False, True]  # frame 5
    observation, _ = env.reset()
    assert env.game.resets == 1 and shown(observation) == [4, 5]
    assert [env.step(0)[2] for _ in range(5)] == [False] * 4 + [True]


@pytest.mark.parametrize('options', [{'frames': 0}, {'noop': -1}, {'max_episode_steps': 0}])
def test_options_are_checked(options):
    with pytest.raises(ValueError, match='must be at least 1'):
        atari.AtariEnv(Game(), **{'max_episode_steps': 5, **options})


def test_weights_of_the_area_interpolation():
    for size in (210, 160, 84, 300):
        pixels, weights = atari._taps(size)
        np.testing.assert_allclose(weights.sum(0), 1, atol=1e-6)
        centres = (pixels * weights).sum(0) + 0.5
        np.testing.assert_allclose(centres, (np.arange(84) + 0.5) * size / 84, atol=0.15)
    flat = np.full((210, 160), 77, np.uint8)
    assert (atari.resize_area(flat) == 77).all()
    assert atari.to_grey(np.uint8([[[255, 0, 0], [0, 255, 0], [0, 0, 255]]])).tolist() == [
        [76, 150, 29]
    ]


def test_games():
    names = atari.games()
    assert {'Assault', 'SpaceInvaders', 'MontezumaRevenge', 'UpNDown'} <= set(names)
    assert atari.is_atari('Assault') and not atari.is_atari('Ant-v5')
    assert not atari.is_atari('walker_flip')
    with pytest.raises(ValueError, match='nearest names are Assault'):
        atari.make_atari('Asault')


def play(env, count, offset=0):
    rows = []
    for i in range(count):
        observation, reward, *_ = env.step((i + offset) % env.action_space.n)
        rows.append((observation.sum(), reward))
    return rows


@pytest.mark.parametrize('options', [{}, {'sticky': True}, {'frame_max': True}])
def test_seeds_determine_games(options):
    runs = []
    for seed in (1, 1, 2):
        env = atari.make_atari('Breakout', seed=seed, **options)
        env.reset()
        runs.append(play(env, 60))
        env.close()
    assert runs[0] == runs[1]
    assert (runs[0] == runs[2]) == ('sticky' not in options)


def test_snapshots_go_on_frame_for_frame():
    env, other = (make_episodic('Assault', seed=s, sticky=True, frame_max=True) for s in (1, 2))
    env.reset()
    play(env, 30)
    check_resumable(env)
    state = env_state(env)
    expected = play(env, 40, 30)
    set_env_state(other, state)
    assert play(other, 40, 30) == expected
    check_renders(other)


def test_snapshots_of_sticky_games_go_on_in_another_emulator():
    """Whatever action that one executed last, which the emulator's own snapshots do not hold."""
    game, other = (atari.Game('breakout', sticky=True, frame_max=False) for _ in range(2))
    rng = np.random.default_rng(0)
    for started, seed in ((game, 3), (other, 9)):
        started.seed(seed)
        started.reset()
    for _ in range(60):
        if any(game.step(int(action))[1] for action in rng.integers(game.num_actions, size=3)):
            game.reset()
        state = game.snapshot_state()
        actions = [int(action) for action in rng.integers(game.num_actions, size=6)]
        played = []
        for each in (game, other):
            each.restore_snapshot(state)
            played.append([(each.step(action), each.screen().tobytes()) for action in actions])
        assert played[0] == played[1]


class Emulator:
    """Writes down the actions of its frames."""

    def __init__(self):
        self.frames = []

    def act(self, action):
        self.frames.append(action)
        return 0

    def game_over(self):
        return False


@pytest.mark.parametrize('sticky', [False, True])
def test_sticky_games_repeat_a_quarter_of_the_frames(sticky):
    game = atari.Game('breakout', sticky, frame_max=False)
    game._ale, commands = Emulator(), [i % 4 for i in range(1000)]
    for command in commands:
        game.step(command)
    frames = np.reshape(game._ale.frames, (1000, 4))
    wanted = np.array([game._actions[command] for command in commands])
    # Once a frame has taken the command, the next ones repeat that.
    delays = (frames != wanted[:, None]).mean(0)
    expected = 0.25 ** np.arange(1, 5) if sticky else np.zeros(4)
    np.testing.assert_allclose(delays, expected, atol=0.05 if sticky else 0)


def test_episodic_rewards_are_paid_at_the_end():
    env = EpisodicRewards(atari.AtariEnv(Game(), 4, noop=0, frames=2))
    env.reset()
    assert [env.step(0)[1] for _ in range(4)] == [0, 0, 0, 4]
    env.reset()
    assert [env.step(0)[1] for _ in range(2)] == [0, 0]
    env.reset()  # an unfinished episode's rewards are forgotten
    assert [env.step(0)[1] for _ in range(4)] == [0, 0, 0, 4]


def test_a_reward_that_is_not_finite_is_paid_when_it_comes():
    class Infinite(Game):
        def step(self, action):
            reward, over = super().step(action)
            return (np.inf if self.frame == 4 else reward), over

    env = EpisodicRewards(atari.AtariEnv(Infinite(), 4, noop=0, frames=2))
    env.reset()
    assert [env.step(0)[1] for _ in range(2)] == [0, np.inf]


def test_both_domains_have_the_given_time_limit_and_true_statistics():
    for name in ('Pendulum-v1', 'Assault'):
        env = make_episodic(name, seed=0, max_episode_steps=7)
        env.reset()
        for _ in range(7):
            _, reward, terminated, truncated, info = env.step(env.action_space.sample())
        assert truncated and not terminated
        assert info['episode']['length'] == 7
        assert info['episode']['return'] == pytest.approx(reward)
        normal = make_episodic(name, seed=0, env_type='normal', max_episode_steps=7)
        assert not isinstance(normal, EpisodicRewards)
    with pytest.raises(ValueError, match='env_type must be ep_rews or normal'):
        make_episodic('Pendulum-v1', env_type='sparse')


def test_action_spaces_are_checked():
    pendulum, cart_pole = (gymnasium.make(name) for name in ('Pendulum-v1', 'CartPole-v1'))
    check_actions(pendulum, discrete=False)
    check_actions(cart_pole, discrete=True)
    with pytest.raises(ValueError, match='needs discrete actions'):
        check_actions(pendulum, discrete=True)
    with pytest.raises(ValueError, match='needs continuous actions'):
        check_actions(cart_pole, discrete=False)
