"""Which implementation serves a call: the CPU, CUDA and Triton backends, and the choice between them.

Each backend says by ``reason()`` why it cannot serve on this machine, and by ``unserved(tensors)`` why not
these tensors. "eager" and "autograd" are plain PyTorch and always serve.
"""
