"""The network that reads digits: shapes, features, and reading in batches."""

import pytest
import torch

from slam_edu.digits.classifier import FEATURES, DigitClassifier


@pytest.fixture(scope="module")
def images():
    return 2 * torch.rand(50, 3, 32, 32, generator=torch.Generator().manual_seed(1)) - 1


@pytest.fixture(scope="module")
def network(images):
    """Untrained, but with other statistics than none, and of several opinions."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = DigitClassifier((8, 8, 16))
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(std=0.1)
    network.eval()
    with torch.no_grad():
        network.to_logits.bias -= network(images).mean(0)
    return network


def test_shapes_and_features(network, images):
    features = network.features(images)
    assert features.shape == (50, FEATURES) == (50, 128)
    assert features.min() == 0  # after a ReLU
    assert (features > 0).any(0).sum() > 30
    logits = network(images)
    assert logits.shape == (50, 10)
    expected = features @ network.to_logits.weight.T + network.to_logits.bias
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


def test_three_stages_of_two_convolutions():
    network = DigitClassifier()
    shapes = [tuple(p.shape) for p in network.parameters() if p.ndim == 4]
    assert shapes == [
        (32, 3, 3, 3), (32, 32, 3, 3), (64, 32, 3, 3), (64, 64, 3, 3), (96, 64, 3, 3),
        (96, 96, 3, 3), (128, 96, 4, 4),
    ]  # fmt: skip


def test_reading_is_the_likeliest_whatever_the_batch(network, images):
    expected = network(images).argmax(1)
    assert len(expected.unique()) > 3
    for batch in (1, 7, 50, 256):
        read = network.read(images, batch)
        assert read.dtype == torch.int64
        assert not read.requires_grad
        assert torch.equal(read, expected)


@pytest.mark.parametrize("shape", [(3, 32, 32), (2, 1, 32, 32), (2, 3, 28, 28), (2, 3, 32, 64)])
def test_wrong_shape(network, shape):
    for ask in (network, network.features, network.read):
        with pytest.raises(ValueError) as caught:
            ask(torch.zeros(shape))
        assert "; allowed: (B, 3, 32, 32)" in str(caught.value)
