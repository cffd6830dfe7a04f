"""Layers that are told their sizes at each call and remember none of them. They import torch alone.

The input width is read from the input; the caller says the output width and the kernel. A smaller layer is a window of
the largest one: the first channels, the centre of the kernel (Once-for-All; BigNAS section 3; Slimmable Networks).
"""

from nas.elastic.conv import ElasticConv2d as ElasticConv2d
from nas.elastic.linear import ElasticLinear as ElasticLinear
from nas.elastic.norm import ElasticBatchNorm2d as ElasticBatchNorm2d
from nas.elastic.recompute import recomputed as recomputed
from nas.elastic.squeeze_excite import ElasticSqueezeExcite as ElasticSqueezeExcite
