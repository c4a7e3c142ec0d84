"""Portable model server: TensorFlow Serving's API and flags on TensorFlow.

For laptops, arm64 and tests, where the official image can't run. Names, messages and orders of events follow
TensorFlow Serving 2.20's, so that a chart or a client tested against this one meets nothing new in production.
"""
