"""What a run is made from: an agent's file, its config, and the loop's settings.

    arguments = parse(sys.argv, online.Settings, default_agent='purerl/agents/jaxrl5/sac.py')
    online.train(arguments.agent, arguments.settings)

Each field of a `Settings` dataclass is a flag of that name; each field of the agent's config is
the dotted flag ``--agent.<field>``. Mistakes end the program before anything is built.

A file of configs takes an argument, as in ml_collections: ``--agent=<file>.py:<argument>`` calls
its ``get_config(argument)``. If it has ``get_settings(argument)`` too, the flags that this names
have other defaults; those given on the command line go before them.
"""

import dataclasses
import difflib
import errno
import importlib
import importlib.util
import inspect
import math
import re
import signal
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import ml_collections
from absl import flags
from ml_collections import config_flags

import purerl
from purerl.core.checkpoint import CheckpointError
from purerl.data.check import DatasetError

ROOT = Path(purerl.__file__).resolve().parent.parent
_PACKAGES = ('purerl', 'experiments')


class RunError(Exception):
    """A run that cannot go on as asked for; the message says why and what to do, in one line."""


# --- Agents ----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Agent:
    """An algorithm to train.

    Attributes:
        path: its file, relative to the library's root where it belongs to the library, with
            ``:<argument>`` where one was given.
        agent_class: the class that the file defines or imports.
        config: what the file's `get_config` returned, with overrides.
        settings: the defaults of flags that the file has for this config.
    """

    path: str
    agent_class: type
    config: ml_collections.ConfigDict
    settings: Mapping = dataclasses.field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.config.get('agent_name', self.agent_class.__name__)

    @property
    def needs(self) -> frozenset[str]:
        return self.agent_class.needs


def load_agent(path: str, overrides: Mapping | None = None) -> Agent:
    """Load an agent's file.

    Args:
        path: a Python file with `get_config()` and one agent class, with ``:<argument>`` where
            `get_config` takes one.
        overrides: config fields to replace.

    Returns:
        The agent.

    Raises:
        RunError: if there is no such file, or it is not an agent's; or for an unknown field or
            argument.
    """
    file = find_file(path)
    module = _load_module(file)
    if not callable(getattr(module, 'get_config', None)):
        raise RunError(f'{file} is no agent file: it has no function get_config()')
    _, argument = split_path(path)
    config = _call(module.get_config, argument, path)
    settings = {}
    if hasattr(module, 'get_settings'):
        settings = _call(module.get_settings, argument, path)
    for key, value in (overrides or {}).items():
        _check_key(config, key, path)
        config[key] = value
    config.lock()
    stored = _stored_path(file) if argument is None else f'{_stored_path(file)}:{argument}'
    return Agent(stored, load_agent_class(path), config, settings)


def takes_argument(path: str) -> bool:
    """Return whether an agent file's `get_config` takes an argument.

    Raises:
        RunError: if there is no such file, or it cannot be imported.
    """
    return bool(inspect.signature(_load_module(find_file(path)).get_config).parameters)


def split_path(path: str) -> tuple[str, str | None]:
    """Split ``<file>.py:<argument>`` into the file and the argument, None where there is none."""
    match = re.fullmatch(r'(.*\.py):(.*)', str(path), re.DOTALL)
    return (match[1], match[2]) if match else (str(path), None)


def _call(function, argument, path):
    """Call a function of an agent's file, with the argument where there is one."""
    parameters = inspect.signature(function).parameters.values()
    if argument is None:
        if any(parameter.default is parameter.empty for parameter in parameters):
            raise RunError(f'{path} needs an argument: --agent={path}:<argument>')
        return function()
    if not parameters:
        raise RunError(f'{split_path(path)[0]} takes no argument, so that :{argument} is too much')
    try:
        return function(argument)
    except ValueError as error:
        raise RunError(f'{path}: {error}') from error


