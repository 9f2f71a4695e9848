"""Files of the project's own objects: generators, LoRA layers, adapters."""
