"""Replays agents: creation from the seed, the recorded ops, actions and functions.

What differs between families stands in one table, `FAMILIES`; everything else is the same for all
agents, and a new agent that keeps its family's conventions needs no entry.
"""

import contextlib
import dataclasses
import functools
import importlib
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch

from experiments.reference import idql, networks_pixels
from experiments.reference.case import Case, CaseError, flatten, nested
from experiments.reference.compare import Report
from experiments.reference.networks_infom import make_module
from experiments.reference.rollouts import replay_model_rollout
from purerl.agents.infom import encoders
from purerl.core import trees
from purerl.core.state import TrainState


@dataclasses.dataclass(frozen=True)
class Family:
    """How the agents of one origin are made, called and looked into.

    Attributes:
        package: where the agents' modules are.
        examples: ``case -> (observations, actions)`` for ``create``.
        params: ``(agent, recorded names) -> tree`` of everything under ``init/``.
        with_params: ``(agent, tree) -> agent``, the inverse.
        opt: ``agent -> tree`` of the optimiser's state as recorded.
        act: ``(case, agent, n) -> {name: value}``, the results of ``actions/<n>``.
        functions: ``fn/<name>`` that are not simply methods:
            ``(agent, inputs) -> {name: value}``.
        counts_steps: whether ``step/final`` is recorded.
        loop_ops: ops of the training loop, not of the agent: ``(case, report, agent, t) -> info``.
        config: ``(case, agent class) -> config`` for ``create``.
        cases: patterns of ``fn/<name>`` that read the recording: ``(case, report, agent, name)``.
    """

    package: str
    examples: Callable[[Case], tuple]
    params: Callable[[Any, set[str]], dict]
    with_params: Callable[[Any, dict], Any]
    opt: Callable[[Any], dict]
    act: Callable[[Case, Any, str], dict]
    functions: Mapping[str, Callable[[Any, dict], dict]]
    counts_steps: bool = False
    loop_ops: Mapping[str, Callable] = dataclasses.field(default_factory=dict)
    config: Callable[[Case, type], Mapping] = lambda case, cls: case.config
    cases: Mapping[str, Callable] = dataclasses.field(default_factory=dict)


# --- InFOM: one network, one optimiser -----------------------------------------------------------


def _infom_with_params(agent, params):
    return agent.replace(network=agent.network.replace(params=params))


def _infom_opt(agent):
    return agent.network.opt_state[0]._asdict()


def _infom_act(case, agent, n):
    names = (name for name in case.children(f'actions/{n}') if name not in ('key', 'out'))
    inputs = {name: case.take(f'actions/{n}/{name}') for name in names}
    return {'out': agent.sample_actions(seed=case.take(f'actions/{n}/key'), **inputs)}


def _validation_loss(name):
    """The launcher's validation: the final agent's own key, no gradients."""

    def call(agent, inputs):
        if 'key' not in inputs:
            raise CaseError(f'the recording lacks fn/{name}/in/key')
        loss, info = getattr(agent, name)(inputs['batch'])
        return {'loss': loss, 'info': nested(info)}

    return call


def _flow_goals(**kwargs):
    """InFOM's integration; the original takes bounds and times one by one."""

    def call(agent, inputs):
        names = ('noises', 'observations', 'actions', 'latents')
        arguments = {name: inputs[name] for name in names}
        if 'init_times' in inputs:
            arguments['times'] = inputs['init_times'], inputs['end_times']
        bounds = agent.goal_bounds(inputs)
        return {'goals': agent.compute_fwd_flow_goals(**arguments, bounds=bounds, **kwargs)}

    return call


def _dino_losses(agent, inputs):
    """With the temperatures that are its defaults, and with others."""
    return {
        'loss': agent.dino_loss(**inputs),
        'loss_temps': agent.dino_loss(**inputs, target_temp=0.1, temp=0.2),
    }


# --- jaxrl5: a network and an optimiser for each field -------------------------------------------


