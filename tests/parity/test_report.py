"""The replay tool finds every deviation, and says where it is."""

import dataclasses
import functools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from safetensors.numpy import save_file

from experiments.reference import compare
from experiments.reference import replay as replaying
from experiments.reference.case import CaseError, load
from experiments.reference.replay import recordings, replay_file

RECORDINGS = Path(__file__).parent / 'recordings'
replay = functools.partial(replaying.replay, mode='off')  # compiling would take most of the time
REBRAC = 'infom/rebrac__default'
SAC = 'idql/sac__default'


def changed(name, tensors=None, **changes):
    """A recording with some tensors replaced (removed if None) and some attributes changed."""
    case = load(RECORDINGS / f'{name}.safetensors')
    new = {**case.tensors, **(tensors or {})}
    new = {key: value for key, value in new.items() if value is not None}
    return dataclasses.replace(case, tensors=new, **changes)


def nudged(name, tensor):
    """A recording with one entry of one tensor off by 1e-2, or by 1 if it is an integer."""
    array = load(RECORDINGS / f'{name}.safetensors').tensors[tensor].copy()
    array.reshape(-1)[-1] += 0.01 if array.dtype.kind == 'f' else 1
    return changed(name, {tensor: array})


@pytest.mark.parametrize(
    ('name', 'tensor'),
    [
        (REBRAC, 'init/modules_critic/value_net/Dense_1/kernel'),
        (REBRAC, 'params/0/modules_actor/mean_net/bias'),
        (REBRAC, 'params/5/modules_target_critic/value_net/Dense_0/kernel'),
        (REBRAC, 'info/4/critic/q_mean'),
        (REBRAC, 'opt/5/nu/modules_critic/value_net/Dense_2/kernel'),
        (REBRAC, 'opt/5/count'),
        (REBRAC, 'key/init'),
        (REBRAC, 'key/3'),
        (REBRAC, 'key/final'),
        (REBRAC, 'actions/1/out'),
        (REBRAC, 'fn/finetuning_loss/in/key'),
        (REBRAC, 'fn/finetuning_loss/out/loss'),
        (REBRAC, 'step/final'),
        (SAC, 'init/temp/log_temp'),
        (SAC, 'params/4/target_critic/VmapStateActionValue_0/Dense_0/bias'),
        (SAC, 'info/2/entropy'),
        (SAC, 'opt/4/actor/0/mu/OutputDenseMean/bias'),
        (SAC, 'key/2'),
        (SAC, 'actions/2/key_out'),
        (SAC, 'fn/final/out/log_prob'),
        ('infom/networks__default', 'fn/bilinear_e2/out/phi'),
        ('infom/networks__default', 'fn/impala_small/params/stack_blocks_0/Conv_0/bias'),
        ('infom/jax_random__default', 'fn/choice_p/s42/out/y'),
        ('infom/jax_random__default', 'fn/key/s1/in/key'),
        ('idql/networks__mlp', 'fn/mlp_dropout_train/rng/dropout_1'),
        ('idql/networks__rng', 'fn/key1/out/normal_13_3'),
        ('idql/dataset__core', 'fn/boundaries/out/returns'),
    ],
)
def test_a_nudged_tensor_fails_under_its_own_name(name, tensor):
    report = replay(nudged(name, tensor))
    assert any(failure.startswith(tensor) for failure in report.failures), report.failures


@pytest.mark.parametrize(
    ('name', 'tensor'),
    [(REBRAC, 'batch/3/rewards'), (SAC, 'batch/4/actions'), (SAC, 'actions/0/observations')],
)
def test_a_nudged_input_fails(name, tensor):
    assert not replay(nudged(name, tensor)).passed


def test_nudged_initial_parameters_that_are_loaded_fail_in_what_follows():
    case = nudged(REBRAC, 'init/modules_actor/mean_net/bias')
    case.metadata['init_perturbed'] = 'true'
    report = replay(case)
    assert report.failures[0].startswith('info/0/')
    assert not any(failure.startswith('init/') for failure in report.failures)


