"""A GPU that is none: what the backend asks of CUDA and TensorRT, kept strictly, over memory of the host.

Names and numbers of arguments are those of the installed `cuda.bindings` and `tensorrt_rtx`: what is not there raises.
Device memory is memory of this process at real addresses; work is done when somebody waits for it, not before; what a
GPU would leave undefined is an error (`Fault`) or poison.
"""
