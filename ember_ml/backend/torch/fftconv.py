"""`fftconv` on torch: transforms of padded rows, on a CPU in blocks that stay in the caches, with gates and gelu while they are there.

A whole-array transform allocates several times the input, and the operating system clears all of it first; that, and not
arithmetic, is what long rows take their time for. Blocks of rows in one buffer do without. They are padded to 2 M real
numbers, M and what wraps round from `right_angle.plan`: MKL transforms those in little more time than M complex
ones, and they need no twist. Where MKL is not, and on GPUs, torch.fft does the same in memory of its own. Compilers and second
derivatives take the op's body, whose convolution is in `convolve`.

Conjugates are computed, never lazy: inside an operator of ours torch forgets to resolve the lazy ones.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from ember_ml.backend.numpy.right_angle import edge_places, filters_of
from ember_ml.backend.right_angle import blocks, plan
from ember_ml.backend.torch.cpu import mkl

#: points of a block for each thread: 512 KiB in complex64, which the second-level cache of a core holds; rows
#: for each thread that are worth a call; rows that are worth one of torch.fft, which plans each time
BLOCK, ROWS, PLANNED = 1 << 16, 2, 64

#: types of tensors that have memory; those of tracing are of a subclass
_REAL = (torch.Tensor, torch.nn.Parameter)


class _Allocating:
    """torch.fft with the interface of `mkl.InPlace`."""

    def __init__(self, size: int, like):
        self.size, self.new, self.real, self.z = size, {"dtype": like.dtype, "device": like.device}, None, None

    def rows(self, shape):
        self.real = torch.empty(shape, **self.new)
        return self.real

    def spectra(self, shape):
        self.z = torch.empty(*shape[:2], shape[2] * shape[3], self.size // 2 + 1, dtype=self.new["dtype"].to_complex(), device=self.new["device"])
        return self.z

    def forward(self, shape):
        self.z = torch.fft.rfft(self.real.flatten(2, 3), self.size)
        return self.z

    def back(self, shape):
        return torch.fft.irfft(self.z, self.size, norm="forward")[..., :shape[4]].reshape(shape)


def _has_mkl(x) -> bool:
    """Not for the tensors of tracing, which have shapes and no memory."""
    return x.device.type == "cpu" and type(x) in _REAL and mkl.works()


def _memory(name: str, rows: int, size: int, x):
    return mkl.memory(name, rows, size, x.dtype) if _has_mkl(x) else _Allocating(size, x)


def _new_memory(rows: int, size: int, x):
    return mkl.InPlace(rows, size, x.dtype) if _has_mkl(x) else _Allocating(size, x)


def _tasks(x, batch: int, heads: int, each: int, size: int):
    """(blocks of heads with `each` rows, rows of a block at most)."""
    rows = batch * heads * each
    if x.device.type == "cpu":
        most = BLOCK * torch.get_num_threads() // (size // 2)
        rows = max(most, ROWS * torch.get_num_threads() if _has_mkl(x) else PLANNED)
    tasks = blocks(batch, heads, -(-rows // each))
    b, h = tasks[0][0]
    return tasks, (b.stop - b.start) * (h.stop - h.start) * each


@lru_cache(maxsize=8)
def _edge_places(left: int, device: torch.device):
    return tuple(torch.from_numpy(a).to(device) for a in edge_places(left))


def _spectrum(k, k_reverse, like, length):
    """(plan, spectra / 2 M, edge or None) of the taps that rows of `length` meet, (H, 1, M + 1); kept where the filter is prepared.

    In the dtype and on the device of `like`.
    """
    k_past, k_future = filters_of(k, k_reverse)
    taps = max(0 if f is None else f.shape[1] for f in (k_past, k_future))
    how = plan(length, min(taps, length), k_future is not None)
    size = 2 * how.points

    def spectra(f):
        shape = 1, len(f), 1, 1, min(f.shape[1], length)
        memory = _new_memory(len(f), size, like)
        memory.rows(shape).copy_(f[None, :, None, None, :length])
        return memory.forward(shape)[0]

    def make():
        made = spectra(k_past)
        made = made / size if k_future is None else made.add_(spectra(k_future).conj_physical_()) / size
        if not how.left:
            return (made,)
        places, there = _edge_places(how.left, like.device)
        return made, k_past[:, :length].to(like.dtype)[:, -how.left:][:, places] * there

    made = k.spectrum(("torch", how, length, like.dtype), make) if hasattr(k, "spectrum") else make()
    return how, made[0], made[1] if how.left else None


def _fill(rows, a, b):
    """Writes the product of the two, or the one that is there; rounded once."""
    if b is None:
        rows.copy_(a)
    elif a.dtype == b.dtype == rows.dtype:
        torch.mul(a, b, out=rows)
    else:
        rows.copy_(a).mul_(b)
    return rows


class _Call:
    """The arrays of one convolution, by head: (B, H, d1, d2, L) and (B, H, d, L), of which blocks are taken; its plan and its spectra."""

    def __init__(self, u, k, D, v, q, k_reverse, mask, head_dim):
        self.like = u if u.dtype in (torch.float32, torch.float64) else torch.empty(0, dtype=torch.float32, device=u.device)
        self.how, self.kw, self.mend = _spectrum(k, k_reverse, self.like, u.shape[2])
        batch, channels, self.length = u.shape
        self.heads, self.size, self.head_dim = self.kw.shape[0], 2 * self.how.points, head_dim
        self.each = head_dim if head_dim > 1 else channels // self.heads
        self.by_head = batch, self.heads, self.each, self.length
        self.u = u.view(*self.by_head).unsqueeze(3)
        v, q = (t if t is None or t.itemsize <= self.like.itemsize else t.to(self.like.dtype) for t in (v, q))
        self.v = None if v is None else v.view(*self.by_head).unsqueeze(2)
        self.q = None if q is None else q.view(*self.by_head)
        self.mask = None if mask is None else mask[:, :, None, None, None]
        self.D = None if D is None else D.to(self.like.dtype)[:, None, None] / self.size
        self.tasks, self.rows = _tasks(self.like, batch, self.heads, self.each * (head_dim if head_dim > 1 else 1), self.size)

    def memory(self, name):
        return _memory(name, self.rows, self.size, self.like)

    def block(self, at):
        """(shape of the rows, u, v, spectra) of some sequences and heads."""
        u, v, kw = self.u[at], None if self.v is None else self.v[at], self.kw[at[1]]
        wide = u.shape if self.head_dim == 1 else (*u.shape[:3], self.head_dim, self.length)
        return wide, u, v, kw if self.D is None else kw + self.D[at[1]]   # the skip is a tap of lag 0

    def empty(self, dtype):
        """An output and the same by head."""
        y = torch.empty(self.by_head[0], self.heads * self.each, self.length, dtype=dtype, device=self.like.device)
        return y, y.view(self.by_head)

    def last(self, at=()):
        """The last numbers of rows u v, which wrap round: (B, H, d1, d2, left)."""
        tail = self.u[at][..., -self.how.left:].to(self.like.dtype)
        return tail if self.v is None else tail * self.v[at][..., -self.how.left:]

    def wrapped(self):
        """What wraps round into the first numbers, of all rows: one small product; None if nothing does."""
        if self.mend is None:
            return None
        tail = self.last().transpose(0, 1)
        return torch.bmm(tail.reshape(self.heads, -1, self.how.left), self.mend).view(tail.shape).transpose(0, 1)


def forward(u, k, D=None, v=None, q=None, k_reverse=None, mask=None, gelu=False, head_dim=1):
    """The outputs."""
    call = _Call(u, k, D, v, q, k_reverse, mask, head_dim)
    memory, (y, by_head), wrapped = call.memory("x"), call.empty(u.dtype), call.wrapped()
    for task in call.tasks:
        for at in task:
            shape, x, gate, kw = call.block(at)
            _fill(memory.rows(shape), x, gate)
            memory.forward(shape).mul_(kw)
            a = memory.back(shape)
            if wrapped is not None:
                a[..., :call.how.left].sub_(wrapped[at])
            if gelu:
                torch.ops.aten.gelu_(a)
            if mask is not None:
                a.mul_(call.mask[at])
            out = by_head[at]
            if q is None:
                out.copy_(a[:, :, :, 0])
            elif head_dim == 1:
                torch.mul(a[:, :, :, 0], call.q[at], out=out)
            else:
                out.copy_(a.mul_(call.q[at].unsqueeze(3)).sum(2))
    return y


@torch.no_grad()
def backward(g, u, k, D=None, v=None, q=None, k_reverse=None, mask=None, gelu=False, head_dim=1):
    """Gradients in u, k, D, v, q and k_reverse, None where there is none."""
    call, prepared = _Call(u, k, D, v, q, k_reverse, mask, head_dim), hasattr(k, "spectrum")
    (du, du_by_head), left, many = call.empty(u.dtype), call.how.left, head_dim > 1
    (dv, dv_by_head), (dq, dq_by_head) = (call.empty(u.dtype) if t is not None else (None, None) for t in (v, q))
    g = g if g.itemsize <= call.like.itemsize else g.to(call.like.dtype)
    g = g.view(call.by_head).unsqueeze(2 if many else 3)
    again = q is not None or gelu                          # the convolution's output is needed again
    wrapped = call.wrapped() if again else None
    memory, other = call.memory("g"), call.memory("x") if again or not prepared else None
    dD = torch.zeros(call.heads, dtype=call.like.dtype, device=u.device) if D is not None and prepared else None
    if not prepared:
        sums = torch.empty(call.heads, call.how.points + 1, dtype=call.kw.dtype, device=u.device)
        edge = torch.zeros(call.heads, left, left, dtype=call.like.dtype, device=u.device)
    for task in call.tasks:
        for i, at in enumerate(task):                      # in one order: the same bits each time
            shape, x, gate, kw = call.block(at)
            dy = g[at]
            if other is not None:
                _fill(other.rows(shape), x, gate)
                x_f = other.forward(shape)
            if again:
                torch.mul(x_f, kw, out=memory.spectra(shape))
                z = memory.back(shape)
                if left:
                    z[..., :left].sub_(wrapped[at])
            rows, after = memory.rows(shape), None if q is None else call.q[at].unsqueeze(3)
            if q is not None:
                a = torch.nn.functional.gelu(z) if gelu else z
                if mask is not None:
                    a = a * call.mask[at]
                if many:
                    dq_by_head[at].copy_((a * dy).sum(3))
                else:
                    torch.mul(a, dy, out=dq_by_head[at].unsqueeze(3))
            if gelu:
                da = dy.to(z.dtype).expand(shape) if after is None else dy.to(z.dtype) * after
                torch.ops.aten.gelu_backward.grad_input(da, z, grad_input=rows)
            else:
                _fill(rows, dy, after)
            if mask is not None:
                rows.mul_(call.mask[at])
            if left:
                first = rows[..., :left].clone()
            if dD is not None:
                dD[at[1]] += (rows * x * (1 if gate is None else gate)).sum((0, 2, 3, 4))
            g_f = memory.forward(shape)
            if not prepared:
                found = x_f.conj_physical_().mul_(g_f).sum((0, 2))
                sums[at[1]] = found if i == 0 else found.add_(sums[at[1]])
                if left:
                    edge[at[1]] += torch.einsum("bhdea,bhden->han", call.last(at), first)
            g_f.mul_(kw.conj_physical())
            dx = memory.back(shape)
            if left:
                dx[..., -left:].sub_(torch.matmul(first, call.mend[at[1], None].mT))
            if gate is None:
                du_by_head[at].copy_(dx[:, :, :, 0])
            elif many:
                du_by_head[at].copy_((dx * gate).sum(3))
                dv_by_head[at].copy_((dx * x).sum(2))
            else:
                torch.mul(dx, gate, out=du_by_head[at].unsqueeze(3))
                torch.mul(dx, x, out=dv_by_head[at].unsqueeze(3))
    dk = dk_reverse = None
    if not prepared:
        if k_reverse is not None:
            dk_reverse = _filter_grad(sums.conj_physical(), k_reverse, call)
        dk = _filter_grad(sums, k, call)
        if left:
            places, there = _edge_places(left, u.device)
            met = min(k.shape[1], call.length)
            dk[:, met - left:met].index_add_(1, places.flatten(), (edge * there).flatten(1), alpha=-1)
        if D is not None:
            dD = dk[:, 0].clone()                          # both meet the input without lag
    return du, dk, dD, dv, dq, dk_reverse


def _filter_grad(sums, k, call):
    """The taps of sums over the batch; taps beyond the input's length never met it."""
    met = min(k.shape[1], call.length)
    dk, shape = torch.zeros(k.shape, dtype=call.like.dtype, device=sums.device), (1, call.heads, 1, 1, met)
    memory = _new_memory(call.heads, call.size, call.like)
    memory.spectra(shape).copy_(sums[None, :, None])
    dk[:, :met].copy_(memory.back(shape)[0, :, 0, 0]).div_(call.size)
    return dk


