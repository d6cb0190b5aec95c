"""The paper's networks as the training code takes them."""

from normjax.networks.classifier import make_classifier
from normjax.networks.models import make_model


def classifier_of(name, image_shape=(8, 8, 1), num_classes=10, batch_norm=False):
    """A network of the paper, by default for digits."""
    model = make_model(name, num_classes, batch_norm=batch_norm)
    return make_classifier(model, image_shape, num_classes)
