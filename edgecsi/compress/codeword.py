"""The codeword between an encoder and a decoder: everything around it is linear, so it can be reordered, turned and
mixed while the network computes the same."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from edgecsi.compress.recipe import Pattern, Prune
from edgecsi.compress.watch import watching

_BATCH = 100
_COMPARED = 16  # samples that must give the same as before


def codeword_layers(module: nn.Module) -> tuple[nn.Linear, nn.Linear] | None:
    """The last dense layer of ``encoder`` and the first of ``decoder``, if one feeds the other."""
    children = dict(module.named_children())
    if not {"encoder", "decoder"} <= set(children):
        return None
    ends = [part for part in children["encoder"].modules() if isinstance(part, nn.Linear)]
    starts = [part for part in children["decoder"].modules() if isinstance(part, nn.Linear)]
    if not ends or not starts or ends[-1].out_features != starts[0].in_features:
        return None
    return ends[-1], starts[0]


def change_codeword(module: nn.Module, step: Prune, samples: Tensor) -> None:
    """Do to the codeword what a step that prunes wants done first.

    Args:
        samples: inputs of the network, float32 ``[N, …]``; few will do to permute with.
    """
    rows = Pattern.parse(step.pattern).rows
    if step.codeword == "permute":
        _try(module, samples, lambda: permute_codeword(module, rows))
    elif step.codeword == "rotate":
        _try(module, samples, lambda: rotate_codeword(module, samples))
    elif step.codeword == "group":
        _try(module, samples, lambda: group_codeword(module, samples, rows or 1))


def _try(module: nn.Module, samples: Tensor, change: Callable[[], object]) -> bool:
    """Change the codeword, but take it back if the network then computes something else: a child called encoder need
    not end in what a child called decoder begins with. Returns whether it was changed."""
    weights = [tensor for layer in codeword_layers(module) or () for tensor in layer.parameters()]
    before = [weight.detach().clone() for weight in weights]
    some = samples[:_COMPARED]
    with torch.no_grad():
        wanted = module(some)
        if change() is False:
            return False
        now = module(some)
        if torch.allclose(now, wanted, rtol=1e-3, atol=1e-3 * float(wanted.abs().max())):
            return True
        for weight, old in zip(weights, before, strict=True):
            weight.copy_(old)
    return False


@torch.no_grad()
def permute_codeword(module: nn.Module, rows: int) -> None:
    """Reorder the codeword, in place: every `rows` neighbouring outputs of the encoder get like weights.

    The encoder's last dense layer and the decoder's first are permuted together: the network computes the
    same. Groups are made greedily: the strongest output that is left, and those whose magnitudes point most
    in its direction.
    """
    pair = codeword_layers(module)
    if pair is None or rows < 2:
        return
    last, first = pair
    magnitude = torch.cat([last.weight.abs(), first.weight.abs().T], 1)
    strength = magnitude.norm(dim=1)
    unit = magnitude / strength.clamp_min(1e-12)[:, None]
    left = torch.ones(len(unit), dtype=torch.bool)
    order: list[int] = []
    while left.any():
        leader = int(torch.where(left, strength, -1.0).argmax())
        alike = torch.where(left, unit @ unit[leader], -1.0)
        chosen = alike.topk(min(rows, int(left.sum()))).indices.tolist()
        order += chosen
        left[chosen] = False
    last.weight.copy_(last.weight[order])
    if last.bias is not None:
        last.bias.copy_(last.bias[order])
    first.weight.copy_(first.weight[:, order])


@torch.no_grad()
def rotate_codeword(module: nn.Module, samples: Tensor) -> None:
    """Turn the codeword, in place, so that its energy gathers in few entries; the network computes the same.

    Between the encoder's last dense layer and the decoder's first everything is linear. The new codeword
    holds the principal components of what the decoder makes of it, strongest first, its mean is 0.
    """
    # every entry gets the same spread: a codeword with one step for all is then rounded best
    _turn_codeword(module, samples, lambda energy, _: torch.diag((energy + 1e-6 * energy[0]).sqrt()))


@torch.no_grad()
def group_codeword(module: nn.Module, samples: Tensor, rows: int) -> None:
    """Turn the codeword, in place, so that every ``rows`` entries of it hold one part of the image; the network
    computes the same.

    Principal components of like energy mix all angles and delays, so that few blocks of weights are small. The same
    space has a basis of local vectors: the image is cut into parts that it tells least apart, each for as many entries,
    and an entry has next to no weights elsewhere.

    Args:
        rows: outputs of a block. Image and codeword are cut into multiples of it.
    """

    def grouped(energy: Tensor, basis: Tensor) -> Tensor:
        size = len(energy)
        wanted = torch.zeros_like(basis)
        projection = basis @ basis.T
        entry = 0
        for part in _parts(projection, rows, -(-size // rows)):
            vectors = torch.linalg.eigh(projection[part][:, part])[1].flip(1)
            count = min(rows, size - entry, len(part))
            wanted[part, entry : entry + count] = vectors[:, :count]
            entry += count
        left, _, right = torch.linalg.svd(basis.T @ wanted)
        turn: Tensor = left @ right  # the rotation that comes nearest
        return turn * (turn.T.square() @ energy + 1e-6 * energy[0]).sqrt()

    _turn_codeword(module, samples, grouped)


def _parts(projection: Tensor, unit: int, count: int) -> list[Tensor]:
    """Cut ``[I, I]`` inputs into `count` parts of equal trace that depend little on each other: spectral bisection
    (Fiedler, 1973) of runs of `unit` inputs.

    Returns:
        the inputs of every part, in rising order.
    """
    unit = math.gcd(unit, len(projection))
    units = len(projection) // unit
    tiles = projection.reshape(units, unit, units, unit)
    near = tiles.square().sum((1, 3))
    share = tiles.diagonal(dim1=0, dim2=2).diagonal(dim1=0, dim2=1).sum(1)

    def cut(members: Tensor, count: int) -> list[Tensor]:
        if count == 1 or len(members) < 2:
            return [members]
        graph = near[members][:, members]
        degree = graph.sum(1).clamp_min(1e-12)
        scaled = graph / (degree[:, None] * degree).sqrt()
        order = (torch.linalg.eigh(scaled)[1][:, -2] / degree.sqrt()).argsort()
        first = count // 2
        sums = share[members[order]].cumsum(0)
        border = int(torch.searchsorted(sums, sums[-1] * first / count)) + 1
        border = min(max(border, 1), len(members) - 1)
        return [*cut(members[order[:border]], first), *cut(members[order[border:]], count - first)]

    offsets = torch.arange(unit)
    return [
        (part.sort().values[:, None] * unit + offsets).flatten() for part in cut(torch.arange(units), count)
    ]


@torch.no_grad()
def mix_codeword(module: nn.Module, samples: Tensor) -> bool:
    """Turn the codeword, in place, so that its energy spreads over all entries; the network computes the same.

    The new codeword is a random rotation of the principal components of what the decoder makes of it, its mean is 0.
    All entries weigh the same, and hold much of each other, so errors of rounded weights cancel best: what is left of
    them goes with the geometric mean of the components' energies, not with the arithmetic one.

    Returns:
        whether there is a codeword to turn, and samples enough.
    """

    def mixed(energy: Tensor, _basis: Tensor) -> Tensor:
        return _random_rotation(len(energy)) * energy.mean().sqrt()

    return _turn_codeword(module, samples, mixed)


def mix_unless_pruned(module: nn.Module, samples: Tensor) -> bool:
    """:func:`mix_codeword`, but for a network with zeros on either side of the codeword: it would fill them."""
    pair = codeword_layers(module)
    if pair is None or any(bool((layer.weight == 0).any()) for layer in pair):
        return False
    return _try(module, samples, lambda: mix_codeword(module, samples))


def _random_rotation(size: int) -> Tensor:
    """``[size, size]``, float64, always the same."""
    generator = torch.Generator().manual_seed(0)
    rotation: Tensor = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))[0]
    return rotation


def _turn_codeword(module: nn.Module, samples: Tensor, mixing: Callable[[Tensor, Tensor], Tensor]) -> bool:
    """`mixing`: from the energy of each principal component ``[M]``, strongest first, and the components ``[O, M]`` to
    the invertible matrix ``[M, M]`` that makes the components from the new codeword. Returns whether it was done."""
    pair = codeword_layers(module)
    if pair is None or pair[0].bias is None or pair[1].bias is None:
        return False
    last, first = pair
    seen: list[Tensor] = []
    with watching((last, lambda _x, y: seen.append(y))):
        for part in torch.split(samples, _BATCH):
            module(part)
    code = torch.cat(seen).double()
    if len(code) < 2 * last.out_features:
        return False  # too few samples: directions they do not show would be lost
    mean = code.mean(0)
    code -= mean
    weight = first.weight.double()
    image = weight @ (code.T @ code / len(code)) @ weight.T
    energy, basis = torch.linalg.eigh(image)
    size = last.out_features
    basis, energy = basis[:, -size:].flip(1), energy[-size:].flip(0).clamp_min(0)
    mix = mixing(energy, basis)
    turn = torch.linalg.solve(mix, basis.T @ weight)
    # weights of both layers are of one size, so that one learning rate suits both
    balance = ((turn @ last.weight.double()).square().mean() / (basis @ mix).square().mean()).pow(0.25)
    mix, turn = mix * balance, turn / balance
    # what is constant does not belong into the codeword, and takes from the range it is rounded in
    last.weight.copy_(turn @ last.weight.double())
    last.bias.copy_(turn @ (last.bias.double() - mean))
    first.bias.add_((weight @ mean).float())
    first.weight.copy_(basis @ mix)
    return True
