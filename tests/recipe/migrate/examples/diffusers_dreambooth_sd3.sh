accelerate launch train_dreambooth_lora_sd3.py \
  --pretrained_model_name_or_path=stabilityai/stable-diffusion-3-medium-diffusers --instance_data_dir=dog \
  --output_dir=trained-sd3-lora --mixed_precision="fp16" --instance_prompt="a photo of sks dog" --resolution=1024 \
  --train_batch_size=1 --gradient_accumulation_steps=4 --learning_rate=4e-4 --report_to="tensorboard" \
  --lr_scheduler="constant" --lr_warmup_steps=0 --max_train_steps=500 --weighting_scheme="logit_normal" --seed=0