def load_agent_class(path: str) -> type:
    """Return the one agent class of a file.

    A class that the file defines goes before those that it imports, so that an edited copy of an
    agent's file trains the copy's class, and an agent may call another one's losses.

    Raises:
        RunError: if there is none, or more than one.
    """
    file = find_file(path)
    module = _load_module(file)
    found = {value for value in vars(module).values() if _is_agent_class(value)}
    defined = {cls for cls in found if cls.__module__ == module.__name__}
    candidates = defined or found
    if len(candidates) == 1:
        return candidates.pop()
    names = ', '.join(sorted(cls.__name__ for cls in candidates)) or 'none'
    raise RunError(
        f'{file} must define or import exactly one agent class (a purerl.core.trees.dataclass '
        f'with create, sample_actions and needs); found: {names}'
    )


def find_file(path: str) -> Path:
    """Find a Python file from the working directory or else from the library's root.

    Args:
        path: the file; an argument after it (``:<argument>``) is ignored.

    Raises:
        RunError: if there is none; the message has the nearest names beside it.
    """
    path, _ = split_path(path)
    for base in (Path.cwd(), ROOT):
        file = (base / Path(path).expanduser()).resolve()
        if file.is_file():
            return file
    files = [*(ROOT / 'purerl/agents').rglob('*.py'), *(ROOT / 'experiments/configs').rglob('*.py')]
    files += Path(path).expanduser().parent.glob('*.py')
    known = sorted(
        {_stored_path(file) for file in files if 'get_config' in file.read_text(errors='ignore')}
    )
    near = difflib.get_close_matches(str(path), known, n=3, cutoff=0.4) or known
    raise RunError(f'there is no agent file {path}; did you mean {" or ".join(near)}?')


def _stored_path(file: Path) -> str:
    return str(file.relative_to(ROOT)) if file.is_relative_to(ROOT) else str(file)


def _load_module(file: Path) -> types.ModuleType:
    """Import a file: under its own name if it is the library's, else under one made for it."""
    name = None
    if file.is_relative_to(ROOT):
        parts = file.relative_to(ROOT).with_suffix('').parts
        name = '.'.join(parts) if parts[0] in _PACKAGES else None
    try:
        if name is not None:
            return importlib.import_module(name)
        name = 'purerl_agent_file_' + re.sub(r'\W', '_', str(file))
        if name not in sys.modules:
            if file.suffix != '.py':
                raise ImportError('its name does not end in .py')
            spec = importlib.util.spec_from_file_location(name, file)
            module = importlib.util.module_from_spec(spec)
            sys.modules[name] = module
            spec.loader.exec_module(module)
        return sys.modules[name]
    except Exception as error:
        sys.modules.pop(name, None)
        raise RunError(f'{file} cannot be imported: {type(error).__name__}: {error}') from error


def _is_agent_class(value) -> bool:
    return (
        isinstance(value, type)
        and dataclasses.is_dataclass(value)
        and all(hasattr(value, name) for name in ('create', 'sample_actions', 'needs'))
    )


def is_wide(config: Mapping) -> bool:
    """Return whether some network of a config is 512 units wide or more."""
    return any(
        max(value) >= 512
        for key, value in config.items()
        if key.endswith('hidden_dims') and isinstance(value, tuple | list) and len(value)
    )


_COUNTS = (
    'batch_size',
    'latent_dim',
    'model_buffer_size',
    'actor_freq',
    'actor_delay',
    'policy_delay',
    'train_target',
)
_WIDTHS = ('hidden_dims', 'cnn_features', 'conv_features')
_NOT_NEGATIVE = ('lr', 'std_act', 'pi_t_std', 'pi_t_clip', 'actor_noise', 'noise_clip', 'q_reg')
_FRACTIONS = ('tau', 'polyak', 'discount', 'gamma', 'eps_l', 'eps_r')


