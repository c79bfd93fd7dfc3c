"""Programs for those who work on lora-prep; not part of the package."""
