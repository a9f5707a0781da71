"""A function of tensors on a GPU as CUDA graphs: the host launches it once instead of a kernel at a time."""

import torch

# Shapes that are captured, for each graph takes memory; a batch of yet another shape runs kernel by kernel.
MOST_GRAPHS = 256


class Graphs:
    """Captures a function the first time that it is called with arguments of some shapes, and replays it from then on.

    The very first call runs as it is and makes what is made once, such as the state of an optimizer. All run in one stream,
    and the graphs share memory, so what a call returns is valid until the next.

    Args:
        function: of tensors on the GPU and of other hashable values. It does not wait for the device, and what else it
            reads and writes keeps its place in memory.
    """

    def __init__(self, function):
        self.function = function
        self.captured = {}  # by shapes and values: the graph, the tensors that it reads, what it returns
        self.began = False
        self.pool, self.stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream()

    def __call__(self, *arguments):
        key = tuple(tuple(value.shape) if isinstance(value, torch.Tensor) else value for value in arguments)
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            if self.began and key not in self.captured and len(self.captured) < MOST_GRAPHS:
                self.captured[key] = self._capture(arguments)
            if key not in self.captured:
                self.began = True
                result = self.function(*arguments)
            else:
                graph, own, result = self.captured[key]
                for static, value in zip(own, arguments, strict=True):
                    if isinstance(value, torch.Tensor):
                        static.copy_(value, non_blocking=True)
                graph.replay()
        torch.cuda.current_stream().wait_stream(self.stream)
        return result

    def _capture(self, arguments):
        own = [value.clone() if isinstance(value, torch.Tensor) else value for value in arguments]
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool, stream=self.stream):
            result = self.function(*own)
        return graph, own, result
