"""CUDA graphs of a function of tensors: the host launches the whole function at once instead of one kernel at a time."""

import torch

# Each graph takes memory: at most this many shapes are captured, and other shapes run kernel by kernel.
MAX_GRAPHS = 256


class Graphs:
    """Captures a function at its first call with arguments of given shapes, and replays the graph afterwards.

    The very first call is not captured: it creates one-time state, such as that of an optimizer. All calls run in one
    stream, and the graphs share memory, so a result is valid until the next call.

    Args:
        function: takes tensors on the GPU and other hashable values. It must not wait for the device, and everything else
            that it reads and writes must keep its place in memory.
    """

    def __init__(self, function):
        self.function = function
        self.captured = {}  # by shapes and values: the graph, its input tensors, its result
        self.began = False
        self.pool, self.stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream()

    def __call__(self, *arguments):
        key = tuple(tuple(value.shape) if isinstance(value, torch.Tensor) else value for value in arguments)
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            if self.began and key not in self.captured and len(self.captured) < MAX_GRAPHS:
                self.captured[key] = self._capture(arguments)
            if key not in self.captured:
                self.began = True
                result = self.function(*arguments)
            else:
                graph, inputs, result = self.captured[key]
                for static, value in zip(inputs, arguments, strict=True):
                    if isinstance(value, torch.Tensor):
                        static.copy_(value, non_blocking=True)
                graph.replay()
        torch.cuda.current_stream().wait_stream(self.stream)
        return result

    def _capture(self, arguments):
        inputs = [value.clone() if isinstance(value, torch.Tensor) else value for value in arguments]
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool, stream=self.stream):
            result = self.function(*inputs)
        return graph, inputs, result
