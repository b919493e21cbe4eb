import dataclasses
import importlib
import re
from pathlib import Path

import pytest

from purerl.agents.infom.rebrac import ReBRACAgent
from purerl.agents.jaxrl5.sac import SACLearner
from purerl.train import offline, online
from purerl.train.config import (
    ROOT,
    RunError,
    check_settings,
    is_wide,
    launch,
    load_agent,
    load_agent_class,
    parse,
    setting,
)

REBRAC = 'purerl/agents/infom/rebrac.py'
SAC = 'purerl/agents/jaxrl5/sac.py'


def parse_online(*arguments):
    return parse(['program', *arguments], online.Settings, SAC)


@pytest.mark.parametrize(
    ('path', 'expected'),
    [
        (REBRAC, ReBRACAgent),
        (SAC, SACLearner),
        ('experiments/configs/jaxrl5/redq.py', SACLearner),
        (str(ROOT / 'experiments/configs/jaxrl5/droq.py'), SACLearner),
    ],
)
def test_the_class_of_a_file_in_the_library(path, expected):
    assert load_agent_class(path) is expected


def test_files_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_agent(SAC).agent_class is SACLearner


def test_an_edited_copy_trains_the_class_of_the_copy(tmp_path):
    copy = tmp_path / 'my rebrac.py'
    text = (ROOT / REBRAC).read_text()
    copy.write_text(text.replace("'lr': 3e-4", "'lr': 1e-3"))
    agent = load_agent(str(copy))
    assert agent.agent_class.__name__ == 'ReBRACAgent'
    assert agent.agent_class is not ReBRACAgent
    assert agent.config.lr == 1e-3
    assert agent.path == str(copy)


def test_a_class_of_the_file_goes_before_those_it_imports(tmp_path):
    file = tmp_path / 'calls_another.py'
    imported = 'from purerl.agents.jaxrl5.sac import SACLearner as Base\n'
    file.write_text(imported + (ROOT / REBRAC).read_text())
    assert load_agent_class(str(file)).__name__ == 'ReBRACAgent'


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('x = 1', 'found: none'),
        (
            'from purerl.agents.infom.rebrac import ReBRACAgent\n'
            'from purerl.agents.jaxrl5.sac import SACLearner\n',
            'found: ReBRACAgent, SACLearner',
        ),
        ('from purerl.core.state import TrainState\n', 'found: none'),
        ('import nothing_of_that_name\n', "No module named 'nothing_of_that_name'"),
    ],
)
def test_a_file_without_one_agent_class(tmp_path, text, message):
    file = tmp_path / 'file.py'
    file.write_text(text)
    with pytest.raises(RunError, match=message):
        load_agent_class(str(file))


def test_a_missing_file_names_the_nearest():
    with pytest.raises(RunError, match=r'did you mean .*purerl/agents/infom/rebrac\.py'):
        load_agent('purerl/agents/infom/rebracc.py')


def test_a_file_without_config(tmp_path):
    file = tmp_path / 'file.py'
    file.write_text('from purerl.agents.jaxrl5.sac import SACLearner\n')
    with pytest.raises(RunError, match='no function get_config'):
        load_agent(str(file))


CONFIGS = """
from purerl.agents.infom import rebrac
from purerl.agents.infom.rebrac import ReBRACAgent

def get_config(tau):
    config = rebrac.get_config()
    config.tau = float(tau)
    return config

def get_settings(tau):
    return {'pretraining_steps': 7, 'inplace_aug': False, 'frame_stack': 2}
"""


@pytest.fixture
def configs(tmp_path):
    file = tmp_path / 'configs.py'
    file.write_text(CONFIGS)
    return file


def test_a_file_of_configs_takes_an_argument(configs):
    agent = load_agent(f'{configs}:0.25')
    assert agent.config.tau == 0.25
    assert agent.path == f'{configs}:0.25'
    assert load_agent(agent.path, {'tau': 0.5}).config.tau == 0.5
    assert load_agent_class(agent.path) is ReBRACAgent


def test_flags_go_before_the_settings_of_a_config(configs):
    flags = (f'--agent={configs}:0.25', '--frame_stack=3', '--agent.lr=1e-2')
    arguments = parse(['program', *flags], offline.Settings, REBRAC)
    settings = arguments.settings
    assert (settings.pretraining_steps, settings.inplace_aug) == (7, False)
    assert settings.frame_stack == 3
    assert settings.finetuning_steps == offline.Settings().finetuning_steps
    assert (arguments.agent.config.tau, arguments.agent.config.lr) == (0.25, 1e-2)


