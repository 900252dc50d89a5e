"""What a module's own tensors are worth while it is exported, so that it may decide by them.

torch.export knows shapes and types only. But ``nn.TransformerDecoder`` asks whether its mask is the causal one, and
``x[:, self.used]`` has as many elements as the mask has ones: both depend on buffers, not on the input. And
``nn.TransformerEncoder`` asks where its padding lies.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch._functorch import apis
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils.weak import WeakIdKeyDictionary

from edgecsi.lower.operators.untraceable import REPLACED, in_turns

# What Python asks of values, and what has as many elements as values say.
BY_VALUE = {
    Tensor.__bool__, Tensor.__int__, Tensor.__float__, Tensor.__index__, Tensor.item, Tensor.tolist, torch.equal,
    Tensor.equal, torch.allclose, Tensor.allclose, torch.nonzero, Tensor.nonzero, torch.argwhere, Tensor.argwhere,
    torch.masked_select, Tensor.masked_select, torch.unique, Tensor.unique, torch.bincount, Tensor.bincount,
}  # fmt: skip
LARGEST = 1 << 20
"""Elements; nobody decides by more."""


@contextmanager
def known_values(module: torch.nn.Module) -> Iterator[None]:
    """While it is entered, `module` can be exported although it decides by values of its parameters and buffers."""
    forward, own = module.forward, vars(module).get("forward")  # some choose theirs in __init__
    real = {name: tensor.detach() for name, tensor in _own(module)}

    @wraps(forward)
    def knowing(*args: Any, **kwargs: Any) -> Any:
        with _Knowing([(tensor, real[name]) for name, tensor in _own(module) if name in real]):
            return forward(*args, **kwargs)

    knowing.__signature__ = inspect.signature(forward)  # type: ignore[attr-defined]  # without self
    module.forward = knowing
    at_once = vars(apis)["vmap_impl"]
    vars(apis)["vmap_impl"] = in_turns
    checks = torch.distributions.Distribution._validate_args
    torch.distributions.Distribution.set_default_validate_args(
        False
    )  # they branch on the values of the input
    try:
        yield
    finally:
        torch.distributions.Distribution.set_default_validate_args(checks)
        vars(apis)["vmap_impl"] = at_once
        del module.forward
        if own is not None:
            module.forward = own


def _own(module: torch.nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)


class _Knowing(TorchFunctionMode):
    """Carries every function out on the real values too, as far as they are known."""

    def __init__(self, own: list[tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.known: Any = WeakIdKeyDictionary()
        self.kept = {real.untyped_storage().data_ptr() for _, real in own}
        for tensor, real in own:
            self.known[tensor] = real

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        func = REPLACED.get(func, func)
        name = getattr(func, "__name__", "")
        if name == "__get__" or "rand" in name or "dropout" in name:
            return func(*args, **kwargs)
        if func in (torch.masked_select, Tensor.masked_select) and len(args) == 2:
            real = self._real(args[1])
            if real is not None:
                x, mask = torch.broadcast_tensors(*args)  # type: ignore[no-untyped-call]
                self.known[mask] = _carried_out(torch.broadcast_to, (real, mask.shape), {})
                func, args = Tensor.__getitem__, (x, mask)
        if func is Tensor.__getitem__:
            args = (args[0], self._places(args[1]))
        values = self._values((args, kwargs))
        writes = name == "__setitem__" or (name.endswith("_") and not name.endswith("__")) or "out" in kwargs
        if writes and (values is None or self._is_own(args, kwargs)):
            self._forget(args, kwargs)
            values = None
        real = None if values is None else _carried_out(func, *values)
        if real is not None and (func in BY_VALUE or (func is torch.where and len(args) == 1)):
            return real
        result = func(*args, **kwargs)
        if real is not None:
            for one, other in zip(_pytree.tree_leaves(result), _pytree.tree_leaves(real), strict=False):
                if isinstance(one, Tensor) and isinstance(other, Tensor) and one.shape == other.shape:
                    self.known[one] = other
        return result

    def _real(self, tensor: Tensor) -> Tensor | None:
        """The values of a tensor; one that no tracing made has its own."""
        return tensor if type(tensor) is Tensor else self.known.get(tensor)

    def _values(self, given: Any) -> Any:
        """The arguments as real tensors; None if one depends on the input, or is too large."""
        leaves, spec = _pytree.tree_flatten(given)
        found = [self._real(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        for leaf, real in zip(leaves, found, strict=True):
            if isinstance(leaf, Tensor) and (real is None or real.numel() > LARGEST):
                return None
            if isinstance(leaf, torch.SymInt | torch.SymFloat | torch.SymBool):
                return None
        return _pytree.tree_unflatten(found, spec)

    def _places(self, index: Any) -> Any:
        """An index with known masks as the places of their ones."""
        found: list[Any] = []
        for one in index if isinstance(index, tuple) else (index,):
            real = (
                self._real(one) if isinstance(one, Tensor) and one.dtype == torch.bool and one.dim() else None
            )
            found += (
                [one] if real is None else _carried_out(torch.nonzero, (real,), {"as_tuple": True}) or [one]
            )
        return tuple(found) if isinstance(index, tuple) or len(found) > 1 else found[0]

    def _is_own(self, args: Any, kwargs: Any) -> bool:
        out = kwargs.get("out", args[0] if args else None)
        written = self._real(out) if isinstance(out, Tensor) else None
        return written is None or written.untyped_storage().data_ptr() in self.kept

    def _forget(self, args: Any, kwargs: Any) -> None:
        """What shares memory with a tensor that is written is no longer known."""
        written = kwargs.get("out", args[0] if args else None)
        real = self.known.get(written) if isinstance(written, Tensor) else None
        if real is not None:
            place = real.untyped_storage().data_ptr()
            for tensor in [t for t, r in self.known.items() if r.untyped_storage().data_ptr() == place]:
                del self.known[tensor]


def _carried_out(func: Any, args: Any, kwargs: Any) -> Any:
    """What a function answers on real tensors, None if it cannot be asked."""
    try:
        with torch._C.DisableTorchFunction(), _disable_current_modes(), torch.no_grad():
            return func(*args, **kwargs)
    except Exception:  # then it stays unknown, and the exporter says what it thinks of it
        return None


@contextmanager
def padded_encoders(module: nn.Module) -> Iterator[None]:
    """While it is entered, `module` can be exported with the zeros of its ``nn.TransformerEncoder``'s fast paths.

    These compute with the tokens that are not padded only, and return zeros for the others (before the last
    normalisation), if every sample's padding is behind its tokens. torch.export traces the other path, whose padded
    places hold numbers.
    """
    with ExitStack() as stack:
        for part in module.modules() if torch.backends.mha.get_fastpath_enabled() else ():
            if not (isinstance(part, nn.TransformerEncoder) and part.use_nested_tensor):
                continue  # the class of a traced module cannot even be asked for its forward
            if type(part).forward is nn.TransformerEncoder.forward:
                stack.enter_context(_with_zeros(part))
        yield


@contextmanager
def _with_zeros(encoder: nn.TransformerEncoder) -> Iterator[None]:
    original = encoder.forward

    @wraps(original)
    def forward(
        src: Tensor,
        mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool | None = None,
    ) -> Any:
        if src_key_padding_mask is None or mask is not None or is_causal or src.ndim != 3:
            return original(src, mask, src_key_padding_mask, is_causal)
        padded = src_key_padding_mask
        padded = padded if padded.dtype == torch.bool else padded != 0
        y = src
        for layer in encoder.layers:
            y = layer(y, src_key_padding_mask=src_key_padding_mask)
        behind = (padded[:, 1:] | ~padded[:, :-1]).all()
        y = torch.where((padded & behind)[..., None], 0.0, y)
        return y if encoder.norm is None else encoder.norm(y)

    encoder.forward = forward  # type: ignore[method-assign]
    try:
        yield
    finally:
        del encoder.forward
