"""PyTorch's attention, recurrent and 1-D layers as networks of dense layers, which can be compressed one by one.

``nn.MultiheadAttention``, ``nn.LSTM`` and ``nn.GRU`` take the weights of their parts without calling them. The modules
here take their place: the same arguments, the same answer, and every product with a weight is an ``nn.Linear``. A
convolution along one axis becomes one of an image of one row, or a dense layer if it has one tap.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

_NAMES = {1: ("qkv",), 2: ("q", "kv"), 3: ("q", "k", "v")}


class Attention(nn.Module):
    """In place of ``nn.MultiheadAttention``, in eval mode.

    Args:
        original: what it answers as; without ``add_bias_kv`` and ``add_zero_attn``.
        inputs: how many of query, key and value are tensors of their own: 1 if all are one (one product makes all three),
            2 if key and value are one, 3.
    """

    def __init__(self, original: nn.MultiheadAttention, inputs: int) -> None:
        super().__init__()
        torch.backends.mha.set_fastpath_enabled(
            False
        )  # the shortcut of the layer around it wants the original
        self.inputs, self.num_heads, self.batch_first = inputs, original.num_heads, original.batch_first
        weights, biases = _three(original)
        width = original.embed_dim
        at = 0
        for name in _NAMES[inputs]:
            some = weights[at : at + len(name)]
            layer = nn.Linear(some[0].shape[1], len(name) * width, bias=biases is not None)
            with torch.no_grad():
                layer.weight.copy_(torch.cat(some))
                if biases is not None:
                    layer.bias.copy_(torch.cat(biases[at : at + len(name)]))
            self.add_module(name, layer)
            at += len(name)
        self.out_proj = nn.Linear(width, width, bias=original.out_proj.bias is not None)
        self.out_proj.load_state_dict(original.out_proj.state_dict())

    @staticmethod
    def fits(original: nn.MultiheadAttention, inputs: int) -> bool:
        """Whether it can stand for this layer."""
        alike = original._qkv_same_embed_dim or inputs == 3
        return alike and original.bias_k is None and original.bias_v is None and not original.add_zero_attn

    def attributes(self) -> dict[str, Any]:
        return {"inputs": self.inputs}

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As that of ``nn.MultiheadAttention``."""
        del is_causal  # says what `attn_mask` is
        one = query.ndim == 2
        given = [query, key, value]
        if one:
            given = [x[None] for x in given]
        elif not self.batch_first:
            given = [x.transpose(0, 1) for x in given]
        parts: list[Tensor] = []
        for name, x in zip(_NAMES[self.inputs], given, strict=False):
            parts += getattr(self, name)(x).chunk(len(name), -1)
        q, k, v = (part.reshape(*part.shape[:2], self.num_heads, -1).transpose(1, 2) for part in parts)
        mask = self._mask(attn_mask, key_padding_mask, q)
        weights = None
        if need_weights:
            scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
            weights = torch.softmax(scores if mask is None else scores + mask, -1)
            seen = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
            weights = weights[0] if one else weights
        else:
            seen = functional.scaled_dot_product_attention(q, k, v, mask)
        y = self.out_proj(seen.transpose(1, 2).flatten(2))
        if one:
            return y[0], weights
        return (y if self.batch_first else y.transpose(0, 1)), weights

    def _mask(self, attn_mask: Tensor | None, padding: Tensor | None, like: Tensor) -> Tensor | None:
        """What is added to the scores ``[B, H, T, S]``, as a tensor that fits them."""

        def added(mask: Tensor) -> Tensor:
            if mask.dtype != torch.bool:
                return mask
            return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, float("-inf"))

        total = None
        if attn_mask is not None:
            total = added(attn_mask)
            if total.ndim == 3:  # [B*H, T, S]
                total = total.reshape(-1, self.num_heads, *total.shape[1:])
        if padding is not None:
            padded = added(padding if padding.ndim == 2 else padding[None])[:, None, None]
            total = padded if total is None else total + padded
        return total


def _three(original: nn.MultiheadAttention) -> tuple[list[Tensor], list[Tensor] | None]:
    """Weights and biases of query, key and value."""
    if original._qkv_same_embed_dim:
        assert original.in_proj_weight is not None
        weights = list(original.in_proj_weight.detach().chunk(3))
    else:
        weights = [getattr(original, f"{name}_proj_weight").detach() for name in ("q", "k", "v")]
    bias = original.in_proj_bias
    return weights, None if bias is None else list(bias.detach().chunk(3))


