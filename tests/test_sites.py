"""Placements: where blocks land, that nothing of the backbone is renamed, and that failing changes nothing."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from functools import partial

import pytest
import timm
import torch
from torch import nn

from ferattn import CBAM, ECA, SE, attach
from ferattn.backbones import build_backbone
from ferattn.errors import InvalidOption, NoSite, UnknownChoice
from ferattn.placements import PLACEMENTS, default_placement
from ferattn.shapes import shapes_only

# Sites by backbone and placement; what is not here must raise.
COUNTS = {
    "resnet18": {
        "residual": 8, "residual-last": 1, "residual-first-conv": 8, "stem-and-last": 2, "stage": 4,
    },
    "resnet50": {
        "residual": 16, "residual-last": 1, "residual-first-conv": 16, "stem-and-last": 2, "stage": 4,
    },
    "resnet26t": {
        "residual": 8, "residual-last": 1, "residual-first-conv": 8, "stem-and-last": 2, "stage": 4,
    },
    "resnetv2_18": {
        "residual": 8, "residual-last": 1, "residual-first-conv": 8, "stem-and-last": 2, "stage": 4,
    },
    "resnetv2_50": {
        "residual": 16, "residual-last": 1, "residual-first-conv": 16, "stem-and-last": 2, "stage": 4,
    },
    "resnetv2_50x1_bit": {
        "residual": 16, "residual-last": 1, "residual-first-conv": 16, "stem-and-last": 2, "stage": 4,
    },
    "vgg16": {"before-fc": 1, "before-fc-add": 1, "conv": 13, "stage": 5, "pool": 5},
    "vgg19_bn": {"before-fc": 1, "before-fc-add": 1, "conv": 16, "stage": 5, "pool": 5},
}  # fmt: skip


def _meta(name: str) -> nn.Module:
    with shapes_only():
        return timm.create_model(name, in_chans=1, num_classes=7)


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("name", COUNTS)
def test_placements_find_their_sites_and_rename_nothing(name: str, placement: str) -> None:
    model = _meta(name)
    keys = list(model.state_dict())
    expected = COUNTS[name].get(placement)
    if expected is None:
        with pytest.raises(NoSite, match=f"placement '{placement}' finds no site in .*Placements with sites here: "):
            attach(model, CBAM, placement)
        assert list(model.state_dict()) == keys
        assert not hasattr(model, "attention_sites")
        return
    sites = attach(model, CBAM, placement)
    assert len(sites) == expected
    assert model.attention_sites == sites
    new = set(model.state_dict()) - set(keys)
    assert set(keys) <= set(model.state_dict())
    for site in sites:
        block = model.get_submodule(site.path)
        assert isinstance(block, CBAM)
        assert block.channel.channels == site.channels
        assert f"{site.path}.channel.fc1.weight" in new
    assert all(key.startswith(tuple(site.path for site in sites)) for key in new)
    assert model(torch.empty(2, 1, 64, 64, device="meta")).shape == (2, 7)


class _Recorder(nn.Module):
    """Stands in for a block: keeps what it saw, and halves it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.seen: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(x)
        return x / 2


@pytest.mark.parametrize("name", ["resnet18", "resnet26", "resnetv2_18", "resnetv2_50"])
def test_residual_is_on_the_branch_before_the_addition(name: str) -> None:
    model = timm.create_model(name, in_chans=1, num_classes=7).eval()
    sites = attach(model, _Recorder, "residual")
    path = sites[1].path.rpartition(".se")[0] or sites[1].path.rpartition(".drop_path")[0]
    block = model.get_submodule(path)
    recorder = model.get_submodule(sites[1].path)
    assert block.downsample is None, "the second block has a plain shortcut"
    x = torch.randn(2, block.conv1.in_channels, 8, 8)
    with torch.no_grad():
        out = block(x.clone())
    expected = recorder.seen[0] / 2 + x
    torch.testing.assert_close(out, expected if "v2" in name else torch.relu(expected))


def test_drop_path_comes_after_the_block() -> None:
    model = timm.create_model("resnetv2_18", drop_path_rate=0.5)
    attach(model, SE, "residual")
    last = model.stages[3].blocks[1].drop_path
    assert [name for name, _ in last.named_children()] == ["attention", "droppath"]
    plain = timm.create_model("resnetv2_18")
    attach(plain, SE, "residual")
    assert set(plain.state_dict()) == set(model.state_dict()), (
        "weights move between models with and without drop path"
    )


