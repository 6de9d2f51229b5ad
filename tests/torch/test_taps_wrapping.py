"""Taps beside what else is done to models: compiling, DDP, autocast, checkpointing, copying."""

from __future__ import annotations

import copy
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import spile
from spile.errors import AddressError, CaptureError, ModelError
from spile.torch.taps import Tap


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.relu = nn.ReLU(inplace=True)
        self.block = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.conv(x))
        x = self.relu(x + self.block(x))
        return self.head(x.mean((2, 3)))


PLACES = ["conv", "relu#0", "relu#1", "block.1@in", "head"]


@pytest.fixture
def image() -> Tensor:
    return torch.randn(2, 3, 8, 8)


def assert_equal(found: Any, expected: Any, **tolerance: float) -> None:
    assert list(found) == list(expected)
    for name in expected:
        torch.testing.assert_close(
            found[name], expected[name], **(tolerance or {"rtol": 0, "atol": 0}), msg=name
        )


# --- torch.compile --------------------------------------------------------------------------------


@pytest.mark.parametrize("pool", [None, {"conv": "avg", "block.1@in": "gem"}], ids=["whole", "pooled"])
def test_a_compiled_tap_equals_the_eager_one(image: Tensor, pool: Any) -> None:
    torch._dynamo.reset()
    tap = Tap(Net().eval(), PLACES, pool=pool, example=image)
    compiled = torch.compile(tap, fullgraph=True, backend="aot_eager")
    for batch in (image, image + 1):
        with torch.no_grad():
            assert_equal(compiled(batch), tap(batch), rtol=1e-5, atol=1e-6)
    x = image.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(compiled(x)["relu#1"].sum(), x)
    (expected,) = torch.autograd.grad(tap(x)["relu#1"].sum(), x)
    torch.testing.assert_close(gradient, expected)


def test_a_compiled_transformer() -> None:
    torch._dynamo.reset()
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2).eval()
    x = torch.randn(2, 5, 8)
    tap = Tap(model, ["layers.0", "layers.1.linear1"], pool="mean", example=x)
    with torch.no_grad():
        compiled = torch.compile(tap, fullgraph=True, backend="eager")(x)
        assert_equal(compiled, tap(x), rtol=1e-5, atol=1e-6)


class Padded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return self.inner(x)


def test_padding_is_left_out_of_a_compiled_tap() -> None:
    torch._dynamo.reset()
    x, mask = torch.randn(2, 3, 4), torch.tensor([[1, 1, 1], [1, 0, 0]])
    tap = Tap(Padded().eval(), "inner", example=(x, mask))
    compiled = torch.compile(tap, fullgraph=True, backend="eager")
    expected = tap.model.inner(x)
    for acts in (tap(x, mask), compiled(x, mask), compiled(x, attention_mask=mask)):
        torch.testing.assert_close(acts["inner"][0], expected[0].mean(0))
        torch.testing.assert_close(acts["inner"][1], expected[1, 0])


def test_what_cannot_be_compiled_says_why(image: Tensor) -> None:
    torch._dynamo.reset()
    with pytest.raises(Exception, match=r"call model.eval\(\) before the tap is compiled"):
        torch.compile(Tap(Net(), "conv", example=image), fullgraph=True, backend="eager")(image)
    with pytest.raises(Exception, match="call the tap once, or make it with example"):
        torch.compile(Tap(Net().eval(), "conv"), fullgraph=True, backend="eager")(image)


def test_a_model_that_is_already_compiled_is_refused(image: Tensor) -> None:
    in_place = Net()
    in_place.block.compile()
    forward = Net()
    forward.block.forward = torch.compile(forward.block.forward)  # type: ignore[method-assign]
    inside = nn.Sequential(torch.compile(nn.Conv2d(3, 4, 3)))
    for model in (torch.compile(Net()), in_place, forward, inside):
        with pytest.raises(ModelError, match=r"already compiled.*torch\.compile\(spile\.tap\(model"):
            Tap(model, "conv", example=image)


