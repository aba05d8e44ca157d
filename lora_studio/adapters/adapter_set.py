"""All adapters of a run: named canonically, switchable; the base weights never change."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from lora_studio.adapters.layer import Layer, Toggleable
from lora_studio.adapters.rules import AdapterOptions
from lora_studio.adapters.stack import Joined, Place, Places, Stack
from lora_studio.adapters.textual_inversion import Token
from lora_studio.errors import CheckpointError
from lora_studio.processes import to_device
from lora_studio.rng import generator


class AdapterSet:
    """The adapters of every adapted part, by their layers; and new tokens of the text encoders."""

    def __init__(
        self,
        layers: list[Layer],
        options: AdapterOptions,
        *,
        beside: Sequence[Toggleable] = (),
        stacks: Sequence[Stack] = (),
        joined: Sequence[Joined] = (),
    ) -> None:
        """`beside`: layers that are not trained, and not as the base has them while others are.

        `stacks`: in which tensors of several layers lie together; `joined`: the same of frozen weights.
        """
        self.layers, self.options, self._beside = layers, options, beside
        self.stacks, self.joined = stacks, joined
        self.stack_of: Places = {
            one: Place(stack, number) for stack in stacks for number, one in enumerate(stack.owners)
        }
        self.tokens: list[Token] = []
        self._step = 0  # that is being trained
        self.notes: tuple[str, ...] = ()  # what its user should know of how it begins, in short sentences

    @property
    def trained(self) -> list[Layer | Token]:
        return [*self.layers, *self.tokens]

    def parameters(self, part: str) -> list[nn.Parameter]:
        """The trainable tensors of one part, in the layers' order."""
        return [tensor for one in self.trained if one.part == part for tensor in one.tensors.values()]

    @property
    def parts(self) -> list[str]:
        return list(dict.fromkeys(one.part for one in self.trained))

    @property
    def trains_layers(self) -> bool:
        """Whether the base's own layers are trained, and nothing stands beside them."""
        return any(layer.kind.trains_layers for layer in self.layers)

    @property
    def num_parameters(self) -> int:
        return sum(tensor.numel() for one in self.trained for tensor in one.tensors.values())

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Within it the model is the base, for which a new token means its start."""
        switched = [*(one.module for one in self.trained), *self._beside]
        try:
            for module in switched:
                module.enable_adapters(False)
            yield
        finally:
            for module in switched:
                module.enable_adapters(True)
            self.at_step(self._step)  # PEFT takes what it enables for trained

    @contextmanager
    def taken_out(self, parts: Mapping[str, nn.Module]) -> Iterator[None]:
        """Within it the parts are built as before any adapter, so that others can put their own in.

        Whatever those leave behind is undone, and what was trained is where it was, untouched.
        """
        ours = {id(one.module): one.module for one in self.trained}
        with self.disabled(), ExitStack() as kept:
            for part in parts.values():
                kept.enter_context(structure_kept(part))
                part.__dict__.pop("peft_config", None)
                if "config" in part.__dict__:  # transformers writes the size of a table into it
                    part.config = copy.copy(part.config)
                for module in [*part.modules()]:
                    module._compiled_call_impl = None  # of other layers than there are now
                    for name, child in module._modules.items():
                        if id(child) in ours:
                            module._modules[name] = ours[id(child)].get_base_layer()
            yield

    def at_step(self, step: int) -> None:
        """Train those that are trained in this step; the others stay as they are, and without gradients."""
        self._step = step
        for one in self.trained:
            if one.last_step is not None:
                for tensor in one.tensors.values():
                    tensor.requires_grad_(self._learns(one))
                    if not self._learns(one):
                        tensor.grad = None
        for stack in self.stacks:
            stack.whole.requires_grad_(stack.owners[0].requires_grad)

    def show_gradients(self) -> None:
        """Where tensors that lie in one have gradients there alone, as if others have computed them."""
        for stack in self.stacks:
            if stack.whole.grad is not None and stack.owners[0].grad is None:
                stack.show_gradients()

    def clear_gradients(self) -> None:
        """Of all that is trained, whoever's they are."""
        for tensor in (*self.named_parameters().values(), *(stack.whole for stack in self.stacks)):
            tensor.grad = None

    def _learns(self, one: Layer | Token) -> bool:
        return one.last_step is None or self._step <= one.last_step

    @contextmanager
    def dropped(self, *names: int | str) -> Iterator[None]:
        """Within it ranks and layers are left out at random, keyed by these names and the layer's own."""
        ranks, layers = self.options.rank_dropout, self.options.module_dropout
        if not self.layers or not (ranks or layers):
            yield
            return
        drawn = []
        for layer in self.layers:
            draw = generator("dropout", *names, layer.name)
            drawn.append((torch.rand(layer.rank, generator=draw) >= ranks) / (1 - ranks))
            drawn.append((torch.rand(1, generator=draw) >= layers).float())
        device = next(iter(self.layers[0].tensors.values())).device
        sent = to_device(torch.cat(drawn), device).split([len(one) for one in drawn])  # in one copy
        for layer, kept, share in zip(self.layers, sent[::2], sent[1::2], strict=True):
            layer.module.kept = kept if ranks else None
            layer.module.share = share[0] if layers else None
        try:
            yield
        finally:
            for layer in self.layers:
                layer.module.kept = layer.module.share = None

    def limit(self) -> Tensor | None:
        """Shrink what is larger than `max_norm`: [], how many layers were; None if they may have any size."""
        if not self.options.max_norm:
            return None
        learning = [one for one in self.layers if self._learns(one)]
        return torch.stack([layer.limit(self.options.max_norm) for layer in learning]).sum()

    def pull_tokens(self, *, kept: Tensor | float = 1.0) -> None:
        """Bring the norms of tokens that still learn nearer to the usual one; not if `kept` is 0, not 1."""
        for token in self.tokens:
            if self._learns(token):
                token.pull(kept)

    def delta(self) -> dict[str, Tensor]:
        """Canonical layer name -> its weight change, float32; of layers trained themselves, by tensor."""
        return {name: change for layer in self.layers for name, change in layer.changes().items()}

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """Every trained tensor by its canonical key, `<part>.<path>.down` for example."""
        return {f"{one.name}.{end}": tensor for one in self.trained for end, tensor in one.tensors.items()}

    def _held(self) -> dict[str, Tensor]:
        """The trained tensors, and those that say what they began with."""
        fixed = {f"{one.name}.{end}": value for one in self.layers for end, value in one.constants.items()}
        return self.named_parameters() | fixed

    def state(self) -> dict[str, Tensor]:
        """Copies of all tensors by canonical key, float32 on the CPU."""
        return {key: tensor.detach().float().cpu().clone() for key, tensor in self._held().items()}

    def load(self, state: dict[str, Tensor]) -> None:
        """Put a `state()` back; raises CheckpointError when its keys or shapes are not these adapters'."""
        own = self._held()
        check_fit(own, state)
        with torch.no_grad():
            for key, tensor in own.items():
                tensor.copy_(state[key])


