"""A local web page to accept, reject and repair masks.

`session` is the data set's side, `segment` the models', `app` the web's; `static` is the page,
served as it lies there. What was decided is read with `lora_prep.decisions`.
"""