def check_config(agent: Agent) -> None:
    """Refuse numbers that no agent can have.

    Raises:
        RunError: for the first one.
    """
    for key, value in agent.config.items():
        widths = value if key.endswith(_WIDTHS) and isinstance(value, tuple | list) else ()
        if not all(isinstance(width, int) and width >= 1 for width in widths):
            raise RunError(f'agent.{key} must be positive integers, not {value}')
        if not isinstance(value, int | float):
            continue
        if key.endswith(_NOT_NEGATIVE) and value < 0:
            raise RunError(f'agent.{key} must be at least 0, not {value}')
        if (key in _COUNTS or key.startswith('num_')) and value < 1:
            raise RunError(f'agent.{key} must be at least 1, not {value}')
        if key in _FRACTIONS and not 0 <= value <= 1:
            raise RunError(f'agent.{key} must lie between 0 and 1, not {value}')
        if not math.isfinite(value):
            raise RunError(f'agent.{key} must be finite, not {value}')


# --- Settings --------------------------------------------------------------------------------


def setting(
    default,
    description: str,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    choices: Sequence[str] | None = None,
    free: bool = False,
):
    """Declare a field of a settings dataclass, which is also a flag.

    Args:
        default: its default.
        description: the flag's help.
        minimum: lowest value allowed.
        maximum: highest value allowed.
        choices: strings allowed.
        free: whether a resumed run may have another value than the run was started with.
    """
    metadata = {
        'help': description,
        'minimum': minimum,
        'maximum': maximum,
        'choices': choices,
        'free': free,
    }
    return dataclasses.field(default=default, metadata=metadata)


MAX_SEED = 2**32 - 1  # of numpy's random streams


def seed_setting(default: int, description: str):
    """Declare the field of a seed."""
    return setting(default, description, minimum=0, maximum=MAX_SEED)


def check_settings(settings) -> None:
    """Check a settings dataclass against what its fields declare.

    Raises:
        RunError: for the first field of a wrong type or value.
    """
    for field in dataclasses.fields(settings):
        value, kind = getattr(settings, field.name), _kind(field)
        if value is None and type(None) in typing.get_args(field.type):
            continue
        accepted = (int, float) if kind is float else kind
        if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
            raise RunError(f'{field.name} must be of type {kind.__name__}, not {value!r}')
        if isinstance(value, float) and math.isnan(value):
            raise RunError(f'{field.name} must be a number, not {value}')
        minimum, maximum = field.metadata['minimum'], field.metadata['maximum']
        if minimum is not None and value < minimum:
            raise RunError(f'{field.name} must be at least {minimum}, not {value}')
        if maximum is not None and value > maximum:
            raise RunError(f'{field.name} must be at most {maximum}, not {value}')
        choices = field.metadata['choices']
        if choices is not None and value not in choices:
            raise RunError(f'{field.name} must be one of {", ".join(choices)}, not {value!r}')


def _kind(field) -> type:
    return next((t for t in typing.get_args(field.type) if t is not type(None)), field.type)


def _define_flags(settings_class: type, flag_values: flags.FlagValues, agent) -> None:
    defaults = {} if agent is None else agent.settings
    names = [field.name for field in dataclasses.fields(settings_class)]
    for name in defaults:
        if name not in names:
            raise RunError(
                f'{agent.path} sets the flag --{name}, which this launcher does not have'
            )
    define = {
        bool: flags.DEFINE_boolean,
        int: flags.DEFINE_integer,
        float: flags.DEFINE_float,
        str: flags.DEFINE_string,
    }
    for field in dataclasses.fields(settings_class):
        arguments = (field.name, defaults.get(field.name, field.default))
        description, choices = field.metadata['help'], field.metadata['choices']
        if choices is not None:
            flags.DEFINE_enum(*arguments, choices, description, flag_values=flag_values)
        else:
            define[_kind(field)](*arguments, description, flag_values=flag_values)


# --- The command line ------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Arguments:
    """A parsed command line; `agent` is None for launchers without one."""

    settings: typing.Any
    agent: Agent | None


