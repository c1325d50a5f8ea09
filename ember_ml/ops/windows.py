"""What slides over images: convolutions in two dimensions, transposed ones, and pooling. Channels lead: (B, C, H, W), as in `conv1d`."""

from __future__ import annotations

from ember_ml.errors import ShapeError
from ember_ml.ops.declare import op
from ember_ml.ops.linear import matmul
from ember_ml.ops.reduce import max as largest
from ember_ml.ops.reduce import mean
from ember_ml.ops.shape import cut, expand_dims, flip, pad, permute_dims, reshape, squeeze, stack
from ember_ml.tensor import EmberTensor

Pair = int | tuple[int, int]


def _two(x: Pair) -> tuple[int, int]:
    return (x, x) if isinstance(x, int) else tuple(x)


def _windows(x, size, stride, dilation):
    """(B, C, taps, H', W'): the elements that each tap of the window sees at its places."""
    found = []
    for i in range(size[0]):
        for j in range(size[1]):
            part = x
            for axis, tap in ((2, i), (3, j)):
                a = axis - 2
                places = (x.shape[axis] - dilation[a] * (size[a] - 1) - 1) // stride[a] + 1
                part = cut(part, tap * dilation[a], tap * dilation[a] + (places - 1) * stride[a] + 1, axis=axis)
            found.append(part if stride == (1, 1) else part[:, :, ::stride[0], ::stride[1]])
    return stack(found, axis=2)


