"""Replace the activations of any network: a unit of its own for every place where one is called.

What counts is the **call**, not the module. In torchvision's resnet18 9 modules serve 17 calls, in resnet50 16 of 17
modules serve two channel counts each, and googlenet calls functions alone. So the network is run once in training and
once in evaluation, every call is recorded with the channels that it meets, and every site gets a place for a unit:

* A module that is called once is replaced where it is registered, and so is a function kept as an attribute.
* Where a ``forward`` calls one module several times, or a function, that ``forward`` alone is traced with torch.fx and
  generated anew. The object with its parameters, hooks and children stays and is still of its class; activations that
  the forward uses no more go. It cannot be pickled whole (its ``state_dict`` can), and asserts that those of its
  arguments that are None, flags or words, and all that it decides by sizes and numbers, are as in the example. Flags
  and numbers that it reads from ``self`` are fixed, and torch.utils.checkpoint within it saves no memory any more. Its
  other methods, when called from outside, are as they were: functions that they call are not replaced, and an
  activation module that went is missing there.

Before anything stays, every place is filled with the very function that was called there: the network's outputs in both
modes must be the same bits as before, and those of all modules the same sums of bits. Constant parameters have other
values meanwhile, since behind a norm whose weights are all zero nothing could be seen. A network is replaced as asked
or left as it was: every run is made from a snapshot of all that it may change, which is put back.

The parts are in ``activations/surgery``: ``kinds`` (what is an activation), ``custom`` (classes of the
network's own), ``state`` (what is put back), ``runs`` (runs that leave no trace), ``watch`` (calls and channels), ``sites``,
``selection``, ``rewrite`` with ``values`` (by what a traced forward decides).
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from activations.checks import check_choice
from activations.surgery.custom import recognize_custom
from activations.surgery.kinds import one_line, outer_modules
from activations.surgery.rewrite import install, trace_both
from activations.surgery.runs import (
    check_outputs,
    count_calls,
    record_checksums,
    run_in_mode,
    unshare,
    varied_constants,
)
from activations.surgery.selection import select
from activations.surgery.sites import Analysis, Report, Site
from activations.surgery.state import Snapshot, same_values, undisturbed
from activations.surgery.watch import Watch, make_sites, run_watched


def replace_activations(
    network: nn.Module,
    act_layer: Callable[..., nn.Module],
    *,
    sites: str = "all",
    activations: str | type | Sequence[str | type] = (),
    shared: str = "call",
    example_input: Tensor | tuple[Any, ...],
) -> Report:
    """Give every chosen site of ``network`` a unit of its own, in place.

    Gates (the sigmoid of a squeeze-and-excitation block, softmax, LSTM and GRU) stay, and so does what does not depend
    on the input, and what a forward writes out in arithmetic, such as ``x * x.sigmoid()`` or
    ``x * tanh(softplus(x))``; ``clamp(min=0)`` is not found. Parameters and buffers outside activations keep their names, so that
    pretrained weights can be loaded before or after. Only ``act_layer`` draws random numbers.

    Args:
        act_layer: called as ``act_layer(num_features, channel_dim=channel_dim)`` for one site after the other, in the
            order of the calls. The unit gets its site's device and training flag and the network's dtype.
        sites: which of them.
            ``all``: but not the one that limits the network's output, such as the tanh of a generator; ``re`` alone
            replaces that.
            ``one_per_block``: in each block (residual, inception, transformer, ...) the first activation behind a
            convolution wider than 1, as FReLU's authors advise, else the first; not one on 1x1 maps. None outside
            of blocks, unless there are no blocks: then every site is one. Of blocks within blocks (dla34, hrnet) the
            outer ones count.
            ``no_stem_no_last``: without those before the first block, in the last stage (the last blocks, with the
            smallest maps; if most have these, as in dilated nets, those in the module around the last block), behind
            it, and in auxiliary heads.
            ``first:K``, ``last:K``: K in the order of the calls.
            ``re:PATTERN``: those in whose name the regular expression is found.
        activations: classes, or their names, that count as activations; beside those of torch and timm and those of the
            network's own that act as one (``activations/surgery/custom.py`` says by which rule).
        shared: what happens to a module that runs several times in one forward, as in a siamese network.
            ``call``: an activation gets a unit for every call; one in a block that runs several times is refused.
            ``unit``: one unit serves all calls of the module, and of its block, if they have the same channels; its
            statistics are those of all of them.
        example_input: a batch, or a tuple of arguments. One small sample will do, if the stages can be told apart by
            the size of their maps. It needs a batch dimension.

    Returns:
        A row for every site, and for every call that stays with the reason why.

    Raises:
        ValueError: a network that cannot be run, a site that cannot be replaced, a unit that cannot stand at its site,
            ``sites`` that are no selection or select nothing, ``activations`` that the network does not have.
            ``network``, the random states and all else are then as before.

    Examples:
        >>> import torch
        >>> from actbench import make_act_layer, replace_activations
        >>> network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 2, 3))
        >>> report = replace_activations(network, make_act_layer("prelu"), example_input=torch.randn(1, 3, 8, 8))
        >>> report.replaced, type(network[1]).__name__, network[1].num_features
        (1, 'PReLU', 8)
    """
    with _analyzed(network, example_input, activations, shared) as analysis:
        chosen = select([site for site in analysis.sites if not site.call.why_stays], sites)
        saved = Snapshot(network, values=False)
        try:
            if all(site.can_be_replaced for site in chosen):
                _check_replaceable(network, example_input, analysis, chosen)
            if refused := [site for site in chosen if site.why_not]:
                more = f" (and {len(refused) - 1} more)" if len(refused) > 1 else ""
                raise ValueError(f"{refused[0].path}{more} cannot be replaced: {refused[0].why_not}")
            units = {site: _make_unit(network, act_layer, site) for site in chosen}
            install(analysis, units)
            _try_units(network, example_input, units)
        except BaseException:
            saved.restore()
            raise
        replaced = len(set(network.modules()).intersection(units.values()))
        assert replaced == len(chosen), f"{replaced} of {len(chosen)} sites were replaced"
        return Report(tuple(site.row(site in units) for site in analysis.sites))


def find_sites(
    network: nn.Module,
    example_input: Tensor | tuple[Any, ...],
    *,
    activations: str | type | Sequence[str | type] = (),
    shared: str = "call",
) -> Report:
    """The report of ``replace_activations`` for a network that stays as it is; obstacles are rows, not errors.

    Raises:
        ValueError: a network that cannot be run, ``activations`` that it does not have.

    Examples:
        >>> import torch
        >>> from actbench import find_sites
        >>> network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 2, 3))
        >>> print(find_sites(network, torch.randn(1, 3, 8, 8)))
        site  kind         channels  dim  shape
        1     module ReLU  8         1    8x6x6  can be replaced
        1 of 1 sites can be replaced, 0 gates
    """
    with _analyzed(network, example_input, activations, shared) as analysis:
        while True:
            possible = [site for site in analysis.sites if site.can_be_replaced]
            if _check_replaceable(network, example_input, analysis, possible):
                break
        return Report(tuple(site.row(None) for site in analysis.sites))


@contextmanager
def _analyzed(network: nn.Module, example: Any, activations: Any, shared: str) -> Iterator[Analysis]:
    """Yield the analysis of the network; meanwhile modules of its own classes count as what they are."""
    check_choice("shared", shared, ("call", "unit"))
    weights = [*network.parameters(), *network.buffers()]
    if any(map(is_lazy, weights)):
        raise ValueError("the network has lazy modules without weights: run it once before")
    if any(weight.is_meta for weight in weights):
        raise ValueError("the network is on the meta device: it has no values, and nothing can be proved")
    with recognize_custom(network, example, activations):
        if network not in outer_modules(network):
            raise ValueError(
                f"the network is itself a {type(network).__name__}: there is no place for a unit"
            )
        yield _analyze(network, example, shared)


def _analyze(network: nn.Module, example: Any, shared: str) -> Analysis:
    """Run the network in both modes, make sites of the calls, and trace the forwards that must be rewritten."""
    with unshare(network) as places:
        watches = {training: Watch(network, places) for training in (True, False)}
        outputs: dict[bool, list[Tensor]] = {}
        checksums: dict[bool, list[Any]] = {True: [], False: []}
        for training, watch in watches.items():
            with varied_constants(network), record_checksums(outer_modules(network), checksums[training]):
                outputs[training] = run_watched(network, example, training, watch)
        if not all(outputs.values()):
            raise ValueError("there are no tensors among the network's outputs")
        sites = make_sites(network, watches, shared)
        graphs = {}
        owners = {site.call.owner for site in sites if site.can_be_replaced and site.index is not None}
        with undisturbed(network):
            for owner in owners:
                calls = {
                    t: [c for c in watch.calls if c.owner is owner and c.in_graph and c.owner_run == 1]
                    for t, watch in watches.items()
                }
                try:
                    graphs[owner] = trace_both(network, owner, calls, places)
                except Exception as error:
                    why_not = f"{type(owner).__name__}.forward cannot be rewritten: {one_line(error)}"
                    for site in sites:
                        if site.call.owner is owner and site.index is not None:
                            site.why_not = why_not
    return Analysis(sites, graphs, outputs, checksums)


class _OriginalCall(nn.Module):
    """A stand-in for a unit that makes the very calls that were there, out of place."""

    def __init__(self, site: Site) -> None:
        super().__init__()
        self.function = site.call.function
        self.calls = site.calls

    def forward(self, x: Tensor) -> Any:
        call = self.calls.get(self.training) or next(iter(self.calls.values()))
        return self.function(x.clone() if call.in_place else x, *call.args, **call.kwargs)


def _check_replaceable(network: nn.Module, example: Any, analysis: Analysis, sites: Sequence[Site]) -> bool:
    """Return whether the network computes the same with every site in its slot; if not, say why at the first that fails."""
    unchanged = functools.partial(_outputs_unchanged, network, example, analysis)
    if unchanged(sites):
        return True
    if not unchanged([]):
        raise ValueError("the network's outputs differ between two runs from the same random state")
    good, bad = 0, len(sites)
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if unchanged(sites[:middle]) else (good, middle)
    culprit = sites[bad - 1]
    if culprit.call.in_place:
        culprit.why_not = "what its in-place call changes is used elsewhere"
    else:
        culprit.why_not = "the outputs change when it gets a place of its own"
    return False


def _outputs_unchanged(network: nn.Module, example: Any, analysis: Analysis, sites: Sequence[Site]) -> bool:
    """Return whether outputs keep their bits with the original calls in the sites' slots, each made where it was."""
    originals = {site: _OriginalCall(site) for site in sites}
    saved, modules = Snapshot(network, values=False), list(outer_modules(network))
    try:
        install(analysis, originals)
        for training, before in analysis.outputs.items():
            checksums: list[Any] = []
            with (
                varied_constants(network),
                record_checksums(modules, checksums),
                count_calls(originals) as calls,
            ):
                after = run_in_mode(network, example, training)
            if (
                checksums != analysis.checksums[training]
                or len(after) != len(before)
                or not all(map(same_values, after, before))
                or any(calls[site] != site.times[training] for site in sites)
            ):
                return False
    except Exception:  # Such as that of a forward that looks into its activation.
        return False
    finally:
        saved.restore()
    return True