def _outputs(model: nn.Module, x: torch.Tensor, paths: list[str]) -> dict[str, torch.Tensor]:
    kept: dict[str, torch.Tensor] = {}
    for path in paths:
        module = model.get_submodule(path)
        module.register_forward_hook(lambda m, i, o, path=path: kept.__setitem__(path, o.clone()))
    with torch.no_grad():
        model(x)
    return kept


def test_vgg_placements_see_the_maps_they_name() -> None:
    torch.manual_seed(0)
    plain = build_backbone("vgg11", (64, 64), in_chans=1).eval()
    x = torch.randn(1, 1, 64, 64)
    paths = [f"features.{index}" for index in range(21)]
    maps = _outputs(copy.deepcopy(plain), x, paths)

    def seen(placement: str) -> torch.Tensor:
        model = copy.deepcopy(plain)
        sites = attach(model, _Recorder, placement)
        with torch.no_grad():
            model(x)
        return model.get_submodule(sites[0].path).seen[0]

    assert torch.equal(seen("before-fc"), maps["features.20"])
    assert torch.equal(seen("pool"), maps["features.2"])
    assert torch.equal(seen("stage"), maps["features.1"])
    assert torch.equal(seen("conv:3"), maps["features.7"])  # conv, act, pool, conv, act, pool, conv, act
    assert torch.equal(seen("layer:5"), maps["features.7"])  # layers 2 and 4 are pools
    assert torch.equal(seen("layer:4"), maps["features.5"])


def test_before_fc_add_adds_the_block_to_its_input() -> None:
    model = build_backbone("vgg11", (64, 64), in_chans=1).eval()
    (site,) = attach(model, _Recorder, "before-fc-add")
    x = torch.randn(1, 1, 64, 64)
    with torch.no_grad():
        out = model.forward_features(x)
    torch.testing.assert_close(out, 1.5 * model.get_submodule(site.path).seen[0])


def test_wen_and_zhang_sit_where_they_say() -> None:
    plain = timm.create_model("resnet18", in_chans=1).eval()
    x = torch.randn(1, 1, 64, 64)
    maps = _outputs(copy.deepcopy(plain), x, ["act1", "layer1.0.act1", "layer4"])
    model = copy.deepcopy(plain)
    sites = attach(model, nn.Identity, "residual-first-conv")
    assert torch.equal(_outputs(model, x, [sites[0].path])[sites[0].path], maps["layer1.0.act1"])
    model = copy.deepcopy(plain)
    sites = attach(model, nn.Identity, "stem-and-last")
    seen = _outputs(model, x, [site.path for site in sites])
    assert torch.equal(seen[sites[0].path], maps["act1"])
    assert torch.equal(seen[sites[1].path], maps["layer4"])


# Networks of one's own


class _Mine(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, 3)
        self.act = nn.ReLU()
        self.rest = nn.Sequential(nn.Conv2d(8, 12, 3), nn.BatchNorm2d(12), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
        self.out = nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.rest(self.act(self.conv1(x))).flatten(1))


@pytest.mark.parametrize(
    ("placement", "channels"),
    [
        (["conv1"], [8]),
        (["act"], [8]),
        (["rest.2", "rest.0"], [12, 12]),
        (["rest"], [12]),
        ({"conv1": 8, "rest.0": 12}, [8, 12]),
        (lambda model: ["conv1"], [8]),
    ],
)
def test_module_paths_work_on_any_network(placement: object, channels: list[int]) -> None:
    model = _Mine()
    keys = set(model.state_dict())
    sites = attach(model, partial(SE, reduced_channels=2), placement)
    assert [site.channels for site in sites] == channels
    assert keys <= set(model.state_dict())
    model(torch.randn(2, 1, 16, 16)).sum().backward()
    for site in sites:
        assert model.get_submodule(site.path).fc1.weight.grad is not None


@pytest.mark.parametrize("path", ["conv1", "act", "rest.2", "rest"])
def test_a_block_at_a_path_gates_that_modules_output(path: str) -> None:
    model = _Mine().eval()
    x = torch.randn(2, 1, 16, 16)
    before = _outputs(copy.deepcopy(model), x, [path])[path]
    (site,) = attach(model, _Recorder, [path])
    model(x)
    torch.testing.assert_close(model.get_submodule(site.path).seen[0], before)


