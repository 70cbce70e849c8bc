"""Converts BlazePose's two networks from TensorFlow Lite to ONNX: detector.onnx and landmarks.onnx beside this file.

The repository contains both converted networks, so this program is needed only to check them. It needs two packages:

    npm pack @mediapipe/pose@0.5.1675469404
    python -m pip install tflite==2.18.0 onnx
    python -m pipelines.annotate.blazepose.convert mediapipe-pose-0.5.1675469404.tgz

Values are NCHW inside the networks, as ONNX requires, and NHWC at their inputs and outputs, as in the published files.
Constants stay in half precision, as they were published, and are converted to single precision when a network is
loaded. Sparse constants become dense. Outputs that Duet does not use are left out, and so are the operators that only
these outputs need. tests/pipelines/test_blazepose.py compares the results with those of LiteRT.
"""

import importlib
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

tflite: Any = importlib.import_module("tflite")

# For each network, the file in the npm package and the outputs that Duet uses. The detector's file consists of
# pose_detection.tflite and nothing else.
NETWORKS = {
    "detector": ("package/pose_solution_packed_assets.data", ("Identity", "Identity_1")),
    "landmarks": ("package/pose_landmark_full.tflite", ("Identity", "Identity_1", "Identity_3")),
}
KINDS = {code: name for name, code in vars(tflite.BuiltinOperator).items() if isinstance(code, int)}
TYPES = {tflite.TensorType.FLOAT32: "<f4", tflite.TensorType.FLOAT16: "<f2", tflite.TensorType.INT32: "<i4"}
INDEX_TYPES = {tflite.SparseIndexVector.Uint8Vector: tflite.Uint8Vector}
INDEX_TYPES |= {tflite.SparseIndexVector.Uint16Vector: tflite.Uint16Vector}
INDEX_TYPES |= {tflite.SparseIndexVector.Int32Vector: tflite.Int32Vector}
TO_NCHW, TO_NHWC = (0, 3, 1, 2), (0, 2, 3, 1)


