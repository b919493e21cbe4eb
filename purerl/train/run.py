"""A run's folder: what it is made of, its checkpoints, and going on after an interruption.

<save_dir>/<run name>/
    flags.json  config.json  agent.json  versions.json     written before the first step
    *.csv  timing.csv  tensorboard/  curves.png             the records (`purerl.train.logging`)
    checkpoints/                                             (`purerl.core.checkpoint`)
    seed_000/  seed_001/  ...                                their CSV tables, with --num_seeds
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import signal
import sys
import threading
import weakref
from pathlib import Path

import torch

from purerl.core import jit, native, parallel, trees
from purerl.core.checkpoint import (
    CheckpointError,
    available_steps,
    latest_step,
    load_checkpoint,
    replacing,
    save_checkpoint,
)
from purerl.train.config import (
    MAX_SEED,
    Agent,
    RunError,
    check_config,
    find_file,
    is_wide,
    seed_setting,
    setting,
)
from purerl.train.logging import TABLES, TIMING, NoLogger, RunLogger, Wandb, check_wandb

_FILES = (
    'config.json',
    'agent.json',
    'versions.json',
    'summary.json',
    'curves.png',
    'wandb_id.txt',
    TIMING,
    *(f'{name}.csv' for name in TABLES),
)
_PATTERNS = ('evaluation*.json', 'seed_[0-9]*', 'checkpoints', 'tensorboard', 'videos', 'wandb')
_PACKAGES = ('torch', 'numpy', 'gymnasium', 'mujoco', 'ogbench', 'minari', 'ml-collections')


@dataclasses.dataclass(frozen=True)
class RunSettings:
    """The settings that all loops have."""

    seed: int = seed_setting(0, 'Random seed; it determines the whole run.')
    num_seeds: int = setting(
        1, 'Train the seeds seed, seed + 1, ... in one program, each in seed_<i>/.', minimum=1
    )
    save_dir: str = setting('runs', 'Folder of the runs.', free=True)
    run_name: str | None = setting(
        None,
        "The run's folder inside save_dir; by default <environment>/<agent>_sd<seed>_<hash of "
        'settings and config>.',
        free=True,
    )
    resume: bool = setting(
        False, 'Go on from the latest checkpoint of the same run, if there is one.', free=True
    )
    overwrite: bool = setting(False, "Delete the folder's earlier run and start over.", free=True)
    keep_checkpoints: int = setting(
        1, 'How many checkpoints to keep; 0 keeps all.', minimum=0, free=True
    )
    device: str = setting(
        'cpu',
        'Where the agent computes: cpu, cuda, cuda:1, ... It is created on the CPU, so that its '
        'parameters are the same everywhere; environments and replay buffers stay there.',
        free=True,
    )
    jit: str = setting(
        'auto',
        'inductor: generated code (slow to start, fast); trace: traced graphs; off: eager; auto: '
        'by the planned number of updates. A resumed run keeps the mode that it started with.',
        choices=('auto', *jit.MODES),
    )
    tqdm: bool = setting(True, 'Show a progress bar.', free=True)
    tensorboard: bool = setting(
        True, 'Write TensorBoard events, where tensorboard is installed.', free=True
    )
    wandb: bool = setting(False, 'Log to Weights & Biases too.', free=True)
    wandb_project: str = setting('purerl', 'Its project.', free=True)
    wandb_run_group: str | None = setting(None, 'Its run group.', free=True)
    wandb_mode: str = setting(
        'online', 'Its mode.', choices=('online', 'offline', 'disabled'), free=True
    )

    @property
    def seeds(self) -> range:
        return range(self.seed, self.seed + self.num_seeds)


@dataclasses.dataclass(frozen=True)
class ReplaySettings(RunSettings):
    """The settings that loops with a replay buffer have."""

    device_replay: bool = setting(
        False,
        "Keep the replay buffer on the device, too; its batches are the same. (jaxrl5's buffer of "
        'images that are stored once stays on the CPU.)',
        free=True,
    )

    @property
    def replay_device(self) -> str | None:
        """Where the replay buffer lies; None for numpy arrays."""
        return self.device if self.device_replay else None


class Run:
    """One run: its folder, its records, its checkpoints, and how it is stopped.

    After `begin` it is a context manager, which opens and closes the records, sets the compilation
    mode, and turns SIGINT and SIGTERM into `stop_requested`.

    Where several processes train one agent (`purerl.core.parallel`) the first one has the folder;
    each makes the same calls.

    Attributes:
        folder: where everything lies.
        start: the step that a resumed run goes on from, else 0.
        logger: the records, inside the context.
    """

    def __init__(
        self, loop: str, agent: Agent, settings, environment: str, several_processes: bool = False
    ):
        """Find the folder; nothing is written before `begin`.

        Args:
            loop: which loop it is: the name of its launcher in `experiments`.
            agent: what is trained.
            settings: the loop's settings.
            environment: name of the environment, for the folder's name.
            several_processes: whether the loop divides batches among them.

        Raises:
            RunError: if there is an earlier run in the folder, and neither resume nor overwrite
                was asked for; if it was started with other settings; if the agent's config has a
                number that no agent can have; if the last seed is too large; if there is no such
                device; or if torchrun has started several processes of a loop that has one.
        """
        num = parallel.launched()
        if num > 1 and not several_processes:
            raise RunError(
                f'torchrun has started {num} processes, but experiments.{loop} trains in one: '
                'start it without torchrun (experiments.offline and experiments.pretrain_finetune '
                'divide their batches among several)'
            )
        check_config(agent)
        use_device(parallel.device_of(settings.device))
        if settings.seeds[-1] > MAX_SEED:
            raise RunError(f'seed + num_seeds - 1 must be at most {MAX_SEED}')
        self.loop = loop
        self.agent = agent
        self.settings = settings
        self.folder = Path(settings.save_dir).expanduser() / (
            settings.run_name or self._automatic_name(environment)
        )
        self.logger: RunLogger | NoLogger | None = None
        self._mode, self._total = 'off', 0  # set by `begin`
        self._stack = contextlib.ExitStack()
        self._stop_signal: int | None = None
        self.start = parallel.first(self._check_folder)
        if settings.wandb:
            check_wandb()

    def _automatic_name(self, environment):
        settings = {
            field.name: getattr(self.settings, field.name)
            for field in dataclasses.fields(self.settings)
            if not field.metadata['free']
        }
        text = json.dumps([self.loop, settings, _jsonable(self.agent.config)], sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        name = environment.replace(os.sep, '_').replace(':', '_')
        return Path(name) / f'{self.agent.name}_sd{self.settings.seed:03d}_{digest}'

    # --- Starting ----------------------------------------------------------------------------

    def _check_folder(self) -> int:
        """Return the step that the run goes on from."""
        if self.settings.resume and self.settings.overwrite:
            raise RunError('resume goes on with the earlier run, overwrite deletes it: choose one')
        if not self.folder.exists():
            return 0
        if not self.folder.is_dir():
            raise RunError(f'{self.folder} is a file; choose another run_name')
        has_run = (self.folder / 'flags.json').exists()
        if self.settings.resume:
            if has_run:
                self._check_same()
                return latest_step(self.folder / 'checkpoints') or 0
            if any(self.folder.rglob('*.csv')):
                raise RunError(
                    f'{self.folder} holds CSV files, but no run to go on with: choose another '
                    '--run_name'
                )
        elif any(self.folder.iterdir()):
            if not has_run:
                raise RunError(
                    f'{self.folder} holds files, but no run that could be overwritten: choose '
                    'another --run_name'
                )
            if not self.settings.overwrite:
                raise RunError(
                    f'{self.folder} holds an earlier run: go on with it (--resume), delete it '
                    '(--overwrite) or choose another --run_name'
                )
        return 0

    @property
    def resuming(self) -> bool:
        """Whether there is an earlier run to go on with."""
        return self.settings.resume and (self.folder / 'flags.json').exists()

    def _check_same(self):
        stored = read_flags(self.folder)
        if stored['loop'] != self.loop:
            raise RunError(f'{self.folder} is a run of experiments.{stored["loop"]}')
        for field in dataclasses.fields(self.settings):
            before = stored.get(field.name, field.default)
            now = getattr(self.settings, field.name)
            if not field.metadata['free'] and before != now:
                raise RunError(
                    f'{self.folder} was started with --{field.name}={before}, not {now}; resume '
                    'with the same settings, or start another run'
                )
        if stored['agent'] != self.agent.path:
            raise RunError(
                f'{self.folder} was started with --agent={stored["agent"]}, not {self.agent.path}'
            )
        before, now = read_json(self.folder / 'config.json'), _jsonable(self.agent.config)
        for key in sorted({*before, *now}):
            if before.get(key) != now.get(key):
                raise RunError(
                    f'{self.folder} was started with --agent.{key}={before.get(key)}, not '
                    f'{now.get(key)}; resume with the same config, or start another run'
                )
        before = read_json(self.folder / 'versions.json').get('processes', 1)
        if before != parallel.size():
            raise RunError(
                f'{self.folder} was started in {before} processes, not {parallel.size()}; resume '
                'in as many, or start another run'
            )

    def begin(self, planned_updates: int, total: int, example_batch: dict) -> None:
        """Write what the run is made of, or compare it with what an earlier one wrote.

        Args:
            planned_updates: number of updates of a seed, from which the compilation mode is chosen.
            total: number of steps, for the progress bar.
            example_batch: `observations` and `actions` of which agents are created.

        Raises:
            RunError: if the folder cannot be written, another process writes into it, or the
                checkpoint lies beyond the last step.
        """
        if self.start > total:
            raise RunError(f'{self.folder} is at step {self.start} already, beyond {total}')
        self._mode, threads = parallel.first(lambda: self._set_up(planned_updates, example_batch))
        if threads is not None:
            torch.set_num_threads(threads)
        self._total = total

    def _set_up(self, planned_updates, example_batch):
        """Make or check the folder; return the compilation mode and a resumed run's threads."""
        mode = self._choose_mode(planned_updates)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock()
            if self.settings.overwrite:
                _delete_run(self.folder)
            for folder in self.seed_folders:
                folder.mkdir(exist_ok=True)
        except OSError as error:
            raise RunError(f'{self.folder} cannot be written ({error})') from error
        if self.resuming:
            versions = self._check_versions()
            return versions['jit'], versions['threads']
        self._write_description(mode, example_batch)
        return mode, None

    def _lock(self):
        """Keep other processes out of the folder until the run ends, however it ends."""
        descriptor = os.open(self.folder, os.O_RDONLY)
        self._stack.callback(weakref.finalize(self, os.close, descriptor))
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(
                f'{self.folder}: another process is writing this run; wait for its end, stop it, '
                'or choose another --run_name'
            ) from None
        except OSError:
            pass  # a file system without locks
        if self._check_folder() != self.start:
            raise RunError(
                f'{self.folder}: another process has gone on with this run meanwhile; resume again'
            )

    @property
    def seed_folders(self) -> list[Path]:
        if self.settings.num_seeds == 1:
            return [self.folder]
        return [self.folder / f'seed_{i:03d}' for i in range(self.settings.num_seeds)]

    def _choose_mode(self, planned_updates):
        if self.settings.jit != 'auto':
            return self.settings.jit
        if 'PURERL_JIT' in os.environ:
            try:
                return jit.get_mode()
            except ValueError as error:
                raise RunError(f'PURERL_JIT: {error}') from error
        updates = planned_updates * self.settings.num_seeds
        return jit.mode_for(updates, is_wide(self.agent.config))

    def _write_description(self, mode, example_batch):
        flags = {'loop': self.loop, 'agent': self.agent.path, **dataclasses.asdict(self.settings)}
        examples = trees.map(_description, dict(example_batch))
        versions = {
            **_versions(self.agent, self.settings.device),
            'jit': mode,
            'threads': torch.get_num_threads(),
            'processes': parallel.size(),
        }
        write_json(self.folder / 'config.json', _jsonable(self.agent.config))
        write_json(self.folder / 'agent.json', examples)
        write_json(self.folder / 'versions.json', versions)
        # Last, because this file is what makes the folder a run's.
        write_json(self.folder / 'flags.json', flags)

    def _check_versions(self):
        written = read_json(self.folder / 'versions.json', 'jit', 'threads')
        before = {'device': 'cpu', **written}
        for key, now in _versions(self.agent, self.settings.device).items():
            if before.get(key) != now:
                print(
                    f'warning: {key} was {before.get(key)} when this run started and is {now} now: '
                    'the results may differ in their last bits',
                    file=sys.stderr,
                )
        return before

    def _open_logger(self):
        settings = self.settings
        tensorboard = settings.tensorboard
        if tensorboard and importlib.util.find_spec('tensorboard') is None:
            print("no TensorBoard events: pip install 'purerl[logging]'", file=sys.stderr)
            tensorboard = False
        wandb = None
        if settings.wandb:
            options = {
                'project': settings.wandb_project,
                'group': settings.wandb_run_group,
                'mode': settings.wandb_mode,
            }
            flags = {**dataclasses.asdict(settings), 'agent': _jsonable(self.agent.config)}
            wandb = Wandb(self.folder, options, flags)
        print(f'run folder: {self.folder}  (compilation: {self._mode}, from step {self.start})')
        return RunLogger(
            self.folder,
            self.seed_folders,
            start=self.start,
            total=self._total,
            tensorboard=tensorboard,
            wandb=wandb,
            progress=settings.tqdm,
        )

    # --- Running -----------------------------------------------------------------------------

    def __enter__(self):
        self.logger = NoLogger() if parallel.rank() else self._open_logger()
        native.keep_freed_memory()
        self._stack.enter_context(jit.use_mode(self._mode))
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                before = signal.signal(number, self._request_stop)
                self._stack.callback(signal.signal, number, before)
        self._stack.callback(self.logger.close)
        return self

    def __exit__(self, *exception):
        self._stack.close()

    def _request_stop(self, number, frame):
        self._stop_signal = number
        if parallel.size() == 1:
            # A second signal acts at once. (torchrun sends its processes what they may have got.)
            signal.signal(number, signal.default_int_handler)
        print('\nstopping after this step ...', file=sys.stderr, flush=True)

    @property
    def stop_requested(self) -> bool:
        """Whether a signal asks for the end; several processes ask together, and all agree."""
        agreed = parallel.largest(self._stop_signal or 0)
        if agreed:
            self._stop_signal = agreed
        return agreed > 0

    def restore(self, like) -> tuple:
        """Return the latest checkpoint's tree and host state, and cut the records back to it.

        Without a checkpoint (killed before the first one) it is `like` and None, and the records
        start over.

        Raises:
            RunError: if the checkpoint is damaged or of another architecture.
        """
        if not self.start:
            self.logger.restore([{} for _ in self.seed_folders])
            return like, None
        checkpoints = self.folder / 'checkpoints'
        try:
            tree, host_state, _ = load_checkpoint(checkpoints, self.start, like=like)
        except CheckpointError as error:
            choices = ['start over with --overwrite']
            older = [step for step in available_steps(checkpoints) if step < self.start]
            if older:
                choices.append(f'delete its files to go on from step {older[-1]}')
            raise RunError(f'{error}; {", or ".join(choices)}') from error
        self.logger.restore(host_state['records'])
        return tree, host_state['state']

    def save(self, step: int, tree, state: dict) -> None:
        """Write a checkpoint.

        Args:
            step: the step that has just been finished.
            tree: the agent, or the agents of all seeds stacked.
            state: everything else that the loop needs to go on (see `save_checkpoint`).

        Raises:
            RunError: if it cannot be written, or several processes do not hold the same agent; the
                checkpoints before it are as they were.
        """
        path = parallel.difference(tree)
        if path is not None:
            raise RunError(
                f'the processes no longer hold the same agent after step {step}: {path} differs. '
                'What an agent computes from its batch and keeps, gradients apart, has to be '
                'averaged with purerl.core.parallel.pmean'
            )
        parallel.first(lambda: self._write_checkpoint(step, tree, state))

    def _write_checkpoint(self, step, tree, state):
        host_state = {'state': state, 'records': self.logger.state()}
        keep = self.settings.keep_checkpoints or None
        try:
            save_checkpoint(self.folder / 'checkpoints', step, tree, host_state, keep)
        except CheckpointError as error:
            last = latest_step(self.folder / 'checkpoints') or 0
            raise RunError(
                f'{error}. The run stopped at step {step}; free disk space and go on from step '
                f'{last}: {self._how_to_resume()}'
            ) from error

    def stop(self, step: int) -> None:
        """End the program after a signal, with the exit status that belongs to it.

        Raises:
            SystemExit: always.
        """
        self.logger.close()
        print(f'stopped after step {step}. Go on with: {self._how_to_resume()}', file=sys.stderr)
        raise SystemExit(128 + self._stop_signal)

    def _how_to_resume(self):
        return f'the same command and --resume (the run is {self.folder})'

    def plot(self) -> Path | None:
        """Draw `curves.png`, where matplotlib is installed and there is a curve to draw."""
        if importlib.util.find_spec('matplotlib') is None:
            print("no curves.png: pip install 'purerl[plot]'", file=sys.stderr)
            return None
        from purerl.train.plotting import plot_run

        try:
            return plot_run(self.folder)
        except FileNotFoundError:  # nothing has been recorded yet
            return None
        except (OSError, ValueError) as error:
            print(f'no curves.png: {error}', file=sys.stderr)
            return None