@pytest.mark.parametrize("placement", ["stem-and-last", "stage", "residual-first-conv", ["layer1.0.conv1"]])
def test_hooked_sites_survive_what_models_go_through(placement: object) -> None:
    model = timm.create_model("resnet18", in_chans=1, num_classes=7).eval()
    attach(model, ECA, placement)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(
                module.weight, 0.5, 1.5
            )  # timm starts the last norms at zero, which hides a missing gate
    x = torch.randn(2, 1, 64, 64)
    expected = model(x)
    without = timm.create_model("resnet18", in_chans=1, num_classes=7).eval()
    without.load_state_dict({k: v for k, v in model.state_dict().items() if k in without.state_dict()})
    assert not torch.allclose(without(x), expected), "the gates do something"
    torch.testing.assert_close(copy.deepcopy(model)(x), expected)
    torch.testing.assert_close(pickle.loads(pickle.dumps(model))(x), expected)
    program = torch.export.export(model, (x,), strict=True)
    torch.testing.assert_close(program.module()(x), expected, rtol=1e-4, atol=1e-4)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), expected, rtol=1e-4, atol=1e-4)


def test_blocks_follow_device_dtype_and_mode() -> None:
    model = timm.create_model("resnet18").double().eval()
    attach(model, CBAM, "residual-last")
    block = model.layer4[1].se
    assert block.spatial.conv.weight.dtype == torch.float64
    assert not block.training
    assert _meta("resnet18") is not None
    meta = _meta("resnet18")
    attach(meta, CBAM)
    assert meta.layer1[0].se.spatial.conv.weight.device.type == "meta"


def test_two_placements_go_together() -> None:
    model = _meta("vgg11")
    sites = (*attach(model, SE, "stage"), *attach(model, ECA, "pool"))
    assert model.attention_sites == sites
    assert model(torch.empty(2, 1, 64, 64, device="meta")).shape == (2, 7)
    assert len(attach(_meta("vgg11"), SE, "conv")) == 8


@pytest.mark.parametrize(
    ("name", "placement"), [("resnet18", "residual"), ("resnetv2_18", "residual"), ("vgg11", "before-fc")]
)
def test_defaults_are_the_papers(name: str, placement: str) -> None:
    model = _meta(name)
    assert default_placement(model) == placement
    twin = _meta(name)
    assert attach(model, SE) == attach(twin, SE, placement)


@pytest.mark.parametrize(
    ("placement", "error", "message"),
    [
        ("residul", UnknownChoice, "unknown placement 'residul'; did you mean 'residual'.*Options: residual, "),
        ("stage:1", UnknownChoice, "before a colon go 'conv' or 'layer'"),
        ("conv:1", NoSite, "finds no site in ResNet"),
        ([], NoSite, "names no module"),
        (["layer1.0.con2"], UnknownChoice, "no module of this model: 'layer1.0.con2'; did you mean 'layer1.0.conv2'"),
        (["layer1.0.conv2", "layer1.0.conv2"], InvalidOption, "more than once"),
        ([""], UnknownChoice, "names no module"),
        ([0], InvalidOption, "must name modules by their paths"),
        (["layer1.0.bn1"], InvalidOption, "names a batch norm, 'layer1.0.bn1': converting norms"),
        (3, InvalidOption, "placement must be a name"),
    ],
)
def test_bad_placements_are_named(placement: object, error: type[Exception], message: str) -> None:
    model = _meta("resnet18")
    keys = list(model.state_dict())
    with pytest.raises(error, match=message):
        attach(model, SE, placement)
    assert list(model.state_dict()) == keys


