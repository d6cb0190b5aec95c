"""A measure of generalization: how augmented images change the predictions.

See `measures` for conventions.
"""

import numpy as np
from scipy.special import softmax

from normjax.generalization.sample import augment
from normjax.generalization.trained_network import TrainedNetwork

PENALTIES = {
    "flip": 6,
    "saturation": 1,
    "crop": 2,
    "edges": 3,
    "brightness": 1,
    "flip_saturation": 12,
    "erasure": 2,
}
"""What a changed prediction costs, by augmentation, as in the authors' public code."""


def augmentation_penalty(network: TrainedNetwork) -> float:
    """Return the mean penalty for predictions that seven augmentations change.

    If the predicted class is the same, the penalty is the change of its probability, else the
    entry in `PENALTIES`; the penalties of one image are added. Source: Aithal, Kashyap and
    Subramanyam, "Robustness to Augmentations as a Generalization Metric" (2021), first runner-up
    of the competition "Predicting Generalization in Deep Learning" (NeurIPS 2020). NaN for inputs
    that are not images. Batch normalization: does not matter, the function is the same.
    """
    if network.sample.x.ndim != 4:
        return float("nan")
    plain = softmax(network.hidden.logits.astype(np.float64), axis=1)
    total = np.zeros(len(plain))
    for name, x in augment(network.sample).items():
        other = softmax(network.logits_of(x).astype(np.float64), axis=1)
        change = np.abs(plain.max(axis=1) - other.max(axis=1))
        is_same = plain.argmax(axis=1) == other.argmax(axis=1)
        total += np.where(is_same, change, PENALTIES[name])
    return float(total.mean())
