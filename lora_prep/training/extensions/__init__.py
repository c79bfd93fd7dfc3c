"""lora-prep's losses inside other trainers: `ai_toolkit` and `musubi`.

Each is a mixin that overrides the one method in which that trainer computes its loss. The trainers
themselves are imported only when asked for. docs/extensions.md says how to set them up, and how to
patch diffusers' example scripts.
"""
