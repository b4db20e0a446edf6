"""What a run takes on one device or many, before it is started: `Costs`, `Run`, `layouts`; ``ipvae plan``."""

from .costs import Costs, Run
from .layouts import Layout, layouts

__all__ = ["Costs", "Layout", "Run", "layouts"]
