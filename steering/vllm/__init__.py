"""The engine for production GPUs: vLLM runs the batch, Scopebase's own hooks and tables steer it.

vLLM is imported by nobody but `start`, when a model is loaded with this engine.
"""
