"""Datasets and replay buffers: dicts of numpy arrays on the host, sampled with explicit randomness.

load        one entrance to the formats  ogbench (npz), d4rl (HDF5), exorl (npz, HDF5), minari,
            binary (npy); archives has what they share
dataset     transitions to sample from: normalisation, frame stacking, augmentation
goals       the same with goals
episodes    split, filter and rescale by episodes
normalizers columns of zero mean and unit variance
replay      buffers that grow while an agent acts; memory_efficient, the same for stacked images
episode_replay  buffers of whole episodes: transition_replay, frame_replay, unfinished_episodes
device      data that stays on the device, sampled by keys
scores      D4RL's reference returns
sampling    which random sources are accepted
check       what a dataset must be; DatasetError
"""
