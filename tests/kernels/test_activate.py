"""kernels/activate.cu against backends/cpu/activate.py."""

from __future__ import annotations

import numpy as np
import pytest

from llamagpu.backends.cpu.activate import activate
from llamagpu.backends.cuda import recurrent_launches
from llamagpu.backends.cuda.device import Device
from llamagpu.backends.cuda.matrix import upload_vector
from llamagpu.backends.recurrent import Activation
from tests.kernels.harness import TOLERANCE_F32, Arrays, Case, download_rows, random, twin_tests, upload_rows


def case(activation: Activation, width: int, n: int, biased: bool = False, scale: int = 2) -> Case:
    x = random(n, width) * np.float32(scale)
    bias = random(1, width, seed=1)[0] * np.float32(scale) if biased else None

    def run(device: Device) -> Arrays:
        y = upload_rows(device, x)
        on_device = None if bias is None else upload_vector(device, bias)
        recurrent_launches.activate(device, on_device, activation, width, n, y)
        return {"y": download_rows(device, y, width)}

    def twin() -> Arrays:
        return {"y": activate(x, activation, bias)}

    name = f"{activation.name} {width} x{n}{' biased' * biased}{f' scale {scale}' * (scale != 2)}"
    return Case(name, run, twin, TOLERANCE_F32)


CASES = [case(activation, width, n, n > 1) for activation in Activation for width, n in ((1, 1), (100, 3), (300, 12))]
CASES += [case(activation, 140, 2, True, 300) for activation in Activation]  # where exp overflows
CASES += [case(Activation.TANH, width, 2, width > 128) for width in (127, 128, 129, 1030)]
SMALL = [case(activation, width, 2, width > 128) for activation in Activation for width in (128, 145)]
test_twin, test_random_orders, test_checking_build, test_small = twin_tests(CASES, SMALL)


@pytest.mark.parametrize("activation", Activation)
def test_what_is_not_a_number_stays_so(activation: Activation, device: Device) -> None:
    """Damaged weights must be seen at the end, where the sampler looks."""
    y = upload_rows(device, np.full((1, 3), np.nan, np.float32))
    recurrent_launches.activate(device, None, activation, 3, 1, y)
    assert np.isnan(device.download(y)[0, :3]).all()
    assert np.isnan(activate(np.full((1, 3), np.nan, np.float32), activation)).all()


def test_values_of_the_functions() -> None:
    """The twin itself, by hand: at -1 and 1."""
    x = np.asarray([[-1, 1]], np.float32)
    expected = {
        Activation.NONE: (-1, 1),
        Activation.TANH: (-0.76159416, 0.76159416),
        Activation.SIGMOID: (0.26894142, 0.73105858),
        Activation.SILU: (-0.26894142, 0.73105858),
        Activation.SQUARED_RELU: (0, 1),
        Activation.DECAY6: (0.69220063, 0.06598804),
        Activation.DECAY7: (0.84948828, 0.64184429),
    }
    assert set(expected) == set(Activation)
    for activation, values in expected.items():
        assert np.allclose(activate(x, activation)[0], values, rtol=1e-6)
        assert np.allclose(activate(x - 2, activation, np.asarray([2, 2], np.float32))[0], values, rtol=1e-6)