@pytest.mark.parametrize(
    ('path', 'message'),
    [
        ('{configs}', 'needs an argument: --agent='),
        ('{configs}:0.5', 'sets the flag --pretraining_steps, which this launcher does not have'),
        (f'{REBRAC}:x', 'takes no argument, so that :x is too much'),
        (f'{REBRAC}c:x', 'there is no agent file'),
        (
            'experiments/configs/infom/rebrac.py:visual_cube_sinlge',
            r'no .* values for .visual_cube_sinlge.; did you mean visual_cube_single\?.*cheetah,',
        ),
        ('experiments/configs/infom/rebrac.py', 'rebrac needs a domain.*cheetah, cube_single'),
    ],
)
def test_mistakes_about_the_argument(configs, path, message):
    with pytest.raises(RunError, match=message):
        parse_online(f'--agent={path.format(configs=configs)}')


PUBLISHED = {
    path.stem: importlib.import_module(f'experiments.configs.infom.{path.stem}')
    for path in (ROOT / 'experiments/configs/infom').glob('[!_]*.py')
    if path.stem != 'domains'
}


@pytest.mark.parametrize(
    ('name', 'domain'), [(name, domain) for name in PUBLISHED for domain in PUBLISHED[name].DOMAINS]
)
def test_published_configs_are_of_the_agents_they_name(name, domain):
    own = load_agent(f'purerl/agents/infom/{name}.py')
    path = f'experiments/configs/infom/{name}.py:{domain}'
    arguments = parse(['program', f'--agent={path}'], offline.Settings, REBRAC)
    agent, settings = arguments.agent, arguments.settings
    assert (agent.name, agent.agent_class) == (name, own.agent_class)
    assert set(agent.config) == set(own.config)
    changed = {key for key in own.config if agent.config[key] != own.config[key]}
    assert changed <= set(PUBLISHED[name].DOMAINS[domain])
    visual = domain.startswith('visual')
    assert visual == (agent.config.encoder == 'impala_small')
    assert settings.frame_stack == (3 if visual else None)
    assert settings.total_steps == (350_000 if visual else 1_500_000)
    assert settings.env_name.replace('-', '_').startswith(domain)


def test_some_published_values():
    assert len(PUBLISHED) == 9
    assert sum(len(module.DOMAINS) for module in PUBLISHED.values()) == 32
    infom = load_agent('experiments/configs/infom/infom.py:scene').config
    values = infom.latent_dim, infom.expectile, infom.kl_weight, infom.alpha
    assert values == (128, 0.99, 0.2, 300.0)
    dino = load_agent('experiments/configs/infom/dino_rebrac.py:visual_cube_single')
    assert dino.settings['p_aug'] == 1.0
    assert (dino.settings['num_aug'], dino.settings['inplace_aug']) == (2, False)


def test_numbers_may_be_written_as_in_the_originals_commands():
    flags = ('--pretraining_steps=250_000', '--inplace_aug=0', '--p_aug=0.5')
    settings = parse(['program', *flags], offline.Settings, REBRAC).settings
    assert (settings.pretraining_steps, settings.inplace_aug) == (250_000, False)


def test_flags_and_overrides():
    arguments = parse_online(
        '--env_name=Pendulum-v1',
        '--agent=experiments/configs/jaxrl5/redq.py',
        '--max_steps=7',
        '--notqdm',
        '--agent.tau=0.25',
        '--agent.hidden_dims=(8, 4)',
        '--agent.num_min_qs=3',
        '--agent.critic_layer_norm',
    )
    assert arguments.settings.env_name == 'Pendulum-v1'
    assert arguments.settings.max_steps == 7
    assert arguments.settings.tqdm is False
    assert arguments.settings.buffer_size is None
    config = arguments.agent.config
    assert (config.agent_name, config.num_qs) == ('redq', 10)
    assert (config.tau, config.hidden_dims, config.num_min_qs) == (0.25, (8, 4), 3)
    assert config.critic_layer_norm is True


def test_the_agents_path_may_be_an_argument_of_its_own():
    arguments = parse_online('--agent', REBRAC, '--agent.alpha_actor', '0.5')
    assert arguments.agent.agent_class is ReBRACAgent
    assert arguments.agent.config.alpha_actor == 0.5


def test_a_flagfile(tmp_path):
    file = tmp_path / 'flags.txt'
    file.write_text(f'--agent={REBRAC}\n--agent.tau=0.5\n--seed=9\n')
    arguments = parse_online(f'--flagfile={file}')
    assert arguments.agent.agent_class is ReBRACAgent
    assert (arguments.agent.config.tau, arguments.settings.seed) == (0.5, 9)


def test_the_last_of_a_fields_values_counts():
    config = parse_online('--agent.hidden_dims=8,8', '--agent.hidden_dims=4').agent.config
    assert config.hidden_dims == (4,)


def test_two_command_lines_do_not_share_a_config():
    parse_online('--agent.tau=0.25')
    assert parse_online().agent.config.tau == 0.005


