"""The model card of a finished run: what it is, how good, made from what, how to make it again, where it must not be.

Every figure comes from the run's files and from the evaluations made when the card is written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ferattn.data.contrast import mostly
from ferattn.training.folder import with_defaults
from ferattn.training.lineage import began_with

__all__ = ["DATA_TERMS", "make_card"]

DATA_TERMS = {
    "FER2013": (
        "FER2013 (Goodfellow et al. 2013, arXiv 1307.0414): pictures that a web search found, given out for "
        "research; the rights in the single pictures lie with others. Use these weights for research only."
    ),
    "CK+": (
        "CK+ (Lucey et al. 2010): given out for research under an agreement with its makers. Use these weights for "
        "research only."
    ),
    "JAFFE": (
        "JAFFE (Lyons et al. 1998): given out for non-commercial scientific research. Use these weights for that "
        "only."
    ),
}
"""What the datasets' makers allow, by the dataset's name."""

_LAW = (
    "Emotion inference at work and in education is forbidden in the European Union, but for medical or safety "
    "reasons (Regulation (EU) 2024/1689, the AI Act, article 5(1)(f)); elsewhere the people whose faces are read "
    "must be told (article 50(3)). Faces are personal data: ask before you use them."
)


def make_card(facts: Mapping[str, Any]) -> str:
    """The card as Markdown, under the header that model hubs read.

    Args:
        facts: What a shipment's ``config.json`` says, see ``ferattn ship``.
    """
    about, made = facts["pretrained_cfg"], facts["ferattn"]
    name, tag = facts["architecture"], about["tag"]
    dataset = made["config"]["data"]["dataset"]
    lines = [
        "---",
        "library_name: timm",
        "license: other",
        f"license_name: {about['license']}",
        "tags: [image-classification, facial-expression-recognition, timm, ferattn]",
        "---",
        "",
        "<!-- card -->",
        f"# {name}.{tag}",
        "",
        f"`{name}` of ferattn, {made['parameters'] / 1e6:.2f} M parameters, trained on {dataset} by the recipe "
        f"`{made['config']['recipe_name']}`. It names the expression of a face that has been cropped out already: "
        f"{', '.join(facts['label_names'])}, in this order.",
        "",
        *_use(facts),
        *_figures(made),
        *_making(facts),
        "## Data and licence",
        "",
        made["terms"],
        "ferattn's code is under Apache-2.0; that does not extend to what others' pictures are in.",
        "",
        "## Limits",
        "",
        f"- It was tested on {dataset} alone. Other cameras, other cropping, other people: expect less, and measure.",
        "- It tells how raters would label a picture, not what the person feels; raters disagree, and so do labels.",
        f"- {_weakest(made)}",
        *_of_fer2013(dataset),
        "- Nobody knows who is in the pictures, so nothing is known of differences between groups of people."
        if made["subjects"] is None
        else f"- Its pictures show {made['subjects']} people.",
        "- A picture without a face gets an answer too. Detect first.",
        "",
        "## Where it must not be used",
        "",
        _LAW,
        "",
    ]
    return "\n".join(lines)


def _of_fer2013(dataset: str) -> list[str]:
    if dataset != "FER2013":
        return []
    return [
        "- Many of FER2013's test pictures have a copy in its training set, which `ferattn data check` counts. The "
        "figures above count all test pictures."
    ]


def _use(facts: Mapping[str, Any]) -> list[str]:
    about, made = facts["pretrained_cfg"], facts["ferattn"]
    channels, height, width = about["input_size"]
    temperature = made["temperature"]
    # Options beside the name are in the folder's config, and not in the name.
    where = "local-dir:FOLDER" if facts["model_args"] else facts["architecture"]
    return [
        "## Use",
        "",
        "```python",
        "import ferattn  # first: it makes the model known to timm",
        "import timm",
        "",
        f'model = timm.create_model("{where}", pretrained=True).eval()',
        "```",
        "",
        f"{'Grey' if channels == 1 else 'Colour'} pictures of {height}x{width} pixels, divided by 255"
        + (
            ", and no more."
            if set(about["mean"]) == {0} and set(about["std"]) == {1}
            else f", minus {_numbers(about['mean'])}, divided by {_numbers(about['std'])}."
        )
        + (
            ""
            if temperature is None
            else f" For probabilities divide the logits by {temperature:.3f}, fitted on the validation images, "
            "before the softmax."
        ),
        "",
        *_contrast(made),
        f"`ferattn predict PICTURE --model {where}` finds the faces in a photograph, prepares them "
        "so, and says what each shows.",
        "",
    ]


def _contrast(made: Mapping[str, Any]) -> list[str]:
    share = made.get("equalised_share")
    if share is None or not mostly(share):
        return []
    return [
        f"Of the pictures that it learnt from {100 * share:.0f} % are histogram-equalised. Equalise yours with "
        "`ferattn.faces.histogram_equalise`, but not twice. Of copies of the data that are not equalised expect "
        "other figures than these.",
        "",
    ]


def _figures(made: Mapping[str, Any]) -> list[str]:
    lines = [
        "## Figures",
        "",
        "With 95 % intervals in brackets. Test-time views never replace the plain figures.",
        "",
    ]
    lines += ["| test images | views | number | accuracy, % | macro F1 | calibration error | NLL |"]
    lines += ["|---|---|---|---|---|---|---|"]
    for part, by_views in made["figures"].items():
        for views, figures in by_views.items():
            f1, ece, nll = (_with_interval(figures, name) for name in ("macro_f1", "ece", "nll"))
            lines.append(f"| {part} | {views} | {figures['images']} | {_percent(figures)} | {f1} | {ece} | {nll} |")
            calibrated = figures.get("calibrated")
            if calibrated is not None:
                ece, nll = (_with_interval(calibrated, name) for name in ("ece", "nll"))
                lines.append(
                    f"| {part} | {views}, calibrated | {figures['images']} | the same | the same | {ece} | {nll} |"
                )
    for part, by_views in made["figures"].items():
        figures = by_views["none"]
        lines += ["", f"Each class on {part}, without views:", ""]
        lines += ["| class | images | recall, % | precision, % |", "|---|---|---|---|"]
        for name in figures["classes"]:
            lines.append(
                f"| {name} | {figures['recall'][name]['images']} | {_share(figures['recall'][name])} "
                f"| {_share(figures['precision'][name])} |"
            )
    return [*lines, "", "![Loss, accuracy and learning rate by epoch](curves.png)", ""]


def _making(facts: Mapping[str, Any]) -> list[str]:
    made = facts["ferattn"]
    config, rounding, versions = made["config"], made["rounding"], made["versions"]
    data = config["data"]
    images = data["images"]
    if data["select_on"] == data["test_on"]:
        chosen = (
            f"The best epoch (number {made['best_epoch'] + 1} of {made['epochs']}{_planned(versions)}) was chosen on "
            f"the test images ({images['test']}) themselves: the figures are too good."
        )
    else:
        learnable = images["train"] + (images["validation"] if made["validation_from_train"] else 0)
        chosen = (
            f"Of {learnable} training images, {images['train']} were learnt from; the best epoch (number "
            f"{made['best_epoch'] + 1} of {made['epochs']}{_planned(versions)}) was chosen on {images['validation']} "
            f"others ({data['select_on']}), none of which is among the {images['test']} test images."
        )
    split = f"split `{config['recipe']['split']}`, split seed {config['split_seed']}, fold {config['fold']}"
    return [
        "## How it was made",
        "",
        f"{_began(config)}{chosen} Division: {split}.{_placed(config)} Seed {config['seed']}, one run: another seed "
        "gives other figures.",
        "",
        "```sh",
        *made["commands"],
        "```",
        "",
        f"{made['seconds'] / 3600:.1f} hours on {versions.get('device')}, {versions.get('threads')} threads, "
        f"{config['machine']['precision']}; Python {versions.get('python')}, torch {versions.get('torch')}, "
        f"timm {versions.get('timm')}, lightning {versions.get('lightning')}.",
        "",
        f"The file holds half precision. On the {rounding['images']} test images that changes the logits by "
        f"{100 * rounding['logit_change']:.3f} % (root mean square; at most {rounding['largest_logit_change']:.4f}), "
        f"{rounding['answers_changed']} answers, and the accuracy from {100 * rounding['accuracy_before']:.2f} % to "
        f"{100 * rounding['accuracy_after']:.2f} %. All figures above are of the file."
        + (f" {made['norms_folded']} batch norms were folded into convolutions." if made["norms_folded"] else ""),
        "",
    ]


def _placed(config: Mapping[str, Any]) -> str:
    place = config["recipe"].get("placement", "own")
    return "" if place == "own" else f" Attention blocks: placement `{place}`."


def _planned(versions: Mapping[str, Any]) -> str:
    """The numbers of epochs that were asked for before, if any."""
    before = versions.get("epochs_before", ())
    return f"; asked for before: {', '.join(map(str, before))}" if before else ""


def _began(config: Mapping[str, Any]) -> str:
    told = f"It began with {_weights(config)}. " if began_with(config) else ""
    taught = [f"`{link['config']['model']}`, {_told(link['config'])}" for link in config.get("teachers", ())]
    if taught:
        settings = config["recipe"]
        told += (
            f"It learnt from the answers of {' and of '.join(taught)}, too (knowledge distillation, weight "
            f"{settings['distill_weight']:g}, temperature {settings['distill_temperature']:g}). "
        )
    return f"{told}Images and hours below are of the last run alone. " if told else ""


def _weights(config: Mapping[str, Any], what: str = "the weights") -> str:
    """What a run began with, and what those runs had begun with."""
    links = [link["config"] for link in began_with(config)]
    runs = [
        f"{_told(link)}{apart}" + (f", which began with {_weights(link, 'those')}" if began_with(link) else "")
        for link, apart in zip(links, _apart(links), strict=True)
    ]
    if len(runs) == 1:
        return f"{what} of {runs[0]}"
    return f"the mean of {what} of {len(runs)} runs ({'; '.join(runs)})"


def _apart(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """In which settings, beside recipe and seed, runs differ from each other."""
    settings = [
        {key: config.get(key) for key in ("variant", "split_seed", "fold", "limit")}
        | dict(with_defaults(config)["recipe"])
        for config in configs
    ]
    keys = [key for key in settings[0] if any(one.get(key) != settings[0][key] for one in settings)]
    return ["".join(f", {key} {one.get(key)}" for key in keys) for one in settings]


def _told(config: Mapping[str, Any]) -> str:
    taught = [f"`{link['config']['model']}`" for link in config.get("teachers", ())]
    return f"a run on {config['data']['dataset']} by the recipe `{config['recipe_name']}`, seed {config['seed']}" + (
        f" (taught by {', '.join(taught)})" if taught else ""
    )


def _weakest(made: Mapping[str, Any]) -> str:
    part, by_views = next(iter(made["figures"].items()))
    recall = {name: entry for name, entry in by_views["none"]["recall"].items() if entry["value"] is not None}
    worst = min(recall, key=lambda name: float(recall[name]["value"]))
    return (
        f"It is worst at {worst}: of {recall[worst]['images']} such pictures in {part} it finds "
        f"{_share(recall[worst])} %."
    )


def _numbers(values: Any) -> str:
    return " / ".join(f"{value:g}" for value in values)


def _percent(figures: Mapping[str, Any]) -> str:
    ends = figures["accuracy_interval"]
    return f"{100 * figures['accuracy']:.2f} ({100 * ends['low']:.2f} to {100 * ends['high']:.2f})"


def _with_interval(figures: Mapping[str, Any], name: str) -> str:
    ends = figures[f"{name}_interval"]
    return f"{figures[name]:.3f} ({ends['low']:.3f} to {ends['high']:.3f})"


def _share(entry: Mapping[str, Any]) -> str:
    if entry["value"] is None:
        return "-"
    ends = entry["interval"]
    return f"{100 * entry['value']:.1f} ({100 * ends['low']:.1f} to {100 * ends['high']:.1f})"