def _make_unit(network: nn.Module, act_layer: Callable[..., nn.Module], site: Site) -> nn.Module:
    """Return a new unit for a site."""
    try:
        unit = act_layer(site.num_features, channel_dim=site.channel_dim)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"act_layer for {site.path}, {site.num_features} channels: {one_line(error)}"
        ) from error
    if not isinstance(unit, nn.Module):
        raise ValueError(f"act_layer for {site.path} made a {type(unit).__name__}: must be a module")
    dtypes = [p.dtype for p in network.parameters() if p.is_floating_point()]
    function = site.call.function
    training = function.training if isinstance(function, nn.Module) else site.call.owner.training
    return unit.to(site.call.x.device, dtypes[0] if dtypes else site.call.x.dtype).train(training)


def _try_units(network: nn.Module, example: Any, units: dict[Site, nn.Module]) -> None:
    """Run the network and check that every unit takes its input and keeps its shape and dtype."""
    if len(set(units.values())) < len(units):
        raise ValueError("act_layer made the same module for several sites: each needs its own")
    for_backward: list[tuple[Site, Tensor, int]] = []

    def save(x: Tensor) -> Tensor:
        if running:
            for_backward.append((running[-1], x, x._version))
        return x

    def check_versions(*args: Any) -> None:
        for site, x, version in for_backward:
            if x._version != version:
                running.append(site)
                raise ValueError("the network overwrites in place what it keeps for its gradient")
        for_backward.clear()

    modes = {site.auxiliary for site in units}  # One is enough, unless there are auxiliary heads.
    with ExitStack() as stack:
        running = stack.enter_context(check_outputs(units))
        stack.callback(network.register_forward_hook(check_versions).remove)
        calls = stack.enter_context(count_calls(units))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(torch.autograd.graph.saved_tensors_hooks(save, lambda x: x))
        try:
            for training in modes:
                run_in_mode(network, example, training)
        except Exception as error:
            at = [f"{type(units[site]).__name__} at {site.path}" for site in running]
            raise ValueError(
                f"{at[-1] if at else 'the network with its units'}: {one_line(error)}"
            ) from error
    assert all(calls[site] == sum(site.times[mode] for mode in modes) for site in units), (
        "a unit was not called"
    )