@pytest.mark.parametrize(
    ("placement", "error", "message"),
    [
        ("conv:11,14", NoSite, "asks for number 14; VGG has convolutions 1 to 13"),
        ("layer:0", NoSite, "convolutions and max-pools 1 to 18"),
        ("conv:x", InvalidOption, "needs numbers after the colon"),
        ("conv:1,1", InvalidOption, "more than once"),
    ],
)
def test_bad_layer_numbers_are_named(placement: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        attach(_meta("vgg16"), SE, placement)


def test_miskows_third_method_has_a_reading_in_each_vgg() -> None:
    """Layers 11 and 14: convolutions in VGG-19; in VGG-16 only Keras's count, pools included, has 14 layers."""
    assert [site.path for site in attach(_meta("vgg19"), SE, "conv:11,14")] == [
        "features.24.attention",
        "features.31.attention",
    ]
    assert [site.path for site in attach(_meta("vgg16"), SE, "layer:11,14")] == [
        "features.18.attention",
        "features.23.attention",
    ]


def test_a_site_is_taken_once() -> None:
    for name, placement in (
        ("resnet18", "residual"),
        ("resnetv2_18", "residual"),
        ("vgg11", "pool"),
        ("vgg11", "stage"),
    ):
        model = _meta(name)
        attach(model, SE, placement)
        sites = model.attention_sites
        with pytest.raises(InvalidOption, match=r"an attention block at .* already"):
            attach(model, SE, placement)
        assert model.attention_sites == sites
    with pytest.raises(InvalidOption, match="already"):
        attach(_meta("seresnet18"), SE, "residual")


def test_failing_leaves_the_model_as_it_was() -> None:
    model = _meta("resnet18")
    keys = list(model.state_dict())
    with pytest.raises(InvalidOption, match="reduced_channels must lie between 1 and the block's 64"):
        attach(model, partial(SE, reduced_channels=100), "residual")
    with pytest.raises(InvalidOption, match="must make a new block from a number of channels"):
        attach(model, "cbam", "residual")
    with pytest.raises(InvalidOption, match=r"must make a torch.nn.Module"):
        attach(model, lambda channels: channels, "residual")
    assert list(model.state_dict()) == keys


def test_what_cannot_be_told_is_asked_for() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 4))
    with pytest.raises(InvalidOption, match=r"give them, as in placement=\{'0': 64\}"):
        attach(model, SE, ["0"])
    with pytest.raises(NoSite, match="no placement is known for it"):
        attach(model, SE)


@pytest.mark.parametrize(
    ("name", "placement", "paths"),
    [
        (
            "resnet18",
            "stage",
            ["layer1.1.attention", "layer2.1.attention", "layer3.1.attention", "layer4.1.attention"],
        ),
        ("resnet18", "stem-and-last", ["maxpool.attention", "layer4.1.attention"]),
        ("resnetv2_18", "stem-and-last", ["stem.pool.attention", "stages.3.blocks.1.attention"]),
        ("resnetv2_50x1_bit", "stem-and-last", ["stem.pad.attention", "stages.3.blocks.2.attention"]),
        ("resnetv2_18", "residual-last", ["stages.3.blocks.1.drop_path.attention"]),
    ],
)
def test_blocks_are_where_the_placement_says(name: str, placement: str, paths: list[str]) -> None:
    assert [site.path for site in attach(_meta(name), SE, placement)] == paths


def test_a_stem_pool_of_convolutions_comes_after_the_block() -> None:
    from timm.models import ResNet
    from timm.models.resnet import BasicBlock

    model = ResNet(BasicBlock, (1, 1, 1, 1), replace_stem_pool=True)
    keys = set(model.state_dict())
    attach(model, SE, "stem-and-last")
    assert [name for name, _ in model.maxpool.named_children()][:2] == ["attention", "0"]
    assert keys <= set(model.state_dict())


def test_post_activation_blocks_of_resnetv2_have_their_first_activation_in_the_norm() -> None:
    from timm.layers import BatchNormAct2d, create_conv2d
    from timm.models import ResNetV2

    model = ResNetV2([1, 1, 1, 1], preact=False, conv_layer=create_conv2d, norm_layer=BatchNormAct2d)
    sites = attach(model, SE, "residual-first-conv")
    assert sites[0].path == "stages.0.blocks.0.norm1.act.attention"
    assert model(torch.randn(1, 3, 64, 64)).shape == (1, 1000)


@pytest.mark.parametrize("placement", ["residual", "residual-first-conv", "stem-and-last", "stage"])
@pytest.mark.parametrize("name", ["resnet18", "resnetv2_18"])
def test_blocks_are_still_called_after_norms_are_converted(name: str, placement: str) -> None:
    from timm.layers import convert_sync_batchnorm, freeze_batch_norm_2d

    for convert in (convert_sync_batchnorm, freeze_batch_norm_2d):
        model = timm.create_model(name, in_chans=1).eval()
        sites = attach(model, _Recorder, placement)
        converted = convert(model).eval()
        with torch.no_grad():
            converted(torch.randn(1, 1, 64, 64))
        assert all(len(converted.get_submodule(site.path).seen) == 1 for site in sites)


