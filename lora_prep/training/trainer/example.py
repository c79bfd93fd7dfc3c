"""A configuration with every table, as `lora-prep train --example` prints it."""

EXAMPLE = """\
# lora-prep train run.toml            paths are relative to this file
[model]
base = "stable-diffusion-v1-5/stable-diffusion-v1-5"   # SD 1.5, SDXL, FLUX.1, FLUX.2 Klein
dtype = "auto"                      # bfloat16 on CUDA; the LoRA itself is in float32

[data]
images = "data/faces"               # with .txt captions; masks/ beside it
# priors = "data/priors"            # class images: half of each batch
# prior_caption = "a photo of a person"
caption = "a photo of sks person"   # for images without one
resolution = 512
crop = "center"                     # random, face

[lora]
rank = 16
targets = "all.attn"                # see lora-prep targets MODEL

[train]
steps = 1000
batch_size = 1
accumulate = 1
learning_rate = 1e-4
optimizer = "adamw"                 # adamw8bit, paged-adamw8bit, lion8bit (bitsandbytes), sgd
warmup = 0
decay = "constant"                  # linear, cosine
clip = 1.0
ema = 0.0                           # 0.999 to save a moving average
gradient_checkpointing = false
seed = 0

# The loss. One base term: diffusion, masked, face_weighted, slider or paired_slider.
[losses.masked]
normalize = "sample"

[losses.inverted_mask_prior]        # outside the mask, stay with the base model
weight = 0.5

# [losses.prior_preservation]       # needs [data] priors and an even batch_size
# weight = 1.0

# [losses.output_preservation]      # needs [preserve]
# weight = 1.0
# [preserve]
# prompt = "a photo of a person"

# [losses.identity]                 # needs [identity] and lora-prep embed
# weight = { to = 0.1, over = 500 }
# every = 4
# [identity]
# recogniser = "models/buffalo_l/w600k_r50.onnx"
# decoder = "models/taesd"

# [losses.slider]                   # instead of masked; needs [slider]
# strength = 4.0
# [slider]
# positive = "a photo of a smiling person"
# negative = "a photo of a frowning person"
# target = "a photo of a person"

[save]
out = "output"
name = "sks"
namings = ["diffusers", "comfyui", "kohya"]
dtype = "float32"
every = 250                         # steps between checkpoints
keep = 2

[validation]
prompts = ["a photo of sks person, smiling"]
every = 250
steps = 20

[log]
every = 10
tensorboard = false
"""