class Recurrent(nn.Module):
    """In place of ``nn.LSTM`` and ``nn.GRU``, in eval mode; of every layer and direction a product with all inputs at
    once, and one with the state, step by step.

    Args:
        original: what it answers as; without ``proj_size``.
    """

    def __init__(self, original: nn.RNNBase) -> None:
        super().__init__()
        self.lstm = isinstance(original, nn.LSTM)
        self.batch_first, self.hidden_size = original.batch_first, original.hidden_size
        self.num_layers, self.directions = original.num_layers, 2 if original.bidirectional else 1
        for suffix in self._suffixes():
            for kind, name in (("ih", "input"), ("hh", "state")):
                weight = getattr(original, f"weight_{kind}{suffix}")
                layer = nn.Linear(weight.shape[1], len(weight), bias=original.bias)
                with torch.no_grad():
                    layer.weight.copy_(weight)
                    if original.bias:
                        layer.bias.copy_(getattr(original, f"bias_{kind}{suffix}"))
                self.add_module(f"{name}{suffix}", layer)

    @staticmethod
    def fits(original: nn.RNNBase) -> bool:
        """Whether it can stand for this layer."""
        return isinstance(original, nn.LSTM | nn.GRU) and not original.proj_size

    def attributes(self) -> dict[str, Any]:
        return {}

    def _suffixes(self) -> list[str]:
        ways = ("", "_reverse")[: self.directions]
        return [f"_l{layer}{way}" for layer in range(self.num_layers) for way in ways]

    def forward(self, x: Tensor, hx: Any = None) -> tuple[Tensor, Any]:
        """As that of ``nn.LSTM`` and ``nn.GRU``; no packed sequences."""
        one = x.ndim == 2
        if one:
            x = x[None]
        elif not self.batch_first:
            x = x.transpose(0, 1)
        given = () if hx is None else tuple(hx) if self.lstm else (hx,)
        if one:
            given = tuple(state[:, None] for state in given)
        ends: list[tuple[Tensor, ...]] = []
        suffixes = self._suffixes()
        for layer in range(self.num_layers):
            ways = []
            for way in range(self.directions):
                number = layer * self.directions + way
                start = tuple(state[number] for state in given) or (
                    x.new_zeros(len(x), self.hidden_size),
                ) * (1 + self.lstm)
                outputs, end = self._run(suffixes[number], x, start, way == 1)
                ways.append(outputs)
                ends.append(end)
            x = torch.cat(ways, -1) if len(ways) > 1 else ways[0]
        last = tuple(torch.stack(states) for states in zip(*ends, strict=True))
        if one:
            x, last = x[0], tuple(state[:, 0] for state in last)
        elif not self.batch_first:
            x = x.transpose(0, 1)
        return x, last if self.lstm else last[0]

    def _run(
        self, suffix: str, x: Tensor, state: tuple[Tensor, ...], backwards: bool
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """One layer in one direction, ``[B, T, I] -> [B, T, H]``, and its last state."""
        of_inputs, of_state = getattr(self, f"input{suffix}")(x), getattr(self, f"state{suffix}")
        steps = range(x.shape[1])
        outputs = []
        for step in reversed(steps) if backwards else steps:
            a, b = of_inputs[:, step], of_state(state[0])
            if self.lstm:
                i, f, g, o = (a + b).chunk(4, -1)
                cell = torch.sigmoid(f) * state[1] + torch.sigmoid(i) * torch.tanh(g)
                state = (torch.sigmoid(o) * torch.tanh(cell), cell)
            else:
                (ra, za, na), (rb, zb, nb) = a.chunk(3, -1), b.chunk(3, -1)
                new = torch.tanh(na + torch.sigmoid(ra + rb) * nb)
                update = torch.sigmoid(za + zb)
                state = ((1 - update) * new + update * state[0],)
            outputs.append(state[0])
        return torch.stack(outputs[::-1] if backwards else outputs, 1), state


class OneRow(nn.Module):
    """In place of ``nn.Conv1d``, and of ``nn.ConvTranspose1d`` with one tap."""

    def __init__(self, original: nn.Conv1d | nn.ConvTranspose1d) -> None:
        super().__init__()
        o, bias = original, original.bias is not None
        weight = o.weight.detach()
        self.layer: nn.Linear | nn.Conv2d
        self.dense = self._dense(o)
        if self.dense:
            flat = weight[:, :, 0].T if isinstance(o, nn.ConvTranspose1d) else weight[:, :, 0]
            self.layer = nn.Linear(o.in_channels, o.out_channels, bias)
        else:
            padding = o.padding if isinstance(o.padding, str) else (0, o.padding[0])
            self.layer = nn.Conv2d(
                o.in_channels, o.out_channels, (1, o.kernel_size[0]), (1, o.stride[0]), padding, (1, o.dilation[0]),
                o.groups, bias,
            )  # fmt: skip
            flat = weight[:, :, None]
        with torch.no_grad():
            self.layer.weight.copy_(flat)
            if o.bias is not None and self.layer.bias is not None:
                self.layer.bias.copy_(o.bias)

    @staticmethod
    def _dense(o: nn.Conv1d | nn.ConvTranspose1d) -> bool:
        plain = o.kernel_size == o.stride == (1,) and o.groups == 1 and o.padding in ((0,), "same", "valid")
        return plain and o.output_padding in (0, (0,))

    @classmethod
    def fits(cls, original: nn.Conv1d | nn.ConvTranspose1d, images: bool) -> bool:
        """Whether it can stand for this layer, as an image's convolution only if those are asked for."""
        return cls._dense(original) or (
            images and isinstance(original, nn.Conv1d) and original.padding_mode == "zeros"
        )

    def attributes(self) -> dict[str, Any]:
        return {}

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, T]`` or ``[C, T]``, as that of the layer."""
        y: Tensor
        if self.dense:
            y = self.layer(x.transpose(-1, -2)).transpose(-1, -2)
        else:
            y = self.layer(x.unsqueeze(-2)).squeeze(-2)
        return y


TakenApart = Attention | Recurrent | OneRow


def in_parent(module: nn.Module) -> nn.Module:
    """A network that is one layer, in a Sequential: layers are replaced in their parent. Others as they are."""
    alone = isinstance(module, nn.Linear | nn.Conv2d | nn.RNNBase | nn.Conv1d | nn.ConvTranspose1d)
    return nn.Sequential(module).eval() if alone else module


@torch.no_grad()
def take_apart(module: nn.Module, example: Tensor, keep: Collection[str] = (), images: bool = False) -> None:
    """Replace attention, recurrent and 1-D layers by the modules here, in place, but those of `keep` and those that these
    cannot stand for.

    Args:
        images: also make convolutions of more than one tap those of images.
    """
    found = {
        name: part
        for name, part in module.named_modules()
        if name
        and name not in keep
        and isinstance(part, nn.MultiheadAttention | nn.RNNBase | nn.Conv1d | nn.ConvTranspose1d)
        and all(p.dtype == torch.float32 for p in part.parameters())
    }
    inputs = _inputs_of(module, example, found)
    for name, part in found.items():
        new: nn.Module | None = None
        if isinstance(part, nn.RNNBase):
            new = Recurrent(part) if Recurrent.fits(part) else None
        elif isinstance(part, nn.Conv1d | nn.ConvTranspose1d):
            new = OneRow(part) if OneRow.fits(part, images) else None
        elif name in inputs and Attention.fits(part, inputs[name]):
            new = Attention(part, inputs[name])
        if new is not None:
            module.set_submodule(name, new.eval())


def put_apart(module: nn.Module, path: str, kind: str, numbers: dict[str, Any]) -> bool:
    """Replace one layer by what a record describes; False if the record is of another kind.

    Raises:
        AssertionError: the layer is none that this can stand for.
    """
    before: Any = module.get_submodule(path)
    if kind == "Attention":
        inputs = int(numbers["inputs"])
        assert isinstance(before, nn.MultiheadAttention), f"{path} is no MultiheadAttention"
        assert inputs in _NAMES, f"{path}.inputs"
        assert Attention.fits(before, inputs), f"{path} is no usual attention"
        module.set_submodule(path, Attention(before, inputs))
    elif kind == "Recurrent":
        assert isinstance(before, nn.RNNBase), f"{path} is no recurrent layer"
        assert Recurrent.fits(before), f"{path} is neither LSTM nor GRU"
        module.set_submodule(path, Recurrent(before))
    elif kind == "OneRow":
        assert isinstance(before, nn.Conv1d | nn.ConvTranspose1d), f"{path} is no 1-D convolution"
        assert OneRow.fits(before, True), f"{path} is no convolution of one row"
        module.set_submodule(path, OneRow(before))
    else:
        return False
    return True


def _inputs_of(module: nn.Module, example: Tensor, found: Mapping[str, nn.Module]) -> dict[str, int]:
    """How many inputs of their own each attention has, as the network calls it."""
    inputs: dict[str, int] = {}

    def note(name: str) -> Any:
        def look(_part: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            names = ("query", "key", "value")
            q, k, v = (args[i] if len(args) > i else kwargs[n] for i, n in enumerate(names))
            seen = 1 if q is k and k is v else 2 if k is v else 3
            inputs[name] = max(inputs.get(name, 1), seen)

        return look

    hooks = [
        part.register_forward_pre_hook(note(name), with_kwargs=True)
        for name, part in found.items()
        if isinstance(part, nn.MultiheadAttention)
    ]
    try:
        if hooks:
            module.eval()(example)
    finally:
        for hook in hooks:
            hook.remove()
    return inputs
