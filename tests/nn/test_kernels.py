import pytest
from flax.linen import initializers

from layerwise.errors import InvalidArgumentError
from layerwise.nn.kernels import HE_NORMAL, per_layer


def test_one_initializer_goes_to_all():
    assert per_layer(HE_NORMAL, 3) == (HE_NORMAL,) * 3


def test_a_sequence_goes_in_order():
    given = [initializers.zeros, initializers.ones]
    assert per_layer(given, 2) == tuple(given)


@pytest.mark.parametrize("given", [[], [HE_NORMAL], [HE_NORMAL] * 3])
def test_a_sequence_of_another_length_is_refused(given):
    found = f"{len(given)} initializers for 2 weight layers"
    with pytest.raises(InvalidArgumentError, match=found):
        per_layer(given, 2)