def _fields(agent, kind):
    values = {field.name: getattr(agent, field.name) for field in dataclasses.fields(agent)}
    return {name: value for name, value in values.items() if isinstance(value, kind)}


def _jaxrl5_examples(case):
    if 'observation' in case.config:
        return networks_pixels.example(case.config['observation']), torch.zeros(
            case.config['action_dim']
        )
    sizes = [case.config.get(name) for name in ('observation_dim', 'action_dim')]
    if None in sizes:
        raise CaseError('neither example/ nor observation_dim and action_dim of the config given')
    return tuple(torch.zeros(size) for size in sizes)


def _jaxrl5_params(agent, names):
    params = {name: state.params for name, state in _fields(agent, TrainState).items()}
    # Fixed tensors (diffusion schedules) are recorded beside the parameters.
    fixed = {name: x for name, x in _fields(agent, torch.Tensor).items() if name in names}
    return {**params, **fixed}


def _jaxrl5_with_params(agent, params):
    states = _fields(agent, TrainState)
    changes = {
        name: states[name].replace(params=value) if name in states else value
        for name, value in params.items()
    }
    return agent.replace(**changes)


def _jaxrl5_opt(agent):
    states = _fields(agent, TrainState)
    return {name: s.opt_state for name, s in states.items() if s.opt_state is not None}


def _jaxrl5_act(case, agent, n):
    how = case.parsed('actions', ())
    if int(n) >= len(how):
        raise CaseError(f'the metadata entry actions does not say how actions/{n} was called')
    how = how[int(n)]
    agent = _with_settings(agent, how.get('replace', {}))
    agent = agent.replace(rng=case.take(f'actions/{n}/key'))
    name = f'actions/{n}/observations'
    observations = case.take_tree(name) or case.take(name)
    out, after = getattr(agent, how['call'])(observations)
    if not how.get('returns_tuple', True):
        return {'out': out}
    results = {'out': out, 'key_out': after.rng}
    if case.has(f'actions/{n}/candidates'):
        results |= idql.candidates(case, f'actions/{n}', agent, how['call'], observations)
        results['out'] = out.reshape(case.tensors[f'actions/{n}/out'].shape)  # () for A = 1
    return results


def _with_settings(agent, settings: dict):
    """Replace fields of the original agent: fields here too, or entries of the config."""
    names = {field.name for field in dataclasses.fields(agent)}
    fields = {name: value for name, value in settings.items() if name in names}
    config = {name: value for name, value in settings.items() if name not in names}
    unknown = sorted(config.keys() - agent.config.keys())
    if unknown:
        raise CaseError(f'the agent has no setting {unknown[0]!r} to replace')
    if config:
        fields['config'] = trees.FrozenDict({**agent.config, **config})
    return agent.replace(**fields) if fields else agent


def _jaxrl5_final(agent, inputs):
    """Forward passes with the final parameters, of whatever networks the agent has."""
    observations, outputs = inputs['observations'], {}
    if hasattr(agent, 'critic') and 'actions' in inputs:
        outputs['q'] = agent.critic(observations, inputs['actions'])
    if hasattr(agent, 'value'):
        outputs['v'] = agent.value(observations)
    if 'log_prob_actions' in inputs:
        outputs['log_prob'] = agent.actor(observations).log_prob(inputs['log_prob_actions'])
    return outputs


