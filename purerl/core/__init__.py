"""The functional core.

random         JAX's keys and draws, bit for bit (native has their C kernels)
trees          pytrees, and dataclasses as pytrees
nn             networks applied to parameter trees, as in Flax
distributions  what the originals take from distrax
diffusion      schedules, network and sampler of DDPM
optim          optax's gradient transformations and schedules
state          parameters, optimiser state and network together
ops            small functions that agents share
jit            compilation (products, biases: faster on a CPU); loops has fori and cond
checkpoint     trees on the disk; flax_io reads and writes Flax's, files writes atomically
"""
