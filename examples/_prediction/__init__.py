"""What predict.py and evaluate.py share: options, a trained network, images of any size."""
