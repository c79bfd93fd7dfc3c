"""lora-prep: prepare face and object data sets for LoRA training."""

__version__ = "0.1.0"
