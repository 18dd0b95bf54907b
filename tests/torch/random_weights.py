"""Weights for fresh models of transformers. It is read where PyTorch is missing too, so it imports it late."""


def lively(model, seed):
    """The initial values of a model hide errors; these do not."""
    import torch

    torch.manual_seed(seed)
    with torch.no_grad():
        for name, x in model.named_parameters():
            if "A_log" in name:
                x.add_(0.3 * torch.randn_like(x))
            elif "norm" in name or name.endswith(".D"):
                x.copy_(1 + 0.3 * torch.randn_like(x))
            else:
                x.copy_(torch.randn_like(x) * (x.shape[-1] ** -0.5 if x.ndim > 1 else 0.3))
    return model.eval()
