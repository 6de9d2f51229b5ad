"""The PyTorch backend: the only place that imports torch, torchvision, timm or transformers."""

import sys


def _keep_triton_out() -> None:
    """Where TensorFlow is loaded already, let Triton seem not to be there.

    CUDA builds of PyTorch load Triton as soon as torchvision, or whatever traces, is imported. It brings
    LLVM as TensorFlow does, and on Linux Triton after TensorFlow ends the process (TensorFlow 2.21, PyTorch
    2.15; the other order is fine). Nothing but `torch.compile` on a GPU needs it.
    """
    loaded = "tensorflow.python.pywrap_tensorflow" in sys.modules  # `tensorflow` alone may be a stand-in
    if loaded and sys.platform == "linux":
        sys.modules.setdefault("triton", None)  # type: ignore[arg-type]


_keep_triton_out()
