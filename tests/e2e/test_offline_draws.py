"""Runs with inferred latents and with imagined transitions, against loops in the plainest way."""

import warnings

import numpy as np
import pytest
import torch

from experiments import evaluate as evaluate_launcher
from purerl.core import jit, random, trees
from purerl.core.checkpoint import load_checkpoint
from purerl.train import offline, phases
from purerl.train.collect import collect
from purerl.train.config import load_agent
from purerl.train.plotting import read_csv
from purerl.train.seeds import stack

PRETRAINING, FINETUNING, BATCH = 3, 6, 8
SIZES = {'actor_hidden_dims': (8,), 'value_hidden_dims': (8,), 'batch_size': BATCH, 'actor_freq': 2}
FB = {
    **SIZES,
    'forward_repr_hidden_dims': (8,),
    'backward_repr_hidden_dims': (8,),
    'latent_dim': 4,
    'num_latent_inference_samples': 20,
}
MBPO = {
    **SIZES,
    'transition_hidden_dims': (8,),
    'reward_hidden_dims': (8,),
    'alpha_critic': 0.5,
    'num_model_rollouts': 30,
    'num_model_rollout_steps': 2,
}


@pytest.fixture(scope='module')
def dataset(tmp_path_factory):
    path = tmp_path_factory.mktemp('data') / 'pendulum.hdf5'
    collect('Pendulum-v1', path, policy='random', num_transitions=300)
    return str(path)


def train(folder, dataset, name, config, num_seeds=1, **changes):
    agent = load_agent(f'purerl/agents/infom/{name}.py', config)
    settings = offline.Settings(
        **{
            'env_name': 'Pendulum-v1',
            'pretraining_dataset': dataset,
            'save_dir': str(folder),
            'run_name': 'run',
            'seed': 5,
            'num_seeds': num_seeds,
            'jit': 'trace',
            'tqdm': False,
            'tensorboard': False,
            'pretraining_steps': PRETRAINING,
            'finetuning_steps': FINETUNING,
            'log_interval': 0,
            'eval_interval': 0,
            'eval_episodes': 1,
            **changes,
        }
    )
    offline.train(agent, settings)
    return agent, phases.load_phases(agent, settings)


def results(folder, agent, num_seeds):
    """Return the agents of a run and what else it saved, one pair per seed."""
    examples = torch.zeros(1, 3), torch.zeros(1, 1)
    like = [agent.agent_class.create(0, *examples, agent.config) for _ in range(num_seeds)]
    saved, state, _ = load_checkpoint(folder / 'run/checkpoints', like=stack(like))
    worlds = state['state']['worlds']
    agents = [saved] if num_seeds == 1 else [trees.index(saved, i) for i in range(num_seeds)]
    return list(zip(agents, worlds, strict=True))


def assert_close(ours, theirs):
    pairs = zip(trees.leaves_with_path(ours), trees.leaves(theirs), strict=True)
    for (path, a), b in pairs:
        torch.testing.assert_close(a, b, rtol=2e-5, atol=2e-6, msg='/'.join(path))


def begin(agent_file, data, seed):
    stream = np.random.RandomState(seed)
    data['pretraining'].train.sample(1, stream)
    examples = torch.zeros(1, 3), torch.zeros(1, 1)
    agent = agent_file.agent_class.create(seed, *examples, agent_file.config)
    for _ in range(PRETRAINING):
        agent, _ = agent.pretrain(data['pretraining'].train.sample(BATCH, stream))
    return agent, stream


class Ring:
    """The original's replay buffer, as it is read and written in its main.py."""

    def __init__(self, size):
        self.rows, self.size, self.pointer = [None] * size, 0, 0

    def add(self, *transitions):
        for row in zip(*transitions, strict=True):
            self.rows[self.pointer] = row
            self.pointer = (self.pointer + 1) % len(self.rows)
            self.size = min(self.size + 1, len(self.rows))

    def sample(self, stream):
        idxs = stream.randint(self.size, size=BATCH)
        columns = [np.stack(column) for column in zip(*self.rows[: self.size], strict=True)]
        names = ('observations', 'actions', 'rewards', 'next_observations', 'masks', 'dones')
        batch = {f'model_{k}': x[idxs] for k, x in zip(names, columns, strict=True)}
        following = columns[1][np.minimum(idxs + 1, self.size - 1)]
        return {**batch, 'model_next_actions': following}


