"""Select sites: all, one in each block, or some of them by place or name."""

import itertools
import re
from collections import Counter, defaultdict
from typing import Any

from torch import nn

from activations.surgery.sites import Site

SELECTIONS = "all, one_per_block, no_stem_no_last, first:K, last:K, re:PATTERN"


def select(sites: list[Site], selection: str) -> list[Site]:
    """Return those of ``sites`` that ``selection`` means; see ``replace_activations``."""
    if not sites:
        raise ValueError("the network calls no activation: there is nothing to replace")
    kind, _, value = selection.partition(":") if isinstance(selection, str) else ("", "", "")
    if kind == "re" and value:
        return _matching(sites, value)
    outputs = [site.path for site in sites if site.output]
    sites = [site for site in sites if not site.output]
    if not sites:
        raise ValueError(
            f"the network calls no activation but that of its output, {outputs[0]}: name it with sites=re:PATTERN"
        )
    if selection == "all":
        return sites
    if selection == "one_per_block":
        return _one_per_block(sites)
    if selection == "no_stem_no_last":
        return _no_stem_no_last(sites)
    if kind in ("first", "last") and value.isdecimal() and 1 <= int(value) <= len(sites):
        return sites[: int(value)] if kind == "first" else sites[-int(value) :]
    raise ValueError(f"sites={selection}: must be one of {SELECTIONS}; K from 1 to {len(sites)} here")


def _matching(sites: list[Site], pattern: str) -> list[Site]:
    try:
        chosen = [site for site in sites if re.search(pattern, site.path)]
    except re.error as error:
        raise ValueError(f"sites=re:{pattern}: no regular expression: {error}") from error
    if not chosen:
        names = ", ".join(site.path for site in sites[:5]) + (", ..." if len(sites) > 5 else "")
        raise ValueError(f"sites=re:{pattern}: selects nothing; sites are {names}")
    return chosen


def _one_per_block(sites: list[Site]) -> list[Site]:
    by_block: dict[Any, list[Site]] = defaultdict(list)
    for site, block in _blocks(sites).items():
        by_block[block].append(site)
    chosen = {
        # The activation inside a gate, on 1x1 maps, counts only if there is no other.
        min(inside, key=lambda site: (site.positions < 2, block not in site.call.conv_stack))
        for block, inside in by_block.items()
    }
    return [site for site in sites if site in chosen]


def _no_stem_no_last(sites: list[Site]) -> list[Site]:
    blocks = _blocks(sites)
    in_blocks = list(blocks)
    map_sizes: dict[Any, list[int]] = defaultdict(list)
    for site, block in blocks.items():
        map_sizes[block].append(site.positions)
    # Gates have 1x1 maps in every stage.
    sizes = {
        block: min([size for size in every_size if size > 1], default=min(every_size))
        for block, every_size in map_sizes.items()
    }
    smallest = min((size for size in sizes.values() if size), default=0)
    last_blocks = {block for block, size in sizes.items() if size <= smallest}
    stage = _stage_of(in_blocks[-1], blocks[in_blocks[-1]])
    stage_blocks = {block for site, block in blocks.items() if stage in site.call.stack}
    if stage is None or len(stage_blocks) == len(sizes):
        stage = None  # A module around all blocks is no stage.
    elif 2 * len(last_blocks) > len(sizes):
        last_blocks = stage_blocks  # A dilated network has its smallest maps in several stages.
    end = len(in_blocks)
    while end and blocks[in_blocks[end - 1]] in last_blocks:
        end -= 1
    if end in (0, len(in_blocks)):
        raise ValueError("sites=no_stem_no_last: no last stage can be told by its smaller maps")
    between = sites[sites.index(in_blocks[0]) : sites.index(in_blocks[end])]
    return [site for site in between if not site.auxiliary and stage not in site.call.stack]


def _stage_of(site: Site, block: Any) -> nn.Module | None:
    """Return the module around the block of a site; None where every site is its own block."""
    stack = site.call.stack
    return stack[stack.index(block) - 1] if block in stack else None


def _blocks(sites: list[Site]) -> dict[Site, Any]:
    """Return the block of every site that is in one; if there is no block at all, every site is its own.

    A block is the outermost module around a site that has several weights, is no container and no stage, and whose
    class occurs several times, or which stands beside such a one, as the modules of an Inception do. Auxiliary heads,
    which run in training alone, have none.
    """
    chains = {}
    for site in sites:
        if not site.auxiliary:
            network, *inner = site.call.stack
            chains[site] = [network, *filter(_may_be_block, inner)]
    classes = Counter(
        type(module) for module in {module for chain in chains.values() for module in chain[1:]}
    )
    parents_of_blocks: set[nn.Module] = set()
    for chain in chains.values():
        outermost = (parent for parent, module in itertools.pairwise(chain) if classes[type(module)] > 1)
        parents_of_blocks.update(itertools.islice(outermost, 1))
    blocks: dict[Site, Any] = {}
    for site, chain in chains.items():
        for parent, module in itertools.pairwise(chain):
            name = type(module).__name__.lower()
            beside = parent in parents_of_blocks and not re.search("stem|head|embed", name)
            if classes[type(module)] > 1 or beside:
                blocks[site] = module
                break
    return blocks or {site: site for site in chains}


def _may_be_block(module: nn.Module) -> bool:
    children = [type(child) for child in module.children()]
    if isinstance(module, nn.Sequential | nn.ModuleList | nn.ModuleDict) or children == [nn.ModuleList]:
        return False
    weights = sum(parameter.ndim > 1 for parameter in module.parameters())
    return weights > 1 and "stage" not in type(module).__name__.lower()
