"""What is measured on a model: calibration inputs, moments, gradients, OBS costs."""