_INFOM = Family(
    package='purerl.agents.infom',
    examples=lambda case: (case.take('example/observations'), case.take('example/actions')),
    params=lambda agent, names: agent.network.params,
    with_params=_infom_with_params,
    opt=_infom_opt,
    act=_infom_act,
    functions={
        'pretraining_loss': _validation_loss('pretraining_loss'),
        'finetuning_loss': _validation_loss('finetuning_loss'),
        'compute_fwd_flow_goals': _flow_goals(),
        'compute_fwd_flow_goals_target': _flow_goals(use_target_network=True),
        'compute_fwd_flow_goals_times': _flow_goals(),
        'dino_loss': _dino_losses,
    },
    counts_steps=True,
    loop_ops={'model_rollout': replay_model_rollout},
)
_JAXRL5 = Family(
    package='purerl.agents.jaxrl5',
    examples=_jaxrl5_examples,
    params=_jaxrl5_params,
    with_params=_jaxrl5_with_params,
    opt=_jaxrl5_opt,
    act=_jaxrl5_act,
    functions={'final': _jaxrl5_final, **idql.FUNCTIONS},
    config=idql.config_of,
    cases=idql.CASES,
)
FAMILIES = {'infom': _INFOM, 'idql': _JAXRL5, 'jaxrl5': _JAXRL5}


# --- The replay ----------------------------------------------------------------------------------


def replay_agent(case: Case, report: Report) -> None:
    """Replay one agent's recording.

    Raises:
        CaseError: if the agent or one of its methods does not exist, or an input is missing.
    """
    family = FAMILIES[case.system]
    report.stage = 'create'
    with _encoder_overrides(case.parsed('encoder_overrides', {})):
        agent = _create(case, report, family)
        for t, op in enumerate(case.ops):
            agent = _replay_op(case, report, family, agent, t, op)
        report.compare('key', 'key/final', agent.rng)
        if family.counts_steps:
            report.compare('step', 'step/final', agent.network.step)
        numbers = case.children('actions')
        if len(case.parsed('actions', numbers)) != len(numbers):
            raise CaseError('actions/ does not hold what the metadata entry actions lists')
        for n in numbers:
            report.stage = f'actions/{n}'
            for name, value in family.act(case, agent, n).items():
                report.compare('actions', f'actions/{n}/{name}', value)
        for name in case.children('fn'):
            _replay_function(case, report, family, agent, name)


def agent_class(family: Family, name: str):
    """Return the agent class that the module of this name defines.

    Raises:
        CaseError: if there is no such module, or it does not define exactly one agent.
    """
    path = f'{family.package}.{name}'
    if not name.isidentifier():
        raise CaseError(f'{name!r} is not the name of an agent')
    try:
        module = importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name != path:
            raise
        raise CaseError(f'purerl has no agent {name!r} (no module {path})') from None
    classes = [
        value
        for value in vars(module).values()
        if inspect.isclass(value) and value.__module__ == path and hasattr(value, 'create')
    ]
    if len(classes) != 1:
        raise CaseError(f'{path} defines {len(classes)} agents, expected one')
    return classes[0]


@contextlib.contextmanager
def _encoder_overrides(overrides: dict):
    """Register encoders with the recording's arguments for the time of its replay."""
    registered = dict(encoders.encoder_modules)
    for name, definition in overrides.items():
        arguments = {key: value for key, value in definition.items() if key != 'cls'}
        description = {'class': definition.get('cls'), **arguments}
        encoders.encoder_modules[name] = functools.partial(make_module, description)
    try:
        yield
    finally:
        encoders.encoder_modules.clear()
        encoders.encoder_modules.update(registered)


def _create(case, report, family):
    """Create the agent from its seed, compare, and go on from the recorded parameters and key."""
    cls = agent_class(family, case.agent)
    agent = cls.create(case.seed, *family.examples(case), family.config(case, cls))
    report.compare('key', 'key/init', agent.rng)
    if not case.has('init'):
        raise CaseError('the recording lacks init/')
    names = set(case.children('init'))
    if case.parsed('init_perturbed', False):
        report.notes.append('perturbed initial parameters, loaded and not compared')
    else:
        report.compare_tree('init', 'init', family.params(agent, names))
    return family.with_params(agent, _take_params(case, family, agent, 'init')).replace(
        rng=case.take('key/init')
    )