class Converter:
    """Converts the only graph of a .tflite file.

    It has a method for each kind of operator, which appends ONNX nodes.
    """

    def __init__(self, content: bytes):
        self.model = tflite.Model.GetRootAsModel(content, 0)
        self.graph = self.model.Subgraphs(0)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}
        # Constant results of DENSIFY and DEQUANTIZE, by the number of the tensor.
        self.folded: dict[int, np.ndarray] = {}

    def convert(self, name: str, outputs: tuple[str, ...]) -> onnx.ModelProto:
        """Build the ONNX model that computes these outputs of the graph."""
        source, names = self.graph.Inputs(0), {self.name(number): number for number in self.graph.OutputsAsNumpy()}
        image = self.name(source)
        self.nodes.append(helper.make_node("Transpose", [f"{image}_nhwc"], [image], perm=TO_NCHW))
        for number in range(self.graph.OperatorsLength()):
            self.operator(self.graph.Operators(number))
        results = []
        for output in outputs:
            shape = self.shape(names[output])
            perm = TO_NHWC if len(shape) == 4 else range(len(shape))
            self.nodes.append(helper.make_node("Transpose", [output], [f"{output}_nhwc"], perm=perm))
            results.append(helper.make_tensor_value_info(f"{output}_nhwc", TensorProto.FLOAT, shape))
        nodes, needed = [], {result.name for result in results}
        for node in reversed(self.nodes):
            if needed & set(node.output):
                nodes.insert(0, node)
                needed |= set(node.input)
        constants = [numpy_helper.from_array(value, key) for key, value in self.constants.items() if key in needed]
        inputs = [helper.make_tensor_value_info(f"{image}_nhwc", TensorProto.FLOAT, self.shape(source))]
        graph = helper.make_graph(nodes, name, inputs, results, constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        onnx.checker.check_model(model, full_check=True)
        return model

    def operator(self, operator: Any) -> None:
        code = self.model.OperatorCodes(operator.OpcodeIndex())
        kind = KINDS[max(code.BuiltinCode(), code.DeprecatedBuiltinCode())]
        inputs, output = operator.InputsAsNumpy().tolist(), operator.Outputs(0)
        if kind in ("DENSIFY", "DEQUANTIZE") and self.is_constant(inputs[0]):
            self.folded[output] = self.constant(inputs[0])
        elif kind == "CONV_2D":
            self.convolution(self.options(operator, tflite.Conv2DOptions), inputs, output, depthwise=False)
        elif kind == "DEPTHWISE_CONV_2D":
            self.convolution(self.options(operator, tflite.DepthwiseConv2DOptions), inputs, output, depthwise=True)
        elif kind == "MAX_POOL_2D":
            options = self.options(operator, tflite.Pool2DOptions)
            kernel = (options.FilterHeight(), options.FilterWidth())
            self.add(
                "MaxPool", inputs, output, options, kernel_shape=kernel, **self.window(options, inputs, output, kernel)
            )
        elif kind == "ADD":
            self.add("Add", inputs, output, self.options(operator, tflite.AddOptions))
        elif kind == "CONCATENATION":
            options = self.options(operator, tflite.ConcatenationOptions)
            # If there were four axes, the number of the axis would have to be converted to NCHW.
            assert len(self.shape(output)) == 3
            self.add("Concat", inputs, output, options, axis=options.Axis())
        elif kind == "LOGISTIC":
            self.add("Sigmoid", inputs, output)
        elif kind == "DEPTH_TO_SPACE":
            size = self.options(operator, tflite.DepthToSpaceOptions).BlockSize()
            self.add("DepthToSpace", inputs, output, blocksize=size, mode="DCR")
        elif kind == "RESIZE_BILINEAR":
            assert self.options(operator, tflite.ResizeBilinearOptions).HalfPixelCenters()
            batch, height, width, channels = self.shape(output)
            sizes = self.store(output, "sizes", np.array([batch, channels, height, width], np.int64))
            self.add("Resize", [*inputs[:1], "", "", sizes], output, mode="linear")
        elif kind == "PAD":
            before, after = self.constant(inputs[1])[list(TO_NCHW)].T
            pads = self.store(output, "pads", np.concatenate([before, after]).astype(np.int64))
            self.add("Pad", [inputs[0], pads], output)
        elif kind == "RESHAPE":
            flat, shape = inputs[0], self.store(output, "shape", np.array(self.shape(output), np.int64))
            if len(self.shape(flat)) == 4:  # TFLite reshapes the values in the order of NHWC
                self.nodes.append(helper.make_node("Transpose", [self.name(flat)], [f"{flat}/nhwc"], perm=TO_NHWC))
                flat = f"{flat}/nhwc"
            self.add("Reshape", [flat, shape], output)
        else:
            raise NotImplementedError(kind)

    def convolution(self, options: Any, inputs: list[int], output: int, depthwise: bool) -> None:
        weights = self.constant(inputs[1])  # [output channels, height, width, input channels], or [1, h, w, channels]
        weights = weights.transpose(3, 0, 1, 2) if depthwise else weights.transpose(TO_NCHW)
        kernel = weights.shape[2:]
        names = [
            inputs[0],
            self.store(output, "weights", weights),
            self.store(output, "bias", self.constant(inputs[2])),
        ]
        assert options.DilationHFactor() == options.DilationWFactor() == 1
        groups = len(weights) if depthwise else 1
        self.add("Conv", names, output, options, group=groups, **self.window(options, inputs, output, kernel))

    def window(self, options: Any, inputs: list[int], output: int, kernel: tuple[int, ...]) -> dict[str, Any]:
        """Stride and padding of a convolution or pooling. Padding `SAME` puts the odd pixel at the end."""
        strides, pads = (options.StrideH(), options.StrideW()), (0, 0)
        if options.Padding() == tflite.Padding.SAME:
            sizes = zip(self.shape(inputs[0])[1:3], self.shape(output)[1:3], kernel, strides, strict=True)
            pads = tuple(max(0, (after - 1) * step + side - before) for before, after, side, step in sizes)
        return {"strides": strides, "pads": [pad // 2 for pad in pads] + [pad - pad // 2 for pad in pads]}

    def add(self, kind: str, inputs: list[Any], output: int, options: Any = None, **attributes: Any) -> None:
        """Append a node, and its activation if it has one. `inputs`: the number or the name of each tensor."""
        names = [self.name(key) if isinstance(key, int) else key for key in inputs]
        activation = options.FusedActivationFunction() if options else tflite.ActivationFunctionType.NONE
        result = self.name(output)
        if activation == tflite.ActivationFunctionType.NONE:
            self.nodes.append(helper.make_node(kind, names, [result], **attributes))
            return
        self.nodes.append(helper.make_node(kind, names, [f"{result}/linear"], **attributes))
        if activation == tflite.ActivationFunctionType.RELU6:
            limits = [self.store(output, "low", np.float16(0)), self.store(output, "high", np.float16(6))]
            self.nodes.append(helper.make_node("Clip", [f"{result}/linear", *limits], [result]))
        else:
            assert activation == tflite.ActivationFunctionType.RELU
            self.nodes.append(helper.make_node("Relu", [f"{result}/linear"], [result]))

    def store(self, output: int, what: str, value: Any) -> str:
        """Store a constant for the operator that computes `output`. Returns the name by which operators read it."""
        key = f"{self.name(output)}/{what}"
        self.constants[key] = np.array(value)
        if self.constants[key].dtype != np.float16:
            return key
        self.nodes.append(helper.make_node("Cast", [key], [f"{key}/single"], to=TensorProto.FLOAT))
        return f"{key}/single"

    def name(self, number: int) -> str:
        return self.graph.Tensors(number).Name().decode()

    def shape(self, number: int) -> list[int]:
        return self.graph.Tensors(number).ShapeAsNumpy().tolist()

    def is_constant(self, number: int) -> bool:
        return number in self.folded or self.model.Buffers(self.graph.Tensors(number).Buffer()).DataLength() > 0

    def constant(self, number: int) -> np.ndarray:
        """The value of a constant tensor as a dense array."""
        if number in self.folded:
            return self.folded[number]
        tensor = self.graph.Tensors(number)
        values = self.model.Buffers(tensor.Buffer()).DataAsNumpy().view(TYPES[tensor.Type()])
        return values.reshape(self.shape(number)) if tensor.Sparsity() is None else self.dense(tensor, values)

    def dense(self, tensor: Any, values: np.ndarray) -> np.ndarray:
        """Convert a sparse tensor (compressed sparse rows: all axes but the last are dense) to a dense array."""
        sparsity, shape = tensor.Sparsity(), tensor.ShapeAsNumpy()
        assert sparsity.BlockMapLength() == 0
        assert sparsity.TraversalOrderAsNumpy().tolist() == list(range(len(shape)))
        last = sparsity.DimMetadata(len(shape) - 1)
        starts = indices(last.ArraySegments(), last.ArraySegmentsType())
        columns = indices(last.ArrayIndices(), last.ArrayIndicesType())
        result = np.zeros((len(starts) - 1, shape[-1]), values.dtype)
        result[np.repeat(np.arange(len(result)), np.diff(starts)), columns] = values
        return result.reshape(shape)

    @staticmethod
    def options(operator: Any, kind: Any) -> Any:
        options, table = kind(), operator.BuiltinOptions()
        options.Init(table.Bytes, table.Pos)
        return options


def indices(table: Any, kind: int) -> np.ndarray:
    """The numbers in an index vector of a sparse tensor."""
    vector = INDEX_TYPES[kind]()
    vector.Init(table.Bytes, table.Pos)
    return vector.ValuesAsNumpy().astype(np.int64)


def main(package: Path) -> None:
    """Write both networks from the npm package, a .tgz file."""
    with tarfile.open(package) as archive:
        for name, (member, outputs) in NETWORKS.items():
            file = archive.extractfile(member)
            assert file is not None
            onnx.save(Converter(file.read()).convert(name, outputs), Path(__file__).with_name(f"{name}.onnx"))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