def _is_at_hand(*tensors) -> bool:
    """Whether there are values on a CPU, and nobody records what is computed."""
    return get_proxy_mode() is None and all(t is None or hasattr(t, "spectrum") or t.device.type == "cpu" and type(t) in _REAL for t in tensors)


def fftconv_rows(u, k, D=None, v=None, q=None, k_reverse=None, dropout_mask=None, *, gelu=False, head_dim=1):
    """As `ember_ml.ops.fftconv` defines it, block by block with all that stands around the convolution; elsewhere its body serves."""
    if not _is_at_hand(u, k, D, v, q, k_reverse, dropout_mask):
        return NotImplemented
    return forward(u, k, D, v, q, k_reverse, dropout_mask, gelu, head_dim)


def fftconv_grad(g, u, k, D=None, v=None, q=None, k_reverse=None, dropout_mask=None, *, gelu=False, head_dim=1):
    given = g, u, k, D, v, q, k_reverse, dropout_mask
    if not _is_at_hand(*given) or torch.is_grad_enabled() and any(isinstance(t, torch.Tensor) and t.requires_grad for t in given):
        return NotImplemented                              # the body has a gradient of its own
    return backward(*given, gelu, head_dim)


TABLE = {"fftconv_rows": fftconv_rows, "fftconv_grad": fftconv_grad}
