"""Our objects in and out of files: generators, LoRA layers, adapters."""
