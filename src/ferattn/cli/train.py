"""``ferattn train`` and ``ferattn recipes``: a model, a recipe, a dataset, a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

__all__ = ["recipes", "train"]


def recipes(
    name: Annotated[str | None, typer.Argument(help="A recipe, or the path of a TOML file.")] = None,
) -> None:
    """List the recipes, or show what one takes from its paper, what it chose, and its settings."""
    from ferattn.training import list_recipes, load_page

    console = Console(soft_wrap=True, highlight=False)
    if name is None:
        table = Table("recipe", "variants", "what it is", box=None, header_style="bold")
        for entry in list_recipes():
            page = load_page(entry)
            table.add_row(entry, ", ".join(page.variants) or "-", page.summary)
        console.print(table)
        return
    page = load_page(name)
    console.print(f"{page.name}: {page.summary}\n{page.source}", markup=False)
    for title, topics in (("What the paper says", page.says), ("What was chosen", page.chose)):
        if topics:
            console.print(f"\n{title}", style="bold")
        for topic, text in topics.items():
            console.print(f"  {topic}: {text}", markup=False)
    tables = {"settings": page.settings}
    tables |= {f"on {kind}": changes for kind, changes in page.datasets.items()}
    tables |= {f"variant {variant}": changes for variant, changes in page.variants.items()}
    for title, settings in tables.items():
        console.print(f"\n{title}", style="bold")
        for key, value in settings.items():
            console.print(f"  {key} = {value!r}", markup=False)


def train(
    data: Annotated[Path, typer.Option(help="A folder, a zip or a CSV file with the images.")],
    out: Annotated[Path, typer.Option(help="The folder of the run; the same command goes on with it.")],
    recipe: Annotated[str, typer.Option(help="See `ferattn recipes`; or the path of a TOML file.")] = "strong",
    model: Annotated[str, typer.Option(help="See `ferattn models`.")] = "cnn_se",
    variant: Annotated[str | None, typer.Option(help="A variant of the recipe.")] = None,
    change: Annotated[list[str] | None, typer.Option("--set", help="Another value: KEY=VALUE, as in TOML.")] = None,
    seed: Annotated[int, typer.Option(help="Of weights, order, augmentation and dropout.")] = 0,
    dataset: Annotated[str | None, typer.Option(help="fer2013, ckplus, jaffe or folder; else guessed.")] = None,
    split_seed: Annotated[int, typer.Option(help="Of random splits; keep it while --seed changes.")] = 0,
    fold: Annotated[int, typer.Option(help="Which fold, where the split has several.")] = 0,
    limit: Annotated[int | None, typer.Option(help="At most so many images in each part: a smoke run.")] = None,
    warm_start: Annotated[
        list[Path] | None,
        typer.Option(
            help="Begin with the weights of a finished run or a .safetensors file; repeated, with their mean."
        ),
    ] = None,
    teachers: Annotated[
        list[str] | None,
        typer.Option(
            "--teacher",
            help="Learn from its answers too: a finished run, a model's published weights, local-dir:FOLDER.",
        ),
    ] = None,
    accelerator: Annotated[str, typer.Option(help="auto, cpu or gpu.")] = "auto",
    devices: Annotated[int, typer.Option(help="Processes on each machine.")] = 1,
    num_nodes: Annotated[int, typer.Option(help="Machines.")] = 1,
    precision: Annotated[str, typer.Option(help="fp32, bf16 or fp16.")] = "fp32",
    compile_model: Annotated[bool, typer.Option("--compile", help="Compile the model.")] = False,
    channels_last: Annotated[bool, typer.Option(help="Channels-last memory format.")] = False,
    deterministic: Annotated[
        bool, typer.Option(help="Operations that repeat bit by bit; on a GPU set CUBLAS_WORKSPACE_CONFIG=:4096:8.")
    ] = False,
    checkpoint_epochs: Annotated[int, typer.Option(help="Epochs between the checkpoints to resume from.")] = 1,
    checkpoints: Annotated[
        bool, typer.Option(help="Without them a run saves disk space, and begins anew when it was interrupted.")
    ] = True,
    tensorboard: Annotated[bool, typer.Option(help="Write logs for TensorBoard.")] = True,
    progress: Annotated[bool, typer.Option(help="Show a progress bar.")] = True,
) -> None:
    """Train a model by a recipe; keep the best epoch; test it once."""
    from ferattn.cli.jobs import Job, carry_out

    job = Job(
        data=data,
        out=out,
        recipe=recipe,
        model=model,
        variant=variant,
        change=change,
        seed=seed,
        dataset=dataset,
        split_seed=split_seed,
        fold=fold,
        limit=limit,
        warm_start=warm_start,
        teachers=teachers,
        accelerator=accelerator,
        devices=devices,
        num_nodes=num_nodes,
        precision=precision,
        compile_model=compile_model,
        channels_last=channels_last,
        deterministic=deterministic,
        checkpoint_epochs=checkpoint_epochs,
        checkpoints=checkpoints,
        tensorboard=tensorboard,
        progress=progress,
    )
    run = carry_out(job)
    if run.finished:
        _print_results(run.results, run.path)


def _print_results(results: dict[str, Any], path: Path) -> None:
    test = results["test"]
    low, high = test["accuracy_interval"]["low"], test["accuracy_interval"]["high"]
    Console(soft_wrap=True, highlight=False).print(
        f"{path}: epoch {results['best_epoch'] + 1} of {results['epochs']} was best; {test['dataset']}: accuracy "
        f"{test['accuracy']:.2%} ({low:.2%} to {high:.2%}), {test['images']} images; classes: "
        f"{', '.join(test['classes'])}",
        markup=False,
    )
