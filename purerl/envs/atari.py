"""Atari games with DQN's preprocessing.

Counterpart of envs/normal_atari.py of Stilwell-Git/Randomized-Return-Decomposition @ bc80473, on
ale-py instead of gym 0.18 (`<Game>Deterministic-v4` and `-v0`) and without OpenCV, whose
conversion to grey and area interpolation are reproduced bit for bit.

Sticky actions are drawn here, by the emulator's rule: the action that it remembers is in none of
its snapshots.

Options that the original does not have are off by default: `frame_max`, `life_loss_ends`.
"""

import functools
import importlib.util
import re
from typing import ClassVar

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete

from purerl.envs import naming, wrappers

SIZE = 84
_FRAME_SKIP = 4
_FRAME_SKIPS = {'space_invaders': 3}  # gym's: with four, lasers are invisible
_STICKINESS = 0.25  # gym's repeat_action_probability of version 0


def games():
    """Lists the installed games by name: `SpaceInvaders`; nothing without ale-py."""
    return sorted(_roms())


def _roms():
    """Returns the ROMs' names by those of the games."""
    if importlib.util.find_spec('ale_py') is None:
        return {}
    from ale_py import roms

    return {''.join(map(str.capitalize, rom.split('_'))): rom for rom in roms.get_all_rom_ids()}


def is_atari(env_name):
    """Whether a name is a game's: `SpaceInvaders`, without a version or a namespace."""
    return re.fullmatch(r'[A-Z][A-Za-z0-9]*', env_name) is not None


def make_atari(
    env_name,
    seed=None,
    max_episode_steps=27_000,
    sticky=False,
    noop=30,
    frames=4,
    frame_max=False,
    life_loss_ends=False,
):
    """Makes a game with stacked grey frames and episode statistics.

    Args:
        env_name: A game (`games`).
        seed: Seeds the emulator, sticky actions and the spaces. None: the operating system does.
        max_episode_steps: Time limit, in steps of `frame skip` frames.
        sticky: Whether each of the emulator's frames repeats the last one's action with probability
            0.25.
        noop: Frames skipped at the start of an episode by doing nothing, those of the first
            observation included, in steps.
        frames: Frames in an observation.
        frame_max: Whether a frame is the maximum of the last two of the skipped ones.
        life_loss_ends: Whether an episode ends with each lost life (the game goes on).

    Returns:
        A `gymnasium.Env` with observations (84, 84, frames) of uint8.

    Raises:
        ImportError: If ale-py is not installed.
        ValueError: If there is no such game, or an option is out of range.
    """
    if importlib.util.find_spec('ale_py') is None:
        raise ImportError(f"{env_name} needs ale-py: pip install 'purerl[atari]'")
    if env_name not in games():
        hint = naming.nearest(env_name, games())
        raise ValueError(f'unknown Atari game {env_name!r}: {hint}')
    game = Game(_roms()[env_name], sticky, frame_max)
    env = AtariEnv(game, max_episode_steps, noop, frames, life_loss_ends)
    env = wrappers.EpisodeMonitor(env)
    if seed is not None:
        wrappers.seed_env(env, seed)
        game.seed(seed)
    return env


class Game:
    """The emulator: steps of several frames, RGB screens.

    Args:
        rom: Name of the game's ROM.
        sticky: Whether actions are sticky.
        frame_max: Whether `screen` is the maximum over the last two frames of a step.
    """

    def __init__(self, rom, sticky, frame_max):
        import ale_py
        from ale_py import roms

        ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
        self._ale = ale_py.ALEInterface()
        self._ale.setFloat('repeat_action_probability', 0.0)
        self._sticky = sticky
        self._rom_path = str(roms.get_rom_path(rom))
        self._frame_skip = _FRAME_SKIPS.get(rom, _FRAME_SKIP)
        self._frame_max = frame_max
        self._before = None  # the screen before the latest one
        self.seed(0)

    def seed(self, seed):
        """Seeds the emulator, which starts anew, and sticky actions."""
        self._ale.setInt('random_seed', seed % 2**31)
        self._ale.loadROM(self._rom_path)
        self._actions = self._ale.getMinimalActionSet()
        self._stream = np.random.default_rng(seed)
        self._executed, self._before = 0, None

    @property
    def num_actions(self):
        """How many actions make a difference in this game."""
        return len(self._actions)

    @property
    def lives(self):
        """How many lives are left; 0 in games without lives."""
        return self._ale.lives()

    def reset(self):
        """Starts a new game."""
        self._ale.reset_game()
        self._executed, self._before = 0, None

    def step(self, action):
        """Repeats an action for the frame skip; returns (reward, game over)."""
        reward = 0.0
        for i in range(self._frame_skip):
            if self._frame_max and i == self._frame_skip - 1:
                self._before = self._ale.getScreenRGB()
            if not (self._sticky and self._stream.random() < _STICKINESS):
                self._executed = action
            reward += self._ale.act(self._actions[self._executed])
        return reward, self._ale.game_over()

    def screen(self):
        """Returns the RGB screen (210, 160, 3) of uint8."""
        screen = self._ale.getScreenRGB()
        return screen if self._before is None else np.maximum(screen, self._before)

    def snapshot_state(self):
        """Returns the game's complete state (see `purerl.envs.snapshot`)."""
        system = self._ale.cloneState(include_rng=True).serialize()
        state = {'system': np.frombuffer(system, np.uint8).copy(), 'before': self._before}
        if self._sticky:
            state |= {'stream': self._stream.bit_generator.state, 'executed': self._executed}
        return state

    def restore_snapshot(self, state):
        """Goes on from what `snapshot_state` returned."""
        import ale_py

        self._ale.restoreState(ale_py.ALEState(state['system'].tobytes()))
        self._before = state['before']
        if self._sticky:
            self._stream.bit_generator.state = state['stream']
            self._executed = state['executed']


