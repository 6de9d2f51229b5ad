"""The Keras 3 side of spile, on the TensorFlow, JAX and torch backends. The only place that imports keras."""