@pytest.mark.parametrize(
    ('argument', 'message'),
    [
        ('--max_stepss=3', 'Did you mean: max_steps'),
        ('--max_steps=3.5', 'max_steps'),
        ('--max_steps=0', 'max_steps must be at least 1, not 0'),
        ('--jit=fast', 'jit'),
        ('--agent.taau=0.1', "no field 'taau'; did you mean 'tau'"),
        ('--noagent.critic_layer_norms', "did you mean 'critic_layer_norm'"),
        ('--agent.tau=high', 'agent.tau=high: could not convert'),
        ('--agent.num_qs=2.5', 'agent.num_qs=2.5'),
        ('--agent.tau.x=1', "no field 'tau.x'"),
        ('sac', "unexpected argument 'sac'"),
        ('--agent', 'needs the path'),
        ('--flagfile=nowhere', 'nowhere'),
    ],
)
def test_mistakes_name_the_nearest(argument, message):
    with pytest.raises(RunError, match=message):
        parse_online(argument)


def test_help_lists_flags_and_fields(capsys):
    with pytest.raises(SystemExit) as end:
        parse(['program', '--help'], offline.Settings, REBRAC, 'Trains.')
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith('Trains.')
    assert '--pretraining_steps' in text
    assert '--agent.alpha_critic=0.0' in text


@dataclasses.dataclass(frozen=True)
class Example:
    count: int = setting(1, 'A number.', minimum=1)
    rate: float = setting(0.5, 'A rate.', maximum=1)
    name: str | None = setting(None, 'A name.')
    kind: str = setting('a', 'A kind.', choices=('a', 'b'))
    on: bool = setting(False, 'A switch.')


@pytest.mark.parametrize(
    'changes', [{}, {'count': 3, 'rate': 1, 'name': 'x', 'kind': 'b', 'on': True}]
)
def test_good_settings(changes):
    check_settings(Example(**changes))


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'count': 0}, 'count must be at least 1, not 0'),
        ({'count': 1.5}, 'count must be of type int, not 1.5'),
        ({'count': True}, 'count must be of type int'),
        ({'count': None}, 'count must be of type int'),
        ({'rate': 'x'}, 'rate must be of type float'),
        ({'rate': 1.5}, 'rate must be at most 1, not 1.5'),
        ({'rate': float('nan')}, 'rate must be a number, not nan'),
        ({'name': 3}, 'name must be of type str'),
        ({'kind': 'c'}, 'kind must be one of a, b'),
        ({'on': 1}, 'on must be of type bool'),
    ],
)
def test_bad_settings(changes, message):
    with pytest.raises(RunError, match=message):
        check_settings(Example(**changes))


def test_wide_networks():
    assert is_wide(load_agent(REBRAC).config)
    assert not is_wide(load_agent(SAC).config)
    assert is_wide(load_agent(SAC, {'hidden_dims': (64, 512)}).config)


LAUNCHERS = [
    file for file in (ROOT / 'experiments').glob('*.py') if 'launch(main)' in file.read_text()
]


def test_launchers_are_thin():
    names = {file.stem for file in LAUNCHERS}
    assert {'online', 'offline', 'pretrain_finetune', 'offline_to_online', 'rrd'} <= names
    for file in LAUNCHERS:
        assert len(file.read_text().splitlines()) < 80, file


def test_loops_do_not_know_agents_by_name():
    names = {path.stem for path in (ROOT / 'purerl/agents').rglob('*.py')}
    names -= {'__init__', 'networks', 'encoders', 'infom', 'rrd'}  # the last two name loops, too
    for file in [*(ROOT / 'purerl/train').glob('*.py'), *LAUNCHERS]:
        lines = Path(file).read_text().splitlines()
        code = [line for line in lines if 'purerl/agents/' not in line]
        assert not [line for line in code for name in names if f"'{name}'" in line]


def test_a_mistake_ends_the_program_with_one_line(monkeypatch):
    monkeypatch.setattr('sys.argv', ['online', '--agent.taau=1'])

    def main(argv):
        parse(argv, online.Settings, SAC)

    with pytest.raises(SystemExit) as end:
        launch(main)
    assert re.fullmatch(
        r"error: the config of .* has no field 'taau'; did you mean 'tau'.*", end.value.code
    )


@pytest.mark.parametrize(('number', 'kind'), [(28, SystemExit), (2, OSError)])
def test_a_full_disk_ends_the_program_with_one_line(number, kind):
    def main(argv):
        raise OSError(number, 'could not write curves.png')

    with pytest.raises(kind, match='could not write'):
        launch(main)


@pytest.mark.parametrize(
    ('raised', 'code'),
    [
        (ImportError('pip install it'), 'error: pip install it'),
        (
            MemoryError('of 1 TiB'),
            'error: not enough memory (of 1 TiB): smaller batches, buffers or networks may fit',
        ),
        (KeyboardInterrupt(), 130),
    ],
)
def test_missing_packages_and_interruptions_leave_no_traceback(raised, code):
    def main(argv):
        raise raised

    with pytest.raises(SystemExit) as end:
        launch(main)
    assert end.value.code == code


def test_a_bug_keeps_its_traceback():
    def main(argv):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        launch(main)
