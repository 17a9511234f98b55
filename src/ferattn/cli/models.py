"""``ferattn models`` and ``ferattn show``: what there is, and what one model is made of."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

__all__ = ["models", "show"]


def models(
    pattern: Annotated[str, typer.Argument(help="Wildcard pattern, such as '*cbam*'.")] = "*",
) -> None:
    """List the first-class models."""
    from ferattn import list_models
    from ferattn.errors import UnknownChoice
    from ferattn.spec import ModelSpec

    names = list_models(pattern)
    if not names:
        spec = ModelSpec.parse(pattern.strip("*"))  # a name that is none says so, with the options
        raise UnknownChoice(f"{spec} is not listed here, but works: ferattn show {spec}.")
    table = Table("name", "backbone", "attention", "activation", box=None, header_style="bold")
    for name in names:
        spec = ModelSpec.parse(name)
        table.add_row(name, spec.backbone, spec.attention or "-", spec.activation or "its own")
    Console(soft_wrap=True).print(table)


def show(
    name: Annotated[str, typer.Argument(help="A model name, such as 'resnetv2_50_cbam_elu'.")],
    img_size: Annotated[int, typer.Option(help="Height and width of the picture in pixels.")] = 48,
    in_chans: Annotated[int, typer.Option(help="Channels of the picture.")] = 1,
    num_classes: Annotated[int, typer.Option(help="Outputs of the classifier.")] = 7,
    placement: Annotated[str | None, typer.Option(help="Where the attention blocks go.")] = None,
) -> None:
    """Show a model's sites, its parameters by part, and the shapes of its feature maps."""
    import torch

    from ferattn import create_model
    from ferattn.shapes import shapes_only

    with shapes_only():
        model: Any = create_model(
            name, img_size=img_size, in_chans=in_chans, num_classes=num_classes, placement=placement
        ).eval()
        picture = torch.empty(1, in_chans, img_size, img_size)
        with torch.no_grad():
            maps = model.forward_intermediates(picture, intermediates_only=True)
            logits = model(picture)
    console = Console(soft_wrap=True, highlight=False)
    spec = model.spec
    console.print(
        f"[bold]{spec}[/]: backbone {spec.backbone}, attention {spec.attention or 'none'}, "
        f"activation {spec.activation or 'its own'}; picture {in_chans}x{img_size}x{img_size}"
    )
    parts = Table("part", "parameters", box=None, header_style="bold", title="Parameters", title_justify="left")
    parts.columns[1].justify = "right"
    for part, count in _parameters(model).items():
        parts.add_row(part, f"{count:,}")
    console.print(parts)

    shapes = Table("map", "shape (c, h, w)", box=None, header_style="bold", title="Outputs", title_justify="left")
    for info, feature_map in zip(model.feature_info, maps, strict=True):
        shapes.add_row(info["module"], str(tuple(feature_map.shape[1:])))
    shapes.add_row("logits", str(tuple(logits.shape[1:])))
    console.print(shapes)

    if model.attention_sites:
        sites = Table("site", "channels", box=None, header_style="bold", title="Attention", title_justify="left")
        sites.columns[1].justify = "right"
        for site in model.attention_sites:
            sites.add_row(site.path, str(site.channels))
        console.print(sites)


def _parameters(model: Any) -> dict[str, int]:
    def total(module: Any) -> int:
        return sum(parameter.numel() for parameter in module.parameters())

    attention = sum(total(model.get_submodule(site.path)) for site in model.attention_sites)
    classifier = total(model.get_classifier())
    everything = total(model)
    return {
        "backbone": everything - attention - classifier,
        "attention": attention,
        "classifier": classifier,
        "all": everything,
    }
