accelerate launch --num_processes 2 train_text_to_image_lora_sdxl.py \
  --pretrained_model_name_or_path="stabilityai/stable-diffusion-xl-base-1.0" \
  --pretrained_vae_model_name_or_path="madebyollin/sdxl-vae-fp16-fix" \
  --train_data_dir="./train" --resolution=1024 --center_crop --random_flip \
  --train_batch_size=2 --gradient_accumulation_steps=4 --scale_lr --learning_rate=1e-5 \
  --max_train_steps=1500 --lr_scheduler="cosine" --lr_warmup_steps=100 --snr_gamma=5.0 --noise_offset=0.05 \
  --rank=16 --use_8bit_adam --mixed_precision="bf16" --train_text_encoder --gradient_checkpointing \
  --checkpoints_total_limit=3 --output_dir=out