class AtariEnv(gymnasium.Env):
    """A game behind stacked frames, no-ops at the start, and a time limit.

    An episode starts as the original's: `noop - frames` steps of nothing, again from the start if
    the game ends meanwhile, then `frames` more, which fill the first observation.

    Args:
        game: A `Game`, or anything with `reset`, `step`, `screen`, `num_actions` and `lives`.
        max_episode_steps: Time limit.
        noop: As in `make_atari`.
        frames: As in `make_atari`.
        life_loss_ends: As in `make_atari`.

    Raises:
        ValueError: If an option is out of range.
    """

    metadata: ClassVar[dict] = {'render_modes': ['rgb_array']}
    render_mode = 'rgb_array'

    def __init__(self, game, max_episode_steps, noop=30, frames=4, life_loss_ends=False):
        if frames < 1 or noop < 0 or max_episode_steps < 1:
            raise ValueError(
                f'frames={frames} and max_episode_steps={max_episode_steps} must be at least 1, '
                f'noop={noop} at least 0'
            )
        self.game = game
        self.action_space = Discrete(game.num_actions)
        self.observation_space = Box(0, 255, (SIZE, SIZE, frames), np.uint8)
        self._max_episode_steps = max_episode_steps
        self._noop, self._frames, self._life_loss_ends = noop, frames, life_loss_ends
        self._steps, self._lives, self._over = 0, 0, True
        self._stack = []

    def _observation(self):
        return np.stack(self._stack, axis=-1)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self.game.seed(seed)
            self._over = True
        self._steps = 0
        if self._over or not self._life_loss_ends:
            self._start()
        self._lives = self.game.lives
        return self._observation(), {}

    def _start(self):
        over = True
        while over:
            self.game.reset()
            over = False
            for _ in range(max(self._noop - self._frames, 0)):
                _, over = self.game.step(0)
                if over:
                    break
        self._stack = []
        for _ in range(self._frames):
            self.game.step(0)
            self._stack.append(grey_frame(self.game.screen()))
        self._over = False

    def step(self, action):
        reward, self._over = self.game.step(int(action))
        self._steps += 1
        self._stack = [*self._stack[1:], grey_frame(self.game.screen())]
        lost = self._life_loss_ends and self.game.lives < self._lives
        truncated = self._steps == self._max_episode_steps
        if truncated:
            self._over = True  # a life's end goes on with the same game, a time limit does not
        terminated = bool((self._over and not truncated) or lost)
        self._lives = self.game.lives
        return self._observation(), float(reward), terminated, truncated, {}

    def render(self):
        return self.game.screen()


# --- OpenCV's arithmetic --------------------------------------------------------------------------


def grey_frame(screen):
    """Turns an RGB screen (H, W, 3) into a grey frame (84, 84) by area interpolation.

    Bit for bit what `cv2.cvtColor(screen, COLOR_RGB2GRAY)` and `cv2.resize(grey, (84, 84),
    interpolation=INTER_AREA)` give for images larger than 84 on either side.
    """
    return resize_area(to_grey(screen))


def to_grey(screen):
    """Weights red, green and blue by 0.299, 0.587 and 0.114 in 15-bit fixed point."""
    red, green, blue = (screen[..., i].astype(np.int32) for i in range(3))
    return ((red * 9798 + green * 19235 + blue * 3735 + (1 << 14)) >> 15).astype(np.uint8)


def resize_area(image):
    """Shrinks an image (H, W) of uint8 to (84, 84): each pixel is its area's weighted mean."""
    columns, column_weights = _taps(image.shape[1])
    rows, row_weights = _taps(image.shape[0])
    wide = image.astype(np.float32)
    # In OpenCV's order: taps are added one by one, columns first.
    narrow = np.zeros((image.shape[0], SIZE), np.float32)
    for taps, weights in zip(columns, column_weights, strict=True):
        narrow += wide[:, taps] * weights
    small = narrow[rows[0]] * row_weights[0][:, None]
    for taps, weights in zip(rows[1:], row_weights[1:], strict=True):
        small += narrow[taps] * weights[:, None]
    return np.rint(small).clip(0, 255).astype(np.uint8)


@functools.cache
def _taps(size):
    """Returns pixels (taps, 84) and weights (taps, 84) of float32 for one axis of `size` pixels."""
    scale = size / SIZE
    taps = [[] for _ in range(SIZE)]
    for i in range(SIZE):
        start, end = i * scale, i * scale + scale
        width = min(scale, size - start)
        first, last = int(np.ceil(start)), min(int(np.floor(end)), size - 1)
        first = min(first, last)
        if first - start > 1e-3:
            taps[i].append((first - 1, (first - start) / width))
        taps[i].extend((pixel, 1 / width) for pixel in range(first, last))
        if end - last > 1e-3:
            taps[i].append((last, min(end - last, 1.0, width) / width))
    count = max(map(len, taps))
    padded = [row + [(0, 0.0)] * (count - len(row)) for row in taps]
    pixels = np.array([[pixel for pixel, _ in row] for row in padded]).T
    weights = np.array([[weight for _, weight in row] for row in padded], np.float32).T
    return pixels, weights