def test_exporting_a_tap(image: Tensor) -> None:
    class Whole(nn.Module):
        def __init__(self, tap: Tap) -> None:
            super().__init__()
            self.tap = tap

        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            return tuple(self.tap(x).values())

    tap = Tap(Net().eval(), ["conv", "relu#0"], pool="avg", example=image)
    program = torch.export.export(Whole(tap), (image,), strict=False)
    for mine, expected in zip(program.module()(image), tap(image).values(), strict=True):
        torch.testing.assert_close(mine, expected)
    program = program.run_decompositions({})
    program.graph.eliminate_dead_code()
    called = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert sum("conv" in name for name in called) == 1


# --- DistributedDataParallel ----------------------------------------------------------------------


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("alone")
def test_a_tap_over_ddp_has_the_same_addresses(image: Tensor) -> None:
    model = Net()
    wrapped = DistributedDataParallel(model)
    tap = Tap(wrapped, PLACES, pool=None, example=image)
    synchronised: list[bool] = []
    wrapped.register_forward_pre_hook(lambda *_: synchronised.append(torch.is_grad_enabled()))
    assert_equal(tap(image), Tap(model, PLACES, pool=None, example=image)(image))
    with torch.no_grad():
        assert_equal(tap(image), Tap(model, PLACES, pool=None, example=image)(image))
    assert synchronised == [True]
    assert tap.verify(image).largest_difference == 0
    prefixed = Tap(wrapped, ["module.conv", "module.relu#1"], pool=None, example=image)
    assert_equal(prefixed(image), {f"module.{name}": tap(image)[name] for name in ("conv", "relu#1")})
    assert model.training


@pytest.mark.usefixtures("alone")
def test_training_through_a_tap_over_ddp_and_through_ddp_over_a_tap(image: Tensor) -> None:
    model = Net().eval()
    expected = copy.deepcopy(model)
    early = expected.conv(image).relu()
    (expected(image).sum() + early.sum()).backward()
    inner = copy.deepcopy(model)
    over = Tap(DistributedDataParallel(inner), "relu#0", pool=None, example=image)
    for _ in range(2):  # DDP notices in the second pass that the first was not finished
        inner.zero_grad()
        output, acts = over.with_output(image)
        (output.sum() + acts["relu#0"].sum()).backward()
    for mine, theirs in zip(inner.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad)
    expected.zero_grad()
    expected.conv(image).relu().sum().backward()
    tap = Tap(model, "relu#0", pool=None, example=image, mode="as_is")
    under = DistributedDataParallel(tap, find_unused_parameters=True)
    for _ in range(2):
        model.zero_grad()
        under(image)["relu#0"].sum().backward()
    assert torch.equal(model.conv.weight.grad, expected.conv.weight.grad)


