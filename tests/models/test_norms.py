"""A norm with relu, both eager and compiled, and the shift of channels in time before a block."""

import torch
from torch.fx.experimental.proxy_tensor import make_fx

from models.layers import Norm, shift_frames


def results(run):
    """Return the result, the gradients of input, weight and bias, and the running statistics of a norm with relu."""
    torch.manual_seed(0)
    bn = Norm(5)
    torch.nn.init.uniform_(bn.weight, -1, 1)
    torch.nn.init.normal_(bn.bias)
    bn.weight.data[1] = bn.bias.data[1] = 0  # a channel that is 0 everywhere, where relu's gradient is 0
    x = torch.randn(4, 5, 3, 7, requires_grad=True)
    y = run(bn, x)
    assert bn.running_mean is not None
    grads = torch.autograd.grad(y, (x, bn.weight, bn.bias), torch.randn(y.shape))
    return [y, *grads, bn.running_mean, bn.running_var]


def test_compiled_and_eager_relu_are_the_same():
    compiled = torch.compile(lambda bn, x: bn(x, "relu"), backend="eager", fullgraph=True)
    for one, other in zip(results(compiled), results(lambda bn, x: bn(x, "relu")), strict=True):
        assert torch.equal(one, other)
    bn, x = Norm(2), torch.randn(2, 2, 3, 3)
    x[0, 0] = float("nan")
    assert compiled(bn, x)[:, 0].isnan().all()  # relu must not turn a NaN into 0
    assert not compiled(bn, x)[:, 1].isnan().any()


def test_compiled_relu_keeps_nothing_of_its_result():
    """Relu's gradient needs only a mask, which the compiler can recompute from tensors that the norm stores anyway."""
    graph = torch.compile(lambda bn, x: bn(x, "relu"), backend="eager", fullgraph=True)
    bn, x = Norm(5), torch.randn(4, 5, 3, 7, requires_grad=True)
    y = graph(bn, x)
    assert type(y.grad_fn).__name__ == "WhereBackward0"
    assert type(bn(x, "relu").grad_fn).__name__ == "ReluBackward0"
    # in evaluation, and so in an export, the norm uses torch's own relu
    assert type(graph(bn.eval(), x).grad_fn).__name__ == "ReluBackward0"


def test_shifting_makes_no_four_dimensional_tensors_except_images():
    """Inductor makes every 4-D tensor channels_last before a convolution, so shift_frames uses 5-D tensors instead."""
    images = torch.randn(6, 8, 5, 7).contiguous(memory_format=torch.channels_last)
    graph = make_fx(lambda x: shift_frames(x, 3, 2))(images)
    values = [node.meta.get("val") for node in graph.graph.nodes]
    sizes = [tuple(value.shape) for value in values if isinstance(value, torch.Tensor)]
    made = [size for size in sizes if len(size) == 4]
    assert len(sizes) > 5
    assert {size[0] for size in made} == {6}
    assert all(8 in (size[1], size[3]) for size in made)