# --- Files -----------------------------------------------------------------------------------


def write_json(path: Path, content) -> None:
    """Write a JSON file, whole or not at all.

    Raises:
        CheckpointError: if it cannot be written.
    """
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, sort_keys=True) + '\n')


def read_json(path: Path, *keys: str) -> dict:
    """Read a JSON file of a run.

    Args:
        path: the file.
        keys: what it must have.

    Raises:
        RunError: if it is missing, damaged, no object, or lacks one of the keys.
    """
    try:
        value = json.loads(Path(path).read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f'{path} cannot be read: {error}') from error
    if not isinstance(value, dict):
        raise RunError(f'{path} is damaged: it holds no object')
    for key in keys:
        if key not in value:
            raise RunError(f'{path} is damaged: it lacks {key}')
    return value


def read_flags(folder: Path) -> dict:
    """Read `flags.json` of a run's folder.

    Raises:
        RunError: if it is missing or damaged, or not of a run of this library.
    """
    return read_json(folder / 'flags.json', 'loop', 'agent', 'seed', 'num_seeds')


def _jsonable(config) -> dict:
    return json.loads(json.dumps(config.to_dict()))


def use_device(name: str) -> None:
    """Check that a device can be used, and let it compute in float32 throughout.

    Raises:
        RunError: if it cannot be used here.
    """
    torch.backends.cudnn.allow_tf32 = False  # convolutions would round their inputs to 10 bits
    try:
        torch.zeros(1, device=name).cpu()
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = str(error).partition('. ')[0]
        raise RunError(
            f'device={name} cannot be used here ({reason}): leave --device out for the CPU, or '
            'install torch with CUDA'
        ) from error


