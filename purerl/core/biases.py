"""Biases of layers in compiled programs for a CPU.

TorchInductor lets MKL add a bias to a product, which means to copy it to every row of the result
first. Added afterwards, by the kernel that reads the result anyway, it costs next to nothing, and
rounds as XLA does. (A module of its own because TorchInductor takes a second to import.)
"""

import torch
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files


class BiasesApart(CustomGraphPass):
    """Undoes TorchInductor's fusion of a product and the bias that is added to it."""

    def __call__(self, graph: torch.fx.Graph) -> None:
        aten = torch.ops.aten
        for node in graph.find_nodes(op='call_function', target=aten.addmm.default):
            if node.kwargs:  # of a scaled sum
                continue
            bias, x, y = node.args
            with graph.inserting_before(node):
                product = graph.call_function(aten.mm.default, (x, y))
                result = graph.call_function(aten.add.Tensor, (product, bias))
            for new in (product, result):
                new.meta.update(node.meta)
            node.replace_all_uses_with(result)
            graph.erase_node(node)

    def uuid(self) -> bytes:
        return get_hash_for_files((__file__,))
