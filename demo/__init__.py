"""The demo's own tiny base model, its drawn character and its measure. Not part of the node pack.

`install.install_models(models_dir)` writes the model files; `prompts.evaluation_prompts()` gives the
fixed prompts; `attributes.identity_share(images, captions.TARGET)` measures the result.
"""