@op(public="conv2d", rule="promote")
def conv2d_rows(x, weight, bias=None, *, stride=(1, 1), dilation=(1, 1), groups=1):
    """Native form of `conv2d`, for checked shapes and without padding."""
    (batch, channels), (out, _, *size) = x.shape[:2], weight.shape
    seen = _windows(x, size, stride, dilation)
    places = seen.shape[3:]
    columns = reshape(seen, (batch, groups, channels // groups * size[0] * size[1], places[0] * places[1]))
    y = reshape(matmul(reshape(weight, (groups, out // groups, columns.shape[2])), columns), (batch, out, *places))
    return y if bias is None else y + reshape(bias, (out, 1, 1))


def conv2d(x: EmberTensor, weight: EmberTensor, bias: EmberTensor | None = None, *, stride: Pair = 1,
           padding: int | tuple[Pair, Pair] = 0, dilation: Pair = 1, groups: int = 1) -> EmberTensor:
    """y[b, o, s, t] = bias[o] + sum_{c, i, j} weight[o, c, i, j] x[b, c, s stride + i dilation - padding, t ...]: torch's Conv2d.

    Args:
        x: (B, C, H, W). weight: (O, C / groups, K, K'). bias: (O,) or None.
        stride, dilation: of both axes, one number or two. groups: blocks of channels that are mapped by themselves.
        padding: zeros around, one number, or for each axis one or (before, after): ((K - 1, 0), 0) makes the first axis causal.

    Returns: (B, O, H', W') with H' = (H + padding - dilation (K - 1) - 1) // stride + 1.

    Raises ShapeError naming what was expected and what came.
    """
    stride, dilation, around = _two(stride), _two(dilation), tuple(_two(p) for p in _two(padding))
    if x.ndim != 4 or weight.ndim != 4 or x.shape[1] != weight.shape[1] * groups or weight.shape[0] % groups:
        raise ShapeError(f"conv2d: expected x (B, C, H, W) and weight (O, C / groups, K, K') with groups = {groups} dividing O, got {x.shape} "
                         f"and {weight.shape}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ShapeError(f"conv2d: expected bias of shape {weight.shape[:1]}, got {bias.shape}")
    x = pad(x, ((0, 0), (0, 0), *around)) if any(map(any, around)) else x
    _check_room("conv2d", x, [d * (k - 1) + 1 for d, k in zip(dilation, weight.shape[2:])], stride)
    return conv2d_rows(x, weight, bias, stride=stride, dilation=dilation, groups=groups)


def _check_room(name, x, reach, stride):
    if any(n < r for n, r in zip(x.shape[2:], reach)):
        raise ShapeError(f"{name}: expected at least {tuple(reach)} positions with the padding, got {x.shape[2:]}")
    if min(stride) < 1:
        raise ShapeError(f"{name}: expected a stride of at least 1, got {stride}")


def conv_transpose2d(x: EmberTensor, weight: EmberTensor, bias: EmberTensor | None = None, *, stride: Pair = 1, padding: Pair = 0,
                     dilation: Pair = 1, groups: int = 1) -> EmberTensor:
    """The gradient of `conv2d` with respect to its input, as a map of its own: torch's ConvTranspose2d.

    y[b, o, s stride + i dilation - padding, ...] sums weight[c, o, i, j] x[b, c, s, t] over c, places and taps.

    Args:
        x: (B, C, H, W). weight: (C, O / groups, K, K'). bias: (O,) or None.
        padding: rows and columns that are left out on either side, at most dilation (K - 1).

    Returns: (B, O, H', W') with H' = (H - 1) stride - 2 padding + dilation (K - 1) + 1.

    Raises ShapeError naming what was expected and what came.
    """
    stride, dilation, padding = _two(stride), _two(dilation), _two(padding)
    if x.ndim != 4 or weight.ndim != 4 or x.shape[1] != weight.shape[0] or weight.shape[0] % groups:
        raise ShapeError(f"conv_transpose2d: expected x (B, C, H, W) and weight (C, O / groups, K, K') with groups = {groups} dividing C, got "
                         f"{x.shape} and {weight.shape}")
    reach = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:])]
    if any(not 0 <= p <= r for p, r in zip(padding, reach)) or min(stride) < 1:
        raise ShapeError(f"conv_transpose2d: expected padding from 0 to {tuple(reach)} and a stride of at least 1, got {padding} and {stride}")
    for axis, step in ((2, stride[0]), (3, stride[1])):      # zeros between the elements
        if step > 1:
            n = x.shape[axis]
            opened = pad(expand_dims(x, axis + 1), tuple((0, step - 1 if i == axis + 1 else 0) for i in range(5)))
            x = cut(reshape(opened, (*x.shape[:axis], n * step, *x.shape[axis + 1:])), 0, (n - 1) * step + 1, axis=axis)
    channels, out, *size = weight.shape
    turned = reshape(flip(flip(weight, axis=2), axis=3), (groups, channels // groups, out, *size))
    turned = reshape(permute_dims(turned, (0, 2, 1, 3, 4)), (groups * out, channels // groups, *size))
    return conv2d(x, turned, bias, padding=tuple((r - p, r - p) for r, p in zip(reach, padding)), dilation=dilation, groups=groups)


def conv_transpose1d(x: EmberTensor, weight: EmberTensor, bias: EmberTensor | None = None, *, stride: int = 1, padding: int = 0,
                     dilation: int = 1, groups: int = 1) -> EmberTensor:
    """`conv_transpose2d` along one axis: x (B, C, L), weight (C, O / groups, K), (B, O, (L - 1) stride - 2 padding + dilation (K - 1) + 1)."""
    if x.ndim != 3 or weight.ndim != 3:
        raise ShapeError(f"conv_transpose1d: expected x (B, C, L) and weight (C, O / groups, K), got {x.shape} and {weight.shape}")
    y = conv_transpose2d(expand_dims(x, 2), expand_dims(weight, 2), bias, stride=(1, stride), padding=(0, padding), dilation=(1, dilation),
                         groups=groups)
    return squeeze(y, 2)


def max_pool2d(x: EmberTensor, size: Pair, stride: Pair | None = None) -> EmberTensor:
    """Largest element of each window: (B, C, H, W) gives (B, C, (H - size) // stride + 1, ...). stride: default the size."""
    return largest(_pooled("max_pool2d", x, size, stride), axis=2)


def avg_pool2d(x: EmberTensor, size: Pair, stride: Pair | None = None) -> EmberTensor:
    """Mean of each window; arguments and shapes as in `max_pool2d`."""
    return mean(_pooled("avg_pool2d", x, size, stride), axis=2)


def max_pool1d(x: EmberTensor, size: int, stride: int | None = None) -> EmberTensor:
    """Largest element of each window: (B, C, L) gives (B, C, (L - size) // stride + 1). stride: default the size."""
    return squeeze(max_pool2d(_flat("max_pool1d", x), (1, size), (1, stride or size)), 2)


def avg_pool1d(x: EmberTensor, size: int, stride: int | None = None) -> EmberTensor:
    """Mean of each window; arguments and shapes as in `max_pool1d`."""
    return squeeze(avg_pool2d(_flat("avg_pool1d", x), (1, size), (1, stride or size)), 2)


def _pooled(name, x, size, stride):
    size, stride = _two(size), _two(size if stride is None else stride)
    if x.ndim != 4 or min(size) < 1:
        raise ShapeError(f"{name}: expected x (B, C, H, W) and a window of at least 1, got {x.shape} and {size}")
    _check_room(name, x, size, stride)
    return _windows(x, size, stride, (1, 1))


def _flat(name, x):
    if x.ndim != 3:
        raise ShapeError(f"{name}: expected x (B, C, L), got {x.shape}")
    return expand_dims(x, 2)
