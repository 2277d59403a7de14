"""What is measured on a model: calibration inputs, moments, gradients, the closed form."""
