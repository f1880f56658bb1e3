"""The TroL model as short torch modules, and its lowering to ONNX.

`model.build_model(config)` gives the modules; `eager` runs them (the reference); `roles` are the functions that become
one graph each; `lowering` turns a traced role into ONNX.
"""