def _take_params(case, family, agent, prefix):
    """Take recorded parameters that have the agent's names and shapes."""
    expected = flatten(family.params(agent, set(case.children(prefix))))
    recorded = case.take_tree(prefix)
    for name, tensor in flatten(recorded).items():
        if name not in expected:
            raise CaseError(f'{prefix}/{name}: the agent has no such parameter')
        if tensor.shape != expected[name].shape:
            shapes = f'{tuple(tensor.shape)}, the agent has {tuple(expected[name].shape)}'
            raise CaseError(f'{prefix}/{name}: recorded with shape {shapes}')
    missing = sorted(expected.keys() - flatten(recorded).keys())
    if missing:
        raise CaseError(f'the recording lacks {prefix}/{missing[0]}')
    return recorded


def _replay_op(case, report, family, agent, t, op):
    if not isinstance(op, dict) or 'call' not in op:
        raise CaseError(f'op {t} of the metadata is not an object with a "call"')
    report.stage = f'op {t} ({op["call"]})'
    report.compare('key', f'key/{t}', agent.rng)
    if op['call'] in family.loop_ops:
        info = family.loop_ops[op['call']](case, report, agent, t)
    else:
        agent, info = _call_op(case, agent, t, op)
    report.compare_tree('info', f'info/{t}', nested(info))
    if case.has(f'opt/{t}'):
        recorded = set(case.children(f'opt/{t}'))  # of early ops, only the first moments
        opt = {name: value for name, value in family.opt(agent).items() if name in recorded}
        report.compare_tree('opt', f'opt/{t}', opt)
    if case.has(f'params/{t}'):
        names = set(case.children(f'params/{t}'))
        report.compare_tree('params', f'params/{t}', family.params(agent, names))
        if report.resume:
            agent = family.with_params(agent, _take_params(case, family, agent, f'params/{t}'))
    elif t == len(case.ops) - 1:
        raise CaseError(f'the recording lacks params/{t}, the parameters after the last op')
    return agent


def _call_op(case, agent, t, op):
    method = getattr(agent, op['call'], None)
    if method is None:
        raise CaseError(f'op {t}: {type(agent).__name__} has no method {op["call"]!r}')
    batch = case.take_tree(f'batch/{t}')
    result = method(*([batch] if batch else []), **op.get('kwargs', {}))
    return _agent_and_info(case, t, agent, result)


def _agent_and_info(case, t, agent, result):
    """Sort out what an op returned: an agent, an agent and its info, or a bare value."""
    if isinstance(result, type(agent)):
        return result, {}
    if isinstance(result, tuple) and result and isinstance(result[0], type(agent)):
        return result
    names = case.children(f'info/{t}')
    if len(names) != 1:
        raise CaseError(f'op {t} returned one value, info/{t} holds {len(names)}')
    return agent, {names[0]: result}


def _replay_function(case, report, family, agent, name):
    report.stage = prefix = f'fn/{name}'
    for pattern, replay in family.cases.items():
        if re.fullmatch(pattern, name):
            replay(case, report, agent, name)
            return
    inputs = case.take_tree(f'{prefix}/in')
    if name in family.functions:
        if 'key' in inputs:  # recorded for reference: the function uses the agent's own key
            report.compare('key', f'{prefix}/in/key', agent.rng)
        outputs = family.functions[name](agent, inputs)
    else:
        outputs = _call_method(case, agent, name, inputs)
    report.compare_tree('fn', f'{prefix}/out', outputs)


def _call_method(case, agent, name, inputs):
    method = getattr(agent, name, None)
    if method is None:
        raise CaseError(f'fn/{name}: {type(agent).__name__} has no method {name!r}')
    if 'key' in inputs:
        accepted = inspect.signature(method).parameters
        inputs[next(n for n in ('rng', 'seed', 'key') if n in accepted)] = inputs.pop('key')
    result = method(**inputs)
    names = case.children(f'fn/{name}/out')
    if isinstance(result, dict):
        return result
    values = result if isinstance(result, tuple) else (result,)
    if len(values) != len(names):
        raise CaseError(f'fn/{name}: {len(values)} results, {len(names)} recorded')
    return dict(zip(names, values, strict=True))