def test_perturbed_initial_parameters_are_loaded_and_reported():
    case = changed(REBRAC)
    case.metadata['init_perturbed'] = 'true'
    report = replay(case)
    assert report.passed and 'init' not in report.errors
    assert report.notes == ['perturbed initial parameters, loaded and not compared']


@pytest.mark.parametrize(
    ('name', 'tensor'),
    [
        (REBRAC, 'init/modules_actor/mean_net/bias'),
        (REBRAC, 'params/5/modules_actor/mean_net/bias'),
        (REBRAC, 'info/0/grad/norm'),
        (REBRAC, 'step/final'),
        (REBRAC, 'opt/5/mu/modules_actor/mean_net/bias'),
        (REBRAC, 'key/4'),
        (REBRAC, 'example/actions'),
        (REBRAC, 'actions/0/key'),
        (REBRAC, 'actions/0/out'),
        (REBRAC, 'fn/pretraining_loss/in/key'),
        (SAC, 'actions/1/observations'),
        (SAC, 'actions/3/key_out'),
        ('infom/networks__default', 'fn/value_state/in/observations'),
        ('infom/networks__default', 'fn/actor_tanh/out/mode'),
        ('idql/networks__mlp', 'fn/mlp_plain/out/y'),
        ('idql/networks__distributions', 'fn/normal_state_b/out/mode'),
        ('idql/networks__ensemble', 'fn/subsample_2_of_5/out/q'),
        ('idql/networks__rng', 'fn/key0/out/split2'),
    ],
)
def test_a_missing_tensor_fails_under_its_own_name(name, tensor):
    assert tensor in load(RECORDINGS / f'{name}.safetensors').tensors
    report = replay(changed(name, {tensor: None}))
    assert any(tensor in failure for failure in report.failures), report.failures


@pytest.mark.parametrize(
    ('name', 'tensor', 'message'),
    [
        (REBRAC, 'batch/2/actions', "op 2 (pretrain): KeyError: 'actions'"),
        ('infom/networks__default', 'fn/value_state/params/value_net/Dense_0/bias',
         'fn/value_state/params does not hold the parameters of the module'),
        ('infom/jax_random__default', 'fn/normal_7/d/in/key',
         "fn/normal_7/d: 'key' is not defined"),
        ('infom/jax_random__default', 'fn/normal_7/d/out/y',
         'fn/normal_7/d has 0 outputs, expected one'),
    ],
)  # fmt: skip
def test_a_missing_tensor_fails_where_it_is_used(name, tensor, message):
    assert replay(changed(name, {tensor: None})).failures[-1] == message


@pytest.mark.parametrize(
    ('tensor', 'message'),
    [
        ('surprise', 'surprise: nothing compared or used it'),
        ('info/0/surprise', 'info/0/surprise: recorded, but not computed'),
        ('params/3/surprise', 'params/3/surprise: recorded, but not computed'),
        ('batch/9/rewards', 'batch/9/rewards: nothing compared or used it'),
        ('fn/surprise/out/y', "fn/surprise: ReBRACAgent has no method 'surprise'"),
    ],
)
def test_an_unknown_tensor_fails(tensor, message):
    report = replay(changed(REBRAC, {tensor: np.zeros(2, np.float32)}))
    assert message in report.failures


@pytest.mark.parametrize(
    ('name', 'key', 'value'),
    [(REBRAC, 'tau', 0.01), (REBRAC, 'tanh_squash', False), (REBRAC, 'lr', 4e-4),
     (SAC, 'discount', 0.98), (SAC, 'num_qs', 3), (SAC, 'backup_entropy', False)],
)  # fmt: skip
def test_a_changed_config_value_fails(name, key, value):
    case = load(RECORDINGS / f'{name}.safetensors')
    assert key in case.config
    assert not replay(changed(name, config={**case.config, key: value})).passed


