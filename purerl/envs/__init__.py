"""Environments under gymnasium's interface.

make      any environment by name, with float32 observations and actions in [-1, 1]
dmc       dm_control's, and the tasks that InFOM adds (dmc_tasks)
atari     Atari games with DQN's preprocessing
episodic  either for the RRD family, with rewards at the episode's end
pixels    images as observations
wrappers  what environments are wrapped in, and their seeding
snapshot  complete states, for runs that resume
naming    names in error messages
"""
