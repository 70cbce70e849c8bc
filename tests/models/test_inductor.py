"""One block of each kind, compiled by Inductor, has the same outputs, gradients and buffers as without compilation."""

import shutil
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from models.config import X3DStreamConfig
from models.epam import PoseAttention
from models.pcan import PrototypeContrast, diversity
from models.resnet_path import Bottleneck
from models.rgbpose_conv3d import FeatureInteraction
from models.x3d_shift import X3DBlock
from tests.kernels.variants import a_share
from tests.models.small import stir
from tests.parity.published import without_dropout
from trainer.runtime.wrap import INDUCTOR

pytestmark = pytest.mark.skipif(
    shutil.which("g++") is None, reason="there is no C++ compiler, so Inductor cannot be tested"
)

SHIFTING = X3DStreamConfig(widths=(16,), blocks=(1,), stem_stride=1, shift_divisor=4)


class Contrast(nn.Module):
    """PCAN's contrastive module: scores of false positives and of false negatives, and the prototypes' diversity."""

    def __init__(self) -> None:
        super().__init__()
        self.contrast = PrototypeContrast(16, 12, 5)

    def forward(self, feature: Tensor, logits: Tensor, label: Tensor, parent_right: Tensor) -> tuple[Tensor, ...]:
        scores, prototypes = self.contrast.contrast(feature, logits, label, parent_right)
        return *scores, diversity(prototypes)


def draw(*shape: int) -> Tensor:
    """Return random numbers as a leaf tensor. With four dimensions, the tensor is a feature map in channels_last."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))
    return (x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x).requires_grad_()


BLOCKS: dict[str, tuple[Callable[[], nn.Module], tuple]] = {
    "X3D shift block": (lambda: X3DBlock(SHIFTING, 0, 0, 12), (draw(6, 12, 7, 5), 3)),
    "bottleneck over three frames": (lambda: Bottleneck(12, 16, 2, True), (draw(6, 12, 7, 5), 3)),
    "EPAM's attention": (PoseAttention, (draw(12, 8, 7, 5), 6)),
    "PCAN's contrast": (
        Contrast,
        (draw(9, 16), draw(9, 5), torch.tensor([0, 4, 1, 1, 2, 3, 3, 0, 2]), torch.arange(9) % 3 > 0),
    ),
    "PCAN's interaction": (lambda: FeatureInteraction(16, 8, 4), (draw(4, 16, 5, 3), draw(16, 8, 5, 3), 2)),
}


def outcome(called: Callable, net: nn.Module, inputs: tuple) -> dict[str, Tensor]:
    """Run forward and backward. Returns the outputs, the buffers, and the gradients of all inputs and parameters."""
    leaves = [x for x in inputs if isinstance(x, Tensor) and x.requires_grad]
    for tensor in (*leaves, *net.parameters()):
        tensor.grad = None
    outputs = called(*inputs)
    outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
    sum((x * torch.linspace(-1, 1, x.numel()).view_as(x)).sum() for x in outputs).backward()
    found = {f"output {i}": x.detach() for i, x in enumerate(outputs)}
    found |= {f"gradient of input {i}": x.grad for i, x in enumerate(leaves)}
    found |= {f"gradient of {name}": p.grad for name, p in net.named_parameters()}
    return found | {name: b.clone() for name, b in net.named_buffers()}


# `make test` compiles only the block that torch once compiled wrongly, because other tests of `make test` compile whole
# networks.
@pytest.mark.parametrize("kind", a_share(BLOCKS, slow=BLOCKS.keys() - {"PCAN's contrast"}, every=1))
def test_compiled_block_equals_eager(kind):
    torch._dynamo.reset()
    torch.manual_seed(0)
    make, inputs = BLOCKS[kind]
    net = without_dropout(stir(make()))
    start = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    expected = outcome(net, net, inputs)
    net.load_state_dict(start)
    got = outcome(torch.compile(net, fullgraph=True, dynamic=False, options=INDUCTOR), net, inputs)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
