"""What each head does to the gradients of the layers below it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from spile.address import literal
from spile.errors import SupervisionError
from spile.supervision.targets import MAIN
from spile.torch.processes import several
from spile.torch.quiet import unchanged
from spile.torch.references import Given
from spile.torch.trees import called_with

if TYPE_CHECKING:
    from spile.torch.supervision import Supervised

Gradients = dict[str, list[Tensor | None]]
"""By head, one a parameter of the base."""


def diagnose(
    supervised: Supervised, inputs: Any, labels: Any, *, progress: float, ids: Any, soft_labels: Any
) -> dict[str, dict[str, float]]:
    """By layer of the base with weights of its own, in the order of its names.

    ``gradient_norm`` is that of the weighted total, ``share/main`` and ``share/<head>`` are the norm of each
    one's part over the sum of those norms, ``cosine`` is that between the main gradient and the sum of all
    heads'; NaN where one of them is 0.
    """
    if several():
        raise SupervisionError("diagnose in one process: it runs passes that the others would wait for")
    names = {
        literal(path): [
            parameter for parameter in module.parameters(recurse=False) if parameter.requires_grad
        ]
        for path, module in supervised.base.named_modules()
    }
    names = {name: parameters for name, parameters in names.items() if parameters}
    flat = [parameter for parameters in names.values() for parameter in parameters]
    with unchanged(supervised), torch.enable_grad():
        arguments = called_with(supervised.base, inputs if isinstance(inputs, tuple) else (inputs,), {})
        output = supervised(*arguments.args, **arguments.kwargs)
        given = Given(torch.as_tensor(labels, device=output.main.device), ids, soft_labels, update=False)
        parts = supervised.terms.parts(output, given, progress=progress)
        gradients: Gradients = {head: [None] * len(flat) for head in (MAIN, *supervised.heads)}
        for head, loss in parts.items():
            if loss.requires_grad:
                found = torch.autograd.grad(loss, flat, retain_graph=True, allow_unused=True)
                gradients[head] = list(found)
    layers: dict[str, dict[str, float]] = {}
    start = 0
    for name, parameters in names.items():
        stop = start + len(parameters)
        layers[name] = _of_layer(
            {head: _joined(every[start:stop], parameters) for head, every in gradients.items()}
        )
        start = stop
    return layers


def _joined(gradients: list[Tensor | None], parameters: list[Any]) -> Tensor:
    """The gradients of one layer as one vector; zeros where there are none."""
    pairs = zip(gradients, parameters, strict=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).float().flatten() for g, p in pairs])


def _of_layer(gradients: dict[str, Tensor]) -> dict[str, float]:
    norms = {head: float(torch.linalg.vector_norm(gradient)) for head, gradient in gradients.items()}
    whole = sum(norms.values())
    main = gradients[MAIN]
    heads = torch.stack([gradient for head, gradient in gradients.items() if head != MAIN]).sum(dim=0)
    below = float(torch.linalg.vector_norm(main) * torch.linalg.vector_norm(heads))
    return {
        "gradient_norm": float(torch.linalg.vector_norm(main + heads)),
        **{f"share/{head}": norm / whole if whole else float("nan") for head, norm in norms.items()},
        "cosine": float(main @ heads) / below if below else float("nan"),
    }
