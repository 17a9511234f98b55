"""The published networks rebuilt, and their parameter counts beside ferattn's, explained to the last parameter."""

from ferattn.published.networks import BACKBONES, PublishedNetwork, build, published_count
from ferattn.published.tables import Row, printed_figures, published_tables

__all__ = [
    "BACKBONES",
    "PublishedNetwork",
    "Row",
    "build",
    "printed_figures",
    "published_count",
    "published_tables",
]