def test_what_purerl_lacks_fails_with_the_reason():
    assert replay(changed(REBRAC, agent='no_such_agent')).failures == [
        "purerl has no agent 'no_such_agent' (no module purerl.agents.infom.no_such_agent)"
    ]
    (failure,) = replay(changed(REBRAC, system='other')).failures
    assert failure == "unknown system 'other' (known: idql, infom, jaxrl5, rrd)"
    report = replay(changed(REBRAC, ops=({'call': 'levitate', 'kwargs': {}},)))
    assert report.failures == ["op 0: ReBRACAgent has no method 'levitate'"]
    assert replay(changed(REBRAC, agent='../rebrac')).failures == [
        "'../rebrac' is not the name of an agent"
    ]


def test_encoders_are_overridden_only_while_a_recording_is_replayed():
    from purerl.agents.infom.encoders import encoder_modules

    before = dict(encoder_modules)
    assert replay(changed('infom/fb_repr__mlp_encoder_one_layer')).passed
    assert encoder_modules == before


# --- Measures ----------------------------------------------------------------------------------


def error(kind, actual, reference, dtype=np.float32):
    return compare.error_of(kind, np.array(actual, dtype), np.array(reference, dtype))[0]


def test_parameters_are_measured_relative_to_their_norm():
    assert error('params', [3.003, 4.0], [3.0, 4.0]) == pytest.approx(6e-4, rel=1e-3)
    # Below a norm of 1e-2 the limit is 1e-6 absolute.
    assert error('params', [0.9e-6], [0.0]) < compare.LIMIT < error('params', [1.1e-6], [0.0])


def test_values_are_measured_relative_only_above_one():
    assert error('info', [0.0005], [0.0]) == pytest.approx(5e-4)
    assert error('actions', [1001.0], [1000.0]) == pytest.approx(1e-3)


def test_integers_have_to_be_equal():
    assert error('params', [2**31], [2**31 + 1], np.int64) == np.inf
    assert error('info', [7], [7], np.int64) == 0


def test_nan_matches_only_nan_and_infinities_only_themselves():
    inf, nan = np.inf, np.nan
    assert error('fn', [nan, inf, -inf, 1], [nan, inf, -inf, 1]) == 0
    for actual, reference in [(nan, 1), (1, nan), (inf, -inf), (inf, 1), (1, inf), (nan, inf)]:
        assert error('fn', [actual], [reference]) == inf
        assert error('params', [actual], [reference]) == inf


def test_only_the_last_layer_is_ill_conditioned():
    pattern = compare.ILL_CONDITIONED['infom', 'td_infonce'].left_out
    layers = [f'params/0/modules_critic/psi/Dense_{i}/bias' for i in range(11)]
    assert [compare._is_last(pattern, name, layers) for name in layers] == [False] * 10 + [True]
    assert not compare._is_last(pattern, 'params/0/modules_critic/phi/Dense_2/bias', layers)
    assert not compare._is_last(pattern, 'params/0/modules_target_critic/psi/Dense_2/bias', layers)


def test_conditions_of_ill_conditioning():
    def found(agent, **config):
        return compare.conditioning_of('infom', agent, config) is not None

    assert found('td_infonce', logsumexp_penalty_coeff=0.01)
    assert found('crl_infonce', contrastive_loss='forward_infonce', logsumexp_penalty_coeff=0)
    assert not found('crl_infonce', contrastive_loss='forward_infonce', logsumexp_penalty_coeff=0.1)
    assert not found('crl_infonce', contrastive_loss='symmetric_infonce', logsumexp_penalty_coeff=0)
    assert not found('rebrac', logsumexp_penalty_coeff=0)


# --- Files and the command -----------------------------------------------------------------------


