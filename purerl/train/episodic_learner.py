"""The agents' side of training on whole episodes: their programs, over seeds, and an iteration."""

import torch

from purerl.core import trees
from purerl.train.evaluation import to_numpy
from purerl.train.seeds import over_seeds, stack, unstack


class Learner:
    """The agents of all seeds, and their programs."""

    def __init__(self, agent, num: int):
        self.agent = agent
        self._num = num
        self._act = over_seeds(lambda agent, x: agent.sample_actions(x), num)
        self._act_first = over_seeds(lambda agent, x: agent.warmup_actions(x), num)
        self._count = over_seeds(lambda agent, batch: agent.update_normalizer(batch), num)
        self._update = over_seeds(lambda agent, batch: agent.update(batch), num)
        self._update_both = over_seeds(lambda agent, *batches: agent.update(*batches), num)

    def act(self, worlds) -> list:
        """Choose the actions of each seed's lanes, in one call for all.

        An agent's key is split once, and the noise, or the random choice, is drawn for all of its
        lanes' actions at once, in an array with a row per lane.
        """
        observations = stack([world.observation for world in worlds])
        first = [world.buffer.stored < world.settings.warmup for world in worlds]
        programs = {True: self._act_first, False: self._act}
        results = {key: programs[key](self.agent, observations) for key in set(first)}
        actions, self.agent = self._select(first, results)
        return unstack(to_numpy(actions), self._num)

    def learn(self, worlds) -> None:
        """Take one iteration's updates, for the seeds that are ready."""
        ready = [world.ready for world in worlds]
        if not any(ready):
            return
        batches = self._batches(worlds, ready)
        self._keep(ready, self._count(self.agent, batches))
        for _ in range(worlds[0].settings.train_batches):
            self._learn_once(worlds, ready)

    def _learn_once(self, worlds, ready):
        due = [r and world.policy_is_due for r, world in zip(ready, worlds, strict=True)]
        batch = self._batches(worlds, ready)
        results = {}
        if any(due):
            actor_batch = self._batches(worlds, due)
            results[True] = self._update_both(self.agent, batch, actor_batch)
        if due != ready:
            results[False] = self._update(self.agent, batch)
        agents = {key: agent for key, (agent, _) in results.items()}
        infos = {key: unstack(info, self._num) for key, (_, info) in results.items()}
        self._keep(ready, self._select(due, agents))
        for i, world in enumerate(worlds):
            if ready[i]:
                world.updates += 1
                world.count(infos[due[i]][i])

    def _batches(self, worlds, drawing):
        """Draw for some seeds; the others get a copy, whose results are not kept."""
        drawn = [w.batch() if draws else None for w, draws in zip(worlds, drawing, strict=True)]
        some = next(batch for batch in drawn if batch is not None)
        return stack([some if batch is None else batch for batch in drawn])

    def _keep(self, mask, agent):
        self.agent = self._select(mask, {True: agent, False: self.agent})

    def _select(self, mask, results):
        """Take each seed's result from the tree of its mask's value."""
        if len(results) == 1 or len(set(mask)) == 1:
            return results[mask[0]] if mask[0] in results else next(iter(results.values()))
        choice = torch.tensor(mask)

        def choose(yes, no):
            rows = choice.reshape(-1, *[1] * (yes.ndim - 1)).to(yes.device)
            return torch.where(rows, yes, no)

        return trees.map(choose, results[True], results[False])


def run_iteration(learner, worlds, on_episode=None) -> None:
    """Act for `timesteps` steps, `num_envs` at a time, then learn.

    Args:
        learner: has `act(worlds) -> actions` and `learn(worlds)`.
        worlds: one per seed.
        on_episode: called with a seed's number, its steps by then and an episode's statistics at
            its end.
    """
    settings = worlds[0].settings
    for _ in range(settings.timesteps // settings.num_envs):
        actions = learner.act(worlds)
        for i, world in enumerate(worlds):
            for steps, episode in world.step(actions[i]):
                if on_episode is not None:
                    on_episode(i, steps, episode)
    learner.learn(worlds)
