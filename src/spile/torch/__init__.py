"""The PyTorch backend: the only place that imports torch, torchvision, timm or transformers."""
