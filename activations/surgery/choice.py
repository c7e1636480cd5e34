"""Which of the sites are meant: all, one in each block, some of them by place or name."""

import itertools
import re
from collections import Counter, defaultdict
from typing import Any

from torch import nn

from activations.surgery.sites import Site

SELECTIONS = "all, one_per_block, no_stem_no_last, first:K, last:K, re:PATTERN"


def select(every: list[Site], sites: str) -> list[Site]:
    """Return the sites among ``every`` that the selection ``sites`` means; see ``replace_activations``."""
    if not every:
        raise ValueError("the network calls no activation: there is nothing to replace")
    kind, _, value = sites.partition(":") if isinstance(sites, str) else ("", "", "")
    if kind == "re" and value:
        return _matching(every, value)
    outputs = [site.path for site in every if site.output]
    every = [site for site in every if not site.output]
    if not every:
        raise ValueError(
            f"the network calls no activation but that of its output, {outputs[0]}: name it with sites=re:PATTERN"
        )
    if sites == "all":
        return every
    if sites == "one_per_block":
        return _one_per_block(every)
    if sites == "no_stem_no_last":
        return _no_stem_no_last(every)
    if kind in ("first", "last") and value.isdecimal() and 1 <= int(value) <= len(every):
        return every[: int(value)] if kind == "first" else every[-int(value) :]
    raise ValueError(f"sites={sites}: must be one of {SELECTIONS}; K from 1 to {len(every)} here")


def _matching(every: list[Site], pattern: str) -> list[Site]:
    try:
        chosen = [site for site in every if re.search(pattern, site.path)]
    except re.error as error:
        raise ValueError(f"sites=re:{pattern}: no regular expression: {error}") from error
    if not chosen:
        names = ", ".join(site.path for site in every[:5]) + (", ..." if len(every) > 5 else "")
        raise ValueError(f"sites=re:{pattern}: selects nothing; sites are {names}")
    return chosen


def _one_per_block(every: list[Site]) -> list[Site]:
    blocks = _blocks(every)
    best: dict[Any, Site] = {}
    for site, block in blocks.items():
        # a gate's inner activation, on 1x1 maps, only if there is nothing else
        rank = [(s.positions < 2, block not in s.call.window) for s in (site, best.get(block, site))]
        if block not in best or rank[0] < rank[1]:
            best[block] = site
    return [site for site in every if site in best.values()]


def _no_stem_no_last(every: list[Site]) -> list[Site]:
    blocks = _blocks(every)
    inside = list(blocks)
    maps: dict[Any, list[int]] = defaultdict(list)
    for site, block in blocks.items():
        maps[block].append(site.positions)
    # gates have 1x1 maps in every stage
    sizes = {block: min([n for n in ns if n > 1], default=min(ns)) for block, ns in maps.items()}
    smallest = min((size for size in sizes.values() if size), default=0)
    last = {block for block, size in sizes.items() if size <= smallest}
    home = _home(inside[-1], blocks[inside[-1]])
    at_home = {block for site, block in blocks.items() if home in site.call.stack}
    if home is None or len(at_home) == len(sizes):
        home = None  # of all blocks, which is no stage
    elif 2 * len(last) > len(sizes):
        last = at_home  # a dilated net has the smallest maps in several stages
    end = len(inside)
    while end and blocks[inside[end - 1]] in last:
        end -= 1
    if end in (0, len(inside)):
        raise ValueError("sites=no_stem_no_last: no last stage can be told by its smaller maps")
    between = every[every.index(inside[0]) : every.index(inside[end])]
    return [site for site in between if not site.auxiliary and home not in site.call.stack]


def _home(site: Site, block: Any) -> nn.Module | None:
    """The module around the block of a site; none where every site is its own block."""
    stack = site.call.stack
    return stack[stack.index(block) - 1] if block in stack else None


def _blocks(every: list[Site]) -> dict[Site, Any]:
    """The block of every site that is in one; if there is no block at all, every site is its own.

    A block is the outermost module around a site that has several weights, is no container and no stage, and whose
    class occurs several times, or which stands beside such a one, as the modules of an Inception do. Auxiliary heads,
    which run in training alone, have none.
    """
    chains = {}
    for site in every:
        if not site.auxiliary:
            network, *around = site.call.stack
            chains[site] = [network, *filter(_may_be_block, around)]
    classes = Counter(
        type(module) for module in {module for chain in chains.values() for module in chain[1:]}
    )
    pairs = [
        [(p, m) for p, m in itertools.pairwise(chain) if classes[type(m)] > 1] for chain in chains.values()
    ]
    homes = {pair[0][0] for pair in pairs if pair}
    blocks: dict[Site, Any] = {}
    for site, chain in chains.items():
        for parent, module in itertools.pairwise(chain):
            beside = parent in homes and not re.search("stem|head|embed", type(module).__name__.lower())
            if site not in blocks and (classes[type(module)] > 1 or beside):
                blocks[site] = module
    return blocks or {site: site for site in chains}


def _may_be_block(module: nn.Module) -> bool:
    children = [type(child) for child in module.children()]
    if isinstance(module, nn.Sequential | nn.ModuleList | nn.ModuleDict) or children == [nn.ModuleList]:
        return False
    weights = sum(parameter.ndim > 1 for parameter in module.parameters())
    return weights > 1 and "stage" not in type(module).__name__.lower()
