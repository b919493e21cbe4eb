"""Datasets and replay buffers: dicts of numpy arrays on the host, sampled with explicit randomness.

load        one entrance to the formats  ogbench (npz), d4rl (HDF5), exorl (npz, HDF5), minari,
            binary (npy)
dataset     transitions to sample from: normalisation, frame stacking, augmentation
goals       the same with goals
episodes    split, filter and rescale by episodes
replay      buffers that grow while an agent acts
device      data that stays on the device, sampled by keys
scores      D4RL's reference returns
sampling    which random sources are accepted
check       what a dataset must be; DatasetError
files       atomic writes
"""
