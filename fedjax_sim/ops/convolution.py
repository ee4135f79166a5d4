"""A 2-D convolution whose gradient and batching stay fast under `scan` and `vmap`.

`lax.conv_general_dilated` is a fine forward convolution, but

* its gradients come in dimension orders that XLA's CPU backend only handles fast outside loops:
  inside a `scan` they are tens of times slower, and local SGD is a loop;
* `vmap` over clients, each with a kernel of its own, turns it into a grouped convolution, which is
  slow on every backend: clients take turns on a CPU, where a client fills a core, and elsewhere
  become one batched matrix product over the pixels under the window.

`conv` states both gradients as ordinary convolutions and chooses how a batch of kernels is
computed. Its results are those of `lax.conv_general_dilated`, up to the order of summation.
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap

from fedjax_sim.base import Array

Pairs = Sequence[tuple[int, int]]
_NHWC = ("NHWC", "HWIO", "NHWC")


class _Window(NamedTuple):
    """The static facts of a convolution: hashable, sizes of everything included."""

    kernel: tuple[int, int]
    strides: tuple[int, int]
    padding: tuple[tuple[int, int], tuple[int, int]]
    groups: int
    size: tuple[int, int]  # H and W of the images


def conv(
    images: Array,
    kernel: Array,
    *,
    strides: Sequence[int] = (1, 1),
    padding: Literal["SAME", "VALID"] | Pairs = "VALID",
    feature_groups: int = 1,
) -> Array:
    """Convolve images with a kernel (a cross-correlation, as neural networks have it).

    Args:
        images: [B, H, W, I].
        kernel: [h, w, I / feature_groups, O].
        strides: steps of the window along H and W, >= 1.
        padding: "VALID", "SAME" or ((top, bottom), (left, right)), >= 0.
        feature_groups: divides I and O; each group of inputs makes a group of outputs of its own.

    Returns:
        [B, H', W', O].

    Raises:
        ValueError: shapes that do not fit.

    Example:
        >>> conv(jnp.ones((1, 5, 5, 2)), jnp.ones((3, 3, 2, 4)), strides=(2, 2)).shape
        (1, 2, 2, 4)
    """
    _check(images, kernel, strides, feature_groups)
    vertical, horizontal = strides
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(images.shape[1:3], kernel.shape[:2], strides, padding)
    (top, bottom), (left, right) = padding
    if min(top, bottom, left, right) < 0:
        raise ValueError(f"padding must be >= 0, got {padding}. Crop the images instead.")
    height, width = images.shape[1:3]
    return _conv(
        images,
        kernel,
        _Window(
            kernel=(kernel.shape[0], kernel.shape[1]),
            strides=(vertical, horizontal),
            padding=((top, bottom), (left, right)),
            groups=feature_groups,
            size=(height, width),
        ),
    )


def conv_general_dilated(
    lhs: Array,
    rhs: Array,
    window_strides: Sequence[int],
    padding: str | Pairs,
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    precision: Any = None,
    preferred_element_type: Any = None,
) -> Array:
    """`conv` with the signature of `lax.conv_general_dilated`, for layers that take one.

    With Flax: `nn.Conv(..., conv_general_dilated=convolution.conv_general_dilated)`. What `conv`
    does not do (dilation, other layouts, one or three dimensions, a precision) goes on to lax.
    """
    plain = (
        lhs.ndim == 4
        and _is_nhwc(dimension_numbers, lhs.shape, rhs.shape)
        and all(d == 1 for d in (*(lhs_dilation or ()), *(rhs_dilation or ())))
        and batch_group_count == 1
        and precision is None
        and preferred_element_type is None
        and lhs.dtype == rhs.dtype
        and (padding in ("SAME", "VALID") if isinstance(padding, str) else _grows(padding))
    )
    if plain:
        return conv(
            lhs,
            rhs,
            strides=window_strides,
            padding=padding,  # type: ignore[arg-type]
            feature_groups=feature_group_count,
        )
    return lax.conv_general_dilated(
        lhs,
        rhs,
        window_strides,
        padding,
        lhs_dilation,
        rhs_dilation,
        dimension_numbers,
        feature_group_count,
        batch_group_count,
        precision,
        preferred_element_type,
    )


def _grows(padding: Pairs) -> bool:
    return all(side >= 0 for pair in padding for side in pair)


def _is_nhwc(numbers: Any, lhs: tuple[int, ...], rhs: tuple[int, ...]) -> bool:
    wanted = lax.conv_dimension_numbers(lhs, rhs, _NHWC)
    return numbers is not None and lax.conv_dimension_numbers(lhs, rhs, numbers) == wanted


def _check(images: Array, kernel: Array, strides: Sequence[int], groups: int) -> None:
    if images.ndim != 4 or kernel.ndim != 4:
        raise ValueError(
            "images must have shape [B, H, W, I] and kernel [h, w, I / feature_groups, O], got "
            f"{images.shape} and {kernel.shape}."
        )
    if len(strides) != 2 or min(strides) < 1:
        raise ValueError(f"strides must be two integers >= 1, got {tuple(strides)}.")
    if images.shape[3] != kernel.shape[2] * groups or kernel.shape[3] % groups:
        raise ValueError(
            f"feature_groups={groups} must divide the {images.shape[3]} features of the images "
            f"into groups of the kernel's {kernel.shape[2]}, and divide the kernel's "
            f"{kernel.shape[3]} outputs."
        )


# The convolution and its two gradients are bilinear, and the gradients of each of the three are the
# other two again: so reverse mode goes to any order.


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _conv(images: Array, kernel: Array, window: _Window) -> Array:
    return _forward(window)(images, kernel)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _by_images(cotangent: Array, kernel: Array, window: _Window) -> Array:
    return _input_gradient(window)(cotangent, kernel)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _by_kernel(images: Array, cotangent: Array, window: _Window) -> Array:
    return _kernel_gradient(window)(images, cotangent)


def _keep(function: Callable[..., Array]) -> Callable[..., tuple[Array, tuple[Array, Array]]]:
    return lambda a, b, window: (function(a, b, window), (a, b))


def _conv_vjp(window: _Window, saved: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    images, kernel = saved
    return _by_images(g, kernel, window), _by_kernel(images, g, window)


def _by_images_vjp(window: _Window, saved: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    cotangent, kernel = saved
    return _conv(g, kernel, window), _by_kernel(g, cotangent, window)


def _by_kernel_vjp(window: _Window, saved: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    images, cotangent = saved
    return _by_images(cotangent, g, window), _conv(images, g, window)


_conv.defvjp(_keep(_conv), _conv_vjp)
_by_images.defvjp(_keep(_by_images), _by_images_vjp)
_by_kernel.defvjp(_keep(_by_kernel), _by_kernel_vjp)


def _plain_conv(images: Array, kernel: Array, window: _Window) -> Array:
    return lax.conv_general_dilated(
        images,
        kernel,
        window.strides,
        window.padding,
        dimension_numbers=_NHWC,
        feature_group_count=window.groups,
    )


def _plain_input_gradient(cotangent: Array, kernel: Array, window: _Window) -> Array:
    """[B, H', W', O], [h, w, I/g, O] -> [B, H, W, I].

    The cotangent, spread by the strides, convolved with the kernel turned by 180 degrees and its
    features swapped.
    """
    spread, padding = [(0, 0, 0)], []
    for size, k, step, (low, _), out in zip(
        window.size,
        window.kernel,
        window.strides,
        window.padding,
        cotangent.shape[1:3],
        strict=True,
    ):
        before = k - 1 - low
        after = size + low - 1 - (out - 1) * step
        # Padding wider than the kernel is cut off first: a convolution with a negative padding and
        # strides gives wrong numbers on the CPU.
        spread.append((min(before, 0), min(after, 0), step - 1))
        padding.append((max(before, 0), max(after, 0)))
    cotangent = lax.pad(cotangent, jnp.zeros((), cotangent.dtype), [*spread, (0, 0, 0)])
    h, w, depth, outputs = kernel.shape
    turned = jnp.flip(kernel, (0, 1)).reshape(h, w, depth, window.groups, outputs // window.groups)
    turned = turned.transpose(0, 1, 4, 3, 2).reshape(h, w, outputs // window.groups, -1)
    return lax.conv_general_dilated(
        cotangent,
        turned,
        (1, 1),
        padding,
        dimension_numbers=_NHWC,
        feature_group_count=window.groups,
    )


def _plain_kernel_gradient(images: Array, cotangent: Array, window: _Window) -> Array:
    """[B, H, W, I], [B, H', W', O] -> [h, w, I/g, O].

    Without strides or groups: the images, with batch and features swapped, convolved with the
    cotangent. Otherwise one matrix product for each of the h * w shifts of the window.
    """
    if window.strides == (1, 1) and window.groups == 1:
        padding = []
        for size, k, (low, _), out in zip(
            window.size, window.kernel, window.padding, cotangent.shape[1:3], strict=True
        ):
            padding.append((low, k - 1 + out - size - low))
        gradient = lax.conv_general_dilated(
            images.transpose(3, 1, 2, 0),
            cotangent.transpose(1, 2, 0, 3),
            (1, 1),
            padding,
            dimension_numbers=_NHWC,
        )
        return gradient.transpose(1, 2, 0, 3)
    num_groups, outputs = window.groups, cotangent.shape[3]
    g = cotangent.reshape(-1, num_groups, outputs // num_groups)
    products = [
        jnp.einsum("ngi,ngo->igo", shifted.reshape(len(g), num_groups, -1), g)
        for shifted in _shifts(images, window, cotangent.shape[1:3])
    ]
    return jnp.stack(products).reshape(*window.kernel, -1, outputs)


def _shifts(images: Array, window: _Window, out: Sequence[int]) -> list[Array]:
    """The [B, H', W', I] pixels under each of the h * w places of the window."""
    sides = [(0, 0, 0), *((low, high, 0) for low, high in window.padding), (0, 0, 0)]
    padded = lax.pad(images, jnp.zeros((), images.dtype), sides)
    vertical, horizontal = window.strides
    return [
        padded[
            :,
            i : i + (out[0] - 1) * vertical + 1 : vertical,
            j : j + (out[1] - 1) * horizontal + 1 : horizontal,
        ]
        for i in range(window.kernel[0])
        for j in range(window.kernel[1])
    ]


# The same three as matrix products


def _columns(images: Array, window: _Window, out: Sequence[int]) -> Array:
    """The pixels under the window at each of its N = B * H' * W' positions: [g, N, h * w * I/g]."""
    shifted = jnp.stack(_shifts(images, window, out), axis=3)  # [B, H', W', h * w, I]
    split = shifted.reshape(-1, shifted.shape[3], window.groups, images.shape[3] // window.groups)
    return split.transpose(2, 0, 1, 3).reshape(window.groups, split.shape[0], -1)


def _rows(kernel: Array, window: _Window) -> Array:
    """[h, w, I/g, O] -> [g, h * w * I/g, O/g]."""
    return kernel.reshape(-1, window.groups, kernel.shape[3] // window.groups).swapaxes(0, 1)


def _grouped(outputs: Array, window: _Window) -> Array:
    """[B, H', W', O] -> [g, N, O/g]."""
    return outputs.reshape(-1, window.groups, outputs.shape[3] // window.groups).swapaxes(0, 1)


def _output_size(window: _Window) -> list[int]:
    return [
        (size + low + high - k) // step + 1
        for size, k, step, (low, high) in zip(
            window.size, window.kernel, window.strides, window.padding, strict=True
        )
    ]


def _product_conv(images: Array, kernel: Array, window: _Window) -> Array:
    out = _output_size(window)
    outputs = jnp.matmul(_columns(images, window, out), _rows(kernel, window))
    return outputs.swapaxes(0, 1).reshape(len(images), *out, kernel.shape[3])


def _product_kernel_gradient(images: Array, cotangent: Array, window: _Window) -> Array:
    columns = _columns(images, window, cotangent.shape[1:3])
    rows = jnp.matmul(columns.swapaxes(1, 2), _grouped(cotangent, window))
    return rows.swapaxes(0, 1).reshape(*window.kernel, -1, cotangent.shape[3])


def _product_input_gradient(cotangent: Array, kernel: Array, window: _Window) -> Array:
    """Every pixel's gradient is the sum over the window's places at which it was seen."""
    columns = jnp.matmul(_grouped(cotangent, window), _rows(kernel, window).swapaxes(1, 2))
    batch, height, width, _ = cotangent.shape
    seen = columns.reshape(window.groups, batch, height, width, math.prod(window.kernel), -1)
    seen = seen.transpose(4, 1, 2, 3, 0, 5).reshape(seen.shape[4], batch, height, width, -1)
    total = jnp.zeros((batch, *window.size, seen.shape[-1]), seen.dtype)
    places = itertools.product(*(range(k) for k in window.kernel))
    for one, place in zip(seen, places, strict=True):
        sides = [(0, 0, 0)]
        for at, size, step, (low, _), out in zip(
            place, window.size, window.strides, window.padding, (height, width), strict=True
        ):
            before = at - low
            sides.append((before, size - before - (out - 1) * step - 1, step - 1))
        total += lax.pad(one, jnp.zeros((), one.dtype), [*sides, (0, 0, 0)])
    return total


# Batches of kernels


def _per_client(
    plain: Callable[..., Array], product: Callable[..., Array], shared: int | None
) -> Callable[[_Window], Callable]:
    """`plain(a, b, window)` with a batching rule of its own.

    Where argument `shared` has no client axis, the clients' images, in the other argument, are one
    larger batch; everywhere else every client has a kernel or a kernel gradient of its own.
    """

    @functools.cache
    def of(window: _Window) -> Callable[[Array, Array], Array]:
        @custom_vmap
        def one(a: Array, b: Array) -> Array:
            return plain(a, b, window)

        @one.def_vmap
        def many(axis_size: int, in_batched: list[bool], a: Array, b: Array) -> tuple[Array, bool]:
            if shared is not None and not in_batched[shared]:
                out = one(a.reshape(-1, *a.shape[2:]), b)
                return out.reshape(axis_size, -1, *out.shape[1:]), True

            if jax.default_backend() != "cpu":
                axes = tuple(0 if axis else None for axis in in_batched)
                return jax.vmap(lambda a, b: product(a, b, window), axes)(a, b), True

            def client(i: Array) -> Array:
                pick = functools.partial(lax.dynamic_index_in_dim, index=i, keepdims=False)
                return one(
                    *(pick(x) if axis else x for x, axis in zip((a, b), in_batched, strict=True))
                )

            return lax.map(client, jnp.arange(axis_size)), True

        return one

    return of


_forward = _per_client(_plain_conv, _product_conv, shared=1)
_input_gradient = _per_client(_plain_input_gradient, _product_input_gradient, shared=1)
_kernel_gradient = _per_client(_plain_kernel_gradient, _product_kernel_gradient, shared=None)
