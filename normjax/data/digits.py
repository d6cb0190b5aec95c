"""The default data set: scikit-learn's handwritten digits, available offline."""

from typing import Any

import numpy as np

from normjax.data.dataset import Dataset, Split

TEST_SIZE = 450


def load_digits() -> Dataset:
    """Load the 1,797 real 8x8 grayscale digits of scikit-learn's `load_digits`.

    Pixels are scaled from 0..16 to 0..255. The split is fixed: 1,347 training and 450 test images,
    stratified by class, in the original order.

    Source: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine
    Learning Repository, 1998 (the part that scikit-learn ships).
    """
    from sklearn import datasets, model_selection

    source: Any = datasets.load_digits()
    images = np.rint(source.images * (255 / 16)).astype(np.uint8)[..., np.newaxis]
    labels = source.target.astype(np.int32)
    train, test = model_selection.train_test_split(
        np.arange(len(labels)), test_size=TEST_SIZE, stratify=labels, random_state=0
    )
    train, test = np.sort(train), np.sort(test)
    return Dataset(
        train=Split(images[train], labels[train]),
        test=Split(images[test], labels[test]),
        class_names=tuple(str(digit) for digit in source.target_names),
        name="digits",
    )
