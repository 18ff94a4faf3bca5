"""What the loss Modules share."""

from torch import nn


class LossModule(nn.Module):
    """A loss function with its settings kept as plain attributes; no parameters, no buffers."""

    def extra_repr(self) -> str:
        settings = {name: value for name, value in vars(self).items() if not name.startswith("_")}
        settings.pop("training")
        return ", ".join(f"{name}={value!r}" for name, value in settings.items())
