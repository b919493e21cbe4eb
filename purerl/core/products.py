"""Large float32 matrix products on a CPU, by oneDNN instead of MKL.

torch multiplies float32 matrices with MKL. oneDNN, which torch has for its convolutions, takes 15%
less time on AMD's processors for what InFOM's networks multiply, and up to half of it where a layer
is wider than its inputs (docs/performance.md). Below `_LARGE` MKL's lower overhead wins.
"""

import math

import torch

from purerl.core import native

_LARGE = 2**26  # multiplications: 256 x 512 by 512 x 512

_library = torch.library.Library('purerl', 'FRAGMENT')
_library.define('product(Tensor x, Tensor y) -> Tensor', tags=(torch.Tag.pt2_compliant_tag,))


def _product_kernel(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return torch.ops.mkldnn._linear_pointwise.default(x, y.mT, None, 'none', [], '')


_library.impl('product', torch.library.fallthrough_kernel, 'Autograd')
torch.library.register_fake(
    'purerl::product', lambda x, y: x.new_empty(x.shape[0], y.shape[1]), lib=_library
)


def is_available() -> bool:
    """Whether this torch has oneDNN."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, '_linear_pointwise')


if not (is_available() and native.register(['product'], ('torch', 'onednn'))):
    _library.impl('product', _product_kernel, 'CPU')


def by_onednn(graph: torch.fx.Graph) -> None:
    """Replace the large matrix products in a traced graph, in place."""
    for node in list(graph.nodes):
        if node.target is not torch.ops.aten.mm.default:
            continue
        x, y = node.args
        if not _gains(x.meta['val'], y.meta['val']):
            continue
        with graph.inserting_before(node):
            if not x.meta['val'].is_contiguous():
                # oneDNN would make this copy too, and take longer.
                layout = {'memory_format': torch.contiguous_format}
                x = graph.call_function(torch.ops.aten.clone.default, (x,), layout)
            product = graph.call_function(torch.ops.purerl.product.default, (x, y))
        product.meta.update(node.meta)
        node.replace_all_uses_with(product)
        graph.erase_node(node)


def _gains(x: torch.Tensor, y: torch.Tensor) -> bool:
    return (
        x.device.type == 'cpu'
        and x.dtype == torch.float32
        and math.prod((*x.shape, y.shape[1])) >= _LARGE
        and (y.is_contiguous() or y.mT.is_contiguous())
    )
