"""Data: labels, datasets, honest splits, leak checks, an 8-bit cache, transforms on CPU or GPU batches."""

from ferattn.data.augmentation import AUGMENTATIONS, Augmentation
from ferattn.data.cache import CachedDataset, cache
from ferattn.data.ckplus import CKPlus
from ferattn.data.contrast import equalised_share, is_equalised
from ferattn.data.dataset import Batch, FaceDataset, Item, Records
from ferattn.data.duplicates import find_duplicates
from ferattn.data.fer2013 import FER2013
from ferattn.data.folder import ImageFolder
from ferattn.data.jaffe import JAFFE
from ferattn.data.labels import EMOTIONS, FER2013_CLASSES, KAGGLE_FOLDER_ORDER, canonical, label_map
from ferattn.data.leaks import LeakReport, check_leaks
from ferattn.data.loading import SeededSampler, make_loader
from ferattn.data.mixing import Mixer, make_mixer
from ferattn.data.opening import DATASETS, open_dataset
from ferattn.data.splits import (
    SPLITS,
    Splits,
    leave_one_subject_out,
    load_splits,
    make_splits,
    random_split,
    save_splits,
    subject_kfold,
)
from ferattn.data.summary import contact_sheet, mean_and_std, summarize
from ferattn.data.transforms import VIEWS, BatchTransform, Standardize, make_transform, views
from ferattn.data.whitening import ZCA

__all__ = [
    "AUGMENTATIONS",
    "DATASETS",
    "EMOTIONS",
    "FER2013",
    "FER2013_CLASSES",
    "JAFFE",
    "KAGGLE_FOLDER_ORDER",
    "SPLITS",
    "VIEWS",
    "ZCA",
    "Augmentation",
    "Batch",
    "BatchTransform",
    "CKPlus",
    "CachedDataset",
    "FaceDataset",
    "ImageFolder",
    "Item",
    "LeakReport",
    "Mixer",
    "Records",
    "SeededSampler",
    "Splits",
    "Standardize",
    "cache",
    "canonical",
    "check_leaks",
    "contact_sheet",
    "equalised_share",
    "find_duplicates",
    "is_equalised",
    "label_map",
    "leave_one_subject_out",
    "load_splits",
    "make_loader",
    "make_mixer",
    "make_splits",
    "make_transform",
    "mean_and_std",
    "open_dataset",
    "random_split",
    "save_splits",
    "subject_kfold",
    "summarize",
    "views",
]