def _train(rank: int, folder: str) -> None:
    """One of two processes: each sees its half, both must end up with the gradient of the whole batch."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/group", rank=rank, world_size=2
    )
    torch.manual_seed(0)
    model, batch = Net().eval(), torch.randn(4, 3, 8, 8)
    mine = batch[2 * rank : 2 * rank + 2]
    tap = Tap(model, ["relu#1", "conv"], pool="avg", example=(1, 3, 8, 8))
    wrapped = DistributedDataParallel(tap, find_unused_parameters=True)
    acts = wrapped(mine)
    (acts["relu#1"].sum(1).mean() + acts["conv"].sum(1).mean()).backward()
    expected = Tap(copy.deepcopy(model), ["relu#1", "conv"], pool="avg", example=(1, 3, 8, 8))
    expected.zero_grad()
    acts = expected(batch)
    (acts["relu#1"].sum(1).mean() + acts["conv"].sum(1).mean()).backward()
    for (name, p), q in zip(model.named_parameters(), expected.model.parameters(), strict=True):
        if q.grad is not None:
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-6, msg=name)
    over = Tap(DistributedDataParallel(Net().eval()), "relu#1", example=(1, 3, 8, 8))
    assert over(mine)["relu#1"].shape == (2, 4)
    torch.distributed.destroy_process_group()


@pytest.mark.zoo
def test_two_processes(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_train, (str(tmp_path),), nprocs=2)


def test_data_parallel_on_one_device(image: Tensor) -> None:
    model = Net().eval()
    acts = Tap(nn.DataParallel(model), PLACES, pool=None, example=image)(image)
    assert_equal(acts, Tap(model, PLACES, pool=None, example=image)(image))
    several = nn.DataParallel(model)
    several.device_ids = [0, 1]
    with pytest.raises(ModelError, match=r"tap model\.module"):
        Tap(several, "conv", example=image)


def test_a_layer_of_ones_own_called_module_keeps_its_name() -> None:
    class Ema(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Linear(4, 4)
            self.module = nn.Sequential()
            self.module.conv = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.module.conv(self.conv(x))

    model, x = Ema(), torch.randn(2, 4)
    acts = Tap(model, ["conv", "module.conv"], example=x)(x)
    assert torch.equal(acts["conv"], model.conv(x))
    assert torch.equal(acts["module.conv"], model.module.conv(model.conv(x)))


# --- autocast -------------------------------------------------------------------------------------


def test_autocast(image: Tensor) -> None:
    model = Net().eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        tap = Tap(model, ["conv", "head"], pool=None, example=image)
        acts = tap(image)
        assert tap.verify(image).largest_difference == 0
        expected = model.conv(image)
    assert acts["conv"].dtype == torch.bfloat16
    assert torch.equal(acts["conv"], expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mean = Tap(model, "conv", pool="avg", example=image)(image)["conv"]
    assert torch.equal(mean, expected.float().mean((2, 3)))


# --- checkpointing --------------------------------------------------------------------------------


class Checkpointed(nn.Module):
    def __init__(self, use_reentrant: bool | None) -> None:
        super().__init__()
        self.stem = nn.Linear(4, 8)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8)) for _ in range(3)
        )
        self.use_reentrant = use_reentrant

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = (
                block(x)
                if self.use_reentrant is None
                else checkpoint(block, x, use_reentrant=self.use_reentrant)
            )
        return x


@pytest.mark.parametrize(
    "pool", [None, "mean", lambda x: x.sigmoid().pow(2)], ids=["whole", "mean", "saving"]
)
@pytest.mark.parametrize(
    "places", [["blocks.0.1", "blocks.2.0"], ["stem", "blocks.2"], ["blocks.1.0"]], ids=str
)
def test_gradient_checkpointing(places: list[str], pool: Any) -> None:
    model = Checkpointed(use_reentrant=False)
    x = torch.randn(2, 5, 4)
    gradients, values = [], []
    for use_reentrant in (None, False):
        model.use_reentrant = use_reentrant
        for run in ("call", "with_output"):
            model.zero_grad()
            tap = Tap(model, places, pool=pool, example=x, mode="as_is")
            output, acts = (torch.zeros(()), tap(x)) if run == "call" else tap.with_output(x)
            (output.sin().sum() + sum(a.sin().sum() for a in acts.values())).backward()
            values.append(acts)
            gradients.append({k: p.grad for k, p in model.named_parameters() if p.grad is not None})
    for i in (0, 1):
        assert_equal(values[i], values[i + 2])
        assert_equal(gradients[i], gradients[i + 2])


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_reentrant_checkpointing_is_refused() -> None:
    model, x = Checkpointed(use_reentrant=True), torch.randn(2, 5, 4, requires_grad=True)
    tap = Tap(model, "blocks.0.1", example=x)
    with pytest.raises(CaptureError, match=r"blocks.0.1 runs inside checkpoint\(use_reentrant=True\)"):
        tap(x)
    with torch.no_grad():
        assert tap(x)["blocks.0.1"].shape == (2, 8)
    outside = Tap(model, ["stem"], pool=None, example=x)
    assert outside(x)["stem"].requires_grad


# --- copies ---------------------------------------------------------------------------------------


def test_a_copy_of_a_tap_is_independent(image: Tensor) -> None:
    tap = Tap(Net().eval(), PLACES, pool=None, example=image)
    before = dict(tap(image))
    twin = copy.deepcopy(tap)
    with torch.no_grad():
        twin.model.conv.weight.zero_()
    assert_equal(tap(image), before)
    assert torch.equal(twin(image)["conv"], twin.model.conv(image))
    assert twin.verify(image).largest_difference == 0
    tap.close()
    assert list(twin(image)) == PLACES
    twin.close()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in [*twin.modules(), *tap.modules()])


def test_a_copy_of_a_tapped_model_is_a_plain_model(image: Tensor) -> None:
    model = Net().eval()
    tap = Tap(model, PLACES, pool=None, example=image)
    twin = copy.deepcopy(model)
    assert torch.equal(twin(image), model(image))
    assert list(Tap(twin, "conv", example=image)(image)) == ["conv"]
    assert twin.state_dict().keys() == model.state_dict().keys()
    tap.close()
    assert not any(m._forward_hooks for m in model.modules())


def test_a_saved_tap_comes_back(image: Tensor) -> None:
    tap = Tap(Net().eval(), PLACES, pool=None, example=image)
    before = tap(image)
    file = io.BytesIO()
    torch.save(tap, file)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    assert_equal(again(image), before)
    assert again.verify(image).largest_difference == 0


def test_moving_a_tap_moves_its_model(image: Tensor) -> None:
    tap = Tap(Net().eval(), ["conv"], pool="avg", example=image).double()
    assert tap(image.double())["conv"].dtype == torch.float64


# --- other ways to run ----------------------------------------------------------------------------


def test_the_transformer_fast_path_does_not_hide_layers() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model, x = nn.TransformerEncoder(layer, 2).eval(), torch.randn(2, 5, 8)
    places = ["layers.0.linear1", "layers.1.norm2", "layers.1.self_attn:0"]
    tap = Tap(model, places, pool=None, example=x)
    with torch.no_grad():
        plain = model(x)
        output, acts = tap.with_output(x)
        assert torch.equal(acts["layers.1.norm2"], output)
        torch.testing.assert_close(output, plain)
        assert tap.verify(x).largest_difference == 0
        padded = tap(x, src_key_padding_mask=torch.tensor([[False] * 5, [False] * 3 + [True] * 2]))
        assert padded["layers.0.linear1"].shape == (2, 5, 16)
    assert torch.backends.mha.get_fastpath_enabled()


def test_samples_on_the_second_axis() -> None:
    class SequenceFirst(nn.Module):
        """Samples first outside, tokens first inside, as in OpenCLIP."""

        def __init__(self) -> None:
            super().__init__()
            self.patch = nn.Conv2d(3, 8, 4, 4)
            layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=False)
            self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.encoder(self.patch(x).flatten(2).permute(2, 0, 1)).mean(0)

    model, x = SequenceFirst().eval(), torch.randn(3, 3, 8, 12)
    tap = Tap(model, ["encoder.layers.0", "encoder.layers.0.linear1"], pool="mean", example=(1, 3, 8, 12))
    tokens = model.encoder.layers[0](model.patch(x).flatten(2).permute(2, 0, 1))
    with torch.no_grad():
        acts = tap(x)
        torch.testing.assert_close(acts["encoder.layers.0"], tokens.mean(0))
        assert acts["encoder.layers.0.linear1"].shape == (3, 16)
        whole = Tap(model, "encoder.layers.0", pool=None, example=x)(x)["encoder.layers.0"]
    torch.testing.assert_close(whole, tokens.transpose(0, 1))


@pytest.mark.filterwarnings("ignore:.*is deprecated")
def test_a_scripted_part_has_no_layers_to_tap(image: Tensor) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), torch.jit.trace(nn.Sequential(nn.ReLU()), torch.zeros(1, 4, 6, 6))
    )
    acts = Tap(model, ["0", "1"], pool=None, example=image)(image)
    assert torch.equal(acts["1"], model[0](image).relu())
    with pytest.raises(AddressError, match=r"'1\.0' never runs"):
        Tap(model, "1.0", example=image)


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning")
def test_a_part_that_is_compiled_script_takes_no_hooks_and_is_left_out(image: Tensor) -> None:
    script = torch.jit.script(nn.Sequential(nn.ReLU()))
    model = nn.Sequential(nn.Conv2d(3, 4, 3), script, nn.Flatten())
    assert list(Tap(model, "all", pool=None, example=image)(image)) == ["0", "2"]
    with pytest.raises(AddressError, match="'1' never runs"):
        Tap(model, "1", example=image)
    for whole in (script, torch.jit.freeze(script.eval())):
        with pytest.raises(spile.ModelError, match=r"a TorchScript model.*torch\.export"):
            spile.layers(whole, image)


@pytest.mark.zoo
def test_inductor() -> None:
    torch._dynamo.reset()
    model = timm.create_model("resnet18", num_classes=3).eval()
    x = torch.randn(2, 3, 64, 64)
    tap = Tap(model, "stages", example=x)
    with torch.no_grad():
        assert_equal(torch.compile(tap, fullgraph=True)(x), tap(x), rtol=1e-3, atol=1e-4)