def _device_name(name):
    return torch.cuda.get_device_name(name) if name.startswith('cuda') else name


def _versions(agent: Agent, device: str) -> dict:
    versions = {'device': _device_name(device)}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    source = find_file(agent.path).read_bytes()
    return {
        **versions,
        'python': platform.python_version(),
        'platform': platform.platform(),
        'agent_file_sha256': hashlib.sha256(source).hexdigest(),
    }


def _delete_run(folder: Path) -> None:
    """Delete what a run writes, and nothing else that may lie in its folder."""
    if not folder.exists():
        return
    paths = [path for pattern in _PATTERNS for path in folder.glob(pattern)]
    # Last what makes the folder a run's: killed before, it can be overwritten again.
    paths += [folder / name for name in (*_FILES, 'flags.json')]
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def examples_of(folder: Path) -> dict[str, torch.Tensor]:
    """Return zeros of the shapes and dtypes that a run's agents were created from."""
    specs = read_json(folder / 'agent.json', 'observations', 'actions')
    return {key: _example(spec) for key, spec in specs.items()}


def _description(array) -> dict:
    return {'shape': list(array.shape), 'dtype': str(array.dtype).removeprefix('torch.')}


def _example(spec: dict):
    if not isinstance(spec.get('dtype'), str):  # a dict of arrays
        return {key: _example(child) for key, child in spec.items()}
    return torch.zeros(spec['shape'], dtype=getattr(torch, spec['dtype']))


def create_agents(agent: Agent, seeds, example_batch: dict, device: str = 'cpu') -> list:
    """Create one agent per seed.

    Args:
        agent: the agent's file and config.
        seeds: their seeds.
        example_batch: `observations` and `actions` with one row.
        device: where to put them once they are created.

    Raises:
        RunError: if the config does not fit the agent or the environment.
    """
    observations, actions = example_batch['observations'], example_batch['actions']
    try:
        agents = [
            agent.agent_class.create(seed, observations, actions, agent.config) for seed in seeds
        ]
    except ValueError as error:
        raise RunError(f'{agent.path} cannot be created with this config: {error}') from error
    return [trees.device_put(member, device) for member in agents]
