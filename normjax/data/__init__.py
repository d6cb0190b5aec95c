"""Image classification data, loaded with `load_dataset`; one source per file."""

from normjax.data.dataset import Dataset, Split, dataset_label, standardize_images
from normjax.data.labels import corrupt_labels
from normjax.data.load import load_dataset

__all__ = [
    "Dataset",
    "Split",
    "corrupt_labels",
    "dataset_label",
    "load_dataset",
    "standardize_images",
]
