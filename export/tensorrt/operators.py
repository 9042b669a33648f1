"""Which ONNX operators TensorRT's parser has an importer for, as data: the verifier needs no installed library.

Recorded from `OnnxParser.supports_operator` of TensorRT-RTX 1.7; a test compares it with the library that is installed.
"""

from __future__ import annotations

_NAMES = """
Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh Attention AveragePool BatchNormalization
BlackmanWindow Cast CastLike CausalConvWithState Ceil Celu Clip Concat Constant ConstantOfShape Conv
ConvTranspose Cos Cosh CumSum DepthToSpace DequantizeLinear Div Dropout Einsum Elu Equal Erf Exp Expand EyeLike
Flatten Floor GRU Gather GatherElements GatherND Gelu Gemm GlobalAveragePool GlobalLpPool GlobalMaxPool Greater
GreaterOrEqual GridSample GroupNormalization HammingWindow HannWindow HardSigmoid HardSwish Hardmax Identity If
InstanceNormalization IsInf IsNaN LRN LSTM LayerNormalization LeakyRelu Less LessOrEqual LinearAttention Log
LogSoftmax Loop LpNormalization LpPool MatMul Max MaxPool Mean MeanVarianceNormalization Min Mish Mod Mul Neg
NonMaxSuppression NonZero Not OneHot Or PRelu Pad Pow QuantizeLinear RMSNormalization RNN RandomNormal
RandomNormalLike RandomUniform RandomUniformLike Range Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp
ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape Resize ReverseSequence RoiAlign
RotaryEmbedding Round STFT Scan Scatter ScatterElements ScatterND Selu Shape Shrink Sigmoid Sign Sin Sinh Size
Slice Softmax Softplus Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum Swish Tan Tanh TensorScatter
ThresholdedRelu Tile TopK Transpose Trilu Unsqueeze Upsample Where Xor
"""

SUPPORTED = frozenset(_NAMES.split())
"""Operators of the default domain that the parser imports."""

_FLOAT_NAMES = """
Erf Exp Gelu GroupNormalization InstanceNormalization LRN LayerNormalization Log LogSoftmax LpNormalization Mish Pow
RMSNormalization Reciprocal ReduceL1 ReduceL2 ReduceLogSumExp ReduceMean ReduceSum Softmax Softplus Sqrt
"""

FLOAT_ONLY = frozenset(_FLOAT_NAMES.split())
"""Operators without an integer form: quantising what only they read costs accuracy and gains nothing."""
