"""The stages that make the pocket base from nothing, run in order by `lora_studio.pocket.build`."""