def plain_mbpo(agent_file, data, seed):
    """Finetuning with imagined transitions, as in the original's main.py."""
    agent, stream = begin(agent_file, data, seed)
    ring, key = Ring(100), random.key(seed)
    train = data['finetuning'].train
    for i in range(PRETRAINING + 1, PRETRAINING + FINETUNING + 1):
        batch = train.sample(BATCH, stream)
        if ring.size > BATCH:
            batch.update(ring.sample(stream))
        agent, _ = agent.finetune(batch, full_update=i % 2 == 0)
        observations = train.sample(30, stream)['observations']
        for _ in range(2):
            key, actor_key = random.split(key)
            actions = agent.sample_actions(observations, seed=actor_key, temperature=1)
            rewards = agent.predict_rewards(observations, actions).numpy()
            following = agent.predict_next_observations(observations, actions).numpy()
            ends = np.zeros_like(rewards)
            ring.add(observations, actions.numpy(), rewards, following, 1 - ends, ends)
    return agent, ring


@pytest.mark.parametrize('num_seeds', [1, 2])
def test_imagined_transitions_are_drawn_in_the_originals_order(tmp_path, dataset, num_seeds):
    agent_file, data = train(tmp_path, dataset, 'mbpo_rebrac', MBPO, num_seeds)
    for i, (saved, world) in enumerate(results(tmp_path, agent_file, num_seeds)):
        with jit.use_mode('trace'):
            agent, ring = plain_mbpo(agent_file, data, 5 + i)
        assert_close(saved, agent)
        state = world['rollouts']['buffer']
        assert (int(state['size']), int(state['pointer'])) == (ring.size, ring.pointer) == (100, 60)
        actions = np.stack([row[1] for row in ring.rows])
        np.testing.assert_allclose(state['arrays/actions'], actions, rtol=1e-5, atol=1e-6)


def test_a_buffer_has_to_hold_more_than_a_batch(tmp_path, dataset):
    agents = []
    for size in (100, 101):
        folder, config = tmp_path / str(size), {**MBPO, 'batch_size': 100}
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter('always')
            file, _ = train(folder, dataset, 'mbpo_rebrac', {**config, 'model_buffer_size': size})
        messages = [str(warning.message) for warning in caught]
        assert any('will ever come from the model' in text for text in messages) is (size == 100)
        agents.append(results(folder, file, 1)[0][0])
    same = trees.map(torch.equal, *[agent.network.params['modules_critic'] for agent in agents])
    assert not all(trees.leaves(same))


def plain_fb(agent_file, data, seed):
    """Finetuning with an inferred latent, as in the original's main.py."""
    agent, stream = begin(agent_file, data, seed)
    train = data['finetuning'].train
    batches = [train.sample(BATCH, stream) for _ in range(3)]
    names = ('observations', 'rewards')
    batch = {name: np.concatenate([b[name] for b in batches])[:20] for name in names}
    latent = agent.infer_latent(batch).numpy()
    for i in range(PRETRAINING + 1, PRETRAINING + FINETUNING + 1):
        batch = train.sample(BATCH, stream)
        batch['latents'] = np.tile(latent, (BATCH, 1))
        agent, _ = agent.finetune(batch, full_update=i % 2 == 0)
        if i == PRETRAINING + 1:
            stream.randint(0, 2**32)  # the key of the evaluation
    return agent, latent


@pytest.mark.parametrize('num_seeds', [1, 2])
def test_latents_are_inferred_in_the_originals_order(tmp_path, dataset, num_seeds):
    agent_file, data = train(tmp_path, dataset, 'fb_repr', FB, num_seeds, eval_interval=1000)
    for i, (saved, world) in enumerate(results(tmp_path, agent_file, num_seeds)):
        with jit.use_mode('trace'):
            agent, latent = plain_fb(agent_file, data, 5 + i)
        np.testing.assert_allclose(world['latent'], latent, rtol=1e-5, atol=1e-6)
        assert_close(saved, agent)
    if num_seeds == 1:
        table = read_csv(tmp_path / 'run/finetuning_eval.csv')
        assert list(table['step']) == [PRETRAINING + 1]
        arguments = ['evaluate', f'--run={tmp_path / "run"}', '--episodes=1']
        result = evaluate_launcher.main(arguments)
        assert np.isfinite(result['statistics'][0]['episode.return'])
