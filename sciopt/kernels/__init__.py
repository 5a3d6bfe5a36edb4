"""Kernels: wide networks (NNGP, NTK), the empirical NTK, RBF, Hamming, linear; evaluated in tiles, with gradients."""

from sciopt.kernels.abstract import AbstractActivation, AbstractKernel, AbstractNetwork
from sciopt.kernels.activations import Erf, LeakyRelu
from sciopt.kernels.convolution import ConvNetwork
from sciopt.kernels.dense import DenseNetwork
from sciopt.kernels.empirical import EmpiricalNTK
from sciopt.kernels.letters import AlikeLetters
from sciopt.kernels.moments import kernel_moments
from sciopt.kernels.nystrom import ColumnNystrom, pivoted_cholesky
from sciopt.kernels.parameters import kernel_tensors, with_kernel_tensors
from sciopt.kernels.simple import RBF, Embedded, Hamming, Linear
from sciopt.kernels.tiles import cross_matrix, gram, kernel_operator, kernel_product
from sciopt.kernels.wide import NNGP, NTK

__all__ = [
    "NNGP",
    "NTK",
    "AlikeLetters",
    "RBF",
    "AbstractActivation",
    "AbstractKernel",
    "AbstractNetwork",
    "ColumnNystrom",
    "ConvNetwork",
    "DenseNetwork",
    "Embedded",
    "EmpiricalNTK",
    "Erf",
    "Hamming",
    "LeakyRelu",
    "Linear",
    "cross_matrix",
    "gram",
    "kernel_moments",
    "kernel_operator",
    "kernel_product",
    "kernel_tensors",
    "pivoted_cholesky",
    "with_kernel_tensors",
]