@contextmanager
def structure_kept(network: nn.Module) -> Iterator[None]:
    """Afterwards it is made of the same modules, parameters and attributes as before; no tensor is copied."""
    before = [
        (module, dict(module.__dict__), dict(module._modules), dict(module._parameters))
        for module in network.modules()
    ]
    try:
        yield
    finally:
        for module, attributes, modules, parameters in before:
            module.__dict__.clear()
            module.__dict__.update(attributes)
            module._modules.clear()
            module._modules.update(modules)
            module._parameters.clear()
            module._parameters.update(parameters)


@contextmanager
def put_back(tensors: Collection[Tensor]) -> Iterator[None]:
    """Within it they may be changed; afterwards they are what they were, bit for bit."""
    before = [one.detach().clone() for one in tensors]
    try:
        yield
    finally:
        with torch.no_grad():
            for one, value in zip(tensors, before, strict=True):
                one.copy_(value)


def check_fit(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError when the keys or shapes of `state` are not those of `own`."""
    wrong = sorted(own.keys() ^ state.keys())
    wrong += [key for key in own.keys() & state.keys() if own[key].shape != state[key].shape]
    if wrong:
        raise CheckpointError(
            f"the checkpoint does not fit these adapters: {len(wrong)} tensors differ, first {wrong[0]}; "
            "resume with the recipe that made it."
        )