def test_unreadable_files_fail_with_the_reason(tmp_path):
    whole = (RECORDINGS / f'{SAC}.safetensors').read_bytes()
    corrupt = tmp_path / 'corrupt.safetensors'
    corrupt.write_bytes(whole[: len(whole) // 2])
    assert not replay_file(corrupt)[0]
    with pytest.raises(CaseError, match='not a readable safetensors file'):
        load(corrupt)
    with pytest.raises(CaseError, match='not a readable safetensors file'):
        load(tmp_path / 'absent.safetensors')


def test_numbers_that_numpy_lacks_fail_with_the_reason(tmp_path):
    metadata = {'system': 'infom', 'agent': 'a', 'case': 'b', 'seed': '0', 'config': '{}'}
    tensors = {'x': torch.zeros(2, dtype=torch.float8_e4m3fn)}
    safetensors.torch.save_file(tensors, tmp_path / 'case.safetensors', metadata)
    with pytest.raises(CaseError, match='not a readable safetensors file'):
        load(tmp_path / 'case.safetensors')


def test_folders_are_searched_and_an_empty_one_fails(tmp_path):
    (tmp_path / 'empty').mkdir()
    assert recordings([RECORDINGS / 'idql', tmp_path / 'empty'])[-1] == tmp_path / 'empty'
    assert RECORDINGS / f'{SAC}.safetensors' in recordings([RECORDINGS])
    with pytest.raises(CaseError, match='a folder without recordings'):
        load(tmp_path / 'empty')


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'seed': None}, 'the metadata lack seed'),
        ({'seed': 'one'}, "the seed 'one' is not an integer"),
        ({'config': '{'}, 'the metadata entry config is not JSON'),
        ({'config': '[]'}, 'the metadata entry config is not a JSON object'),
        ({'ops': '{}'}, 'the metadata entry ops is not a JSON list'),
        ({'ops': '[' * 100_000}, 'the metadata entry ops is not JSON'),
        ({'versions': 'null'}, 'the metadata entry versions is not a JSON object'),
        (
            {'versions': '{"jax_threefry_partitionable": false}'},
            'recorded with jax_threefry_partitionable=False',
        ),
    ],
)
def test_malformed_metadata_fail_with_the_reason(tmp_path, changes, message):
    metadata = {'system': 'infom', 'agent': 'a', 'case': 'b', 'seed': '0', 'config': '{}'}
    metadata = {k: v for k, v in {**metadata, **changes}.items() if v is not None}
    save_file({'x': np.zeros(1)}, tmp_path / 'case.safetensors', metadata)
    with pytest.raises(CaseError, match=message.replace('(', r'\(')):
        load(tmp_path / 'case.safetensors')


def test_command_counts_and_exits_nonzero_when_a_recording_fails(tmp_path):
    case = nudged('idql/networks__rng', 'fn/key0/out/uniform_6')
    save_file(case.tensors, tmp_path / 'nudged.safetensors', case.metadata)
    good = RECORDINGS / 'idql/networks__rng.safetensors'
    command = [sys.executable, '-m', 'experiments.replay_reference']
    root = Path(__file__).parents[2]

    both = subprocess.run([*command, good, tmp_path], capture_output=True, text=True, cwd=root)
    assert both.returncode == 1
    lines = both.stdout.splitlines()
    assert lines[-1] == '1 passed, 1 failed'
    assert lines[0].startswith('PASS') and 'fn 0' in lines[0]
    assert lines[1].startswith('FAIL') and 'fn/key0/out/uniform_6[5]: ' in lines[2]

    one = subprocess.run([*command, good], capture_output=True, text=True, cwd=root)
    assert one.returncode == 0
    assert one.stdout.splitlines()[-1] == '1 passed, 0 failed'


def test_report_of_a_file_names_the_first_difference_and_both_values(tmp_path):
    case = nudged('idql/networks__rng', 'fn/key2/out/randint_0_9_2')
    path = tmp_path / 'case.safetensors'
    save_file(case.tensors, path, case.metadata)
    passed, text = replay_file(path)
    recorded = case.tensors['fn/key2/out/randint_0_9_2'][-1]
    assert not passed
    assert f'[1]: {recorded - 1}, recorded {recorded} (must be equal)' in text


def test_an_unknown_mode_of_the_environment_is_refused_in_one_line():
    command = [sys.executable, '-m', 'experiments.replay_reference', 'x.safetensors']
    environment = {**os.environ, 'PURERL_JIT': 'eager'}
    root = Path(__file__).parents[2]
    result = subprocess.run(command, capture_output=True, text=True, cwd=root, env=environment)
    assert result.returncode != 0 and 'Traceback' not in result.stderr
    assert "PURERL_JIT must be inductor, trace, off, not 'eager'" in result.stdout + result.stderr
