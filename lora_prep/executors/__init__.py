"""Where stages run. Each executor takes the same stages, unchanged."""
