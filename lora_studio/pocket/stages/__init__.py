"""The stages that make the pocket base from nothing: vae, then clip, then unet. Run by `lora_studio.pocket.build`."""
