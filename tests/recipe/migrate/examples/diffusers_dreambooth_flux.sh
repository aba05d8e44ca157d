accelerate launch train_dreambooth_lora_flux.py `
  --pretrained_model_name_or_path="black-forest-labs/FLUX.1-dev" --instance_data_dir="C:\data\dog" `
  --output_dir="trained-flux-lora" --mixed_precision="bf16" --instance_prompt="a photo of sks dog" `
  --resolution=512 --train_batch_size=1 --guidance_scale=1 --gradient_accumulation_steps=4 `
  --optimizer="prodigy" --learning_rate=1. --report_to="wandb" --lr_scheduler="constant" --lr_warmup_steps=0 `
  --max_train_steps=500 --validation_prompt="A photo of sks dog in a bucket" --validation_epochs=25 --seed="0" `
  --rank=16 --lora_alpha=8 --weighting_scheme=logit_normal --cache_latents