def test_given_channels_are_taken_at_their_word() -> None:
    model = _Mine()
    assert attach(model, _Recorder, {"conv1": 5})[0].channels == 5
    with pytest.raises(InvalidOption, match="channels must be a whole number of at least 1; got 0"):
        attach(_Mine(), SE, {"conv1": 0})


@pytest.mark.parametrize("name", ["densenet121", "resnet18"])
def test_networks_with_stages_of_their_own_are_no_plain_stack(name: str) -> None:
    model = _meta(name)
    wrapped = nn.Sequential(model.features) if name == "densenet121" else nn.Sequential(model.layer1)
    for network in (model if name == "densenet121" else wrapped, wrapped):
        with pytest.raises(NoSite, match="finds no site in"):
            attach(network, SE, "pool")
    if name == "densenet121":
        with pytest.raises(NoSite, match="no placement is known for it"):
            attach(model, SE)


def test_what_cannot_be_attached_to_is_named() -> None:
    with pytest.raises(InvalidOption, match=r"model must be a torch.nn.Module"):
        attach("resnet18", SE)
    with pytest.raises(InvalidOption, match="must make a new block"):
        attach(_meta("resnet18"), SE(64))
    one = SE(64)
    with pytest.raises(InvalidOption, match="made the same one twice"):
        attach(_meta("resnet18"), lambda channels: one)
    with pytest.raises(InvalidOption, match="attach before compiling"):
        attach(torch.compile(_meta("vgg11")), SE)


def test_symbolic_traces_keep_the_blocks() -> None:
    model = timm.create_model("resnet18", in_chans=1).eval()
    attach(model, CBAM, "residual-last")
    nn.init.ones_(model.layer4[1].bn2.weight)
    x = torch.randn(1, 1, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(torch.fx.symbolic_trace(model)(x), model(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "placement", "left"),
    [
        ("resnet18", "residual", {0: 0, 1: 2, 2: 4, 4: 8}),
        ("resnet50", "stem-and-last", {0: 0, 1: 1, 4: 2}),
        ("resnetv2_18", "residual", {0: 0, 2: 4, 4: 8}),
        ("resnetv2_50", "stage", {1: 1, 3: 3}),
        ("vgg16", "conv", {0: 2, 2: 7, 5: 13}),
        ("vgg19_bn", "before-fc", {3: 0, 5: 1}),
    ],
)
def test_pruning_takes_the_sites_away_that_it_cuts_off(name: str, placement: str, left: dict[int, int]) -> None:
    model = _meta(name)
    sites = attach(model, SE, placement)
    for last, count in sorted(left.items(), reverse=True):
        made = copy.deepcopy(model)
        assert made.prune_intermediate_layers([0, last]) == [0, last]
        assert made.attention_sites == sites[:count]
        assert all(type(made.get_submodule(site.path)) is SE for site in made.attention_sites)
        assert sum(type(module) is SE for module in made.modules()) == count
        assert model.attention_sites == sites
    model.prune_intermediate_layers(prune_head=False)  # the last map, which needs everything
    assert model.attention_sites == sites
    assert model.num_classes == 7


def test_copies_prune_themselves_and_nobody_is_kept_alive() -> None:
    model = timm.create_model("resnet18", in_chans=1)
    sites = attach(model, SE)
    for made in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        made.prune_intermediate_layers([1])
        assert (made.attention_sites, model.attention_sites) == (sites[:2], sites)
        assert (len(made.layer4), len(model.layer4)) == (0, 2)
    gc.collect()
    gc.disable()
    try:
        gone = weakref.ref(model)
        del model
        assert gone() is None
    finally:
        gc.enable()


def test_pruning_takes_the_arguments_of_the_models_own_class() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stages = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3))

        def prune_intermediate_layers(self, indices: int | None = None, *, norm: str = "kept") -> tuple[str, int]:
            last = 2 if indices is None else indices
            self.stages = self.stages[:last]
            return norm, last

    model = Own()
    sites = attach(model, ECA, {"stages.0": 4, "stages.1": 4})
    assert model.prune_intermediate_layers() == ("kept", 2)
    assert model.attention_sites == sites
    assert model.prune_intermediate_layers(1, norm="cut") == ("cut", 1)
    assert model.attention_sites == sites[:1]
