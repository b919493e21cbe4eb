"""Large matrix products by oneDNN: which ones, and that they are the same products."""

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from purerl.core import jit, products

pytestmark = pytest.mark.skipif(not products.is_available(), reason='this torch has no oneDNN')

PRODUCT = torch.ops.purerl.product.default


def rewritten(function, *arguments):
    graph = make_fx(function, tracing_mode='fake')(*arguments)
    products.by_onednn(graph.graph)
    graph.recompile()
    return graph, [node.target for node in graph.graph.nodes if node.op == 'call_function']


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize('transpose_x', [False, True])
@pytest.mark.parametrize('transpose_y', [False, True])
def test_large_products_stay_the_same(transpose_x, transpose_y):
    x = normal(512, 256) if transpose_x else normal(256, 512)
    y = normal(640, 512, seed=1) if transpose_y else normal(512, 640, seed=1)

    def multiply(x, y):
        return (x.mT if transpose_x else x) @ (y.mT if transpose_y else y)

    graph, targets = rewritten(multiply, x, y)
    assert PRODUCT in targets and torch.ops.aten.mm.default not in targets
    assert (torch.ops.aten.clone.default in targets) == transpose_x
    expected = multiply(x.double(), y.double()).float()
    torch.testing.assert_close(graph(x, y), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    'x, y',
    [
        (normal(256, 256), normal(256, 256)),  # small
        (normal(2, 256, 512), normal(2, 512, 512)),  # several at once
        (normal(256, 512).double(), normal(512, 512).double()),
        (normal(256, 512), normal(512, 1024)[:, ::2]),  # a layout that oneDNN would copy
    ],
)
def test_others_are_left_alone(x, y):
    _, targets = rewritten(torch.matmul, x, y)
    assert PRODUCT not in targets


def test_compiled_gradients_equal_eager_ones():
    def loss(kernel, x):
        return (x @ kernel).square().mean()

    kernel, x = normal(512, 512), normal(256, 512, seed=1)
    gradient = jit.jit(torch.func.grad(loss), mode='inductor')
    torch.testing.assert_close(gradient(kernel, x), torch.func.grad(loss)(kernel, x))
    torch.testing.assert_close(gradient(kernel, x), gradient(kernel, x), rtol=0, atol=0)


@pytest.mark.parametrize('transposed', [False, True])
def test_the_kernel_in_c_is_the_one_in_python(transposed):
    x = normal(64, 32)
    y = normal(3, 48, 32)[1].mT if transposed else normal(3, 32, 48)[1]
    assert torch.equal(PRODUCT(x, y), products._product_kernel(x, y))


def test_matrices_that_do_not_fit_are_an_error():
    with pytest.raises(RuntimeError, match='oneDNN cannot multiply these matrices'):
        PRODUCT(normal(4, 3), normal(4, 5))
