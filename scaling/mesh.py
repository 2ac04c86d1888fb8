"""Several devices for one run: which part of its state and of its text lies where, and what its processes must agree on.

The program stays that of one device; XLA's partitioner splits it along a mesh of data x parameters devices (`jax.sharding`). Each batch is
split over all of them, parameters and optimizer over `parameters`. In every function a mesh of None means one device, and nothing is done.
With several processes (`jax.distributed`) all run the same code; the first one decides and writes.
"""

from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from scaling.config import Devices, UserError

AXES = ("data", "parameters")


def make_mesh(devices: Devices) -> Mesh | None:
    """The mesh of `[devices]` over the first devices that JAX has.

    Raises
    ------
    UserError
        There are too few; or, with several processes, some that would have nothing to do.
    """
    needed, found = devices.spread, jax.devices()
    if needed > len(found) or (jax.process_count() > 1 and needed < len(found)):
        raise UserError(
            f"devices.data x devices.parameters = {needed}, but JAX has {len(found)} devices ({found[0].platform}) in "
            f"{jax.process_count()} processes; make the product {len(found)}, or start as many processes as it needs"
        )
    if needed == 1:
        return None
    return Mesh(np.array(found[:needed]).reshape(devices.data, devices.parameters), AXES)


def state_shardings(mesh: Mesh | None, tree: Any) -> Any:
    """Where the leaves of a state lie: matrices cut along their first axis that can be among `parameters`, all else everywhere."""
    if mesh is None:
        return None

    def sharding(leaf: Any) -> NamedSharding:
        shards = mesh.shape["parameters"]
        axis = next((axis for axis, size in enumerate(leaf.shape) if len(leaf.shape) > 1 and size % shards == 0), None)
        return NamedSharding(mesh, PartitionSpec() if axis is None else PartitionSpec(*[None] * axis, "parameters"))

    return jax.tree.map(sharding, tree)


def replicated(mesh: Mesh | None) -> NamedSharding | None:
    """Every device has all of it."""
    return None if mesh is None else NamedSharding(mesh, PartitionSpec())


def place_state(mesh: Mesh | None, tree: Any) -> Any:
    """A state, given whole to every process, on its devices."""
    return tree if mesh is None else jax.tree.map(_placed, tree, state_shardings(mesh, tree))


def place_text(mesh: Mesh | None, windows: np.ndarray) -> Any:
    """Windows or their starts (k, batch, ...), the batch split over all devices."""
    return windows if mesh is None else _placed(windows, NamedSharding(mesh, PartitionSpec(None, AXES)))


def place_everywhere(mesh: Mesh | None, array: Any) -> jax.Array:
    """The whole array on every device."""
    return jax.numpy.asarray(array) if mesh is None else _placed(array, NamedSharding(mesh, PartitionSpec()))


def _placed(array: Any, sharding: NamedSharding) -> jax.Array:
    whole = np.asarray(array)
    return jax.make_array_from_callback(whole.shape, sharding, lambda part: whole[part])


def on_host(tree: Any) -> Any:
    """The whole of a tree as NumPy arrays, in every process."""
    return jax.device_get(tree) if jax.process_count() == 1 else multihost_utils.process_allgather(tree, tiled=True)


def agreed(value: Any) -> np.ndarray:
    """The first process's number or array; all processes must call it."""
    return np.asarray(value if jax.process_count() == 1 else multihost_utils.broadcast_one_to_all(np.asarray(value)))
