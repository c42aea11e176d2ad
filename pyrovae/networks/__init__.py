"""Neural networks that keep leading dimensions: ``(*batch, *in) -> (*batch, *out)``.

A network does not depend on priors, likelihoods or posteriors. It maps the trailing *event* dimensions of its input and
keeps all leading dimensions, because a likelihood is called with ``z`` of shape ``(num_samples, N, latent)`` as well as
``(N, latent)``.
"""

from pyrovae.networks.convolutional import conv_decoder, conv_encoder, residual_decoder, residual_encoder
from pyrovae.networks.dense import gated_mlp, mlp
from pyrovae.networks.inputs import Batched, Joint, ZeroFilled, as_mask, log1p, split

__all__ = [
    "Batched",
    "Joint",
    "ZeroFilled",
    "as_mask",
    "conv_decoder",
    "conv_encoder",
    "gated_mlp",
    "log1p",
    "mlp",
    "residual_decoder",
    "residual_encoder",
    "split",
]
