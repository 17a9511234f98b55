"""Which cases the suites make, that timm's twins compute the same, and what a record may and must hold."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import jsonschema
import pytest
import torch

from ferattn.activations import ACTIVATIONS
from ferattn.bench import Group, Request, blocks, environment, models, new_record, read_record, resume, schema, tails
from ferattn.errors import FerattnError, InvalidInput, InvalidOption, UnknownChoice
from ferattn.measure import time
from ferattn.residual import explain

RESULTS = sorted((Path(__file__).resolve().parents[2] / "benchmarks" / "results").glob("bench-*.json"))


def cases(groups: list[Group]) -> list[list[str]]:
    return [[case.name for case in group.cases] for group in groups]


def test_the_plain_backbone_leads_every_group() -> None:
    request = Request(names=("resnet18_se", "resnet18_cbam_elu", "cnn", "resnet18_eca"))
    assert cases(list(models.groups(request))) == [
        ["resnet18", "resnet18_se", "resnet18_eca"],
        ["resnet18_elu", "resnet18_cbam_elu"],
        ["cnn"],
    ]


def test_patterns_and_sizes() -> None:
    request = Request(names=("resnet18_??",), img_sizes=(48, 64))
    groups = list(models.groups(request))
    assert cases(groups) == [["resnet18", "resnet18_se"]] * 2
    assert [group.cases[0].facts()["img_size"] for group in groups] == [48, 64]


def test_timm_models_of_the_same_kind() -> None:
    request = Request(names=("resnet18_se", "resnetv2_50_se", "vgg16"), against=("timm",))
    assert cases(list(models.groups(request))) == [
        ["resnet18", "resnet18_se", "timm: resnet18", "timm: resnet18_se"],
        ["resnetv2_50", "resnetv2_50_se", "timm: resnetv2_50"],
        ["vgg16"],
    ]
    assert models.missing_counterparts(request) == ["timm has no counterpart of resnetv2_50_se, vgg16"]
    assert models.missing_counterparts(replace(request, names=("resnet18",))) == []


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_timm_builds_every_activation(activation: str) -> None:
    (group,) = models.groups(Request(names=(f"resnet18_se_{activation}",), against=("timm",)))
    plain, block = f"resnet18_{activation}", f"resnet18_se_{activation}"
    assert [case.name for case in group.cases] == [plain, block, f"timm: {plain}", f"timm: {block}"]
    ours, theirs = (group.cases[n].facts()["flops"] for n in (0, 2))
    assert ours == theirs


def test_facts_of_ours_and_timms_plain_resnet_agree() -> None:
    (group,) = models.groups(Request(names=("resnet18",), against=("timm",)))
    ours, theirs = (case.facts() for case in group.cases)
    assert ours["library"] != theirs["library"]
    for column in ("parameters", "flops", "elements", "activation_bytes", "saved_bytes"):
        assert ours[column] == theirs[column] > 0


@pytest.mark.parametrize(
    ("change", "column", "value"),
    [
        ({"batch": 3}, "batch", 3),
        ({"training": True}, "step", "training"),
        ({"compiled": True}, "mode", "compiled"),
        ({"channels_last": True}, "memory_format", "channels_last"),
        ({"dtype": "bfloat16"}, "dtype", "bfloat16"),
    ],
)
@pytest.mark.parametrize("names", [("cnn",), None, "tails"])
def test_every_option_reaches_the_candidate(
    change: dict[str, Any], column: str, value: object, names: tuple[str, ...] | str | None
) -> None:
    of_models = isinstance(names, tuple)
    request = replace(Request(names=names if of_models else ("se",), img_sizes=(48,)), device="cpu", **change)
    suite = models.groups if of_models else tails.groups if names else blocks.groups
    case = next(iter(suite(request))).cases[0]
    if not of_models and value == "training":
        value = "forward_backward"
    assert case.facts()[column] == value
    candidate = case.build()
    first = candidate.inputs if isinstance(candidate.inputs, torch.Tensor) else candidate.inputs[0]
    batch = first.shape[0] if isinstance(first, torch.Tensor) else first
    found = {
        "batch": batch,
        "step": candidate.step,
        "mode": candidate.mode,
        "memory_format": "channels_last" if candidate.channels_last else "contiguous",
        "dtype": {None: "float32", torch.bfloat16: "bfloat16"}[candidate.autocast],
    }
    assert found[column] == value


def test_in_chans_reaches_the_model() -> None:
    (group,) = models.groups(Request(names=("cnn",), in_chans=3))
    assert group.cases[0].build().inputs[1] == 3


def test_blocks_cover_the_grid() -> None:
    groups = list(blocks.groups(Request(device="cpu")))
    assert len(groups) == 3 * 3 * 4 * 2 * 2
    assert len({group.key for group in groups}) == len(groups)
    assert cases(groups[:1]) == [["timm eager", "ferattn eager", "timm compiled", "ferattn compiled"]]
    sides = {(f["img_size"], f["channels"]): f["height"] for f in (group.cases[0].facts() for group in groups)}
    assert [sides[224, c] for c in (256, 512, 1024, 2048)] == [56, 28, 14, 7]
    assert [sides[48, c] for c in (256, 512, 1024, 2048)] == [12, 6, 3, 2]
    assert [sides[80, c] for c in (256, 512, 1024, 2048)] == [20, 10, 5, 3]


def test_blocks_can_be_narrowed() -> None:
    request = Request(
        names=("eca",), device="cpu", img_sizes=(48,), compiled=False, channels_last=True, training=False
    )
    groups = list(blocks.groups(request))
    assert next(group.key for group in groups) == "eca 256x12x12 48px f NHWC"
    assert cases(groups) == [["timm eager", "ferattn eager"]] * 4
    facts = groups[0].cases[0].facts()
    assert facts["map_bytes"] == 16 * 256 * 12 * 12 * 4
    assert facts["floor_bytes"] == 3 * facts["map_bytes"]


@pytest.mark.parametrize("attention", ["se", "eca", "cbam"])
@pytest.mark.parametrize("training", [False, True])
def test_twins_compute_the_same(attention: str, training: bool) -> None:
    ours, theirs = blocks.twins(attention, 64)
    x = torch.randn(3, 64, 5, 6)
    torch.testing.assert_close(ours.train(training)(x), theirs.train(training)(x))
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())


def test_twins_that_differ_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "_largest_difference", lambda one, other, x: 0.5)
    with pytest.raises(InvalidInput, match=r"apart"):
        blocks.twins("se", 32)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("suite", "number"), [(blocks, 1), (tails, 2)])
def test_a_case_of_ours_runs(suite: ModuleType, number: int, training: bool) -> None:
    request = Request(names=("cbam",), device="cpu", batch=2, img_sizes=(48,), compiled=False, training=training)
    candidate = next(iter(suite.groups(request))).cases[number].build()
    timing = time(
        candidate.run, candidate.inputs, step=candidate.step, device="cpu", warmup=1, repeats=1, min_sample_ms=0
    )
    assert timing.batch == 2


def test_tails_cover_the_largest_maps_and_can_be_narrowed(monkeypatch: pytest.MonkeyPatch) -> None:
    groups = list(tails.groups(Request(device="cpu")))
    assert len({group.key for group in groups}) == len(groups) == 3 * 3 * 2 * 2
    libraries = ("timm", "plain", "ferattn")
    assert cases(groups[:1]) == [[f"{library} {mode}" for mode in ("eager", "compiled") for library in libraries]]
    found = [group.cases[0].facts() for group in groups[::12]]
    assert [(f["img_size"], f["channels"], f["height"]) for f in found] == [
        (48, 256, 12),
        (80, 256, 20),
        (224, 256, 56),
    ]
    narrow = Request(names=("se",), device="cpu", img_sizes=(48,), compiled=False, channels_last=True, training=True)
    groups = list(tails.groups(narrow))
    assert [group.cases[0].facts()["channels"] for group in groups] == [256, 512, 1024, 2048]
    assert cases(groups) == [["timm eager", "plain eager", "ferattn eager"]] * 4
    quick = list(tails.groups(Request(device="cpu", quick=True)))
    assert [group.key.split(" px")[0].split()[0] for group in quick] == ["se", "se", "cbam", "cbam"]
    monkeypatch.setattr(tails, "obstacle", lambda device: "the GPU is older than compute capability 8.0")
    on_cuda = cases(list(tails.groups(Request(device="cuda", quick=True))))[0]
    assert not any("triton" in name for name in on_cuda)
    monkeypatch.setattr(tails, "obstacle", lambda device: None)
    on_cuda = cases(list(tails.groups(Request(device="cuda", quick=True))))[0]
    assert set(on_cuda) >= {"triton eager", "triton compiled", "triton cuda_graph", "ferattn cuda_graph"}
    assert len(on_cuda) == 10


def test_facts_of_tails() -> None:
    request = Request(names=("cbam",), device="cpu", batch=2, dtype="bfloat16", compiled=False, training=True)
    timm, plain, ours = (case.facts() for case in next(iter(tails.groups(request))).cases)
    assert ours["map_bytes"] == 2 * 256 * 12 * 12 * 2
    assert ours["floor_bytes"] == timm["floor_bytes"] == 13 * ours["map_bytes"]
    assert plain["floor_bytes"] == 11 * plain["map_bytes"]
    assert (timm["library"], plain["library"], ours["library"]) == ("timm", "plain", "ferattn")
    assert (timm["attention"], plain["attention"], ours["attention"]) == ("cbam",) * 3
    assert (timm["path"], plain["path"], ours["path"]) == (None, None, "plain")
    assert timm["parameters"] == ours["parameters"] + 2 > plain["parameters"] == 512


@pytest.mark.parametrize("attention", ["se", "eca", "cbam"])
@pytest.mark.parametrize("training", [False, True])
def test_tails_compute_the_same(attention: str, training: bool) -> None:
    made = tails.tails(attention, 64)
    x, shortcut = torch.randn(2, 3, 64, 5, 6)
    assert list(made) == ["timm", "plain", "ferattn", "triton"]
    theirs, plain, ours = (made[name].train(training)(x, shortcut) for name in list(made)[:3])
    with pytest.raises(InvalidOption, match="the map is on the cpu"):  # the kernels do not give way silently
        made["triton"](x, shortcut)
    if attention == "cbam" and training:  # timm's norm in the spatial gate is at work now
        theirs = made["timm"].eval()(x, shortcut)
        ours = made["ferattn"].eval()(x, shortcut)
        assert not torch.allclose(ours, theirs, rtol=1e-4, atol=1e-4)  # its statistics have moved, ours have not
    else:
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(plain, ours, atol=1e-2)


def test_tails_that_differ_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tails._Fused, "forward", lambda self, x, shortcut: x)
    with pytest.raises(InvalidInput, match="apart"):
        tails.tails("se", 32)


def test_our_models_with_fused_tails_can_stand_beside() -> None:
    request = Request(names=("resnet18_se", "resnet18_cbam"), against=("fused", "compiled-tails"))
    (group,) = models.groups(request)
    assert [case.name for case in group.cases][3:] == [
        "fused: resnet18_se", "fused: resnet18_cbam", "compiled-tails: resnet18_se", "compiled-tails: resnet18_cbam",
    ]  # fmt: skip
    for case, way in zip(group.cases[3:], ("fused", "fused", "compiled", "compiled"), strict=True):
        assert set(explain(case.build().run).values()) == {way}
    assert models.missing_counterparts(Request(names=("cnn_se", "resnet18"), against=("fused",))) == [
        "fused has no counterpart of cnn_se, resnet18"
    ]


@pytest.mark.parametrize(
    ("suite", "request_", "message"),
    [
        (tails.groups, Request(names=("cbma",)), "did you mean 'cbam'"),
        (tails.groups, Request(in_chans=3), "--in-chans"),
        (tails.groups, Request(against=("fused",)), "timm only"),
        (tails.groups, Request(dtype="half"), "unknown dtype"),
        (models.groups, Request(names=("resnet5",)), "unknown model 'resnet5'"),
        (models.groups, Request(names=("resnt*",)), "no model matches"),
        (models.groups, Request(names=("vgg16",), img_sizes=(8,)), "8"),
        (models.groups, Request(names=("cnn",), against=("tim",)), "did you mean 'timm'"),
        (blocks.groups, Request(names=("cbma",)), "did you mean 'cbam'"),
        (blocks.groups, Request(in_chans=3), "--in-chans"),
        (blocks.groups, Request(against=("torchvision",)), "timm only"),
        (blocks.groups, Request(dtype="half"), "unknown dtype"),
    ],
)
def test_impossible_requests(suite: Any, request_: Request, message: str) -> None:
    with pytest.raises(FerattnError, match=message):
        list(suite(request_))


@pytest.mark.parametrize(
    "wrong", [{"batch": 0}, {"img_sizes": (48, 0)}, {"repeats": 0}, {"budget_s": 0.0}, {"in_chans": -1}]
)
def test_numbers_below_one(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidOption, match=r"must be"):
        Request(**wrong)


def test_the_environment_says_where_and_with_what() -> None:
    found = environment(torch.device("cpu"))
    assert found["device"]["type"] == "cpu"
    assert found["device"]["threads"] == torch.get_num_threads()
    assert found["versions"]["torch"] == torch.__version__


def test_a_package_outside_its_repository_has_no_commit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import ferattn

    monkeypatch.setattr(ferattn, "__file__", str(tmp_path / "ferattn" / "__init__.py"))
    assert environment(torch.device("cpu"))["commit"] is None


def test_only_runs_of_one_kind_share_a_file(tmp_path: Path) -> None:
    request = Request(names=("cnn",))
    old = new_record("models", request, torch.device("cpu"), "ferattn bench cnn")
    assert resume(old, new_record("models", request, torch.device("cpu"), "ferattn bench"), tmp_path) == old
    with pytest.raises(InvalidOption, match=r"settings batch: None, not 4; give another file, or --overwrite"):
        resume(old, new_record("models", replace(request, batch=4), torch.device("cpu"), ""), tmp_path)
    with pytest.raises(InvalidOption, match="suite"):
        resume(old, new_record("blocks", request, torch.device("cpu"), ""), tmp_path)
    other = copy.deepcopy(old)
    other["environment"]["versions"]["torch"] = "1.0"
    with pytest.raises(InvalidOption, match=r"environment versions torch: '1\.0'"):
        resume(other, old, tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": "other"}', '{"schema": "ferattn-bench-1"}', "\x00\xff"])
def test_a_file_that_is_no_record(tmp_path: Path, text: str) -> None:
    path = tmp_path / "record.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(InvalidInput, match=r"record\.json"):
        read_record(path)


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.name)
def test_committed_results_obey_the_schema(path: Path) -> None:
    record = read_record(path)
    jsonschema.validate(record, schema(), format_checker=jsonschema.FormatChecker())
    assert record["rows"]
    assert not (record["environment"]["commit"] or "").endswith("-dirty")


def test_the_schema_refuses_what_is_wrong() -> None:
    record = new_record("models", Request(), torch.device("cpu"), "ferattn bench")
    jsonschema.validate(record, schema())
    for wrong in ({"rows": [{}]}, {"suite": 3}, {"extra": 1}, {"rows": [{"status": "ok"}]}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(record | wrong, schema())


def test_unknown_choice_is_what_a_misspelt_block_gets() -> None:
    with pytest.raises(UnknownChoice):
        list(blocks.groups(Request(names=("simam",), device="cpu")))