def parse(
    argv: Sequence[str], settings_class: type, default_agent: str | None = None, usage: str = ''
) -> Arguments:
    """Read a launcher's command line.

    Args:
        argv: the program's name and its arguments.
        settings_class: dataclass of `setting` fields.
        default_agent: value of ``--agent`` when it is not given; None for a launcher without it.
        usage: text that ``--help`` prints before the flags.

    Returns:
        The settings, checked, and the agent.

    Raises:
        RunError: for the first mistake; the message has the nearest valid name.
        SystemExit: after ``--help``.
    """
    flag_values = flags.FlagValues()
    try:
        given = flag_values.read_flags_from_files(list(argv[1:]), force_gnu=True)
    except flags.Error as error:
        raise RunError(str(error)) from error
    argv = [argv[0], *given]
    agent = None
    if default_agent is not None:
        path, argv = _take_agent(_last_of_each(argv), default_agent)
        agent = load_agent(path)
    _define_flags(settings_class, flag_values, agent)
    if agent is not None:
        for key in _overridden(argv):
            _check_key(agent.config, key, path)
        config_flags.DEFINE_config_dict(
            'agent',
            agent.config,
            'Python file of the agent to train; --agent.<field> changes a field of its config.',
            flag_values=flag_values,
            sys_argv=argv,
        )
    if any(argument in ('--help', '-h', '-help', '--helpfull') for argument in argv[1:]):
        print(_help(usage, flag_values, agent))
        sys.exit(0)
    try:
        rest = flag_values(argv)
    except flags.Error as error:
        raise RunError(str(error)) from error
    if len(rest) > 1:
        raise RunError(f'unexpected argument {rest[1]!r}; flags start with --')
    names = [field.name for field in dataclasses.fields(settings_class)]
    settings = settings_class(**{name: flag_values[name].value for name in names})
    check_settings(settings)
    return Arguments(settings, agent)


_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


def launch(main: Callable[[Sequence[str]], object]) -> None:
    """Run a launcher; a user's mistake, or a full disk, ends it with one line, not a traceback."""
    try:
        main(sys.argv)
    except (RunError, DatasetError, CheckpointError, ImportError) as error:
        sys.exit(f'error: {error}')
    except OSError as error:
        if error.errno not in _NO_SPACE:
            raise
        sys.exit(f'error: {error}')
    except MemoryError as error:
        sys.exit(
            f'error: not enough memory ({error}): smaller batches, buffers or networks may fit'
        )
    except KeyboardInterrupt:
        print('\ninterrupted', file=sys.stderr)
        sys.exit(128 + signal.SIGINT)


def _take_agent(argv, default) -> tuple[str, list[str]]:
    """Split ``--agent=<path>`` off the arguments: only its dotted fields are absl flags."""
    path, rest = default, [argv[0]]
    arguments = iter(argv[1:])
    for argument in arguments:
        if argument in ('--agent', '-agent'):
            path = next(arguments, None)
            if path is None:
                raise RunError('--agent needs the path of an agent file')
        elif argument.startswith(('--agent=', '-agent=')):
            path = argument.split('=', 1)[1]
        else:
            rest.append(argument)
    return path, rest


def _last_of_each(argv) -> list[str]:
    """Leave out fields of the config that are given again: absl would join both tuples."""
    names = [argument.partition('=')[0] for argument in argv]
    repeated = [
        name != argument and name.startswith('--agent.') and name in names[i + 1 :]
        for i, (name, argument) in enumerate(zip(names, argv, strict=True))
    ]
    return [argument for argument, again in zip(argv, repeated, strict=True) if not again]


def _overridden(argv) -> list[str]:
    matches = (re.match(r'--?(no)?agent\.([^=]*)', argument) for argument in argv[1:])
    return [match[2] for match in matches if match]


def _check_key(config, key: str, path: str) -> None:
    node = config
    for part in key.split('.'):
        if not isinstance(node, ml_collections.ConfigDict) or part not in node:
            names = sorted(node) if isinstance(node, ml_collections.ConfigDict) else []
            near = difflib.get_close_matches(part, names, n=1)
            hint = f"did you mean '{near[0]}'? " if near else ''
            raise RunError(
                f'the config of {path} has no field {key!r}; {hint}Its fields are: '
                f'{", ".join(names)}'
            )
        node = node[part]


def _help(usage, flag_values, agent) -> str:
    text = f'{usage}\n{flag_values.get_help()}'
    if agent is not None:
        fields = '\n'.join(f'  --agent.{key}={value}' for key, value in agent.config.items())
        text += f'\nThe config of {agent.path}:\n{fields}'
    return text
